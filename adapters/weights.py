"""Safetensors weights of an adapter: header and shape checks, digest, and loading of exactly the file that was checked.

The format: 8 bytes with the header's length N (little endian), N bytes of JSON with each tensor's dtype, shape and
offsets, then the tensors one after the other without gaps (github.com/huggingface/safetensors, README).

safetensors.safe_open is not used: it opens a path by itself, so that the bytes whose digest was taken need not be those
that it maps, it follows links and waits for pipes, and its header limit is 100 MB.

The readers here treat files as untrusted, and as files that may change while they are read: no link is followed, no
pipe is waited for, no stated size is trusted, and JSON with repeated names is refused. Links among the parent folders
of an adapter's own folder are not checked.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from common.format import quote_untrusted
from errors import AdapterError

MAX_DEPTH = 32
# Windows has neither flag; links need special rights there, and pipes are not files.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def open_untrusted(path: Path, name: str) -> Iterator[tuple[BufferedReader, os.stat_result]]:
    """Open a file for reading, with its status; raises AdapterError where it is no regular file or cannot be read.

    `name` is the adapter's, for messages. Without O_NONBLOCK, opening a pipe would wait for a writer.
    """
    try:
        with os.fdopen(os.open(path, _OPEN_FLAGS), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise AdapterError(f"Adapter '{name}': {path.name} is not a regular file: copy it again.")
            yield file, status
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise AdapterError(
                f"Adapter '{name}': {path.name} is a symbolic link: put the file itself there."
            ) from error
        raise AdapterError(f"Adapter '{name}': {path.name} cannot be read ({error.strerror or error}).") from error


def read_limited(path: Path, limit: int, name: str) -> bytes:
    """Read a file of at most `limit` bytes."""
    with open_untrusted(path, name) as (file, status):
        # One byte more than the limit, in case the file has grown since.
        raw = file.read(limit + 1)
    if len(raw) > limit:
        size = max(status.st_size, len(raw))
        raise AdapterError(f"Adapter '{name}': {path.name} has {size} bytes, the limit is {limit}: copy it again.")
    return raw


def parse_untrusted_json(raw: bytes) -> Any:
    """Parse JSON in UTF-8; raises ValueError for invalid JSON, a repeated name in an object, or deep nesting."""
    try:
        values = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # Nesting that the parser still accepts would break code that prints or copies the value.
    level = [values] if isinstance(values, dict | list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return values
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if type(child) is dict or type(child) is list
        ]
    raise ValueError("it is nested too deeply")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is repeated")
    return found


WEIGHTS_NAME = "adapter_model.safetensors"
MAX_HEADER_BYTES = 8 << 20
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MIN_STAT_AGE_NS = 2_000_000_000
_digest_cache: dict[tuple[str, int, int, int, int], str] = {}


@dataclass(frozen=True)
class WeightsInfo:
    """Shapes by tensor name, and the SHA-256 (hex) of the same bytes of the file."""

    shapes: Mapping[str, tuple[int, ...]]
    sha256: str


class TensorInfo(NamedTuple):
    """A tensor in `RawTensors.data`: dtype in safetensors' naming, shape, and the byte range begin to end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class RawTensors:
    """All tensors of a file by name, and the bytes of their values."""

    tensors: Mapping[str, TensorInfo]
    data: bytearray


def read_shapes(path: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name; raises AdapterError where the header is invalid or a tensor empty."""
    with open_untrusted(path, name) as (file, status):
        return _check_shapes(_parse_header(_read_header(file, status.st_size, name), status.st_size, name), name)


def inspect(path: Path, name: str) -> WeightsInfo:
    """Return shapes and digest, both from one reading, as the file may be written at the same time.

    The digest is cached by the file's size, times and inode. A file that changed less than MIN_STAT_AGE_NS ago is read
    each time, because a second change within one tick of the file system's clock would leave the times as they are.
    """
    with open_untrusted(path, name) as (file, status):
        now = time.time_ns()
        key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        raw = _read_header(file, status.st_size, name)
        shapes = _check_shapes(_parse_header(raw, status.st_size, name), name)
        if key in _digest_cache:
            return WeightsInfo(shapes, _digest_cache[key])
        hasher = hashlib.sha256(len(raw).to_bytes(8, "little") + raw)
        sha256 = hashlib.file_digest(file, lambda: hasher).hexdigest()
    if now - status.st_ctime_ns > MIN_STAT_AGE_NS:
        _digest_cache[key] = sha256
    return WeightsInfo(shapes, sha256)


def digest(path: Path, name: str) -> str:
    """Return `sha256:` and 16 hex digits of the SHA-256 of the file."""
    with open_untrusted(path, name) as (file, _):
        return short_digest(hashlib.file_digest(file, "sha256").hexdigest())


def short_digest(sha256: str) -> str:
    """Shorten a SHA-256 to the form that manifests use."""
    return f"sha256:{sha256[:16]}"


def read_raw_tensors(path: Path, sha256: str, name: str) -> RawTensors:
    """Read the tensors in one reading; raises AdapterError unless the bytes have the digest of the checked file."""
    with open_untrusted(path, name) as (file, status):
        raw = _read_header(file, status.st_size, name)
        data = bytearray(status.st_size - 8 - len(raw))
        filled = file.readinto(data)
    hasher = hashlib.sha256(len(raw).to_bytes(8, "little") + raw)
    hasher.update(data)
    if filled != len(data) or hasher.hexdigest() != sha256:
        raise AdapterError(f"Adapter '{name}' was changed while it was being loaded: load it again.")
    return RawTensors(_parse_header(raw, status.st_size, name), data)


def _read_header(file: BufferedReader, size: int, name: str) -> bytes:
    """Read the header's JSON, not parsed yet; `size` is the file's."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > MAX_HEADER_BYTES or length > size - 8:
        too_long = size >= 8 and MAX_HEADER_BYTES < length <= size - 8
        problem = (
            f"has a header of {length} bytes, more than {MAX_HEADER_BYTES}"
            if too_long
            else "is cut short or not safetensors"
        )
        raise AdapterError(f"Adapter '{name}': {WEIGHTS_NAME} {problem}: copy it again or train it again.")
    return file.read(length)


def _parse_header(raw: bytes, size: int, name: str) -> dict[str, TensorInfo]:
    """Parse the header and check that its tensors fill the rest of the file exactly, without gap or overlap."""
    try:
        header = parse_untrusted_json(raw)
    except ValueError as error:
        raise AdapterError(
            f"Adapter '{name}': the header of {WEIGHTS_NAME} is not valid ({quote_untrusted(str(error))}): "
            "train it again."
        ) from error
    if not isinstance(header, dict):
        raise AdapterError(f"Adapter '{name}': the header of {WEIGHTS_NAME} is not an object: train it again.")
    header.pop("__metadata__", None)
    tensors = {key: _parse_tensor_info(key, tensor, name) for key, tensor in header.items()}
    end = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin != end:
            raise AdapterError(
                f"Adapter '{name}': tensor {quote_untrusted(key)} overlaps another or leaves a gap: train again."
            )
        end = tensor.end
    if end != size - 8 - len(raw):
        raise AdapterError(
            f"Adapter '{name}': {WEIGHTS_NAME} has {size - 8 - len(raw)} bytes of tensors where its header states "
            f"{end}: it is cut short or damaged, copy it again."
        )
    return tensors


def _check_shapes(tensors: Mapping[str, TensorInfo], name: str) -> dict[str, tuple[int, ...]]:
    if not tensors:
        raise AdapterError(f"Adapter '{name}' has no tensors in {WEIGHTS_NAME}: train it again.")
    for key, tensor in tensors.items():
        if 0 in tensor.shape:
            raise AdapterError(
                f"Adapter '{name}': tensor {quote_untrusted(key)} has shape {list(tensor.shape)}, so it is empty: "
                "train it again."
            )
    return {key: tensor.shape for key, tensor in tensors.items()}


def _parse_tensor_info(key: str, tensor: Any, name: str) -> TensorInfo:
    """Parse one tensor of the header; raises AdapterError where its offsets contradict its dtype and shape."""
    dtype = tensor.get("dtype") if isinstance(tensor, dict) else None
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise AdapterError(
            f"Adapter '{name}': tensor {quote_untrusted(key)} has dtype {quote_untrusted(dtype, 20)}: save it as F32, "
            "F16 or BF16."
        )
    shape, offsets = tensor.get("shape"), tensor.get("data_offsets")
    if not _is_size_list(shape) or not _is_size_list(offsets) or len(offsets) != 2:
        raise AdapterError(
            f"Adapter '{name}': tensor {quote_untrusted(key)} has no valid shape and offsets: train it again."
        )
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise AdapterError(f"Adapter '{name}': tensor {quote_untrusted(key)} does not fill its shape: copy it again.")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _is_size_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 2**48 for n in value)
