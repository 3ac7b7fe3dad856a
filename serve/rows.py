"""The values that pass between the engine and a backend, and from the engine to whoever asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Literal, Protocol

from adapters.manifest import BaseIdentity
from adapters.store import AdapterFolder
from errors import PeftArenaError
from serve.method import Method
from tasks.problem import Example, Problem
from tasks.prompt import Message, PromptStyle

MAX_CANDIDATES = 10


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    `candidates` is the number of answers per row: beams for "beam", independent samples for "sample", 1 for
    "greedy". `temperature`, `top_p` and `seed` matter for "sample" alone.
    """

    mode: Literal["greedy", "sample", "beam"] = "greedy"
    max_new_tokens: int = 256
    candidates: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("greedy", "sample", "beam"):
            raise PeftArenaError(f"Unknown decoding '{self.mode}': choose greedy, sample or beam.")
        if not 1 <= self.candidates <= MAX_CANDIDATES:
            raise PeftArenaError(f"{self.candidates} candidates asked for: choose 1 to {MAX_CANDIDATES}.")
        if self.mode == "greedy" and self.candidates != 1:
            raise PeftArenaError("Greedy decoding has one candidate: choose beam or sample for more.")
        if self.max_new_tokens < 1:
            raise PeftArenaError("max_new_tokens must be at least 1.")
        if self.mode == "sample" and not (self.temperature > 0 and 0 < self.top_p <= 1):
            raise PeftArenaError("Sampling needs a temperature above 0 and a top-p above 0, at most 1.")


@dataclass(frozen=True)
class Row:
    """One line of the batch: the text that the model reads and the adapter that bends it."""

    prompt: str
    style: PromptStyle
    adapter: str | None = None


@dataclass(frozen=True)
class Candidate:
    """One finished answer: the raw text, its code, the sum of its tokens' log-probabilities, their number.

    `times` is how many samples, or beams, said this same code: they are one candidate, and Pass@k counts them all.
    """

    text: str
    code: str
    logprob: float
    tokens: int
    times: int = 1


@dataclass(frozen=True)
class Partial:
    """What row `index` has said so far (the best beam's text under beam search)."""

    index: int
    text: str
    tokens: int


@dataclass(frozen=True)
class Finished:
    """Row `index` is done: its candidates, best first, and the seconds since the batch began."""

    index: int
    candidates: tuple[Candidate, ...]
    seconds: float
    cancelled: bool = False


class Backend(Protocol):
    """The only place that generates. One call of `generate` at a time; the engine sees to that."""

    @property
    def base(self) -> BaseIdentity: ...

    def chat(self, messages: Sequence[Message]) -> str:
        """The base's own chat template around `messages`, open for the assistant's answer."""

    def count_tokens(self, text: str) -> int: ...

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Makes the adapter's rows possible. Loaded whole or not at all; raises AdapterError."""

    def unload_adapter(self, name: str) -> None: ...

    def generate(self, rows: Sequence[Row], decoding: Decoding, cancel: Event) -> Iterator[Partial | Finished]:
        """All rows in one batch. Every row ends with one Finished, a cancelled one within a step."""


@dataclass(frozen=True)
class Request:
    """One problem for one method.

    `pool` names the data set whose training split gives the examples. `style` overrides the prompt style that the
    engine would choose (an adapter's own, or the one recorded for the base).
    """

    problem: Problem
    method: Method
    pool: str = "starter"
    style: PromptStyle | None = None


@dataclass(frozen=True)
class Answer:
    """All that is known of one method's answer to one problem. A failure has `error` and no candidates."""

    index: int
    request: Request
    candidates: tuple[Candidate, ...] = ()
    prompt: str = ""
    style: PromptStyle | None = None
    examples: tuple[Example, ...] = ()
    seconds: float = 0.0
    prompt_tokens: int = 0
    notes: tuple[str, ...] = field(default=())
    error: str | None = None
    cancelled: bool = False

    @property
    def code(self) -> str:
        """The first candidate's code, or ''."""
        return self.candidates[0].code if self.candidates else ""

    @property
    def text(self) -> str:
        """The first candidate's raw text, or ''."""
        return self.candidates[0].text if self.candidates else ""

    @property
    def tokens(self) -> int:
        """Tokens generated for the first candidate."""
        return self.candidates[0].tokens if self.candidates else 0
