"""Files that are written whole, in one step."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from errors import PromptOrTuneError


def atomic_write(path: Path, content: str | bytes) -> None:
    """Puts `content` into the file in one step: a reader, or a crash, sees the old content or the new."""
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as fault:
        raise write_error(path, fault) from fault
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Fails now, not after an hour, where the file could not be written."""
    if path.is_dir():
        raise PromptOrTuneError(f"{path} is a folder: name a file.")
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    atomic_write(probe, "")
    probe.unlink()


def write_error(path: Path, error: OSError) -> PromptOrTuneError:
    """The sentence for a file that could not be written."""
    return PromptOrTuneError(f"Cannot write {path} ({error.strerror}): choose a place with room that you may write to.")
