"""Sampling and detokenizing: each sequence's next token, its text, and the check whether the answer has ended.

The sampled distribution is that of transformers' TemperatureLogitsWarper and TopPLogitsWarper (tests compare with
them). Those sort the whole vocabulary for each sequence, which for many sequences takes longer than the model's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from serve.types import Candidate, SamplingParams, find_stop
from tasks.extract import answer_end, extract_code, may_have_ended
from tasks.prompt import PromptStyle

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Rows of logits that are processed together on a CPU: more would not fit its cache.
ROWS_PER_CHUNK = 8
# Numbers of most likely tokens that are sorted, one after the other, until the sampled token is certainly among them.
_TOP_K_STEPS = (64, 2048)
# Lower temperatures leave one token with any probability, and the division by very low ones overflows.
_MIN_TEMPERATURE = 1e-5
# An answer can only end right after one of these characters (see tasks/extract): other tokens need no check.
_END_CHARACTERS = frozenset("`~:>]}'\"\n")
# At most this many tokens are decoded again with each new one.
_WINDOW_TOKENS = 16
_REPLACEMENT_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token, its natural log-probability before temperature, and the most likely tokens with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceSampling:
    """How one sequence's tokens are chosen; `generator` is None for greedy decoding, else the sequence's own one."""

    decoding: SamplingParams
    generator: torch.Generator | None = None


def make_generator(seed: int, sample_index: int) -> torch.Generator:
    """Return the random generator of one sample; it depends on seed and index only, not on the rest of the batch."""
    return torch.Generator().manual_seed((seed + sample_index) % 2**63)


def sample(logits: torch.Tensor, samplings: Sequence[SequenceSampling]) -> list[SampledToken]:
    """Choose one token for each row of `logits`, (rows, vocabulary)."""
    rows_per_chunk = ROWS_PER_CHUNK if logits.device.type == "cpu" else max(len(samplings), 1)
    sampled: list[SampledToken] = []
    for begin in range(0, len(samplings), rows_per_chunk):
        sampled += _sample(logits[begin : begin + rows_per_chunk].float(), samplings[begin : begin + rows_per_chunk])
    return sampled


def _sample(scores: torch.Tensor, samplings: Sequence[SequenceSampling]) -> list[SampledToken]:
    logprobs = scores.log_softmax(-1)
    sampled_rows = [row for row, sampling in enumerate(samplings) if sampling.generator is not None]
    tokens = [0] * len(samplings) if len(sampled_rows) == len(samplings) else scores.argmax(-1).tolist()
    if sampled_rows:
        drawn_tokens = _sample_top_p(
            scores if len(sampled_rows) == len(samplings) else scores[sampled_rows],
            [samplings[row] for row in sampled_rows],
        )
        for row, token in zip(sampled_rows, drawn_tokens, strict=True):
            tokens[row] = token
    chosen_logprobs = logprobs.gather(-1, torch.tensor(tokens, device=scores.device)[:, None])[:, 0].tolist()
    tops = _top_logprobs(logprobs, [sampling.decoding.top_logprobs or 0 for sampling in samplings])
    return [SampledToken(*token_probs) for token_probs in zip(tokens, chosen_logprobs, tops, strict=True)]


def _top_logprobs(logprobs: torch.Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """Return the `counts[row]` most likely tokens of each row with their log-probabilities."""
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(counts)
    rows = [row for row, count in enumerate(counts) if count]
    if rows:
        top = logprobs[rows].topk(min(max(counts), logprobs.shape[-1]))
        for row, tokens, values in zip(rows, top.indices.tolist(), top.values.tolist(), strict=True):
            tops[row] = tuple(zip(tokens[: counts[row]], values, strict=False))
    return tops


def _sample_top_p(scores: torch.Tensor, samplings: Sequence[SequenceSampling]) -> list[int]:
    """Sample a token for each row: one random number in [0, 1) per row, looked up in the nucleus's cumulative sums."""
    uniforms_list = [float(torch.rand((), generator=sampling.generator, dtype=torch.float64)) for sampling in samplings]
    temperatures = torch.tensor(
        [max(sampling.decoding.temperature, _MIN_TEMPERATURE) for sampling in samplings], device=scores.device
    )
    top_ps = torch.tensor([sampling.decoding.top_p for sampling in samplings], dtype=torch.float64)
    uniforms = torch.tensor(uniforms_list, dtype=torch.float64)
    return nucleus_tokens((scores / temperatures[:, None]).softmax(-1), top_ps, uniforms).tolist()


def nucleus_tokens(probs: torch.Tensor, top_ps: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return the token at quantile `uniforms`, (rows,) in [0, 1), of each row's nucleus, as a CPU tensor.

    `probs` is (rows, vocabulary). The nucleus is the smallest set of most likely tokens whose probabilities add up to
    at least `top_ps`, (rows,); see arXiv 1904.09751. Sorting starts with few tokens; rows whose nucleus or quantile
    may reach beyond them are repeated with more.
    """
    tokens = torch.zeros(len(probs), dtype=torch.long)
    open_rows = torch.arange(len(probs))
    for count in (*_TOP_K_STEPS, probs.shape[-1]):
        open_probs = probs if len(open_rows) == len(probs) else probs[open_rows.to(probs.device)]
        top = open_probs.topk(min(count, probs.shape[-1]))
        token_probs, ids = top.values.double().cpu(), top.indices.cpu()
        sums, top_p = token_probs.cumsum(-1), top_ps[open_rows]
        # As in transformers, a token belongs to the nucleus if those before it add up to less than top_p.
        weights = torch.where(sums - token_probs < top_p[:, None], token_probs, 0.0)
        is_whole = top_p >= 1
        mass = torch.where(is_whole, 1.0, weights.sum(-1))
        target = uniforms[open_rows] * mass
        index = (sums <= target[:, None]).sum(-1)
        # The mass of a nucleus beyond the sorted tokens is unknown, except that of the whole vocabulary: 1.
        decided = torch.where(is_whole, index < ids.shape[-1], sums[:, -1] >= top_p)
        if count >= probs.shape[-1]:
            decided[:] = True
        # A row with non-finite logits has an empty nucleus: clamp, so that other rows of the batch get their tokens.
        last = ((weights > 0).sum(-1) - 1).clamp(min=0)
        picked = ids.gather(-1, torch.minimum(index, last)[:, None])[:, 0]
        tokens[open_rows[decided]] = picked[decided]
        open_rows = open_rows[~decided]
        if not len(open_rows):
            break
    return tokens


class Detokenizer:
    """Decodes token ids and checks for the end of an answer; knows the end tokens of a base."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self._tokenizer = tokenizer
        eos_ids = model.generation_config.eos_token_id if model.generation_config else None
        eos_id_list = eos_ids if isinstance(eos_ids, list) else [eos_ids]
        self.eos_token_ids = frozenset(end for end in (*eos_id_list, tokenizer.eos_token_id) if end is not None)
        self._may_end: dict[int, bool] = {}
        self._token_texts: dict[int, str] = {}
        # Some tokenizers drop the blank of a text's first token: decode single tokens behind another one.
        self._context_tokens = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
        self._context_length = len(self._decode_with_special_tokens(self._context_tokens))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` without special tokens and without an incomplete character at the end."""
        return self.decode_partial(tokens).rstrip(_REPLACEMENT_CHARACTER)

    def decode_partial(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` without special tokens, with U+FFFD for an incomplete character."""
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def decode_answer(self, tokens: Sequence[int]) -> str:
        """Return the text of a finished answer without its end token, whether that is a special token or not."""
        return self.decode(tokens[:-1] if tokens and tokens[-1] in self.eos_token_ids else tokens)

    def token_text(self, token: int) -> str:
        """Return the text of a single token: a special token's name, U+FFFD for a part of a character."""
        if token not in self._token_texts:
            self._token_texts[token] = self._decode_with_special_tokens([*self._context_tokens, token])[
                self._context_length :
            ]
        return self._token_texts[token]

    def may_end(self, token: int) -> bool:
        """Return whether an answer can end with this token."""
        if token not in self._may_end:
            self._may_end[token] = not _END_CHARACTERS.isdisjoint(self._decode_with_special_tokens([token]))
        return self._may_end[token]

    def is_finished(self, tokens: Sequence[int], style: PromptStyle | None) -> bool:
        """Return whether the answer `tokens` is finished: by the end token or by its text (tasks/extract).

        Raw text, which has no style, ends with the end token only.
        """
        last = tokens[-1]
        if last in self.eos_token_ids:
            return True
        return style is not None and self.may_end(last) and self.ends_answer(last, self.decode(tokens), style)

    def ends_answer(self, token: int, text: str, style: PromptStyle) -> bool:
        """Return whether the answer `text`, whose last token is `token`, ends with it."""
        if not self.may_end(token):
            return False
        begin = max(0, len(text) - len(self.token_text(token)) - 1)
        return may_have_ended(text, begin) and answer_end(text, style) is not None

    def _decode_with_special_tokens(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


class IncrementalDetokenizer:
    """Incremental decoding: the cost of a token does not depend on the length of the answer.

    Only a window of the last few tokens is decoded again. It begins behind a complete character, so that its text does
    not depend on the tokens before. `text` only grows, and equals `Detokenizer.decode` of all tokens whenever the last
    character is complete.
    """

    __slots__ = ("_complete_tokens", "_decoded_length", "_detokenizer", "_prefix_text", "_window", "text")

    def __init__(self, detokenizer: Detokenizer) -> None:
        self.text = ""
        self._detokenizer = detokenizer
        self._window: list[int] = []
        # The text before the window, how many characters of the window's text it includes, and the number of window
        # tokens when the window's text last ended with a complete character.
        self._prefix_text, self._decoded_length, self._complete_tokens = "", 0, 0

    def add(self, token: int) -> None:
        """Append a token and update `text`."""
        self._window.append(token)
        decoded = self._detokenizer.decode_partial(self._window)
        complete_text = decoded.rstrip(_REPLACEMENT_CHARACTER)
        is_complete = len(complete_text) == len(decoded)
        text = self._prefix_text + complete_text[self._decoded_length :]
        # Some tokenizers decode a whole run of bytes as U+FFFD until its last character is complete: never shorten.
        if is_complete or len(text) > len(self.text):
            self.text = text
        if not is_complete:
            return
        if len(self._window) > _WINDOW_TOKENS:
            self._advance_window()
        self._complete_tokens = len(self._window)

    def _advance_window(self) -> None:
        """Move the window's begin to the last complete character before its newest tokens."""
        remaining_tokens = self._window[self._complete_tokens :]
        decoded = self._detokenizer.decode_partial(remaining_tokens)
        if decoded:  # after special tokens alone (empty text) the next token might be decoded like a text's first one
            self._window, self._prefix_text, self._decoded_length = remaining_tokens, self.text, len(decoded)


@dataclass
class GeneratedText:
    """One answer of a row; `finish_reason` is "cancelled" until it has ended."""

    style: PromptStyle | None
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish_reason: Literal["stop", "length", "cancelled"] = "cancelled"

    def candidate(self, detokenizer: Detokenizer, stops: Sequence[str] = ()) -> Candidate:
        """Return the answer, cut at its end, with its code."""
        text = detokenizer.decode_answer(self.tokens)
        text = text[: find_stop(text, stops)]
        end = None if self.style is None else answer_end(text, self.style)
        return Candidate(
            text=text if end is None else text[:end],
            code=text if self.style is None else extract_code(text, self.style),
            logprob=self.logprob,
            tokens=len(self.tokens),
            finish=self.finish_reason,
        )
