"""An adapter as one zip file: packed out of its folder, the same bytes for the same adapter."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from adapters import checks
from adapters.hub import FILES
from adapters.hub_errors import of_disk
from adapters.reading import opened
from adapters.weights import WEIGHTS_NAME

# The first moment that a zip can name: the same adapter gives the same bytes, whenever it is packed.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(folder: Path, target: Path) -> Path:
    """Writes the adapter's own files (adapters.hub.FILES, and no others) into the zip `target`; returns `target`.

    They lie in one folder of the adapter's name, in a fixed order and without times, so that equal adapters give equal
    bytes. A file that stood at `target` is replaced at once or not at all. AdapterError where the folder is no adapter
    or holds a link; PeftArenaError where the disk would not take it.
    """
    name = folder.name
    checks.check_files(folder, name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as aside:
            made = Path(aside) / "made.zip"
            with zipfile.ZipFile(made, "w") as archive:
                for file in FILES:
                    if (folder / file).exists():
                        _add(archive, folder / file, name)
            made.replace(target)
    except OSError as fault:
        raise of_disk(fault, f"'{name}' could not be packed into {target}") from fault
    return target


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """One file, without its times; links and pipes are refused as in the store."""
    entry = zipfile.ZipInfo(f"{name}/{path.name}", _EPOCH)
    entry.create_system = 3  # Unix, so that the permissions mean the same wherever it is packed
    entry.external_attr = 0o644 << 16
    # Trained weights do not become smaller: they are stored as they are, which is many times as fast.
    entry.compress_type = zipfile.ZIP_STORED if path.name == WEIGHTS_NAME else zipfile.ZIP_DEFLATED
    with opened(path, name) as (source, status):
        entry.file_size = status.st_size
        with archive.open(entry, "w") as destination:
            shutil.copyfileobj(source, destination, 1 << 20)
