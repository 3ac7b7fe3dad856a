"""What a zip from anywhere may hold: it is read with suspicion, and nothing of it is written here.

What an entry says of itself decides whether the archive is refused, before a byte of it is decompressed. What the
entries then turn out to be is checked as they are unpacked (adapters.archive).
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adapters import checks
from adapters.hub import ADAPTER_FILES, REQUIRED_FILES, file_limit
from adapters.weights import quote_untrusted
from errors import AdapterError, PromptOrTuneError

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
        except OSError as fault:
            raise zipfile.BadZipFile("it points outside itself") from fault

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
    except OSError as fault:
        raise AdapterError(f"'{name}' cannot be read ({fault.strerror or fault}): check who may read it.") from fault
    except Exception as fault:  # a broken archive raises whatever it likes: struct's, zlib's, Unicode's errors
        raise AdapterError(
            f"'{name}' is no zip file, is cut short or is damaged ({quote_untrusted(str(fault), 80)}): copy it again, or make it "
            "with `python -m adapters pack NAME FILE.zip`."
        ) from fault


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
                f"'{name}' has no {needed}, so it is no adapter of Peft Arena: zip the whole folder that "
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
