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
from adapters.hub import ADAPTER_FILES, STEP_CONSISTENT, STEP_NAME, inspect_verified
from adapters.hub_errors import disk_error
from adapters.installing import install, staging_folder, target_folder
from adapters.origin import write_origin
from adapters.reading import open_untrusted
from adapters.steps import StepFn, ignore_steps, report_step
from adapters.weights import WEIGHTS_NAME, quote_untrusted
from adapters.zips import ArchiveContents, check_entries, check_file_types, check_sizes, find_adapter_files, open_zip
from errors import DiskSpaceError

STEP_IS_ZIP = "It is a zip file"
STEP_PATHS = "Nothing in it reaches outside its folder"
STEP_FILE_TYPES = "No pickles, no archives inside, nothing encrypted"
STEP_REQUIRED_FILES = "Settings, weights and manifest are there"
STEP_SIZES = "It unpacks to a size that fits"
STEP_CRC = "Every file is whole"
STEPS = (
    STEP_IS_ZIP,
    STEP_PATHS,
    STEP_FILE_TYPES,
    STEP_REQUIRED_FILES,
    STEP_SIZES,
    STEP_NAME,
    STEP_CRC,
    STEP_CONSISTENT,
)
_CHUNK_BYTES = 256 << 10

# The first moment that a zip can name: the same adapter gives the same bytes, whenever it is packed.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(folder: Path, target: Path) -> Path:
    """Writes the adapter's own files (adapters.hub.FILES, and no others) into the zip `target`; returns `target`.

    They lie in one folder of the adapter's name, in a fixed order and without times, so that equal adapters give equal
    bytes. A file that stood at `target` is replaced at once or not at all. AdapterError where the folder is no adapter
    or holds a link; PromptOrTuneError where the disk would not take it.
    """
    name = folder.name
    checks.check_files(folder, name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as aside:
            made = Path(aside) / "made.zip"
            with zipfile.ZipFile(made, "w") as archive:
                for file in ADAPTER_FILES:
                    if (folder / file).exists():
                        _add_file(archive, folder / file, name)
            made.replace(target)
    except OSError as fault:
        raise disk_error(fault, f"'{name}' could not be packed into {target}") from fault
    return target


def unpack(
    archive: Path,
    root: Path,
    report: StepFn = ignore_steps,
    *,
    name: str | None = None,
    overwrite: bool = False,
    max_bytes: int = checks.MAX_FOLDER_BYTES,
    reserved: Collection[str] = (),
) -> Path:
    """Installs the adapter in the zip `archive` as the folder `name` under `root`; returns that folder.

    The name is by default that of the folder in the zip, or else the zip's own; those in `reserved` count as taken.
    `report` gets each check of STEPS as it passes or fails. Neither the zip nor what it unpacks to may have more than
    `max_bytes`. Only the files of adapters.hub.FILES are unpacked. Raises PromptOrTuneError in one sentence; the store is
    then as it was before.
    """
    shown_name = quote_untrusted(archive.name)
    with _open_zip_step(archive, max_bytes, report) as opened_archive:
        with report_step(report, STEP_PATHS):
            files = check_entries(opened_archive, shown_name)
        with report_step(report, STEP_FILE_TYPES):
            check_file_types(files, shown_name)
        with report_step(report, STEP_REQUIRED_FILES):
            parcel = find_adapter_files(files, shown_name)
        with report_step(report, STEP_SIZES):
            check_sizes(parcel, shown_name, max_bytes)
        with report_step(report, STEP_NAME):
            name = name or (parcel.folder or archive.name.removesuffix(".zip")).lower()
            target = target_folder(root, name, overwrite, reserved)
        with staging_folder(root, name) as aside:
            folder = aside / name
            with report_step(report, STEP_CRC):
                _extract(opened_archive, parcel, folder, shown_name)
            with report_step(report, STEP_CONSISTENT):
                inspect_verified(folder)
            write_origin(folder, "zip", archive.name)
            install(folder, target, aside, overwrite)
    return target


@contextmanager
def _open_zip_step(path: Path, max_bytes: int, report: StepFn) -> Iterator[zipfile.ZipFile]:
    """The open archive; that it is one is a check of its own, what is wrong inside it belongs to the later ones."""
    with ExitStack() as stack:
        with report_step(report, STEP_IS_ZIP):
            archive = stack.enter_context(open_zip(path, max_bytes))
        yield archive


def _extract(archive: zipfile.ZipFile, contents: ArchiveContents, folder: Path, name: str) -> None:
    """Writes the parcel's files into a new `folder`; zipfile checks their CRC, and gives no more than was announced."""
    free = shutil.disk_usage(folder.parent).free
    if free < contents.size:
        raise DiskSpaceError(
            f"'{name}' unpacks to {contents.size / 1e6:.0f} MB and {free / 1e6:.0f} MB are free on the disk: free some "
            "room, then add it again."
        )
    folder.mkdir()
    for file, info in contents.files.items():
        with archive.open(info) as source, (folder / file).open("xb") as destination:
            shutil.copyfileobj(source, destination, _CHUNK_BYTES)
        if (folder / file).stat().st_size != info.file_size:
            raise zipfile.BadZipFile(f"{file} is shorter than announced")


def _add_file(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """One file, without its times; links and pipes are refused as in the store."""
    entry = zipfile.ZipInfo(f"{name}/{path.name}", _ZIP_EPOCH)
    entry.create_system = 3  # Unix, so that the permissions mean the same wherever it is packed
    entry.external_attr = 0o644 << 16
    # Trained weights do not become smaller: they are stored as they are, which is many times as fast.
    entry.compress_type = zipfile.ZIP_STORED if path.name == WEIGHTS_NAME else zipfile.ZIP_DEFLATED
    with open_untrusted(path, name) as (source, status):
        entry.file_size = status.st_size
        with archive.open(entry, "w") as destination:
            shutil.copyfileobj(source, destination, 1 << 20)
