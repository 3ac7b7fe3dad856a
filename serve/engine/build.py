"""build_engine: the engine of every program, from its ModelOptions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapters.store import LIBRARY, Store
from common.paths import ProgressFn, cache_dir
from models.source import EMBEDDED
from serve.engine.config import EngineConfig
from serve.engine.llm_engine import LLMEngine
from serve.options import ModelOptions
from serve.types import Backend
from tasks.datasets.registry import dataset_digest, load_examples
from tasks.prompt import STYLES
from tasks.retrieval import ExamplePools, IndexRetriever


def build_engine(
    options: ModelOptions | None = None,
    report: ProgressFn = lambda _: None,
    *,
    adapter_dirs: Sequence[Path] = (),
    engine_config: EngineConfig | None = None,
) -> LLMEngine:
    """Load the base (converting or downloading it first where needed) and return an engine over it.

    Adapters are those of the library, of the user's folder and of `adapter_dirs`; adapters that clients register are
    taken from the last of these only, where there are any. `report` gets one line of progress at a time. Raises
    BaseModelError or another PromptOrTuneError.
    """
    from models.threads import release_thread_pool

    options = options or ModelOptions()
    remote = options.remote
    backend: Backend
    if remote is None:
        from models.loader import load_base
        from serve.backends.local.backend import LocalBackend, check_base

        loaded = load_base(
            options.base or EMBEDDED, options.quantization, options.device, report, options.trust_remote_code
        )
        check_base(loaded)
        backend = LocalBackend(loaded)
        release_thread_pool()
    else:
        from serve.backends.remote.backend import OpenAIBackend

        backend = OpenAIBackend(remote.url, remote.model, remote.api_key, options.base, report)
    pools = _make_example_pools(options.embedder, options.data_dir)
    return LLMEngine(backend, _make_store(adapter_dirs), pools, config=engine_config)


def build_zero_gpu_engine(options: ModelOptions, report: ProgressFn = lambda _: None) -> LLMEngine:
    """Return the engine for ZeroGPU, which assigns a GPU to single calls (serve/backends/zero_gpu.py).

    Call it in the main thread, before anything uses CUDA and before the pages are launched. Raises PromptOrTuneError.
    """
    from models.threads import release_thread_pool
    from serve.backends.local.backend import LocalBackend
    from serve.backends.zero_gpu import gpu_function, import_spaces, load_base_for_gpu
    from serve.engine.zero_gpu import ZeroGpuEngine

    spaces = import_spaces()
    loaded = load_base_for_gpu(options.base or EMBEDDED, options.quantization, report, options.trust_remote_code)
    backend = LocalBackend(loaded)
    release_thread_pool()
    pools = _make_example_pools(options.embedder, options.data_dir)
    return ZeroGpuEngine(backend, _make_store(()), pools, gpu_function(backend, spaces))


def _make_example_pools(embedder: str, data_dir: Path | None) -> ExamplePools:
    """Return the example pools; each data set and its index is loaded on first use."""
    from models.embedder import Embedder, FaissIndex

    model = Embedder(embedder)
    return ExamplePools(
        load=lambda name: load_examples(name, data_dir),
        index=lambda _, examples: IndexRetriever(
            examples, FaissIndex(model, [example.intent for example in examples], dataset_digest(examples))
        ),
    )


def _make_store(adapter_dirs: Sequence[Path]) -> Store:
    """Return a store of the adapters in the library, the user's folder and `adapter_dirs`."""
    fingerprints = {name: style.fingerprint for name, style in STYLES.items()}
    roots = (LIBRARY, cache_dir() / "adapters", *adapter_dirs)
    return Store(roots, fingerprints=fingerprints, allowed=tuple(adapter_dirs) or None)
