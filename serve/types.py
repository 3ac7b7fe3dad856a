"""The values that pass between the engine and a backend, and from the engine to whoever asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from threading import Event
from typing import Any, Literal, Protocol

from adapters.store import AdapterFolder
from errors import PromptOrTuneError
from models.identity import BaseIdentity
from tasks.methods import Method
from tasks.problem import Example, Problem
from tasks.prompt import Message, PromptStyle

MAX_CANDIDATES = 10
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen.

    `candidates` is the number of answers per row: beams for "beam", independent samples for "sample", 1 for
    "greedy". `temperature`, `top_p` and `seed` matter for "sample" alone. An answer also ends before the first of the
    `stop` strings. With `top_logprobs` candidates carry each token's log-probability and those of that many others.
    """

    mode: Literal["greedy", "sample", "beam"] = "greedy"
    max_new_tokens: int = 256
    candidates: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    seed: int = 0
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("greedy", "sample", "beam"):
            raise PromptOrTuneError(f"Unknown decoding '{self.mode}': choose greedy, sample or beam.")
        if not 1 <= self.candidates <= MAX_CANDIDATES:
            raise PromptOrTuneError(f"{self.candidates} candidates asked for: choose 1 to {MAX_CANDIDATES}.")
        if self.mode == "greedy" and self.candidates != 1:
            raise PromptOrTuneError("Greedy decoding has one candidate: choose beam or sample for more.")
        if self.max_new_tokens < 1:
            raise PromptOrTuneError("max_new_tokens must be at least 1.")
        if self.mode == "sample" and not (self.temperature > 0 and 0 < self.top_p <= 1):
            raise PromptOrTuneError("Sampling needs a temperature above 0 and a top-p above 0, at most 1.")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise PromptOrTuneError(f"Give at most {MAX_STOPS} stop strings, none of them empty.")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise PromptOrTuneError(
                f"{self.top_logprobs} top log-probabilities asked for: choose 0 to {MAX_TOP_LOGPROBS}."
            )
        if self.mode == "beam" and (self.stop or self.top_logprobs is not None):
            raise PromptOrTuneError(
                "Beam search has neither stop strings nor log-probabilities: choose greedy or sample."
            )


@dataclass(frozen=True)
class Row:
    """One line of the batch: the text that the model reads and the adapter that bends it.

    Without a `style` the answer is the raw text and ends at the end token alone. `scale` multiplies what a LoRA or
    IA3 adapter changes; 1 is the adapter as it was trained.
    """

    prompt: str
    style: PromptStyle | None
    adapter: str | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class TokenLogprob:
    """One said token: its text, its natural log-probability before temperature, and the likeliest tokens there."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One finished answer: the raw text, its code, the sum of its tokens' log-probabilities, their number.

    `times` is how many samples, or beams, said this same code: they are one candidate, and Pass@k counts them all.
    `finish` says why it ended: by itself or at a stop string, at its limit of tokens, or because nobody waited.
    """

    text: str
    code: str
    logprob: float
    tokens: int
    count: int = 1
    finish: Literal["stop", "length", "cancelled"] = "stop"
    token_logprobs: tuple[TokenLogprob, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as runs and records store them, where `count` has its first name, "times"."""
        values = asdict(self)
        values["times"] = values.pop("count")
        return values


@dataclass(frozen=True)
class PartialOutput:
    """What row `index` has said so far: sample number `candidate`, or the best beam."""

    index: int
    text: str
    tokens: int
    candidate: int = 0


@dataclass(frozen=True)
class RowOutput:
    """Row `index` is done: its candidates, best first, and the seconds since it was added to the batch.

    `samples` are the row's samples as they were said, in the order of PartialOutput.candidate; `candidates` are the same
    with equal ones merged. Empty for beams. `error` is the sentence of a row that failed by itself, as one does whose
    connection breaks; the candidates then hold what it had said before. `notes` go to the answer's.
    """

    index: int
    candidates: tuple[Candidate, ...]
    seconds: float
    cancelled: bool = False
    samples: tuple[Candidate, ...] = ()
    error: str | None = None
    notes: tuple[str, ...] = ()


class Batch(Protocol):
    """Rows in flight. One thread works with it; several batches may be in flight, one step of each at a time."""

    @property
    def supports_continuous_batching(self) -> bool:
        """Whether rows may be added while others are in flight."""

    def __len__(self) -> int:
        """How many lines are in flight or waiting to be read: a row with several candidates has as many."""

    def add(self, key: int, row: Row, sampling_params: SamplingParams) -> None:
        """Takes a row in under a number that is not in use; its prompt is read by the steps to come.

        Raises PromptOrTuneError where the row cannot be answered; nothing has changed then.
        """

    def step(self) -> list[PartialOutput | RowOutput]:
        """One piece of a prompt, one token for every line that has been read, or both; `index` is the row's key.

        A row's last event is its RowOutput. After an exception the batch is empty and the model is as before.
        """

    def cancel(self, key: int) -> RowOutput:
        """Takes the row out at once; what it has said is its answer."""


class Backend(Protocol):
    """The only place that generates. Batches are stepped by one thread, the engine's worker."""

    @property
    def base(self) -> BaseIdentity: ...

    def open_batch(self, mode: Literal["step", "beam"]) -> Batch:
        """An empty batch: "step" is for greedy decoding and sampling, mixed as they come; "beam" for beam search."""

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """The base's own chat template around `messages`, open for the assistant's answer."""

    def count_tokens(self, text: str) -> int: ...

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Makes the adapter's rows possible, from any thread. Loaded whole or not at all; raises AdapterError.

        One of the same name is replaced for rows to come; rows in flight keep what they wear.
        """

    def unload_adapter(self, name: str) -> None:
        """Frees the adapter's memory, from any thread; rows in flight keep what they wear until they end."""

    def adapter_bytes(self, name: str) -> int:
        """How much memory the loaded adapter takes."""

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: Event
    ) -> Iterator[PartialOutput | RowOutput]:
        """All rows in one batch, to the end. Every row ends with one RowOutput, a cancelled one within a step."""


@dataclass(frozen=True)
class Request:
    """One problem for one method.

    `pool` names the data set whose training split gives the examples. `style` overrides the prompt style that the
    engine would choose (an adapter's own, or the one recorded for the base). `turns` are what was asked and answered
    before: they stand in the prompt like examples, behind the method's own, and the oldest goes first where the
    prompt gets too long. `raw` is a prompt to be read as it is: the method may show no examples then, there are no
    turns, and the answer is raw text.
    """

    problem: Problem
    method: Method
    pool: str = "starter"
    style: PromptStyle | None = None
    raw: str | None = None
    turns: tuple[Example, ...] = ()


@dataclass(frozen=True)
class RequestOutput:
    """All that is known of one method's answer to one problem.

    A failure has `error`; its candidates, where it has any, are what had been said before.

    `samples` are what RowOutput.samples says: a client that asked for n answers gets n, equal ones too. `seconds` run
    from the start of its generation to its end, `first_token_seconds` from there to its first token, and
    `queued_seconds` from the call to that start. `fault` is the error whose sentence `error` holds, for who must tell
    kinds of them apart.
    """

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
    samples: tuple[Candidate, ...] = ()
    queued_seconds: float = 0.0
    first_token_seconds: float = 0.0
    exception: PromptOrTuneError | None = field(default=None, compare=False, repr=False)

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
