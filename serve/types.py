"""Types shared by engine and backends: sampling parameters, rows, outputs, the Batch and Backend protocols, text rules.

Text rules for generated answers: stop strings, the prefix that is final, and merging of equal candidates. Every backend
and the API share these rules, so that a streamed prefix is always a prefix of the finished answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from threading import Event
from typing import Any, Literal, Protocol

from adapters.store import AdapterFolder
from errors import EngineError, PromptError, PromptOrTuneError, is_prompt_error
from models.source import BaseIdentity
from tasks.extract import END_MARKS, find_mark
from tasks.methods import Method
from tasks.problem import Example, Problem
from tasks.prompt import Message, PromptStyle

MAX_CANDIDATES = 10
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
_FIRST_CHARACTERS = frozenset(mark[0] for mark in END_MARKS)
_LONGEST_MARK = max(map(len, END_MARKS))


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are selected.

    `candidates` is the number of answers per row: beams for "beam", independent samples for "sample", 1 for
    "greedy". `temperature`, `top_p` and `seed` apply to "sample" only. An answer also ends before the first of the
    `stop` strings. If `top_logprobs` is set, candidates carry the log-probability of each token and of that many
    alternatives. Raises PromptOrTuneError for values that do not go together.
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
            raise PromptOrTuneError(f"{self.candidates} candidates requested: choose 1 to {MAX_CANDIDATES}.")
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
                f"{self.top_logprobs} top log-probabilities requested: choose 0 to {MAX_TOP_LOGPROBS}."
            )
        if self.mode == "beam" and (self.stop or self.top_logprobs is not None):
            raise PromptOrTuneError(
                "Beam search has neither stop strings nor log-probabilities: choose greedy or sample."
            )


@dataclass(frozen=True)
class Row:
    """Input of one generation: the prompt and the adapter to apply.

    Without a `style` the answer is raw text and ends only at the end-of-sequence token. `scale` multiplies the change
    made by a LoRA or IA3 adapter; 1.0 applies the adapter as trained.
    """

    prompt: str
    style: PromptStyle | None
    adapter: str | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token, its natural log-probability before temperature, and the most likely tokens at its position."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A finished answer: raw text, extracted code, sum of token log-probabilities, number of tokens.

    `count` is the number of samples or beams with the same code: they are merged into one candidate, and Pass@k
    counts all of them. `finish` is "stop" (end token or stop string), "length" (token limit) or "cancelled".
    """

    text: str
    code: str
    logprob: float
    tokens: int
    count: int = 1
    finish: Literal["stop", "length", "cancelled"] = "stop"
    token_logprobs: tuple[TokenLogprob, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields in the stored format of runs and records, in which `count` is called "times"."""
        values = asdict(self)
        values["times"] = values.pop("count")
        return values


@dataclass(frozen=True)
class PartialOutput:
    """Text generated so far for row `index`: sample number `candidate`, or the best beam."""

    index: int
    text: str
    tokens: int
    candidate: int = 0


@dataclass(frozen=True)
class RowOutput:
    """Final output of row `index`: candidates, best first, and seconds since the row was added to the batch.

    `samples` are the unmerged samples in the order of PartialOutput.candidate, empty for beam search; `candidates`
    are the same samples with equal ones merged. `error` is the message of a row that failed alone (for example when
    its connection broke), and `exception` its error; its candidates then hold the text generated before the failure.
    `notes` are appended to those of the RequestOutput.
    """

    index: int
    candidates: tuple[Candidate, ...]
    seconds: float
    cancelled: bool = False
    samples: tuple[Candidate, ...] = ()
    error: str | None = None
    notes: tuple[str, ...] = ()
    exception: PromptOrTuneError | None = field(default=None, compare=False, repr=False)


class Batch(Protocol):
    """Rows being generated. Used by one thread; several batches may be open, and their steps alternate."""

    @property
    def supports_continuous_batching(self) -> bool:
        """Whether rows may be added while others are being generated."""

    def __len__(self) -> int:
        """Number of sequences that are being prefilled or decoded: a row has one per candidate."""

    def add(self, key: int, row: Row, sampling_params: SamplingParams) -> None:
        """Queue `row` under the unused number `key`; its prefill starts with the next step.

        Raises PromptOrTuneError if the row cannot be answered; the batch is unchanged then.
        """

    def step(self) -> list[PartialOutput | RowOutput]:
        """Run one prefill chunk, one decode step of all prefilled sequences, or both; return their outputs.

        `index` of an output is the key of its row; the last output of a row is its RowOutput. After an exception the
        batch is empty and the model's state is as before the batch.
        """

    def cancel(self, key: int) -> RowOutput:
        """Remove the row immediately; the returned output holds the text generated so far."""


class Backend(Protocol):
    """Interface to a model. All batches of a backend are stepped by one thread, that of EngineCore."""

    @property
    def base(self) -> BaseIdentity: ...

    def open_batch(self, mode: Literal["step", "beam"]) -> Batch:
        """Return an empty batch: "step" for any mix of greedy decoding and sampling, "beam" for beam search."""

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """Render `messages` with the chat template of the base, up to the start of the assistant's answer."""

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens in `text`."""

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Load the adapter, from any thread; raises AdapterError, and loads nothing then.

        Replaces an adapter of the same name for later rows; running rows keep the version they started with.
        """

    def unload_adapter(self, name: str) -> None:
        """Free the adapter's memory, from any thread; running rows keep the adapter until they end."""

    def adapter_bytes(self, name: str) -> int:
        """Return the memory of the loaded adapter in bytes."""

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: Event
    ) -> Iterator[PartialOutput | RowOutput]:
        """Generate all rows in one batch; one RowOutput per row, within one step once `cancel` is set."""


@dataclass(frozen=True)
class Request:
    """One problem for one method.

    `pool` names the data set whose training split supplies the examples. `style` overrides the prompt style that the
    engine would choose (that of the adapter, or the one recorded for the base). `turns` are earlier questions and
    answers: they follow the method's examples in the prompt, and the oldest is dropped first if the prompt is too
    long. `raw` is a prompt used as is: it requires a method without examples and no turns, and the answer is raw
    text.
    """

    problem: Problem
    method: Method
    pool: str = "starter"
    style: PromptStyle | None = None
    raw: str | None = None
    turns: tuple[Example, ...] = ()


@dataclass(frozen=True)
class RequestOutput:
    """Result of one Request: the answer of one method to one problem.

    `error` is the message of a failed request, and `exception` its error, for callers that distinguish error types;
    the candidates then hold the text generated before the failure, if any. `samples` are those of the RowOutput, so
    that a client that requested n answers gets n, equal ones included. `seconds` is the time from the start of
    generation to its end, `first_token_seconds` from that start to the first token, and `queued_seconds` from the
    call to that start.
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
    def failure(self) -> PromptOrTuneError | None:
        """The error of an engine, a server or an adapter that failed; None for an answer and for a PromptError.

        Only what the prompt itself makes impossible counts as an answer of the method: every other request has to be
        sent again.
        """
        if self.error is None or isinstance(self.exception, PromptError):
            return None
        if self.exception is None and is_prompt_error(self.error):
            return None
        return self.exception or EngineError(self.error)

    @property
    def code(self) -> str:
        """Code of the first candidate, or ''."""
        return self.candidates[0].code if self.candidates else ""

    @property
    def text(self) -> str:
        """Raw text of the first candidate, or ''."""
        return self.candidates[0].text if self.candidates else ""

    @property
    def tokens(self) -> int:
        """Number of tokens generated for the first candidate, or 0."""
        return self.candidates[0].tokens if self.candidates else 0


def find_stop(text: str, stops: Sequence[str], begin: int = 0) -> int | None:
    """Return the index in `text` at which the first stop string begins, None without one.

    Text before `begin` has been searched already: stop strings that end before it are not looked for again.
    """
    found = [text.find(stop, max(0, begin - len(stop) + 1)) for stop in stops]
    return min((index for index in found if index >= 0), default=None)


def stable_prefix(text: str, stops: Sequence[str] = (), *, raw: bool = False) -> str:
    """Return the part of an unfinished answer that no further token can remove.

    Left out is a suffix that may be the beginning of a stop string. Unless the answer is `raw` text, so are the
    beginning of a mark that ends the answer, and the last line from such a mark on, which may turn out to be in a
    string.
    """
    end = min((_partial_stop_start(text, stop) for stop in stops), default=len(text))
    if raw:
        return text[:end]
    line_start = text.rfind("\n") + 1
    mark = find_mark(text, line_start)
    if not _FIRST_CHARACTERS.isdisjoint(text[-_LONGEST_MARK:]):
        end = min(end, *(_partial_stop_start(text, end_mark) for end_mark in END_MARKS))
    end = end if mark is None else min(end, mark)
    # A mark at the beginning of a line includes the blanks before it.
    return text[:line_start] if line_start < end and not text[line_start:end].strip() else text[:end]


def _partial_stop_start(text: str, stop: str) -> int:
    """Return where the longest suffix of `text` begins that is a prefix of `stop`; len(text) without one."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return start
        start += 1
    return len(text)


def dedupe_candidates(candidates: Sequence[Candidate], raw: bool = False) -> tuple[Candidate, ...]:
    """Merge candidates with equal code into the first of them and add up their counts.

    Blanks around the code do not matter, except in `raw` text.
    """
    unique: dict[str, Candidate] = {}
    for candidate in candidates:
        code = candidate.code if raw else candidate.code.strip()
        first = unique.get(code)
        unique[code] = replace(first, count=first.count + 1) if first else candidate
    return tuple(unique.values())
