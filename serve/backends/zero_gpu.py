"""Generation on ZeroGPU: Spaces where a GPU is available for seconds at a time, in a process forked for each call.

How ZeroGPU works (package `spaces` 0.51.3, which only such Spaces have): a function decorated by `spaces.GPU` runs in a
forked process in which torch sees a real GPU; the parent process has none. Tensors that were moved to "cuda" before the
app was launched are moved to the GPU in each such process. Threads do not survive a fork, and the emulation of CUDA in
the parent process works in its main thread only. Therefore:

- `import_spaces` is called first, in the main thread. Still there and before the app is launched,
  `load_base_for_gpu` loads the base on the CPU, where bitsandbytes also quantizes it, and moves it to "cuda" (loading
  directly onto "cuda" reads files in other threads, which the emulation does not cover), and `gpu_function` decorates
  the generating function;
- the parent process selects examples, builds prompts and checks adapters, which takes no GPU time
  (serve/engine/zero_gpu.py);
- the forked process only generates, with adapters that it loads itself and keeps as long as it lives (this module).

Tested with a stand-in for `spaces` that forks, on a tiny base without a GPU, and by loading and moving the embedded
base, unquantized and NF4, under the emulation of the real package. Not tested on ZeroGPU itself.
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
from common.files import ProgressFn
from errors import PromptOrTuneError
from models.identity import BaseIdentity
from models.loader import LoadedBase, load_base
from models.resources import single_thread
from serve.backends.local.backend import LocalBackend
from serve.types import Batch, PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import Message


class PromptOnlyBackend:
    """Implements the parts of Backend (serve/types.py) that the parent process needs; it does not generate.

    Adapters are only recorded here: the forked process loads them.
    """

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self._bytes: dict[str, int] = {}

    @property
    def base(self) -> BaseIdentity:
        """The identity of the loaded base."""
        return self._backend.base

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """Render `messages` with the base's chat template."""
        return self._backend.apply_chat_template(messages)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        return self._backend.count_tokens(text)

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Record the size of a checked adapter."""
        self._bytes[folder.name] = (folder.path / WEIGHTS_NAME).stat().st_size

    def unload_adapter(self, name: str) -> None:
        """Remove the adapter's record."""
        self._bytes.pop(name, None)

    def adapter_bytes(self, name: str) -> int:
        """Return the size of the adapter's file."""
        return self._bytes[name]

    def open_batch(self, mode: Literal["step", "beam"]) -> Batch:
        """Raise NotImplementedError: this process does not generate."""
        raise NotImplementedError(f"Batches ({mode}) run in the GPU process: see serve/engine/zero_gpu.py.")

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: Event
    ) -> Iterator[PartialOutput | RowOutput]:
        """Raise NotImplementedError: this process does not generate."""
        raise NotImplementedError(f"{len(rows)} rows need the GPU process: see serve/engine/zero_gpu.py.")


# The longest duration of a call; ZeroGPU ends it then. Visitors without login have about two minutes a day.
MAX_GPU_SECONDS = 120
_START_SECONDS = 10.0  # moving the base to the GPU and loading adapters
_SECONDS_PER_TOKEN = 0.05
_FLUSH_SECONDS = 0.05  # how often events are sent to the parent process
_MAX_LOADED_ADAPTERS = 16


@dataclass(frozen=True)
class GpuTask:
    """Rows for one batch with the same sampling parameters, and the folders of their adapters."""

    rows: tuple[Row, ...]
    adapters: tuple[AdapterFolder, ...]
    decoding: SamplingParams


@dataclass(frozen=True)
class GpuTaskFailure:
    """The message of a PromptOrTuneError in the forked process: ZeroGPU returns only the class name of exceptions."""

    message: str


GpuEvent = PartialOutput | RowOutput | GpuTaskFailure
GenerateFn = Callable[[GpuTask], Generator[Sequence[GpuEvent]]]


def import_spaces() -> Any:
    """Import the package `spaces`, which must happen before CUDA is used; raises PromptOrTuneError if it is missing."""
    try:
        return importlib.import_module("spaces")
    except ImportError as error:
        raise PromptOrTuneError(
            "This Space has ZeroGPU and no package 'spaces': choose the Gradio SDK, which includes it."
        ) from error


def load_base_for_gpu(
    base: str, quantization: str, report: ProgressFn, trust_remote_code: bool = False, device: str = "cuda"
) -> LoadedBase:
    """Load the base for the GPU processes; call it in the main thread, after `import_spaces` and before the launch."""
    loaded = load_base(base, quantization, "cpu", report, trust_remote_code)
    # Any, because the annotation of PreTrainedModel.to does not accept a device name.
    model: Any = loaded.model
    return LoadedBase(model.to(device), loaded.tokenizer, replace(loaded.identity, device=device))


def gpu_function(backend: LocalBackend, spaces: Any) -> GenerateFn:
    """Return the function that generates on a GPU; call it before the launch, which needs to find such a function."""
    loaded_digests: dict[str, str] = {}  # in the forked process: name -> digest of each loaded adapter

    def generate(task: GpuTask) -> Generator[Sequence[GpuEvent]]:
        # OpenMP's thread pools do not survive a fork, and next to a GPU they are not needed.
        with single_thread():
            try:
                _load_adapters(backend, task.adapters, loaded_digests)
            except PromptOrTuneError as error:
                yield (GpuTaskFailure(str(error)),)
                return
            events: list[GpuEvent] = []
            flushed_at = time.monotonic()
            for event in backend.generate(task.rows, task.decoding, Event()):
                events.append(event)
                if isinstance(event, RowOutput) or time.monotonic() - flushed_at >= _FLUSH_SECONDS:
                    yield tuple(events)
                    events, flushed_at = [], time.monotonic()
            if events:
                yield tuple(events)

    gpu_generate: GenerateFn = spaces.GPU(generate, duration=gpu_seconds)
    return gpu_generate


def gpu_seconds(task: GpuTask) -> int:
    """Return the requested duration of a call: shorter calls start earlier in ZeroGPU's queue."""
    cost_factor = 2 if task.decoding.mode == "beam" else 1
    return min(MAX_GPU_SECONDS, round(_START_SECONDS + cost_factor * _SECONDS_PER_TOKEN * task.decoding.max_new_tokens))


def _load_adapters(backend: LocalBackend, folders: Sequence[AdapterFolder], loaded: dict[str, str]) -> None:
    """Load missing and changed adapters; unload the oldest unused ones beyond the limit."""
    for folder in folders:
        if loaded.get(folder.name) != folder.digest:
            backend.load_adapter(folder)
            loaded[folder.name] = folder.digest
    needed = {folder.name for folder in folders}
    for name in [name for name in loaded if name not in needed][: max(0, len(loaded) - _MAX_LOADED_ADAPTERS)]:
        backend.unload_adapter(name)
        del loaded[name]
