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
    return Table(names, lambda wanted: limited(path, _records(path, file, wanted)), "row")


def _records(path: Path, file: Any, wanted: Sequence[str]) -> Iterator[Record | Fault]:
    import pyarrow as pa

    columns = [name for name in wanted if name in file.schema_arrow.names]
    unpacked, row = 0, 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            unpacked += batch.nbytes
            if unpacked > MAX_UNPACKED:
                raise DataError(
                    f"{path} unpacks to more than {MAX_UNPACKED / 1e6:.0f} MB, which is the most that is read: "
                    "split it, or cut it down."
                )
            for values in batch.to_pylist():
                row += 1
                yield Record(row, values)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as fault:
        raise _unreadable(path, fault) from fault


def _unreadable(path: Path, fault: BaseException) -> DataError:
    reason = str(fault).strip().partition("\n")[0].rstrip(".")[:160] or type(fault).__name__
    return DataError(f"{path} cannot be read as Parquet ({reason}).")
