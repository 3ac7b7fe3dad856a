"""Whether what was published answers as what was trained does: greedy answers to a few intents, token by token."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from adapters.hub import checked
from adapters.manifest import Manifest
from adapters.store import Store
from adapters.weights import shown
from errors import TrainingError
from serve.home import Report
from serve.rows import Decoding, Finished, Partial, Row
from tasks.prompt import STYLES, render, style_named

if TYPE_CHECKING:
    from serve.backends.local.backend import LocalBackend

INTENTS = (
    "sort a list of tuples by the second item",
    "read the file `names.txt` and count its lines",
    "`merge(first, second)` should return a dict with the items of both",
)
MAX_NEW_TOKENS = 32
# Relative. The same file on the same base gives the same number; a wrong tensor is off by far more.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Transcript:
    """One greedy answer: the text after each step, the number of tokens, the sum of their log-probabilities."""

    steps: tuple[str, ...]
    tokens: int
    logprob: float


# Gives the answers of the adapter (or whole model) in a folder.
Answering = Callable[[Path], Sequence[Transcript]]


def base_of(manifest: Manifest, base: str | None = None) -> str:
    """What `--base` must be for this adapter's own base; `base` itself for one out of a folder or file."""
    if manifest.base_id.startswith("embedded/"):
        return "embedded"
    if not manifest.base_revision.startswith("sha256:"):
        return f"{manifest.base_id}@{manifest.base_revision}"
    if base:
        return base
    raise TrainingError(
        f"'{manifest.name}' was trained on {manifest.base_id}, which came from a folder or file: "
        "name that one with --base, so that what is published can be compared."
    )


def adapter_answers(
    base: str, quantization: str, report: Report, device: str = "auto", trust_remote_code: bool = False
) -> Answering:
    """Loads the base once; the function given back answers with the adapter of a folder on it."""
    from serve.backends.local.backend import LocalBackend
    from serve.backends.local.loading import load_base

    backend = LocalBackend(load_base(base, quantization, device, report, trust_remote_code))
    fingerprints = {name: style.fingerprint for name, style in STYLES.items()}

    def answers(folder: Path) -> list[Transcript]:
        checked(folder)
        found = Store((folder.parent,), fingerprints=fingerprints).open(folder.name, backend.base)
        worn = replace(found, name="compared")
        backend.load_adapter(worn)
        try:
            return transcripts(backend, found.manifest.prompt_style, worn.name)
        finally:
            backend.unload_adapter(worn.name)

    return answers


def model_answers(report: Report, device: str = "auto") -> Answering:
    """The function given back answers with the whole model of a folder, one model in memory at a time."""

    def answers(folder: Path) -> list[Transcript]:
        from serve.backends.local.backend import LocalBackend
        from serve.backends.local.loading import load_base

        backend = LocalBackend(load_base(str(folder), "none", device, report))
        said = transcripts(backend, Manifest.read(folder).prompt_style, None)
        del backend
        gc.collect()
        return said

    return answers


def transcripts(backend: LocalBackend, style_name: str, adapter: str | None) -> list[Transcript]:
    """Greedy answers to INTENTS, in one batch."""
    style = style_named(style_name)
    chat = backend.chat if style.format == "chat" else None
    rows = [Row(render(intent, (), style, chat), style, adapter) for intent in INTENTS]
    steps: list[list[str]] = [[] for _ in rows]
    ends: dict[int, Finished] = {}
    for event in backend.generate(rows, Decoding(max_new_tokens=MAX_NEW_TOKENS), Event()):
        if isinstance(event, Partial):
            steps[event.index].append(event.text)
        else:
            ends[event.index] = event
    best = [ends[index].candidates[0] for index in range(len(rows))]
    return [Transcript((*said, end.text), end.tokens, end.logprob) for said, end in zip(steps, best, strict=True)]


def check_same(expected: Sequence[Transcript], found: Sequence[Transcript], what: str) -> None:
    """TrainingError naming the first intent and token at which `found`, the answers of `what`, are other ones."""
    for intent, ours, theirs in zip(INTENTS, expected, found, strict=True):
        if ours.steps != theirs.steps or ours.tokens != theirs.tokens:
            pairs = list(zip(ours.steps, theirs.steps, strict=False))
            place = next((at for at, (one, two) in enumerate(pairs) if one != two), len(pairs))
            raise TrainingError(
                f"{what} does not answer as the folder does: to {intent!r} it says {_at(theirs, place)} where the "
                f"folder says {_at(ours, place)} (token {place + 1}), so do not use it and publish again."
            )
        if not math.isclose(ours.logprob, theirs.logprob, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            raise TrainingError(
                f"{what} does not answer as the folder does: to {intent!r} its log-probability is "
                f"{theirs.logprob:.4f} where the folder's is {ours.logprob:.4f}, so do not use it and publish again."
            )


def _at(transcript: Transcript, place: int) -> str:
    return repr(shown(transcript.steps[place] if place < len(transcript.steps) else "", 60))
