"""Builds the engine that every program uses, from what was given on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapters.store import LIBRARY, Store
from common.paths import ProgressFn, cache_dir
from models.source import EMBEDDED
from serve.backends.remote.backend import RemoteOptions
from serve.engine.config import EngineConfig
from serve.engine.llm_engine import LLMEngine
from serve.types import Backend
from tasks.datasets.registry import dataset_digest, load_examples
from tasks.prompt import STYLES
from tasks.retrieval import ExamplePools, IndexRetriever


def build_engine(  # noqa: PLR0913 - each is an option of a command line
    base: str | None = None,
    quantization: str = "nf4",
    device: str = "auto",
    data_dir: Path | None = None,
    trust_remote_code: bool = False,
    embedder: str = "embedded",
    report: ProgressFn = lambda _: None,
    *,
    remote: RemoteOptions | None = None,
    adapter_dirs: Sequence[Path] = (),
    engine_config: EngineConfig | None = None,
) -> LLMEngine:
    """Loads the base (converting or downloading it first where needed) and puts the engine around it.

    With `remote` that server answers instead, and `base`, where it is given, says which base the server has; without
    either the embedded base is loaded. Adapters lie in the library, in the user's own folder and in `adapter_dirs`;
    others are registered from the last of these alone, where there are any. `report` gets one line of progress at a
    time. Raises BaseModelError, or another PromptOrTuneError, in one sentence.
    """
    from models.threads import release_thread_pool

    backend: Backend
    if remote is None:
        from models.loader import load_base
        from serve.backends.local.backend import LocalBackend

        backend = LocalBackend(load_base(base or EMBEDDED, quantization, device, report, trust_remote_code))
        release_thread_pool()
    else:
        from serve.backends.remote.backend import OpenAIBackend

        backend = OpenAIBackend(remote.url, remote.model, remote.api_key, base, report)
    return LLMEngine(backend, _make_store(adapter_dirs), _make_example_pools(embedder, data_dir), config=engine_config)


def build_zero_gpu_engine(
    base: str | None = None,
    quantization: str = "nf4",
    data_dir: Path | None = None,
    trust_remote_code: bool = False,
    embedder: str = "embedded",
    report: ProgressFn = lambda _: None,
) -> LLMEngine:
    """The engine on ZeroGPU, which lends a GPU for each call (serve.zero); the options are those of `build_engine`.

    To be called in the main thread, before anything uses CUDA and before the pages are launched. Raises PromptOrTuneError
    in one sentence.
    """
    from models.threads import release_thread_pool
    from serve.backends.local.backend import LocalBackend
    from serve.backends.zero_gpu import gpu_function, import_spaces, load_base_for_gpu
    from serve.engine.zero_gpu import ZeroGpuEngine

    spaces = import_spaces()
    backend = LocalBackend(load_base_for_gpu(base or EMBEDDED, quantization, report, trust_remote_code))
    release_thread_pool()
    return ZeroGpuEngine(
        backend, _make_store(()), _make_example_pools(embedder, data_dir), gpu_function(backend, spaces)
    )


def _make_example_pools(embedder: str, data_dir: Path | None) -> ExamplePools:
    """The data sets that give examples, and the indexes over them, loaded when they are first used."""
    from models.embedder import Embedder, FaissIndex

    model = Embedder(embedder)
    return ExamplePools(
        load=lambda name: load_examples(name, data_dir),
        index=lambda _, examples: IndexRetriever(
            examples, FaissIndex(model, [example.intent for example in examples], dataset_digest(examples))
        ),
    )


def _make_store(adapter_dirs: Sequence[Path]) -> Store:
    """The adapters of the library, of the user's own folder and of `adapter_dirs`."""
    fingerprints = {name: style.fingerprint for name, style in STYLES.items()}
    roots = (LIBRARY, cache_dir() / "adapters", *adapter_dirs)
    return Store(roots, fingerprints=fingerprints, allowed=tuple(adapter_dirs) or None)
