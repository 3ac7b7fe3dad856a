"""The header of an adapter's safetensors file, read and checked without touching a tensor.

The format: 8 bytes with the header's length N (little endian), N bytes of JSON that name each tensor's dtype, shape
and place, then the tensors one after the other without holes (github.com/huggingface/safetensors, README).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any, BinaryIO

from errors import AdapterError

WEIGHTS_NAME = "adapter_model.safetensors"
MAX_HEADER = 8 << 20
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_SETTLED_NS = 2_000_000_000
_digests: dict[tuple[str, int, int, int, int], str] = {}


def read_shapes(path: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, of every tensor in the file; AdapterError where its header is broken or it is empty."""
    try:
        with path.open("rb") as file:
            header = _header(file, path.stat().st_size, name)
    except OSError as fault:
        raise AdapterError(f"Adapter '{name}': {path.name} cannot be read ({fault.strerror or fault}).") from fault
    if not header:
        raise AdapterError(f"Adapter '{name}' has no tensors in {path.name}: train it again.")
    for key, tensor in header.items():
        if 0 in tensor["shape"]:
            raise AdapterError(
                f"Adapter '{name}': tensor {shown(key)} has shape {tensor['shape']}, so it is empty: train it again."
            )
    return {key: tuple(tensor["shape"]) for key, tensor in header.items()}


def digest(path: Path, name: str) -> str:
    """`sha256:` and 16 hex digits of the file's bytes.

    Remembered for as long as the file's size, times and inode stay as they are; a file that changed a moment ago is
    read each time, because a second change within one tick of the clock would not show.
    """
    try:
        stat = path.stat()
        key = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if key in _digests:
            return _digests[key]
        with path.open("rb") as file:
            value = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    except OSError as fault:
        raise AdapterError(f"Adapter '{name}': {path.name} cannot be read ({fault.strerror or fault}).") from fault
    if time.time_ns() - stat.st_ctime_ns > _SETTLED_NS:
        _digests[key] = value
    return value


def shown(value: object, width: int = 100) -> str:
    """A value out of a file, fit for a sentence: without control characters, and not without end."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def _header(file: BinaryIO, size: int, name: str) -> dict[str, Any]:
    """The tensors' entries, after checking that they fill the rest of the file exactly."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > MAX_HEADER or length > size - 8:
        big = size >= 8 and MAX_HEADER < length <= size - 8
        fault = f"has a header of {length} bytes, more than {MAX_HEADER}" if big else "is cut short or not safetensors"
        raise AdapterError(f"Adapter '{name}': {WEIGHTS_NAME} {fault}: copy it again or train it again.")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as fault:
        raise AdapterError(
            f"Adapter '{name}': the header of {WEIGHTS_NAME} is not valid ({shown(str(fault))}): train it again."
        ) from fault
    if not isinstance(header, dict):
        raise AdapterError(f"Adapter '{name}': the header of {WEIGHTS_NAME} is not an object: train it again.")
    header.pop("__metadata__", None)
    end = 0
    for key, tensor in sorted(header.items(), key=lambda item: _begin(item[1])):
        begin, stop = _place(key, tensor, name)
        if begin != end:
            raise AdapterError(f"Adapter '{name}': tensor {shown(key)} overlaps another or leaves a hole: train again.")
        end = stop
    if end != size - 8 - length:
        raise AdapterError(
            f"Adapter '{name}': {WEIGHTS_NAME} has {size - 8 - length} bytes of tensors where its header names {end}: "
            "it is cut short or damaged, copy it again."
        )
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _begin(tensor: Any) -> int:
    """Where a tensor says it begins, for sorting; -1 for one that `_place` will refuse."""
    place = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    return place[0] if isinstance(place, list) and place and type(place[0]) is int else -1


def _place(key: str, tensor: Any, name: str) -> tuple[int, int]:
    """Begin and end of a tensor's bytes; AdapterError when they contradict its dtype and shape."""
    dtype = tensor.get("dtype") if isinstance(tensor, dict) else None
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise AdapterError(
            f"Adapter '{name}': tensor {shown(key)} has dtype {shown(dtype, 20)}: save it as F32, F16 or BF16."
        )
    shape, place = tensor.get("shape"), tensor.get("data_offsets")
    if not _whole_numbers(shape) or not _whole_numbers(place) or len(place) != 2:
        raise AdapterError(f"Adapter '{name}': tensor {shown(key)} has no valid shape and place: train it again.")
    if place[1] - place[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise AdapterError(f"Adapter '{name}': tensor {shown(key)} does not fill its shape: copy it again.")
    return place[0], place[1]


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 2**48 for n in value)
