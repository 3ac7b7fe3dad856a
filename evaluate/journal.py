"""Append-only JSON Lines file with a single writer, which survives kills and power loss; digests of runs' settings.

Appended records are on disk before `append` returns. Readers skip a last line that a crash left incomplete, and the
next writer cuts it off. One process writes at a time: a second one gets an error. Readers need no lock.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from common.files import check_writable, write_error
from errors import PromptOrTuneError


def settings_digest(values: Mapping[str, Any]) -> str:
    """Return 12 hex digits of the values' SHA-256."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def to_json_types(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as JSON restores them: tuples become lists."""
    return dict(json.loads(json.dumps(values)))


def diff_settings(
    saved: Mapping[str, Any], requested: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the saved settings and the requested ones that differ, nested names joined by dots; None if all agree."""
    saved_values, values = _flatten_settings(saved), _flatten_settings(requested)
    changed = {name: value for name, value in values.items() if saved_values.get(name) != value}
    return (saved_values, changed) if changed else None


def _flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{part}": inner for part, inner in value.items()}
        else:
            flat[name] = value
    return flat


def settings_error(path: Path, what: str, saved: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """Return the message for a file whose results were made with other settings."""
    differences = ", ".join(f"{name} {saved.get(name)!r} there and {value!r} here" for name, value in changed.items())
    return (
        f"{path} holds {what} with other settings ({differences}): "
        "choose another --output, or --overwrite to start anew."
    )


if sys.platform != "win32":
    import fcntl

JsonRecord = Mapping[str, Any]


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a file, plain or .gz: its records, and the length in bytes of its complete lines.

    Raises OSError if the file cannot be read and ValueError if an incomplete line precedes a complete one.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    records: list[dict[str, Any]] = []
    complete = end = 0
    for line in content.split(b"\n")[:-1]:
        end += len(line) + 1
        record = _parse_record(line)
        if record is None:
            continue
        if complete + len(line) + 1 != end:
            raise ValueError("an incomplete line precedes a complete one")
        records.append(record)
        complete = end
    return records, complete


class Journal:
    """The single writer of a file. `open` creates one; `close` releases the file for the next."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self._file = file

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Lock the file for this process, creating it if necessary.

        The lock is flock on the file itself, so that nothing is left beside it. Raises PromptOrTuneError if another
        process has the lock or the file cannot be written.
        """
        if path.suffix == ".gz":
            raise PromptOrTuneError(f"{path} is packed and cannot grow: unpack it with gunzip first.")
        check_writable(path)
        while True:
            try:
                file = path.open("ab", buffering=0)
            except OSError as error:
                raise write_error(path, error) from error
            if not _try_lock(file):
                file.close()
                raise PromptOrTuneError(
                    f"Another process is writing {path}: wait for its end, or choose another --output."
                )
            # Between opening and locking, another process may have replaced the file: then lock the new one.
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return cls(path, file)
            file.close()

    def append(self, records: Iterable[JsonRecord]) -> None:
        """Append the records and wait until they are on disk; if that fails, the file is as before."""
        size = self._file.seek(0, os.SEEK_END)
        try:
            _write_all(self._file, _encode_records(records))
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._truncate(size)
            raise write_error(self.path, error) from error

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes, which drops a line that a crash left incomplete."""
        if self._file.seek(0, os.SEEK_END) > size:
            self._truncate(size)

    def replace(self, records: Iterable[JsonRecord]) -> None:
        """Replace the file atomically by one with these records, and continue with that file."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            fresh = temporary.open("wb", buffering=0)
            _try_lock(fresh)  # cannot fail: no other process knows this file yet
            _write_all(fresh, _encode_records(records))
            os.fsync(fresh.fileno())
            temporary.replace(self.path)
        except OSError as error:
            raise write_error(self.path, error) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._file.close()
        self._file = fresh

    def close(self) -> None:
        """Release the file; remove it if it is empty."""
        if self._file.closed:
            return
        with suppress(OSError):
            if not self._file.seek(0, os.SEEK_END):
                self.path.unlink(missing_ok=True)
        self._file.close()

    def _truncate(self, size: int) -> None:
        self._file.truncate(size)
        self._file.seek(0, os.SEEK_END)
        os.fsync(self._file.fileno())


def _parse_record(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _encode_records(records: Iterable[JsonRecord]) -> bytes:
    # ASCII, so that a lone surrogate in an answer can be written and read back.
    return "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in records).encode("ascii")


def _write_all(file: FileIO, data: bytes) -> None:
    """Write without a buffer, which after a full disk would write the rest later."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[file.write(remaining) :]


def _try_lock(file: FileIO) -> bool:
    """Try to lock the file; True also where Windows or the file system has no such lock."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
