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
from serve.home import Report
from serve.quiet import quiet
from serve.rows import Candidate, Decoding, Finished, Row
from tasks.prompt import STYLES, render, style_named

_INTENTS = ("sort list `x` in descending order", "read the lines of file 'a.txt' into a list")
_DECODING = Decoding(max_new_tokens=24)
# Sums of log-probabilities that differ by less are the same but for rounding.
_SAME = 1e-4


@dataclass(frozen=True)
class Place:
    """Where the adapter is tried: a base as --base takes it, quantized as in training unless said otherwise."""

    base: str
    quantization: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False


def try_adapter(folder: AdapterFolder, place: Place, report: Report) -> str:
    """The answers to two prompts, without and with the adapter.

    AdapterError where it does not fit the base, gives log-probabilities that are not finite, or changes nothing.
    """
    quiet()
    quantization = place.quantization or folder.manifest.trained_quantization
    loaded = load_base(place.base, quantization, place.device, report, place.trust_remote_code)
    store = Store((folder.path.parent,), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    folder = store.open(folder.name, loaded.identity)
    backend = LocalBackend(loaded)
    backend.load_adapter(folder)
    style = style_named(folder.manifest.prompt_style)
    prompts = [render(intent, (), style, backend.chat) for intent in _INTENTS]
    report(f"Decoding {len(prompts)} prompts, without and with '{folder.name}' ...")
    answers = _decode(backend, [Row(prompt, style, adapter) for adapter in (None, folder.name) for prompt in prompts])
    bare, bent = answers[: len(prompts)], answers[len(prompts) :]
    if not all(math.isfinite(answer.logprob) for answer in bent):
        raise AdapterError(
            f"Adapter '{folder.name}' gives log-probabilities that are not finite on {loaded.identity.id}: "
            "training went wrong, train it again with a lower learning rate."
        )
    if all(_same(*pair) for pair in zip(bare, bent, strict=True)):
        raise AdapterError(
            f"Adapter '{folder.name}' answers exactly as {loaded.identity.id} does without it: it has learned nothing."
        )
    lines = [f"on {loaded.identity.id} ({quantization_label(quantization)}): finite, and not what the base says alone"]
    for intent, one, other in zip(_INTENTS, bare, bent, strict=True):
        lines.append(f"  {intent}\n    without  {_line(one)}\n    with     {_line(other)}")
    return "\n".join(lines)


def _decode(backend: LocalBackend, rows: Sequence[Row]) -> list[Candidate]:
    found: dict[int, Candidate] = {}
    for event in backend.generate(rows, _DECODING, Event()):
        if isinstance(event, Finished):
            found[event.index] = event.candidates[0]
    return [found[index] for index in range(len(rows))]


def _same(one: Candidate, other: Candidate) -> bool:
    return one.text == other.text and abs(one.logprob - other.logprob) < _SAME


def _line(answer: Candidate) -> str:
    """The answer on one line, whatever it holds, with its log-probability."""
    text = answer.text.strip()
    return f"{(text if text.isprintable() else repr(text))[:100]}  ({answer.logprob:.2f})"
