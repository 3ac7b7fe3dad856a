"""Parquet, read through pyarrow in small batches, as a small file can unpack to a large one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from errors import DataError
from tasks.datasets.tables import MAX_BYTES, RowError, Table, TableRow, limit_rows

_BATCH_ROWS = 256
# What the columns in use may take unpacked.
MAX_UNPACKED_BYTES = 2 * MAX_BYTES


def open_parquet(path: Path) -> Table:
    """The table; its records are numbered from 1, as a Parquet file has no lines."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        file = pq.ParquetFile(path)
        names = tuple(dict.fromkeys(file.schema_arrow.names))
    except (pa.ArrowException, OSError, ValueError, MemoryError) as fault:
        raise _unreadable_error(path, fault) from fault
    return Table(names, lambda wanted: limit_rows(path, _read_parquet(path, names, wanted)), "row")


def _read_parquet(path: Path, names: Sequence[str], requested: Sequence[str]) -> Iterator[TableRow | RowError]:
    import pyarrow as pa

    columns = [name for name in requested if name in names]
    unpacked, row = 0, 0
    try:
        for batch in _open_dictionary_encoded(path, columns).iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            unpacked += sum(_unpacked_bytes(column) for column in batch.columns)
            if unpacked > MAX_UNPACKED_BYTES:
                raise DataError(
                    f"{path} unpacks to more than {MAX_UNPACKED_BYTES / 1e6:.0f} MB, which is the most that is read: "
                    "split it, or cut it down."
                )
            for values in batch.to_pylist():
                row += 1
                yield TableRow(row, values)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as fault:
        raise _unreadable_error(path, fault) from fault


def _open_dictionary_encoded(path: Path, columns: Sequence[str]) -> Any:
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


def _unpacked_bytes(array: Any) -> int:
    """Bytes of the array's values when each stands by itself."""
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    kind = array.type
    if pa.types.is_struct(kind):
        return sum(map(_unpacked_bytes, array.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _unpacked_bytes(array.flatten())
    if pa.types.is_dictionary(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type)):
        return int(pc.sum(pc.take(pc.binary_length(array.dictionary), array.indices)).as_py() or 0)
    return int(array.nbytes)


def _unreadable_error(path: Path, error: BaseException) -> DataError:
    reason = str(error).strip().partition("\n")[0].rstrip(".")[:160] or type(error).__name__
    return DataError(f"{path} cannot be read as Parquet ({reason}).")
