"""Adapter zips: pack a folder into a zip, and check and unpack a zip from an untrusted source into a store.

Packing gives the same bytes for the same adapter each time. Unpacking goes in two stages. What the archive's directory
states (paths, types, sizes) is checked before a byte is decompressed; the content is checked while it is unpacked. The
files are written into a hidden staging folder, which is renamed once every check has passed, so that a refused archive
leaves nothing behind. Not protected against: weights that are well-formed and bad.
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

from adapters.install import (
    ADAPTER_FILES,
    REQUIRED_FILES,
    STEP_CONSISTENT,
    STEP_NAME,
    StepFn,
    file_limit,
    ignore_steps,
    inspect_verified,
    install,
    report_step,
    staging_folder,
    target_folder,
)
from adapters.manifest import (
    CONFIG_NAME,
    MAX_FILES,
    MAX_FOLDER_BYTES,
    NO_OWNER,
    PICKLES,
    Owner,
    check_files,
    write_origin,
)
from adapters.weights import WEIGHTS_NAME, open_untrusted
from common.format import format_bytes, quote_untrusted
from common.hub import disk_error
from errors import AdapterError, DiskSpaceError, PromptOrTuneError

MAX_ENTRIES = MAX_FILES
# zipfile reads the whole directory of an archive into memory; the archive itself states how long it is.
MAX_DIRECTORY_BYTES = 1 << 20
# The largest compression ratio of a file that unpacks to more than RATIO_EXEMPT_BYTES: trained weights hardly compress.
MAX_RATIO = 100
RATIO_EXEMPT_BYTES = 10 << 20
_ARCHIVE_SUFFIXES = (
    ".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".xz", ".txz", ".7z", ".rar", ".zst", ".lz4", ".jar", ".whl",
)  # fmt: skip
_COMPRESSION_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_FULL_MODEL_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json")
# macOS adds this folder to its zips.
_MACOS_FOLDER = "__MACOSX"


@dataclass(frozen=True)
class ArchiveContents:
    """The adapter in an archive: its folder ('' at the top level), its files by name, and the number of other files."""

    folder: str
    files: dict[str, zipfile.ZipInfo]
    num_other_files: int

    @property
    def size(self) -> int:
        """Size after unpacking in bytes, as the archive states it."""
        return sum(info.file_size for info in self.files.values())


class _LimitedReader(io.BufferedReader):
    """A file that refuses long reads: an archive states the length and the offset of its own directory."""

    def seek(self, target: int, whence: int = 0, /) -> int:
        try:
            return super().seek(target, whence)
        except OSError as error:
            raise zipfile.BadZipFile("its directory is outside the file") from error

    def read(self, size: int | None = -1, /) -> bytes:
        length = -1 if size is None else size
        if length < 0:
            length = os.fstat(self.fileno()).st_size - self.tell()
        if length > MAX_DIRECTORY_BYTES:
            raise AdapterError(
                f"The directory of this archive has {length} bytes, the limit is {MAX_DIRECTORY_BYTES}: zip only the "
                "adapter's own files."
            )
        return super().read(length)


@contextmanager
def open_zip(path: Path, max_bytes: int) -> Iterator[zipfile.ZipFile]:
    """Open the archive for reading; any exception of zipfile in the block becomes an AdapterError."""
    name = quote_untrusted(path.name)
    try:
        if not path.is_file():
            raise AdapterError(f"There is no file '{name}': give the path of a zip.")
        size = path.stat().st_size
        if size > max_bytes:
            raise AdapterError(
                f"'{name}' has {format_bytes(size)} and {format_bytes(max_bytes)} is the limit here: "
                "zip only the adapter's own files."
            )
        with _LimitedReader(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except PromptOrTuneError:
        raise
    except OSError as error:
        raise AdapterError(f"'{name}' cannot be read ({error.strerror or error}): check who may read it.") from error
    except Exception as error:  # broken archives raise errors of struct, zlib and Unicode too
        raise AdapterError(
            f"'{name}' is no zip file, is cut short or is damaged ({quote_untrusted(str(error), 80)}): copy it again, "
            "or make it with `python -m adapters pack NAME FILE.zip`."
        ) from error


def check_entries(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """Return the archive's files after checking that no entry leaves its folder, is a link or appears twice."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise AdapterError(
            f"'{name}' has {len(entries)} entries, the limit is {MAX_ENTRIES}: zip only the adapter's own files."
        )
    seen: set[str] = set()
    for info in entries:
        entry = quote_untrusted(info.orig_filename)
        _check_path(info.orig_filename, entry, name)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            raise AdapterError(f"'{name}': '{entry}' is a symbolic link: put the file itself into the zip.")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise AdapterError(f"'{name}': '{entry}' is neither a file nor a folder: zip only regular files.")
        folded = info.orig_filename.rstrip("/").casefold()
        if folded in seen:
            raise AdapterError(f"'{name}' holds '{entry}' twice, so it is not clear which one counts: zip it again.")
        seen.add(folded)
    return [info for info in entries if not info.is_dir()]


def check_file_types(files: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Refuse pickles, which run code when they are read, nested archives and encrypted files."""
    for info in files:
        entry, lower = quote_untrusted(info.filename), info.filename.lower()
        if lower.endswith(PICKLES):
            raise AdapterError(
                f"'{name}' holds '{entry}', a pickle, which can run code: leave it out, or convert it to safetensors."
            )
        if lower.endswith(_ARCHIVE_SUFFIXES):
            raise AdapterError(f"'{name}' holds another archive, '{entry}': zip only the adapter's own files.")
        if info.flag_bits & _ENCRYPTED_FLAGS:
            raise AdapterError(f"'{name}' is encrypted ('{entry}'): zip it without a password.")


def find_adapter_files(files: Sequence[zipfile.ZipInfo], name: str) -> ArchiveContents:
    """Find the one adapter in the archive, at its top level or in one folder, with all required files."""
    by_path = {PurePosixPath(info.filename): info for info in files}
    folders = [path.parent for path in by_path if path.name == CONFIG_NAME and path.parts[0] != _MACOS_FOLDER]
    if not folders:
        if any(path.name in _FULL_MODEL_FILES or path.suffix == ".gguf" for path in by_path):
            raise AdapterError(
                f"'{name}' is a whole model, not an adapter: unpack it yourself and use it as a base, with "
                "--base FOLDER."
            )
        raise AdapterError(f"'{name}' has no {CONFIG_NAME}, so it is no adapter: zip the folder that has it.")
    if len(folders) > 1:
        raise AdapterError(f"'{name}' holds {len(folders)} adapters: zip each of them by itself.")
    folder = folders[0]
    if len(folder.parts) > 1:
        raise AdapterError(
            f"'{name}' has its adapter in the nested folder '{quote_untrusted(str(folder))}': zip that folder only."
        )
    found = {file: by_path[folder / file] for file in ADAPTER_FILES if folder / file in by_path}
    for needed in REQUIRED_FILES:
        if needed not in found:
            raise AdapterError(
                f"'{name}' has no {needed}, so it is no adapter of Prompt or Tune: zip the whole folder that "
                "`python -m train` wrote."
            )
    return ArchiveContents("".join(folder.parts), found, len(by_path) - len(found))


def check_sizes(contents: ArchiveContents, name: str, max_bytes: int) -> None:
    """Check the stated sizes: of each file, of all files together, and the compression ratio."""
    for file, info in contents.files.items():
        limit = file_limit(file)
        if info.file_size > limit:
            raise AdapterError(
                f"'{name}': {file} unpacks to {format_bytes(info.file_size)}, the limit is {format_bytes(limit)}: "
                "train it again, or leave the file out."
            )
        if info.compress_type not in _COMPRESSION_METHODS:
            raise AdapterError(
                f"'{name}': {file} is compressed with method {info.compress_type}, which is not supported: zip it "
                "with deflate."
            )
        if info.file_size > max(RATIO_EXEMPT_BYTES, MAX_RATIO * info.compress_size):
            raise AdapterError(
                f"'{name}': {file} unpacks to {format_bytes(info.file_size)} from {format_bytes(info.compress_size)}, "
                "as no real adapter does: it is not unpacked."
            )
    if contents.size > max_bytes:
        raise AdapterError(
            f"'{name}' unpacks to {format_bytes(contents.size)} and {format_bytes(max_bytes)} is the limit here: "
            "train an adapter of a smaller rank."
        )


def _check_path(path: str, entry: str, name: str) -> None:
    """Check the name `path` as the archive has it; `entry` is the same name, printable, for the message."""
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
STEP_PATHS = "No entry leads outside its folder"
STEP_FILE_TYPES = "No pickles, no archives inside, nothing encrypted"
STEP_REQUIRED_FILES = "It has settings, weights and a manifest"
STEP_SIZES = "Its unpacked size is within the limit"
STEP_CRC = "Every file is complete"
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

# The earliest time of the zip format, so that an adapter gives the same bytes whenever it is packed.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(folder: Path, target: Path) -> Path:
    """Write the adapter's own files (ADAPTER_FILES, no others) into the zip `target`; return `target`.

    They are in one folder of the adapter's name, in a fixed order and without times, so that equal adapters give equal
    bytes. An existing file at `target` is replaced in one step. Raises AdapterError where the folder is no adapter,
    holds a link or cannot be written, DiskSpaceError where the disk is full.
    """
    name = folder.name
    check_files(folder, name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as staging:
            packed = Path(staging) / "packed.zip"
            with zipfile.ZipFile(packed, "w") as archive:
                for file in ADAPTER_FILES:
                    if (folder / file).exists():
                        _add_file(archive, folder / file, name)
            packed.replace(target)
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
    max_bytes: int = MAX_FOLDER_BYTES,
    reserved: Collection[str] = (),
    owner: Owner = NO_OWNER,
) -> Path:
    """Install the adapter in the zip `archive` as the folder `name` under `root`; return that folder.

    The default name is that of the folder in the zip, or else of the zip; names in `reserved` count as taken. `report`
    gets each check of STEPS as it passes or fails. Neither the zip nor its unpacked content may have more than
    `max_bytes`. Only ADAPTER_FILES are unpacked. Raises PromptOrTuneError; the store is then as it was before.
    """
    archive_name = quote_untrusted(archive.name)
    with _open_zip_step(archive, max_bytes, report) as opened_archive:
        with report_step(report, STEP_PATHS):
            files = check_entries(opened_archive, archive_name)
        with report_step(report, STEP_FILE_TYPES):
            check_file_types(files, archive_name)
        with report_step(report, STEP_REQUIRED_FILES):
            contents = find_adapter_files(files, archive_name)
        with report_step(report, STEP_SIZES):
            check_sizes(contents, archive_name, max_bytes)
        with report_step(report, STEP_NAME):
            name = name or (contents.folder or archive.name.removesuffix(".zip")).lower()
            target = target_folder(root, name, overwrite, reserved)
        with staging_folder(root, name) as staging:
            folder = staging / name
            with report_step(report, STEP_CRC):
                _extract(opened_archive, contents, folder, archive_name)
            with report_step(report, STEP_CONSISTENT):
                inspect_verified(folder)
            write_origin(folder, "zip", archive.name, owner)
            install(folder, target, staging, overwrite)
    return target


@contextmanager
def _open_zip_step(path: Path, max_bytes: int, report: StepFn) -> Iterator[zipfile.ZipFile]:
    """Open the archive as a step of its own; errors in its content belong to the later steps."""
    with ExitStack() as stack:
        with report_step(report, STEP_IS_ZIP):
            archive = stack.enter_context(open_zip(path, max_bytes))
        yield archive


def _extract(archive: zipfile.ZipFile, contents: ArchiveContents, folder: Path, name: str) -> None:
    """Write the files into a new `folder`; zipfile checks their CRC and yields no more bytes than stated."""
    free = shutil.disk_usage(folder.parent).free
    if free < contents.size:
        raise DiskSpaceError(
            f"'{name}' unpacks to {format_bytes(contents.size)} and the disk has {format_bytes(free)} free: free some "
            "space, then add it again."
        )
    folder.mkdir()
    for file, info in contents.files.items():
        with archive.open(info) as source, (folder / file).open("xb") as destination:
            shutil.copyfileobj(source, destination, _CHUNK_BYTES)
        if (folder / file).stat().st_size != info.file_size:
            raise zipfile.BadZipFile(f"{file} is shorter than stated")


def _add_file(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """Add one file without its times; links and pipes are refused as in the store."""
    entry = zipfile.ZipInfo(f"{name}/{path.name}", _ZIP_EPOCH)
    entry.create_system = 3  # Unix, whatever system packs it
    entry.external_attr = 0o644 << 16
    # Trained weights do not compress, and storing them is many times as fast.
    entry.compress_type = zipfile.ZIP_STORED if path.name == WEIGHTS_NAME else zipfile.ZIP_DEFLATED
    with open_untrusted(path, name) as (source, status):
        entry.file_size = status.st_size
        with archive.open(entry, "w") as destination:
            shutil.copyfileobj(source, destination, 1 << 20)
