"""Real engine with the bundled adapters, on a scripted backend with the identity of the embedded base."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.manifest import Manifest
from adapters.store import LIBRARY, Store
from models.source import BaseIdentity
from serve.engine.llm_engine import EngineLoader, LLMEngine
from tasks.datasets.registry import load_examples
from tasks.methods import ExamplePools
from tasks.problem import Example
from tasks.prompt import STYLES
from tests.adapters.folders import write_adapter
from tests.serve.api.scripted_backend import ScriptedBackend
from ui.access.guard import VisitorRegistry
from ui.access.policy import AccessPolicy
from ui.context import Context

_LINEAR = {
    "self_attn.q_proj": (576, 576), "self_attn.k_proj": (192, 576), "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576), "mlp.gate_proj": (1536, 576), "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}  # fmt: skip
BASE = BaseIdentity(
    id="embedded/SmolLM2-135M-Instruct-Q4_1",
    revision="sha256:b179c9523d0e6a0f",
    architecture="LlamaForCausalLM",
    quantization="nf4",
    device="cpu",
    context_length=2048,
    has_chat_template=True,
    shapes={f"model.layers.{n}.{name}": shape for n in range(30) for name, shape in _LINEAR.items()},
    hidden_size=576,
    num_layers=30,
    num_key_value_heads=3,
    head_dim=64,
)
SMALL = "prompt-tuning-conala"
EVIL = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
    "${document.title = 'owned'}{{value}}</p></li>"
)


class FakeIndex:
    """An index that returns the first examples."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = list(examples)

    def nearest(self, intent: str, k: int) -> list[Example]:
        return self._examples[:k]


class Embedded(ScriptedBackend):
    """A scripted backend with the identity of the embedded base; an adapter uses as much memory as its file."""

    @property
    def base(self) -> BaseIdentity:
        return BASE

    def adapter_bytes(self, name: str) -> int:
        return (self.adapters[name] / "adapter_model.safetensors").stat().st_size


def copy_adapter(source: str, folder: Path, **changes: Any) -> Path:
    """Copy a bundled adapter under another name and with changes in its manifest."""
    shutil.copytree(LIBRARY / source, folder)
    replace(Manifest.read(folder), name=folder.name, **changes).write(folder)
    return folder


def fill_home(home: Path) -> Path:
    """Fill a home with a valid adapter, one for another base, a broken one, a hostile one, and a full model."""
    root = home / "adapters"
    copy_adapter(SMALL, root / "prompt-mine", dataset="my.csv", created="2026-11-20", licence="CC0-1.0")
    write_adapter(root / "other-base")
    (root / "broken").mkdir()
    (root / "broken" / "adapter_config.json").write_text("{ this is no JSON")
    evil = copy_adapter(
        SMALL,
        root / "evil",
        dataset=EVIL,
        licence=EVIL,
        technique=EVIL,
        created=EVIL,
        scores=({"metric": EVIL, "value": EVIL, "n": "many", "dataset": EVIL}, {"metric": "EM@1", "value": 1e400}),
    )
    (evil / "README.md").write_text(f"---\nlicense: {EVIL}\n---\n# {EVIL}\n![x](http://127.0.0.1:9/pixel.png)\n")
    (root / "tuned").mkdir()
    (root / "tuned" / "config.json").write_text("{}")
    return home


def make_engine(home: Path, backend: ScriptedBackend | None = None) -> LLMEngine:
    """Make an engine with the bundled adapters and those of the home, as serve.engine.build does."""
    pools = ExamplePools(load=load_examples, index=lambda name, examples: FakeIndex(examples))
    fingerprints = {name: style.fingerprint for name, style in STYLES.items()}
    store = Store((LIBRARY, home / "adapters"), fingerprints=fingerprints)
    return LLMEngine(backend or Embedded(), store, pools)


@contextmanager
def ready_context(home: Path, policy: AccessPolicy | None = None) -> Iterator[Context]:
    """Yield a context of the pages whose engine is ready."""
    engine = make_engine(home)
    source = EngineLoader(lambda report: engine).start()
    source.engine()
    try:
        yield Context(source, home=home, visitors=VisitorRegistry(policy))
    finally:
        engine.close()


def loading_context(home: Path, build: Callable[[Any], LLMEngine] | None = None) -> Context:
    """Return a context of the pages whose model is not loaded yet."""
    return Context(EngineLoader(build or (lambda report: make_engine(home))), home=home)
