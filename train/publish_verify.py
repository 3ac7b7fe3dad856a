"""Whether what was published answers as what was trained does: greedy answers to a few intents, token by token."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from adapters.hub import inspect_verified
from adapters.manifest import Manifest
from adapters.store import Store
from adapters.weights import quote_untrusted
from errors import TrainingError
from serve.home import ProgressFn
from serve.rows import PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import STYLES, get_style, render_prompt

if TYPE_CHECKING:
    from serve.backends.local.backend import LocalBackend

VERIFY_INTENTS = (
    "sort a list of tuples by the second item",
    "read the file `names.txt` and count its lines",
    "`merge(first, second)` should return a dict with the items of both",
)
VERIFY_MAX_NEW_TOKENS = 32
# Relative. The same file on the same base gives the same number; a wrong tensor is off by far more.
_LOGPROB_TOLERANCE = 1e-3


@dataclass(frozen=True)
class GreedyAnswer:
    """One greedy answer: the text after each step, the number of tokens, the sum of their log-probabilities."""

    steps: tuple[str, ...]
    tokens: int
    logprob: float


# Gives the answers of the adapter (or whole model) in a folder.
AnswerFn = Callable[[Path], Sequence[GreedyAnswer]]


def base_argument(manifest: Manifest, base: str | None = None) -> str:
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


def adapter_answer_fn(
    base: str, quantization: str, report: ProgressFn, device: str = "auto", trust_remote_code: bool = False
) -> AnswerFn:
    """Loads the base once; the function given back answers with the adapter of a folder on it."""
    from serve.backends.local.backend import LocalBackend
    from serve.backends.local.loading import load_base

    backend = LocalBackend(load_base(base, quantization, device, report, trust_remote_code))
    fingerprints = {name: style.fingerprint for name, style in STYLES.items()}

    def answers(folder: Path) -> list[GreedyAnswer]:
        inspect_verified(folder)
        found = Store((folder.parent,), fingerprints=fingerprints).open(folder.name, backend.base)
        worn = replace(found, name="compared")
        backend.load_adapter(worn)
        try:
            return greedy_answers(backend, found.manifest.prompt_style, worn.name)
        finally:
            backend.unload_adapter(worn.name)

    return answers


def model_answer_fn(report: ProgressFn, device: str = "auto") -> AnswerFn:
    """The function given back answers with the whole model of a folder, one model in memory at a time."""

    def answers(folder: Path) -> list[GreedyAnswer]:
        from serve.backends.local.backend import LocalBackend
        from serve.backends.local.loading import load_base

        backend = LocalBackend(load_base(str(folder), "none", device, report))
        said = greedy_answers(backend, Manifest.read(folder).prompt_style, None)
        del backend
        gc.collect()
        return said

    return answers


def greedy_answers(backend: LocalBackend, style_name: str, adapter: str | None) -> list[GreedyAnswer]:
    """Greedy answers to INTENTS, in one batch."""
    style = get_style(style_name)
    chat = backend.apply_chat_template if style.format == "chat" else None
    rows = [Row(render_prompt(intent, (), style, chat), style, adapter) for intent in VERIFY_INTENTS]
    steps: list[list[str]] = [[] for _ in rows]
    ends: dict[int, RowOutput] = {}
    for event in backend.generate(rows, SamplingParams(max_new_tokens=VERIFY_MAX_NEW_TOKENS), Event()):
        if isinstance(event, PartialOutput):
            steps[event.index].append(event.text)
        else:
            ends[event.index] = event
    best = [ends[index].candidates[0] for index in range(len(rows))]
    return [GreedyAnswer((*said, end.text), end.tokens, end.logprob) for said, end in zip(steps, best, strict=True)]


def check_same_answers(expected: Sequence[GreedyAnswer], actual: Sequence[GreedyAnswer], what: str) -> None:
    """TrainingError naming the first intent and token at which `found`, the answers of `what`, are other ones."""
    for intent, ours, theirs in zip(VERIFY_INTENTS, expected, actual, strict=True):
        if ours.steps != theirs.steps or ours.tokens != theirs.tokens:
            pairs = list(zip(ours.steps, theirs.steps, strict=False))
            place = next((at for at, (one, two) in enumerate(pairs) if one != two), len(pairs))
            raise TrainingError(
                f"{what} does not answer as the folder does: to {intent!r} it says {_text_around(theirs, place)} where the "
                f"folder says {_text_around(ours, place)} (token {place + 1}), so do not use it and publish again."
            )
        if not math.isclose(ours.logprob, theirs.logprob, rel_tol=_LOGPROB_TOLERANCE, abs_tol=_LOGPROB_TOLERANCE):
            raise TrainingError(
                f"{what} does not answer as the folder does: to {intent!r} its log-probability is "
                f"{theirs.logprob:.4f} where the folder's is {ours.logprob:.4f}, so do not use it and publish again."
            )


def _text_around(answer: GreedyAnswer, position: int) -> str:
    return repr(quote_untrusted(answer.steps[position] if position < len(answer.steps) else "", 60))
