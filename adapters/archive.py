"""An adapter as one zip file: packed out of its folder, the same bytes each time, and unpacked into a store.

A zip may come from anywhere. It is unpacked into a hidden folder beside the adapters and renamed when every check has
passed: nobody sees half an adapter, and of one that is refused nothing stays. Not protected against: weights that are
well-formed and bad.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from adapters import checks
from adapters.hub import FILES, NAME_FREE, SOUND, checked
from adapters.hub_errors import of_disk
from adapters.installing import free_place, install, scratch
from adapters.origin import write_origin
from adapters.reading import opened
from adapters.steps import Steps, step, unheard
from adapters.weights import WEIGHTS_NAME, shown
from adapters.zips import Parcel, check_entries, check_kinds, check_sizes, find_parcel, opened_zip
from errors import DiskSpaceError

IS_ZIP = "It is a zip file"
INSIDE = "Nothing in it reaches outside its folder"
KINDS = "No pickles, no archives inside, nothing encrypted"
COMPLETE = "Settings, weights and manifest are there"
SIZES = "It unpacks to a size that fits"
WHOLE = "Every file is whole"
STEPS = (IS_ZIP, INSIDE, KINDS, COMPLETE, SIZES, NAME_FREE, WHOLE, SOUND)
_CHUNK = 256 << 10

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


def unpack(
    archive: Path,
    root: Path,
    report: Steps = unheard,
    *,
    name: str | None = None,
    overwrite: bool = False,
    max_bytes: int = checks.MAX_FOLDER_BYTES,
    reserved: Collection[str] = (),
) -> Path:
    """Installs the adapter in the zip `archive` as the folder `name` under `root`; returns that folder.

    The name is by default that of the folder in the zip, or else the zip's own; those in `reserved` count as taken.
    `report` gets each check of STEPS as it passes or fails. Neither the zip nor what it unpacks to may have more than
    `max_bytes`. Only the files of adapters.hub.FILES are unpacked. Raises PeftArenaError in one sentence; the store is
    then as it was before.
    """
    shown_name = shown(archive.name)
    with _zip_of(archive, max_bytes, report) as opened_archive:
        with step(report, INSIDE):
            files = check_entries(opened_archive, shown_name)
        with step(report, KINDS):
            check_kinds(files, shown_name)
        with step(report, COMPLETE):
            parcel = find_parcel(files, shown_name)
        with step(report, SIZES):
            check_sizes(parcel, shown_name, max_bytes)
        with step(report, NAME_FREE):
            name = name or (parcel.folder or archive.name.removesuffix(".zip")).lower()
            target = free_place(root, name, overwrite, reserved)
        with scratch(root, name) as aside:
            folder = aside / name
            with step(report, WHOLE):
                _extract(opened_archive, parcel, folder, shown_name)
            with step(report, SOUND):
                checked(folder)
            write_origin(folder, "zip", archive.name)
            install(folder, target, aside, overwrite)
    return target


@contextmanager
def _zip_of(path: Path, max_bytes: int, report: Steps) -> Iterator[zipfile.ZipFile]:
    """The open archive; that it is one is a check of its own, what is wrong inside it belongs to the later ones."""
    with ExitStack() as stack:
        with step(report, IS_ZIP):
            archive = stack.enter_context(opened_zip(path, max_bytes))
        yield archive


def _extract(archive: zipfile.ZipFile, parcel: Parcel, folder: Path, name: str) -> None:
    """Writes the parcel's files into a new `folder`; zipfile checks their CRC, and gives no more than was announced."""
    free = shutil.disk_usage(folder.parent).free
    if free < parcel.size:
        raise DiskSpaceError(
            f"'{name}' unpacks to {parcel.size / 1e6:.0f} MB and {free / 1e6:.0f} MB are free on the disk: free some "
            "room, then add it again."
        )
    folder.mkdir()
    for file, info in parcel.files.items():
        with archive.open(info) as source, (folder / file).open("xb") as destination:
            shutil.copyfileobj(source, destination, _CHUNK)
        if (folder / file).stat().st_size != info.file_size:
            raise zipfile.BadZipFile(f"{file} is shorter than announced")


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
