"""What runs where the GPU is: rows in, events out. Everything that passes between the two processes is pickled."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from adapters.store import AdapterFolder
from errors import PeftArenaError
from serve.backends.local.backend import LocalBackend
from serve.backends.local.loading import LoadedBase, load_base
from serve.backends.openmp import one_core
from serve.home import Report
from serve.rows import Decoding, Finished, Partial, Row

# What a call may take; ZeroGPU ends it then. Visitors who are not logged in have about two minutes a day.
MOST_SECONDS = 120
_START_SECONDS = 10.0  # the base's way to the GPU, and the adapters'
_TOKEN_SECONDS = 0.05
_EVERY_SECONDS = 0.05  # how often news passes between the processes
_KEPT_ADAPTERS = 16


@dataclass(frozen=True)
class Work:
    """Rows for one batch, all with the same decoding, and the folders of the adapters that they wear."""

    rows: tuple[Row, ...]
    adapters: tuple[AdapterFolder, ...]
    decoding: Decoding


@dataclass(frozen=True)
class Refused:
    """The sentence of a PeftArenaError: of exceptions only their class's name comes back."""

    sentence: str


News = Partial | Finished | Refused
Generate = Callable[[Work], Generator[Sequence[News]]]


def enter() -> Any:
    """The package `spaces`, which must be imported before anything uses CUDA; PeftArenaError where it is missing."""
    try:
        return importlib.import_module("spaces")
    except ImportError as fault:
        raise PeftArenaError(
            "This Space has ZeroGPU and no package 'spaces': choose the Gradio SDK, which brings it."
        ) from fault


def load_lent(
    base: str, quantization: str, report: Report, trust_remote_code: bool = False, place: str = "cuda"
) -> LoadedBase:
    """Loads the base for processes that have a GPU. In the main thread, after `enter` and before the launch."""
    loaded = load_base(base, quantization, "cpu", report, trust_remote_code)
    # Any: PreTrainedModel.to is typed for what it does not take.
    model: Any = loaded.model
    return LoadedBase(model.to(place), loaded.tokenizer, replace(loaded.identity, device=place))


def lend(backend: LocalBackend, spaces: Any) -> Generate:
    """The function that generates on a lent GPU. Before the launch: ZeroGPU wants to know then that there is one."""
    worn: dict[str, str] = {}  # in the forked process: which adapters it holds, by name, with their digests

    def generate(work: Work) -> Generator[Sequence[News]]:
        # OpenMP's teams of threads do not survive a fork, and where the GPU works there is no use for one.
        with one_core():
            try:
                _put_on(backend, work.adapters, worn)
            except PeftArenaError as fault:
                yield (Refused(str(fault)),)
                return
            news: list[News] = []
            spoke = time.monotonic()
            for event in backend.generate(work.rows, work.decoding, Event()):
                news.append(event)
                if isinstance(event, Finished) or time.monotonic() - spoke >= _EVERY_SECONDS:
                    yield tuple(news)
                    news, spoke = [], time.monotonic()
            if news:
                yield tuple(news)

    generating: Generate = spaces.GPU(generate, duration=seconds)
    return generating


def seconds(work: Work) -> int:
    """How long the work may take: asking for less gives a better place in ZeroGPU's queue."""
    searches = 2 if work.decoding.mode == "beam" else 1
    return min(MOST_SECONDS, round(_START_SECONDS + searches * _TOKEN_SECONDS * work.decoding.max_new_tokens))


def _put_on(backend: LocalBackend, wanted: Sequence[AdapterFolder], worn: dict[str, str]) -> None:
    """Loads what is not there as it lies on disk now; what was loaded first leaves where there are too many."""
    for folder in wanted:
        if worn.get(folder.name) != folder.digest:
            backend.load_adapter(folder)
            worn[folder.name] = folder.digest
    needed = {folder.name for folder in wanted}
    for name in [name for name in worn if name not in needed][: max(0, len(worn) - _KEPT_ADAPTERS)]:
        backend.unload_adapter(name)
        del worn[name]
