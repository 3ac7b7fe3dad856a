"""The card of the Space: the front matter of its README.md, which tells the Hub how to build and run it.

Source: the Hub's manual, "Spaces Configuration Reference".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from errors import PromptOrTuneError

ROOT = Path(__file__).resolve().parents[1]
CARD = Path(__file__).parent / "README.md"
REQUIREMENTS = ROOT / "requirements.txt"

MAX_SHORT_DESCRIPTION = 60
_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
_COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
_REQUIRED_KEYS = ("title", "emoji", "sdk", "sdk_version", "python_version", "app_file", "license", "short_description")


def front_matter(text: str) -> dict[str, Any]:
    """The values between the '---' lines at the top of a card; PromptOrTuneError where there are none."""
    found = _FRONT_MATTER.match(text)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as fault:
        raise PromptOrTuneError(f"The front matter of {CARD.name} is no YAML: {_first_line(fault)}.") from fault
    if not isinstance(values, dict):
        raise PromptOrTuneError(f"{CARD.name} has no front matter: begin it with lines between '---' and '---'.")
    return values


def check_card(text: str, requirements: str) -> dict[str, Any]:
    """The card's front matter; PromptOrTuneError in one sentence where the Hub would refuse it or build something else."""
    values = front_matter(text)
    missing = [key for key in _REQUIRED_KEYS if not values.get(key)]
    if missing:
        raise PromptOrTuneError(f"The front matter of {CARD.name} lacks {', '.join(missing)}: add it.")
    short = str(values["short_description"])
    if len(short) > MAX_SHORT_DESCRIPTION:
        raise PromptOrTuneError(
            f"The short_description of {CARD.name} has {len(short)} characters and {MAX_SHORT_DESCRIPTION} are "
            "allowed: shorten it."
        )
    for key in ("colorFrom", "colorTo"):
        if values.get(key) not in _COLORS:
            raise PromptOrTuneError(
                f"The {key} of {CARD.name} is {values.get(key)!r}: choose one of {', '.join(_COLORS)}."
            )
    wanted, given = pinned_version("gradio", requirements), str(values["sdk_version"])
    if given != wanted:
        raise PromptOrTuneError(
            f"The sdk_version of {CARD.name} is {given} and requirements.txt pins gradio {wanted}: write {wanted}."
        )
    return values


def pinned_version(package: str, requirements: str) -> str:
    """The version that `requirements` pins for a package; PromptOrTuneError where it pins none."""
    found = re.search(rf"^{re.escape(package)}==([^\s;#]+)", requirements, re.MULTILINE)
    if not found:
        raise PromptOrTuneError(f"requirements.txt pins no version of {package}: add {package}==VERSION.")
    return found[1]


def with_thumbnail(text: str, address: str) -> str:
    """The card with the picture that is shown where people share the Space's address."""
    return text.replace("\n---\n", f"\nthumbnail: {address}\n---\n", 1)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
