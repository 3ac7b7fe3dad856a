"""Reading files that somebody else may have written, and may still be writing.

No link is followed, nothing that is not a file is waited for, no size is believed, and JSON has one meaning or none.
Links among the folders on the way to an adapter's own folder are not looked for.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from errors import AdapterError

MAX_DEPTH = 32
# Not on Windows, where links need rights of their own and pipes are no files.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def open_untrusted(path: Path, name: str) -> Iterator[tuple[BufferedReader, os.stat_result]]:
    """The file and its status, for reading; AdapterError, naming the adapter, for what is no file or cannot be read.

    Without O_NONBLOCK the opening of a pipe would wait for somebody to write into it.
    """
    try:
        with os.fdopen(os.open(path, _OPEN_FLAGS), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise AdapterError(f"Adapter '{name}': {path.name} is no regular file: copy it again.")
            yield file, status
    except OSError as fault:
        if fault.errno == errno.ELOOP:
            raise AdapterError(
                f"Adapter '{name}': {path.name} is a symbolic link: put the file itself there."
            ) from fault
        raise AdapterError(f"Adapter '{name}': {path.name} cannot be read ({fault.strerror or fault}).") from fault


def read_limited(path: Path, limit: int, name: str) -> bytes:
    """The whole file, of at most `limit` bytes."""
    with open_untrusted(path, name) as (file, status):
        # One more than the limit: the file may have grown since.
        raw = file.read(limit + 1)
    if len(raw) > limit:
        size = max(status.st_size, len(raw))
        raise AdapterError(f"Adapter '{name}': {path.name} has {size} bytes, the limit is {limit}: copy it again.")
    return raw


def parse_json(raw: bytes) -> Any:
    """JSON in UTF-8; ValueError where it is none, where a name stands twice in one object, or for endless nesting."""
    try:
        values = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys)
    except RecursionError as fault:
        raise ValueError("it is nested without end") from fault
    # What is nested deeply, though not too deeply for the parser, would break whoever prints or copies it.
    level = [values] if isinstance(values, dict | list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return values
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if type(inner) is dict or type(inner) is list
        ]
    raise ValueError("it is nested without end")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found
