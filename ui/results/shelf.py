"""The runs that can be picked: the .jsonl files of a few folders, and nothing else whatever a browser asks for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import PromptOrTuneError, UnknownNameError
from evaluate.results import Run, read_run
from serve.home import cache_dir

BUNDLED_RUNS_DIR = Path(__file__).resolve().parents[2] / "docs" / "results"
RUN_SUFFIXES = (".jsonl", ".jsonl.gz")
SCORE_SUFFIXES = (".scores.jsonl", ".scores.jsonl.gz")
MAX_DEPTH = 3
MAX_LISTED = 500
MAX_CACHED_RUNS = 8


def default_runs_dir() -> Path:
    """The user's own runs unless --runs-dir names another folder: `runs` in PEFT_ARENA_HOME."""
    return cache_dir() / "runs"


@dataclass(frozen=True)
class RunFile:
    """A file that may be a run. `name` is what the page shows and sends back; the path never leaves this machine."""

    name: str
    path: Path


class RunLibrary:
    """Lists runs, and reads those that it listed. A run is read once while its files stay as they are."""

    def __init__(self, folders: Sequence[tuple[str, Path]]) -> None:
        self._folders = tuple(folders)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[object, ...], Run] = OrderedDict()

    @property
    def folders(self) -> tuple[tuple[str, Path], ...]:
        """The folders with the words that stand before their files' names."""
        return self._folders

    def list_runs(self) -> list[RunFile]:
        """All files that may be runs, folder by folder, at most MAX_LISTED; a folder that is missing has none.

        In each folder those that lie in no folder of their own come first, and of these the largest one.
        """
        found = []
        for label, folder in self._folders:
            files = sorted(_run_files(folder), key=lambda file: (len(file.parts), -_file_size(file), file.name))
            found += [RunFile(f"{label}/{file.relative_to(folder).as_posix()}", file) for file in files]
        return found[:MAX_LISTED]

    def load_run(self, name: str) -> Run:
        """The run of that name; PromptOrTuneError in one sentence where it is not listed or its file is broken."""
        path = next((entry.path for entry in self.list_runs() if entry.name == name), None)
        if path is None:
            raise UnknownNameError(f"There is no run '{name}' any more: choose another one.")
        key = _cache_key(path)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        try:
            run = read_run(path)
        except PromptOrTuneError as fault:
            # Where it lies is this machine's business; the page names the file as it was listed.
            sentence = str(fault).replace(str(path), f"'{name}'").replace(f"{path.parent}/", "")
            raise PromptOrTuneError(sentence) from fault
        with self._lock:
            self._cache[key] = run
            while len(self._cache) > MAX_CACHED_RUNS:
                self._cache.popitem(last=False)
        return run


def _run_files(folder: Path) -> list[Path]:
    """Runs under the folder that really lie in it: a link that leads out of it is left out."""
    if not folder.is_dir():
        return []
    inside = folder.resolve()
    found = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.name.endswith(RUN_SUFFIXES) or path.name.endswith(SCORE_SUFFIXES):
            continue
        shallow = len(path.relative_to(folder).parts) <= MAX_DEPTH
        if shallow and path.is_file() and path.resolve().is_relative_to(inside):
            found.append(path)
    return found


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # gone since it was listed


def _cache_key(path: Path) -> tuple[object, ...]:
    """Changes whenever the run or the scores beside it do."""
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    around = (path, *(path.with_name(stem + ending) for ending in SCORE_SUFFIXES))
    found = (file.stat() for file in around if file.is_file())
    return (path, *((state.st_mtime_ns, state.st_size, state.st_ino) for state in found))
