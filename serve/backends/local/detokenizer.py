"""Detokenizer: token ids to text, incremental decoding of a running answer, and the check whether it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from serve.generated_text import find_stop
from serve.types import Candidate
from tasks.extract import answer_end, extract_code, may_have_ended
from tasks.prompt import PromptStyle

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# An answer can only end right after one of these characters (see tasks/extract): other tokens need no check.
_END_CHARACTERS = frozenset("`~:>]}'\"\n")
# At most this many tokens are decoded again with each new one.
_WINDOW_TOKENS = 16
_REPLACEMENT_CHARACTER = "\ufffd"


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
