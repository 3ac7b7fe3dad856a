"""Zip pack/unpack.

An adapter as one zip file: packed out of its folder, the same bytes each time, and unpacked into a store.

A zip may come from anywhere. It is unpacked into a hidden folder beside the adapters and renamed when every check has
passed: nobody sees half an adapter, and of one that is refused nothing stays. Not protected against: weights that are
well-formed and bad.

What a zip from anywhere may hold: it is read with suspicion, and nothing of it is written here.

What an entry says of itself decides whether the archive is refused, before a byte of it is decompressed. What the
entries then turn out to be is checked as they are unpacked (adapters.archive).
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adapters import checks
from adapters.hub import ADAPTER_FILES, REQUIRED_FILES, STEP_CONSISTENT, STEP_NAME, file_limit, inspect_verified
from adapters.install import StepFn, ignore_steps, install, report_step, staging_folder, target_folder
from adapters.manifest import write_origin
from adapters.weights import WEIGHTS_NAME, open_untrusted
from common.format import quote_untrusted
from common.hub import disk_error
from errors import AdapterError, DiskSpaceError, PromptOrTuneError

MAX_ENTRIES = checks.MAX_FILES
# zipfile reads the list of contents whole, as long as the archive says it is.
MAX_DIRECTORY_BYTES = 1 << 20
# Of what unpacks to more than this, a hundredth must be there: trained weights hardly become smaller.
MAX_RATIO = 100
RATIO_EXEMPT_BYTES = 10 << 20
_ARCHIVE_SUFFIXES = (
    ".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".xz", ".txz", ".7z", ".rar", ".zst", ".lz4", ".jar", ".whl",
)  # fmt: skip
_COMPRESSION_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_FULL_MODEL_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json")
# What macOS adds to every zip that it makes.
_MACOS_FOLDER = "__MACOSX"


@dataclass(frozen=True)
class ArchiveContents:
    """The adapter in an archive: the folder it lies in ('' at the top), its files by name, and how many more it has."""

    folder: str
    files: dict[str, zipfile.ZipInfo]
    num_other_files: int

    @property
    def size(self) -> int:
        """The bytes it unpacks to, as the archive says."""
        return sum(info.file_size for info in self.files.values())


class _LimitedReader(io.BufferedReader):
    """Refuses to read much at once: how long the list of contents is, the archive itself says, and where it begins."""

    def seek(self, target: int, whence: int = 0, /) -> int:
        try:
            return super().seek(target, whence)
        except OSError as error:
            raise zipfile.BadZipFile("it points outside itself") from error

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = -1 if size is None else size
        if wanted < 0:
            wanted = os.fstat(self.fileno()).st_size - self.tell()
        if wanted > MAX_DIRECTORY_BYTES:
            raise AdapterError(
                f"The list of contents of this archive has {wanted} bytes, the limit is {MAX_DIRECTORY_BYTES}: zip the adapter's "
                "own files alone."
            )
        return super().read(wanted)


@contextmanager
def open_zip(path: Path, max_bytes: int) -> Iterator[zipfile.ZipFile]:
    """The archive, for reading. Whatever zipfile raises in the block becomes an AdapterError with one sentence."""
    name = quote_untrusted(path.name)
    try:
        if not path.is_file():
            raise AdapterError(f"There is no file '{name}': give the path of a zip.")
        size = path.stat().st_size
        if size > max_bytes:
            raise AdapterError(
                f"'{name}' has {size / 1e6:.1f} MB and {max_bytes / 1e6:.1f} MB is the limit here: "
                "zip the adapter's own files alone."
            )
        with _LimitedReader(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except PromptOrTuneError:
        raise
    except OSError as error:
        raise AdapterError(f"'{name}' cannot be read ({error.strerror or error}): check who may read it.") from error
    except Exception as error:  # a broken archive raises whatever it likes: struct's, zlib's, Unicode's errors
        raise AdapterError(
            f"'{name}' is no zip file, is cut short or is damaged ({quote_untrusted(str(error), 80)}): copy it again, or make it "
            "with `python -m adapters pack NAME FILE.zip`."
        ) from error


def check_entries(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The archive's files, where no entry of it leads out of its folder and none stands twice."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise AdapterError(
            f"'{name}' has {len(entries)} entries, the limit is {MAX_ENTRIES}: zip the adapter's own files alone."
        )
    seen: set[str] = set()
    for info in entries:
        entry = quote_untrusted(info.orig_filename)
        _check_path(info.orig_filename, entry, name)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            raise AdapterError(f"'{name}': '{entry}' is a symbolic link: put the file itself into the zip.")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise AdapterError(f"'{name}': '{entry}' is neither a file nor a folder: zip regular files alone.")
        folded = info.orig_filename.rstrip("/").casefold()
        if folded in seen:
            raise AdapterError(f"'{name}' holds '{entry}' twice, so it is not clear which one counts: zip it again.")
        seen.add(folded)
    return [info for info in entries if not info.is_dir()]


def check_file_types(files: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Nothing that runs code when it is read, hides more, or cannot be looked into."""
    for info in files:
        entry, lower = quote_untrusted(info.filename), info.filename.lower()
        if lower.endswith(checks.PICKLES):
            raise AdapterError(
                f"'{name}' holds '{entry}', a pickle, which can run code: leave it out, or convert it to safetensors."
            )
        if lower.endswith(_ARCHIVE_SUFFIXES):
            raise AdapterError(f"'{name}' holds another archive, '{entry}': zip the adapter's own files alone.")
        if info.flag_bits & _ENCRYPTED_FLAGS:
            raise AdapterError(f"'{name}' is encrypted ('{entry}'): zip it without a password.")


def find_adapter_files(files: Sequence[zipfile.ZipInfo], name: str) -> ArchiveContents:
    """The one adapter in the archive, at its top or in one folder, with all files that it needs."""
    by_path = {PurePosixPath(info.filename): info for info in files}
    places = [path.parent for path in by_path if path.name == checks.CONFIG_NAME and path.parts[0] != _MACOS_FOLDER]
    if not places:
        if any(path.name in _FULL_MODEL_FILES or path.suffix == ".gguf" for path in by_path):
            raise AdapterError(
                f"'{name}' is a whole model, not an adapter: unpack it yourself and use it as a base, with "
                "--base FOLDER."
            )
        raise AdapterError(f"'{name}' has no {checks.CONFIG_NAME}, so it is no adapter: zip the folder that has it.")
    if len(places) > 1:
        raise AdapterError(f"'{name}' holds {len(places)} adapters: zip each of them alone.")
    place = places[0]
    if len(place.parts) > 1:
        raise AdapterError(
            f"'{name}' has its adapter deep inside, in '{quote_untrusted(str(place))}': zip that folder alone."
        )
    found = {file: by_path[place / file] for file in ADAPTER_FILES if place / file in by_path}
    for needed in REQUIRED_FILES:
        if needed not in found:
            raise AdapterError(
                f"'{name}' has no {needed}, so it is no adapter of Prompt or Tune: zip the whole folder that "
                "`python -m train` wrote."
            )
    return ArchiveContents("".join(place.parts), found, len(by_path) - len(found))


def check_sizes(contents: ArchiveContents, name: str, max_bytes: int) -> None:
    """What the archive says of its sizes: each file and all of them fit, and none is blown up."""
    for file, info in contents.files.items():
        limit = file_limit(file)
        if info.file_size > limit:
            raise AdapterError(
                f"'{name}': {file} unpacks to {info.file_size / 1e6:.1f} MB, the limit is {limit / 1e6:.1f} MB: "
                "train it again, or leave out what is too large."
            )
        if info.compress_type not in _COMPRESSION_METHODS:
            raise AdapterError(
                f"'{name}': {file} is packed with method {info.compress_type}, which is not read here: zip it the "
                "usual way (deflate)."
            )
        if info.file_size > max(RATIO_EXEMPT_BYTES, MAX_RATIO * info.compress_size):
            raise AdapterError(
                f"'{name}': {file} unpacks to {info.file_size / 1e6:.1f} MB from {info.compress_size / 1e3:.1f} kB, "
                "as no real adapter does: it is not unpacked."
            )
    if contents.size > max_bytes:
        raise AdapterError(
            f"'{name}' unpacks to {contents.size / 1e6:.1f} MB and {max_bytes / 1e6:.1f} MB is the limit here: "
            "train an adapter of a smaller rank."
        )


def _check_path(path: str, entry: str, name: str) -> None:
    """`path` is the name as it stands in the archive; `entry` the same, fit for a sentence."""
    parts = path.split("/")
    absolute = path.startswith("/") or (len(path) > 1 and path[1] == ":")
    if absolute or "\\" in path or ".." in parts:
        raise AdapterError(
            f"'{name}' holds '{entry}', which would lie outside its folder: nothing of it is unpacked, zip the "
            "adapter's own folder."
        )
    if not path.rstrip("/") or "\0" in path or not path.isprintable() or "." in parts or "" in parts[:-1]:
        raise AdapterError(f"'{name}' holds {entry!r}, which cannot be a file's name: zip it again.")


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
    except OSError as error:
        raise disk_error(error, f"'{name}' could not be packed into {target}") from error
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
