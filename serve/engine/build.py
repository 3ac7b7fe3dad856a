"""build_engine: the engine of every program, from its ModelOptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from adapters.store import LIBRARY, Store
from common.files import ProgressFn, cache_dir
from models.source import EMBEDDED
from serve.engine.config import EngineConfig
from serve.engine.llm_engine import LLMEngine
from serve.options import ModelOptions
from serve.types import Backend
from tasks.datasets.registry import dataset_digest, dataset_version, load_examples
from tasks.methods import ExamplePools, IndexRetriever
from tasks.problem import Example
from tasks.prompt import STYLES

_PRIVATE_NUM_SEQS, _PRIVATE_QUEUED_ROWS = 512, 100_000


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
    options = options or ModelOptions()
    remote = options.remote
    backend: Backend
    if remote is None:
        backend = _local_backend(options, report)
    else:
        from serve.backends.remote.backend import OpenAIBackend

        backend = OpenAIBackend(remote.url, remote.model, remote.api_key, options.base, report)
    return LLMEngine(backend, _user_store(adapter_dirs), _dataset_pools(options), config=engine_config)


def build_private_engine(
    options: ModelOptions,
    adapter_dirs: Sequence[Path],
    load_pool: Callable[[str], Sequence[Example]],
    report: ProgressFn = lambda _: None,
) -> LLMEngine:
    """Return an engine over a local base for this process alone, without limits for its users.

    Adapters are those of the library and of `adapter_dirs`; `load_pool` returns the examples of a pool by its name, and
    their indexes are not stored. Raises BaseModelError.
    """
    limits = EngineConfig(
        max_num_seqs=_PRIVATE_NUM_SEQS, max_num_beam_seqs=_PRIVATE_NUM_SEQS, max_queued=_PRIVATE_QUEUED_ROWS
    )
    backend = _local_backend(options, report)
    pools = _example_pools(options.embedder, lambda name: list(load_pool(name)), store_indexes=False)
    return LLMEngine(backend, _make_store((LIBRARY, *adapter_dirs)), pools, config=limits)


def build_zero_gpu_engine(options: ModelOptions, report: ProgressFn = lambda _: None) -> LLMEngine:
    """Return the engine for ZeroGPU, which assigns a GPU to single calls (serve/engine/zero_gpu.py).

    Call it in the main thread, before anything uses CUDA and before the pages are launched. Raises PromptOrTuneError.
    """
    from models.resources import release_thread_pool
    from serve.backends.local.backend import LocalBackend
    from serve.engine.zero_gpu import ZeroGpuEngine, gpu_function, import_spaces, load_base_for_gpu

    spaces = import_spaces()
    loaded = load_base_for_gpu(options.base or EMBEDDED, options.quantization, report, options.trust_remote_code)
    backend = LocalBackend(loaded)
    release_thread_pool()
    return ZeroGpuEngine(backend, _user_store(()), _dataset_pools(options), gpu_function(backend, spaces))


def _local_backend(options: ModelOptions, report: ProgressFn) -> Backend:
    from models.loader import load_base
    from models.resources import release_thread_pool
    from serve.backends.local.backend import LocalBackend, check_base

    loaded = load_base(
        options.base or EMBEDDED, options.quantization, options.device, report, options.trust_remote_code
    )
    check_base(loaded)
    backend = LocalBackend(loaded)
    release_thread_pool()
    return backend


def _dataset_pools(options: ModelOptions) -> ExamplePools:
    return _example_pools(options.embedder, lambda name: load_examples(name, options.data_dir), dataset_version)


def _example_pools(
    embedder: str,
    load: Callable[[str], list[Example]],
    version: Callable[[str], str] = lambda _name: "",
    *,
    store_indexes: bool = True,
) -> ExamplePools:
    """Return the example pools; each is loaded and indexed on first use, and again when its `version` is another."""
    from models.embedder import Embedder, FaissIndex

    model = Embedder(embedder)

    def index(_name: str, examples: Sequence[Example]) -> IndexRetriever:
        digest = dataset_digest(examples) if store_indexes else None
        return IndexRetriever(examples, FaissIndex(model, [example.intent for example in examples], digest))

    return ExamplePools(load, index, version)


def _user_store(adapter_dirs: Sequence[Path]) -> Store:
    """Return a store of the adapters in the library, the user's folder and `adapter_dirs`."""
    return _make_store((LIBRARY, cache_dir() / "adapters", *adapter_dirs), tuple(adapter_dirs) or None)


def _make_store(roots: Sequence[Path], allowed: Sequence[Path] | None = None) -> Store:
    fingerprints = {name: style.fingerprint for name, style in STYLES.items()}
    return Store(tuple(roots), fingerprints=fingerprints, allowed=allowed)
