"""Files of the Space: which files of the checkout it needs, and the check of its card.

A Space holds the packages of the program, the adapter library and the runs that the Results page shows. Its card is the
front matter of README.md, which tells the Hub how to build and run it (source: the Hub's manual, "Spaces Configuration
Reference").
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.format import format_bytes
from errors import PromptOrTuneError

ROOT = Path(__file__).resolve().parents[1]
CARD = Path(__file__).parent / "README.md"
REQUIREMENTS = ROOT / "requirements.txt"

MAX_SHORT_DESCRIPTION = 60
_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
_COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
_REQUIRED_KEYS = ("title", "emoji", "sdk", "sdk_version", "python_version", "app_file", "license", "short_description")


def front_matter(text: str) -> dict[str, Any]:
    """Return the values between the '---' lines at the top of a card; raises PromptOrTuneError where there are none."""
    found = _FRONT_MATTER.match(text)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise PromptOrTuneError(f"The front matter of {CARD.name} is no YAML: {_first_line(error)}.") from error
    if not isinstance(values, dict):
        raise PromptOrTuneError(f"{CARD.name} has no front matter: begin it with lines between '---' and '---'.")
    return values


def check_card(text: str, requirements: str) -> dict[str, Any]:
    """Return the card's front matter; raises PromptOrTuneError for a card that the Hub would refuse."""
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
    pinned, sdk_version = pinned_version("gradio", requirements), str(values["sdk_version"])
    if sdk_version != pinned:
        raise PromptOrTuneError(
            f"The sdk_version of {CARD.name} is {sdk_version} and requirements.txt pins gradio {pinned}: "
            f"write {pinned}."
        )
    return values


def pinned_version(package: str, requirements: str) -> str:
    """Return the version of a package that `requirements` pins; raises PromptOrTuneError without a pin."""
    found = re.search(rf"^{re.escape(package)}==([^\s;#]+)", requirements, re.MULTILINE)
    if not found:
        raise PromptOrTuneError(f"requirements.txt pins no version of {package}: add {package}==VERSION.")
    return found[1]


def with_thumbnail(text: str, address: str) -> str:
    """Return the card with the picture that is displayed where people share the Space's address."""
    return text.replace("\n---\n", f"\nthumbnail: {address}\n---\n", 1)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


MAX_BYTES = 40_000_000
# Copied whole. Tests, benchmarks, docs and the rest of this package are needed for development only.
PACKAGES = ("adapters", "advise", "common", "evaluate", "jobs", "models", "serve", "tasks", "train", "ui")
TOP_LEVEL_FILES = ("app.py", "errors.py", "LICENSE", "requirements.txt")
SPACE_FILES = ("space/__init__.py", "space/settings.py")  # what app.py imports of this package
# The Results page reads the runs and the scores beside them; reports, plots and tables are generated from these.
RESULTS_DIR = "docs/results"
_RUN_ENDINGS = (".jsonl", ".jsonl.gz")
_SKIPPED_NAMES = ("__pycache__",)
_SKIPPED_ENDINGS = (".pyc", ".pyo", ".orig", ".rej", ".swp", "~")
SCREENSHOT = ROOT / "docs" / "screenshots" / "compare.png"
THUMBNAIL = "thumbnail.png"


@dataclass(frozen=True)
class BuiltSpace:
    """What was written: the folder, its files as sorted paths within it, and their total size in bytes."""

    folder: Path
    files: tuple[str, ...]
    size: int


def build_space(folder: Path, *, overwrite: bool = False, repo_id: str | None = None) -> BuiltSpace:
    """Write the Space into `folder`; the same checkout gives the same files, byte for byte.

    With `repo_id` the card names the Space's own thumbnail, which needs its address. With `overwrite` the folder holds
    nothing but the Space afterwards. Raises PromptOrTuneError where the folder holds something and may not be
    overwritten, or the card or the size is wrong; nothing is then written.
    """
    files = space_files(repo_id)
    size = sum(_size(source) for source in files.values())
    if size > MAX_BYTES:
        raise PromptOrTuneError(
            f"The Space would have {format_bytes(size)} and {format_bytes(MAX_BYTES)} is the limit: remove "
            "something large from adapters/library or docs/results."
        )
    _clear_folder(folder, overwrite)
    for name, source in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
        target.chmod(0o644)
    return BuiltSpace(folder, tuple(files), size)


def space_files(repo_id: str | None = None) -> dict[str, Path | bytes]:
    """Map the paths within a Space, sorted, to the file, or the bytes, to write there."""
    card = CARD.read_text(encoding="utf-8")
    check_card(card, REQUIREMENTS.read_text(encoding="utf-8"))
    found: dict[str, Path | bytes] = {name: ROOT / name for name in (*TOP_LEVEL_FILES, *SPACE_FILES)}
    for package in PACKAGES:
        found |= {_repo_path(path): path for path in _iter_files(ROOT / package)}
    found |= {_repo_path(path): path for path in _iter_files(ROOT / RESULTS_DIR) if path.name.endswith(_RUN_ENDINGS)}
    found["packages.txt"] = CARD.with_name("packages.txt")
    if repo_id is not None:
        # The Hub's own address, whatever endpoint this machine uses.
        card = with_thumbnail(card, f"https://huggingface.co/spaces/{repo_id}/resolve/main/{THUMBNAIL}")
        found[THUMBNAIL] = SCREENSHOT
    found["README.md"] = card.encode()
    return dict(sorted(found.items()))


def is_project_file(path: str) -> bool:
    """Whether some version of this program put this file into a published Space."""
    first = path.split("/", 1)[0]
    return (
        first in PACKAGES
        or path in (*TOP_LEVEL_FILES, *SPACE_FILES, "packages.txt", "README.md", THUMBNAIL)
        or path.startswith(f"{RESULTS_DIR}/")
    )


def _iter_files(folder: Path) -> Iterator[Path]:
    """Yield the files under `folder`, without caches and backups of tools and without symbolic links."""
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
    """Make `folder` empty. Nothing is deleted but a Space that was built there before."""
    if folder.exists() and not folder.is_dir():
        raise PromptOrTuneError(f"{folder} is a file: name a folder for the Space.")
    entries = list(folder.iterdir()) if folder.is_dir() else []
    if entries and not overwrite:
        raise PromptOrTuneError(f"The folder {folder} is not empty: name another one, or add --overwrite.")
    foreign = [
        path.name for path in entries if not is_project_file(path.name) and path.name not in ("docs", "space", ".git")
    ]
    if foreign:
        raise PromptOrTuneError(
            f"The folder {folder} holds more than a Space ({', '.join(sorted(foreign)[:3])}): name another one."
        )
    try:
        for path in entries:
            if path.is_dir() and not path.is_symlink():
                if path.name != ".git":  # so that a clone of the Space stays a clone
                    shutil.rmtree(path)
            else:
                path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PromptOrTuneError(
            f"The folder {folder} cannot be written ({error.strerror}): name another one."
        ) from error
