"""What a line has said: its tokens, their text as it grows, their log-probability, and whether the answer is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from serve.types import Candidate
from tasks.extract import answer_end, extract_code
from tasks.prompt import INSTRUCTION, RESPONSE, PromptStyle

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# An answer can only be over right after one of these (see tasks/extract.py), so other tokens need no look.
_END_CHARACTERS = frozenset("`:>\n")
# A line that begins so is a further turn, and no part of the answer (see tasks/extract.py).
_TURN_MARKERS = (INSTRUCTION, RESPONSE, "<|im_start|>", "<|im_end|>")
# So many tokens are decoded again with each new one, at most; their text depends on none before them.
_WINDOW_TOKENS = 16
_REPLACEMENT_CHARACTER = "\ufffd"


class Detokenizer:
    """Token ids to text, the end tokens, and which tokens are worth a look for the answer's end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self._tokenizer = tokenizer
        ends = model.generation_config.eos_token_id if model.generation_config else None
        listed = ends if isinstance(ends, list) else [ends]
        self.eos_token_ids = frozenset(end for end in (*listed, tokenizer.eos_token_id) if end is not None)
        self._may_end: dict[int, bool] = {}
        self._token_texts: dict[int, str] = {}
        # Some tokenizers drop the blank that a text's first token brings, so pieces are read after another token.
        self._context_tokens = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
        self._context_length = len(self._decode_with_special_tokens(self._context_tokens))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` without special tokens; an unfinished character at the end is left out."""
        return self.decode_partial(tokens).rstrip(_REPLACEMENT_CHARACTER)

    def decode_partial(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` without special tokens, with U+FFFD where a character is not complete."""
        said = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(said)

    def decode_answer(self, tokens: Sequence[int]) -> str:
        """The text of a whole answer: `text` without the end token that closed it, special or not."""
        return self.decode(tokens[:-1] if tokens and tokens[-1] in self.eos_token_ids else tokens)

    def token_text(self, token: int) -> str:
        """What a text grows by with this token: a special token's name, U+FFFD for a part of a character."""
        if token not in self._token_texts:
            self._token_texts[token] = self._decode_with_special_tokens([*self._context_tokens, token])[
                self._context_length :
            ]
        return self._token_texts[token]

    def may_end(self, token: int) -> bool:
        """Whether an answer can be over with this token."""
        if token not in self._may_end:
            self._may_end[token] = not _END_CHARACTERS.isdisjoint(self._decode_with_special_tokens([token]))
        return self._may_end[token]

    def is_finished(self, tokens: Sequence[int], style: PromptStyle | None) -> bool:
        """Whether the answer is over after `tokens`: the end token, or where its text clearly ends.

        Raw text, which has no style, ends at the end token alone.
        """
        last = tokens[-1]
        if last in self.eos_token_ids:
            return True
        return style is not None and self.may_end(last) and self.ends_answer(last, self.decode(tokens), style)

    def ends_answer(self, token: int, text: str, style: PromptStyle) -> bool:
        """Whether `text`, whose last token this is, clearly ends with it."""
        return self.may_end(token) and answer_end(text, style) is not None

    def _decode_with_special_tokens(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


class IncrementalDetokenizer:
    """The text of tokens as they come. A token costs the same whether it is the tenth or the thousandth.

    Only the last few tokens are decoded anew, from a place where a character had just been completed: the text of
    those that follow does not depend on those before. `text` only grows, and is what `Detokenizer.decode` says of all
    tokens whenever a character is complete.
    """

    __slots__ = ("_complete_tokens", "_decoded_length", "_detokenizer", "_prefix_text", "_window", "text")

    def __init__(self, detokenizer: Detokenizer) -> None:
        self.text = ""
        self._detokenizer = detokenizer
        self._window: list[int] = []
        # The text up to here, how many characters of the window's own text are part of it, and how many tokens of
        # the window were there when its text last ended with a whole character.
        self._prefix_text, self._decoded_length, self._complete_tokens = "", 0, 0

    def add(self, token: int) -> None:
        """The next token."""
        self._window.append(token)
        said = self._detokenizer.decode_partial(self._window)
        whole = said.rstrip(_REPLACEMENT_CHARACTER)
        is_whole = len(whole) == len(said)
        text = self._prefix_text + whole[self._decoded_length :]
        # Some tokenizers show a whole run of bytes as broken while its last character is.
        if is_whole or len(text) > len(self.text):
            self.text = text
        if not is_whole:
            return
        if len(self._window) > _WINDOW_TOKENS:
            self._advance_window()
        self._complete_tokens = len(self._window)

    def _advance_window(self) -> None:
        """Lets the window begin where a character was last completed before its newest tokens."""
        rest = self._window[self._complete_tokens :]
        known = self._detokenizer.decode_partial(rest)
        if known:  # special tokens alone say nothing of what the next one's text will be
            self._window, self._prefix_text, self._decoded_length = rest, self.text, len(known)


@dataclass
class GeneratedText:
    """One growing answer of one row; `finish` says why it ended, and "cancelled" until it has."""

    style: PromptStyle | None
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish_reason: Literal["stop", "length", "cancelled"] = "cancelled"

    def candidate(self, detokenizer: Detokenizer, stops: Sequence[str] = ()) -> Candidate:
        """The finished answer, cut where it is over, with its code."""
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


def find_stop(text: str, stops: Sequence[str], begin: int = 0) -> int | None:
    """Where the first of the stop strings begins in `text`; those that end before `begin` are known not to be there."""
    found = [text.find(stop, max(0, begin - len(stop) + 1)) for stop in stops]
    return min((place for place in found if place >= 0), default=None)


def stable_prefix(text: str, stops: Sequence[str], style: PromptStyle | None) -> str:
    """As much of a growing answer as will stay: not what may be the beginning of a stop string or of another turn."""
    keep = min((_partial_stop_start(text, stop) for stop in stops), default=len(text))
    if style is not None:
        line = text.rfind("\n") + 1
        begin = text[line:].lstrip(" \t")
        if any(turn.startswith(begin) for turn in _TURN_MARKERS):
            keep = min(keep, line)
    return text[:keep]


def _partial_stop_start(text: str, stop: str) -> int:
    """Where in `text` the longest of its ends begins that `stop` begins with; the length of `text` where none does."""
    place = max(0, len(text) - len(stop) + 1)
    while (place := text.find(stop[0], place)) >= 0:
        if stop.startswith(text[place:]):
            return place
        place += 1
    return len(text)


def dedupe_candidates(candidates: Sequence[Candidate], raw: bool = False) -> tuple[Candidate, ...]:
    """Candidates with equal code merged into the first of them: ten beams of one answer are one answer.

    Of `raw` text every character counts.
    """
    unique: dict[str, Candidate] = {}
    for candidate in candidates:
        code = candidate.code if raw else candidate.code.strip()
        known = unique.get(code)
        unique[code] = replace(known, count=known.count + 1) if known else candidate
    return tuple(unique.values())
