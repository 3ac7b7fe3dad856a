"""Engine construction from command-line options: build_engine() and build_zero_gpu_engine()."""

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
    """Load the base, downloading or converting it first if necessary, and return an engine for it.

    With `remote` the engine sends its rows to that server, and `base`, if given, names the base that the server has;
    with neither, the embedded base is loaded. Adapters are found in the library, the user's folder and
    `adapter_dirs`; if `adapter_dirs` is not empty, further adapters can be registered only from these. `report` is
    called with one line of progress at a time. Raises BaseModelError or another PromptOrTuneError.
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
    """Return an engine for ZeroGPU, which assigns a GPU per call; the options are those of `build_engine`.

    Must be called in the main thread, before anything uses CUDA and before the pages are launched. Raises
    PromptOrTuneError.
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
