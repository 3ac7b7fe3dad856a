"""Puts an adapter onto its base and lets both answer: the last step of `python -m adapters verify`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

from adapters.store import AdapterFolder, Store
from errors import AdapterError
from serve.backends.local.backend import LocalBackend
from serve.backends.local.loading import load_base, quantization_label
from serve.home import ProgressFn
from serve.quiet import configure_environment
from serve.rows import Candidate, Row, RowOutput, SamplingParams
from tasks.prompt import STYLES, get_style, render_prompt

_SMOKE_TEST_INTENTS = ("sort list `x` in descending order", "read the lines of file 'a.txt' into a list")
_SMOKE_TEST_SAMPLING = SamplingParams(max_new_tokens=24)
# Sums of log-probabilities that differ by less are the same but for rounding.
_MIN_LOGPROB_CHANGE = 1e-4


@dataclass(frozen=True)
class TestTarget:
    """Where the adapter is tried: a base as --base takes it, quantized as in training unless said otherwise."""

    base: str
    quantization: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False


def smoke_test_adapter(folder: AdapterFolder, target: TestTarget, report: ProgressFn) -> str:
    """The answers to two prompts, without and with the adapter.

    AdapterError where it does not fit the base, gives log-probabilities that are not finite, or changes nothing.
    """
    configure_environment()
    quantization = target.quantization or folder.manifest.trained_quantization
    loaded = load_base(target.base, quantization, target.device, report, target.trust_remote_code)
    store = Store((folder.path.parent,), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    folder = store.open(folder.name, loaded.identity)
    backend = LocalBackend(loaded)
    backend.load_adapter(folder)
    style = get_style(folder.manifest.prompt_style)
    prompts = [render_prompt(intent, (), style, backend.apply_chat_template) for intent in _SMOKE_TEST_INTENTS]
    report(f"Decoding {len(prompts)} prompts, without and with '{folder.name}' ...")
    answers = _generate(backend, [Row(prompt, style, adapter) for adapter in (None, folder.name) for prompt in prompts])
    bare, bent = answers[: len(prompts)], answers[len(prompts) :]
    if not all(math.isfinite(answer.logprob) for answer in bent):
        raise AdapterError(
            f"Adapter '{folder.name}' gives log-probabilities that are not finite on {loaded.identity.id}: "
            "training went wrong, train it again with a lower learning rate."
        )
    if all(_is_unchanged(*pair) for pair in zip(bare, bent, strict=True)):
        raise AdapterError(
            f"Adapter '{folder.name}' answers exactly as {loaded.identity.id} does without it: it has learned nothing."
        )
    lines = [f"on {loaded.identity.id} ({quantization_label(quantization)}): finite, and not what the base says alone"]
    for intent, one, other in zip(_SMOKE_TEST_INTENTS, bare, bent, strict=True):
        lines.append(f"  {intent}\n    without  {_format_answer(one)}\n    with     {_format_answer(other)}")
    return "\n".join(lines)


def _generate(backend: LocalBackend, rows: Sequence[Row]) -> list[Candidate]:
    found: dict[int, Candidate] = {}
    for event in backend.generate(rows, _SMOKE_TEST_SAMPLING, Event()):
        if isinstance(event, RowOutput):
            found[event.index] = event.candidates[0]
    return [found[index] for index in range(len(rows))]


def _is_unchanged(one: Candidate, other: Candidate) -> bool:
    return one.text == other.text and abs(one.logprob - other.logprob) < _MIN_LOGPROB_CHANGE


def _format_answer(answer: Candidate) -> str:
    """The answer on one line, whatever it holds, with its log-probability."""
    text = answer.text.strip()
    return f"{(text if text.isprintable() else repr(text))[:100]}  ({answer.logprob:.2f})"
