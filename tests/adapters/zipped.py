"""Valid and hostile zip files, built from single entries."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path


def entry(name: str, mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    """Return an entry with exactly that name, which zipfile would otherwise normalise."""
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    info.external_attr = mode << 16
    info.compress_type = method
    return info


def files_of(folder: Path, prefix: str = "good/") -> list[tuple[zipfile.ZipInfo, bytes]]:
    """Return the files of an adapter folder as zip entries."""
    return [(entry(prefix + path.name), path.read_bytes()) for path in sorted(folder.iterdir())]


def make_zip(path: Path, entries: Sequence[tuple[zipfile.ZipInfo, bytes]]) -> Path:
    """Write a zip of these entries in this order; return its path."""
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in entries:
            archive.writestr(info, content)
    return path


def patched(path: Path, old: bytes, new: bytes, *, count: int = -1) -> Path:
    """Replace bytes in the file, for content that no library writes."""
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, count))
    return path
