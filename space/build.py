"""Files and card of the Space.

Puts exactly the files that a Space needs into a folder: the rooms, the library, the runs that Results shows.

The card of the Space: the front matter of its README.md, which tells the Hub how to build and run it.

Source: the Hub's manual, "Spaces Configuration Reference".
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
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
    except yaml.YAMLError as error:
        raise PromptOrTuneError(f"The front matter of {CARD.name} is no YAML: {_first_line(error)}.") from error
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


MAX_BYTES = 30_000_000
# Rooms go along whole; what stands around them (tests, benchmarks, docs, this package) is for those who develop.
PACKAGES = ("adapters", "evaluate", "jobs", "serve", "tasks", "train", "ui")
TOP_LEVEL_FILES = ("app.py", "errors.py", "LICENSE", "requirements.txt")
# The Results page reads the runs and the scores beside them; the reports, plots and tables are made from these.
RESULTS_DIR = "docs/results"
_RUN_ENDINGS = (".jsonl", ".jsonl.gz")
_SKIPPED_NAMES = ("__pycache__",)
_SKIPPED_ENDINGS = (".pyc", ".pyo", ".orig", ".rej", ".swp", "~")
SCREENSHOT = ROOT / "docs" / "screenshots" / "compare.png"
THUMBNAIL = "thumbnail.png"


@dataclass(frozen=True)
class BuiltSpace:
    """What was written: the folder, its files as paths within it, sorted, and their bytes together."""

    folder: Path
    files: tuple[str, ...]
    size: int


def build_space(folder: Path, *, overwrite: bool = False, repo_id: str | None = None) -> BuiltSpace:
    """Writes the Space into `folder`; the same checkout gives the same files, byte for byte.

    With `repo_id` the card names the Space's own thumbnail, which needs its address. PromptOrTuneError in one sentence
    where the folder holds something and may not be overwritten, or the card or the size is wrong; nothing is then
    written. With `overwrite` the folder holds the Space alone afterwards.
    """
    wanted = space_files(repo_id)
    size = sum(_size(source) for source in wanted.values())
    if size > MAX_BYTES:
        raise PromptOrTuneError(
            f"The Space would have {size / 1e6:.1f} MB and {MAX_BYTES / 1e6:.0f} MB is the limit: take something large "
            "out of adapters/library or docs/results."
        )
    _clear_folder(folder, overwrite)
    for name, source in wanted.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
        target.chmod(0o644)
    return BuiltSpace(folder, tuple(wanted), size)


def space_files(repo_id: str | None = None) -> dict[str, Path | bytes]:
    """What a Space consists of: paths within it, sorted, with the file, or the text, that belongs there."""
    card = CARD.read_text(encoding="utf-8")
    check_card(card, REQUIREMENTS.read_text(encoding="utf-8"))
    found: dict[str, Path | bytes] = {name: ROOT / name for name in TOP_LEVEL_FILES}
    for room in PACKAGES:
        found |= {_repo_path(path): path for path in _iter_files(ROOT / room)}
    found |= {_repo_path(path): path for path in _iter_files(ROOT / RESULTS_DIR) if path.name.endswith(_RUN_ENDINGS)}
    found["packages.txt"] = CARD.with_name("packages.txt")
    if repo_id is not None:
        # Addresses of a Space's files are the Hub's own, whatever endpoint this machine uses.
        card = with_thumbnail(card, f"https://huggingface.co/spaces/{repo_id}/resolve/main/{THUMBNAIL}")
        found[THUMBNAIL] = SCREENSHOT
    found["README.md"] = card.encode()
    return dict(sorted(found.items()))


def is_project_file(path: str) -> bool:
    """Whether a file of a published Space is one that some version of this program put there."""
    first = path.split("/", 1)[0]
    return (
        first in PACKAGES
        or path in (*TOP_LEVEL_FILES, "packages.txt", "README.md", THUMBNAIL)
        or path.startswith(f"{RESULTS_DIR}/")
    )


def _iter_files(folder: Path) -> Iterator[Path]:
    """All files under `folder` that are no leftovers of tools; links are not followed out of the checkout."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part in _SKIPPED_NAMES for part in parts)
        if not hidden and path.is_file() and not path.is_symlink() and not path.name.endswith(_SKIPPED_ENDINGS):
            yield path


def _repo_path(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _clear_folder(folder: Path, overwrite: bool) -> None:
    """An empty `folder`. What is deleted is only ever a Space that was built before."""
    if folder.exists() and not folder.is_dir():
        raise PromptOrTuneError(f"{folder} is a file: name a folder for the Space.")
    there = list(folder.iterdir()) if folder.is_dir() else []
    if there and not overwrite:
        raise PromptOrTuneError(f"The folder {folder} is not empty: name another one, or add --overwrite.")
    strange = [path.name for path in there if not is_project_file(path.name) and path.name not in ("docs", ".git")]
    if strange:
        raise PromptOrTuneError(
            f"The folder {folder} holds more than a Space ({', '.join(sorted(strange)[:3])}): name another one."
        )
    try:
        for path in there:
            if path.is_dir() and not path.is_symlink():
                if path.name != ".git":  # a clone of the Space stays one
                    shutil.rmtree(path)
            else:
                path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PromptOrTuneError(
            f"The folder {folder} cannot be written ({error.strerror}): name another one."
        ) from error
