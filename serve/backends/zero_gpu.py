"""Answers on ZeroGPU, where a GPU is lent for seconds at a time: rows are made ready here and grow in a forked process.

How ZeroGPU works (package `spaces` 0.51.3, which only such Spaces have): a function that `spaces.GPU` decorates runs in
a process forked for it, where torch sees a real GPU; the forking process has none. Whatever was moved to "cuda" before
the app was launched is moved to the GPU for real in each such process. Threads do not survive a fork, and the imitation
of CUDA in the forking process works in its main thread alone. So here:

- `enter` comes first, in the main thread; then, still there and before the app is launched, `load_lent` loads the base
  on the CPU, where bitsandbytes quantizes it too, and moves it (loading straight onto "cuda" reads files in threads of
  its own, which the imitation does not reach), and `lend` decorates what generates;
- examples, prompts and adapters' checks are this process's work, which costs nobody's GPU time (serve.engine.zero_gpu);
- the forked process only generates, with adapters that it loads itself and keeps while it lives (this module).

What was tested: all of it with a stand-in for `spaces` that really forks, on a tiny base without a GPU; loading and
moving the embedded base, unquantized and NF4, under the imitation of the real package. It never ran on ZeroGPU itself.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Literal

from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME
from common.paths import ProgressFn
from errors import PromptOrTuneError
from models.identity import BaseIdentity
from models.loader import LoadedBase, load_base
from models.threads import single_thread
from serve.backends.local.backend import LocalBackend
from serve.types import Batch, PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import Message


class PromptOnlyBackend:
    """Implements Backend (serve.types). Adapters are noted here and loaded where the GPU is."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self._bytes: dict[str, int] = {}

    @property
    def base(self) -> BaseIdentity:
        """What was loaded."""
        return self._backend.base

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """The base's own chat template around `messages`."""
        return self._backend.apply_chat_template(messages)

    def count_tokens(self, text: str) -> int:
        """How many tokens the base reads for `text`."""
        return self._backend.count_tokens(text)

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Notes the adapter, which passed its checks."""
        self._bytes[folder.name] = (folder.path / WEIGHTS_NAME).stat().st_size

    def unload_adapter(self, name: str) -> None:
        """Forgets the adapter."""
        self._bytes.pop(name, None)

    def adapter_bytes(self, name: str) -> int:
        """The size of the adapter's file."""
        return self._bytes[name]

    def open_batch(self, mode: Literal["step", "beam"]) -> Batch:
        """Nothing grows in this process."""
        raise NotImplementedError(f"Rows ({mode}) grow where the GPU is: see serve.engine.zero_gpu.")

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: Event
    ) -> Iterator[PartialOutput | RowOutput]:
        """Nothing grows in this process."""
        raise NotImplementedError(f"{len(rows)} rows grow where the GPU is: see serve.engine.zero_gpu.")


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
    except ImportError as error:
        raise PromptOrTuneError(
            "This Space has ZeroGPU and no package 'spaces': choose the Gradio SDK, which brings it."
        ) from error


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
            except PromptOrTuneError as error:
                yield (GpuTaskFailure(str(error)),)
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
