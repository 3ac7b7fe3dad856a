"""Files of JSON lines that only grow, so that whoever is killed while writing loses no more than the last lines.

What is appended goes to disk before `append` returns. A line that a crash tore off is left out by readers and cut off
by the next writer. One process writes at a time: a second one is refused, and whoever reads needs no leave.
"""

from __future__ import annotations

import gzip
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

if sys.platform != "win32":
    import fcntl

JsonRecord = Mapping[str, Any]


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a file, plain or .gz, and how many bytes of it they fill: what follows was torn off.

    Raises OSError where the file cannot be read and ValueError where a broken line stands before a whole one.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error) as fault:
        raise ValueError(str(fault)) from fault
    records: list[dict[str, Any]] = []
    whole = end = 0
    for line in content.split(b"\n")[:-1]:
        end += len(line) + 1
        record = _parse_record(line)
        if record is None:
            continue
        if whole + len(line) + 1 != end:
            raise ValueError("a broken line stands before a whole one")
        records.append(record)
        whole = end
    return records, whole


class Journal:
    """The one writer of a file. Made by `open`; `close` lets the next one in."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self._file = file

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Takes the file for this process and makes it where there is none; PromptOrTuneError where another has it."""
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
            # Between the two steps another process may have put a new file in its place.
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return cls(path, file)
            file.close()

    def append(self, records: Iterable[JsonRecord]) -> None:
        """Adds the records and waits until they are on disk; all of them, or the file stays as it was."""
        size = self._file.seek(0, os.SEEK_END)
        try:
            _write_all(self._file, _encode_records(records))
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._truncate(size)
            raise write_error(self.path, error) from error

    def truncate(self, size: int) -> None:
        """Drops what follows the first `size` bytes: lines that a crash tore off."""
        if self._file.seek(0, os.SEEK_END) > size:
            self._truncate(size)

    def replace(self, records: Iterable[JsonRecord]) -> None:
        """Puts a new file with these records in the old one's place, in one step, and goes on with it."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            fresh = temporary.open("wb", buffering=0)
            _try_lock(fresh)  # nobody else knows this file yet
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
        """Lets go of the file; one that nothing was written to is removed."""
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
    # ASCII, so that half a character in an answer (a lone surrogate) survives the file.
    return "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in records).encode("ascii")


def _write_all(file: FileIO, data: bytes) -> None:
    """Unbuffered, so that what a full disk refused does not come back later."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _try_lock(file: FileIO) -> bool:
    """Whether the file is ours now. Where a file system or Windows knows no such lock, it is taken for granted."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
