"""Pages on a fake engine in this process, with its scripted answers and failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from serve.engine.llm_engine import EngineLoader, ProgressFn
from tests.fakes import FakeEngine
from ui.access.quota import AdmissionQueue
from ui.app import build_pages, launch
from ui.context import Context
from ui.results.runs import RunLibrary

REFERENCE = "dict(zip(keys, values))"
LONG = "values = [" + ", ".join(f"'{'x' * 12}{n}'" for n in range(60)) + "]\n" + "print('line')\n" * 500
EVIL = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
    "${document.title = 'owned'}</code></pre>{{value}}"
)
ANSWERS = {
    "zero-shot": "```python\ndef merge(keys, values):\n    # one by one\n    return {k: v for k, v in zip(keys)}\n```",
    "icl-8": "{keys[i]: values[i] for i in range(len(keys))}",
    "rag-8": "dict(zip(keys, value))",
    "lora-starter": REFERENCE,
    "lora-long": LONG,
    "lora-evil": EVIL,
}
FAILS = {"lora-broken": "Adapter 'lora-broken': adapter_config.json cannot be read; train it again."}
DEFAULTS = ["zero-shot", "ICL 8", "RAG 8", "lora-starter"]


@contextmanager
def serve(
    build: Callable[[ProgressFn], FakeEngine],
    context: Context | None = None,
    run_library: RunLibrary | None = None,
    **options: Any,
) -> Iterator[str]:
    """Serve the pages on the engine that `build` makes, which runs one request at a time.

    Yields their address. `options` are passed to `ui.app.launch`.
    """
    loader = EngineLoader(build).start()
    context = context or Context(loader, run_queue=AdmissionQueue())
    pages = build_pages(loader, context=context, run_library=run_library)
    _, address, _ = launch(pages, port=None, prevent_thread_lock=True, runs=context.cancel_registry, **options)
    yield address
    pages.close()


def make_engine() -> FakeEngine:
    """Return an engine with adapters that are slow, broken, long or hostile."""
    return FakeEngine(
        {**ANSWERS, "lora-slow": "word " * 2000},
        FAILS,
        notes={"icl-8": ("2 of 8 examples were left out: the prompt would not fit the context.",)},
        names=("lora-starter", "lora-broken", "lora-evil", "lora-long", "lora-slow"),
        delay=0.02,
        words={"lora-long": 20},
    )
