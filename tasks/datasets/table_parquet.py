"""Parquet, read through pyarrow in small batches, as a small file can unpack to a large one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from errors import DataError
from tasks.datasets.tables import MAX_BYTES, Fault, Record, Table, limited

_BATCH = 256
# What the columns in use may take unpacked.
MAX_UNPACKED = 2 * MAX_BYTES


def open_parquet(path: Path) -> Table:
    """The table; its records are numbered from 1, as a Parquet file has no lines."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        file = pq.ParquetFile(path)
        names = tuple(dict.fromkeys(file.schema_arrow.names))
    except (pa.ArrowException, OSError, ValueError, MemoryError) as fault:
        raise _unreadable(path, fault) from fault
    return Table(names, lambda wanted: limited(path, _records(path, names, wanted)), "row")


def _records(path: Path, names: Sequence[str], wanted: Sequence[str]) -> Iterator[Record | Fault]:
    import pyarrow as pa

    columns = [name for name in wanted if name in names]
    unpacked, row = 0, 0
    try:
        for batch in _open_packed(path, columns).iter_batches(batch_size=_BATCH, columns=columns):
            unpacked += sum(_unpacked(column) for column in batch.columns)
            if unpacked > MAX_UNPACKED:
                raise DataError(
                    f"{path} unpacks to more than {MAX_UNPACKED / 1e6:.0f} MB, which is the most that is read: "
                    "split it, or cut it down."
                )
            for values in batch.to_pylist():
                row += 1
                yield Record(row, values)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as fault:
        raise _unreadable(path, fault) from fault


def _open_packed(path: Path, columns: Sequence[str]) -> Any:
    """The file, of which a text that many rows share is held once: one page can name a long text a million times."""
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(path).metadata
    group = metadata.row_group(0) if metadata.num_row_groups else None
    chunks = [group.column(index) for index in range(metadata.num_columns)] if group else []
    texts = [
        chunk.path_in_schema
        for chunk in chunks
        if chunk.physical_type == "BYTE_ARRAY" and chunk.path_in_schema.startswith(tuple(columns))
    ]
    return pq.ParquetFile(path, read_dictionary=texts)


def _unpacked(array: Any) -> int:
    """Bytes of the array's values when each stands by itself."""
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    kind = array.type
    if pa.types.is_struct(kind):
        return sum(map(_unpacked, array.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _unpacked(array.flatten())
    if pa.types.is_dictionary(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type)):
        return int(pc.sum(pc.take(pc.binary_length(array.dictionary), array.indices)).as_py() or 0)
    return int(array.nbytes)


def _unreadable(path: Path, fault: BaseException) -> DataError:
    reason = str(fault).strip().partition("\n")[0].rstrip(".")[:160] or type(fault).__name__
    return DataError(f"{path} cannot be read as Parquet ({reason}).")
