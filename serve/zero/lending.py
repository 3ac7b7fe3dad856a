"""What runs where the GPU is: rows in, events out. Everything that passes between the two processes is pickled."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from adapters.store import AdapterFolder
from errors import PromptOrTuneError
from serve.backends.local.backend import LocalBackend
from serve.backends.local.loading import LoadedBase, load_base
from serve.backends.openmp import single_thread
from serve.home import ProgressFn
from serve.rows import PartialOutput, Row, RowOutput, SamplingParams

# What a call may take; ZeroGPU ends it then. Visitors who are not logged in have about two minutes a day.
MAX_GPU_SECONDS = 120
_START_SECONDS = 10.0  # the base's way to the GPU, and the adapters'
_SECONDS_PER_TOKEN = 0.05
_FLUSH_SECONDS = 0.05  # how often news passes between the processes
_MAX_LOADED_ADAPTERS = 16


@dataclass(frozen=True)
class GpuTask:
    """Rows for one batch, all with the same decoding, and the folders of the adapters that they wear."""

    rows: tuple[Row, ...]
    adapters: tuple[AdapterFolder, ...]
    decoding: SamplingParams


@dataclass(frozen=True)
class GpuTaskFailure:
    """The sentence of a PromptOrTuneError: of exceptions only their class's name comes back."""

    message: str


GpuEvent = PartialOutput | RowOutput | GpuTaskFailure
GenerateFn = Callable[[GpuTask], Generator[Sequence[GpuEvent]]]


def import_spaces() -> Any:
    """The package `spaces`, which must be imported before anything uses CUDA; PromptOrTuneError where it is missing."""
    try:
        return importlib.import_module("spaces")
    except ImportError as fault:
        raise PromptOrTuneError(
            "This Space has ZeroGPU and no package 'spaces': choose the Gradio SDK, which brings it."
        ) from fault


def load_base_for_gpu(
    base: str, quantization: str, report: ProgressFn, trust_remote_code: bool = False, device: str = "cuda"
) -> LoadedBase:
    """Loads the base for processes that have a GPU. In the main thread, after `enter` and before the launch."""
    loaded = load_base(base, quantization, "cpu", report, trust_remote_code)
    # Any: PreTrainedModel.to is typed for what it does not take.
    model: Any = loaded.model
    return LoadedBase(model.to(device), loaded.tokenizer, replace(loaded.identity, device=device))


def gpu_function(backend: LocalBackend, spaces: Any) -> GenerateFn:
    """The function that generates on a lent GPU. Before the launch: ZeroGPU wants to know then that there is one."""
    worn: dict[str, str] = {}  # in the forked process: which adapters it holds, by name, with their digests

    def generate(work: GpuTask) -> Generator[Sequence[GpuEvent]]:
        # OpenMP's teams of threads do not survive a fork, and where the GPU works there is no use for one.
        with single_thread():
            try:
                _load_adapters(backend, work.adapters, worn)
            except PromptOrTuneError as fault:
                yield (GpuTaskFailure(str(fault)),)
                return
            news: list[GpuEvent] = []
            spoke = time.monotonic()
            for event in backend.generate(work.rows, work.decoding, Event()):
                news.append(event)
                if isinstance(event, RowOutput) or time.monotonic() - spoke >= _FLUSH_SECONDS:
                    yield tuple(news)
                    news, spoke = [], time.monotonic()
            if news:
                yield tuple(news)

    generating: GenerateFn = spaces.GPU(generate, duration=gpu_seconds)
    return generating


def gpu_seconds(task: GpuTask) -> int:
    """How long the work may take: asking for less gives a better place in ZeroGPU's queue."""
    searches = 2 if task.decoding.mode == "beam" else 1
    return min(MAX_GPU_SECONDS, round(_START_SECONDS + searches * _SECONDS_PER_TOKEN * task.decoding.max_new_tokens))


def _load_adapters(backend: LocalBackend, folders: Sequence[AdapterFolder], loaded: dict[str, str]) -> None:
    """Loads what is not there as it lies on disk now; what was loaded first leaves where there are too many."""
    for folder in folders:
        if loaded.get(folder.name) != folder.digest:
            backend.load_adapter(folder)
            loaded[folder.name] = folder.digest
    needed = {folder.name for folder in folders}
    for name in [name for name in loaded if name not in needed][: max(0, len(loaded) - _MAX_LOADED_ADAPTERS)]:
        backend.unload_adapter(name)
        del loaded[name]
