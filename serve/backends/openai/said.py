"""One growing answer as it comes from a server: its text, its tokens as far as they are told, and its end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from serve.backends.local.speech import find_stop, stable_prefix
from serve.rows import Candidate, SamplingParams, TokenLogprob
from tasks.extract import answer_end, extract_code
from tasks.prompt import PromptStyle

# A chunk is a token or more, seldom none; a server that goes on for longer than this was not told, or does not listen.
_EXTRA_CHUNKS = 16
# Longer than the text of any token that is no attack.
_MAX_TOKEN_CHARACTERS = 256


class StreamedCandidate:
    """One candidate. Its end is our own rule's (tasks.extract.answer_end), a stop string's, or the server's."""

    def __init__(self, style: PromptStyle | None, decoding: SamplingParams) -> None:
        self._style = style
        self._decoding = decoding
        self._text = ""
        self._end: int | None = None
        self._chunks = 0
        self._server_token_count: int | None = None
        self._logprob = 0.0
        self._tokens: list[TokenLogprob] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self.ended_by_server = False  # by the server, and not by us

    @property
    def is_finished(self) -> bool:
        """Whether nothing that comes now belongs to the answer."""
        return self.finish_reason is not None

    @property
    def has_logprobs(self) -> bool:
        """Whether the server tells log-probabilities with this answer."""
        return bool(self._tokens)

    @property
    def text(self) -> str:
        """What has been said so far, up to the end."""
        return self._text if self._end is None else self._text[: self._end]

    @property
    def stable_text(self) -> str:
        """As much of it as will stay, whatever comes."""
        return stable_prefix(self.text, self._decoding.stop, self._style) if self._end is None else self.text

    @property
    def tokens(self) -> int:
        """Tokens said: the server's count, else that of its log-probabilities, else one a chunk."""
        if self._server_token_count is not None:
            return self._server_token_count
        return min(len(self._tokens) or self._chunks, self._decoding.max_new_tokens)

    def feed(self, choice: Mapping[str, Any]) -> None:
        """Takes in one chunk of a `choices` list."""
        if self.is_finished:
            return
        text = choice.get("text")
        if isinstance(text, str) and text:
            self._text += text
            self._chunks += 1
        for token in parse_logprobs(choice.get("logprobs")):
            self._tokens.append(token)
            self._logprob += token.logprob
        self._end = self._find_end()
        reason = choice.get("finish_reason")
        self.ended_by_server = reason is not None
        if self._end is not None or reason is not None:
            self.finish_reason = "length" if self._end is None and reason == "length" else "stop"
        elif self._exceeds_limits():
            self.finish_reason = "length"

    def set_token_count(self, tokens: object) -> None:
        """The server's own count so far."""
        if type(tokens) is int and 0 <= tokens <= self._decoding.max_new_tokens:
            self._server_token_count = tokens

    def candidate(self) -> Candidate:
        """The answer as far as it has come, with its code."""
        return Candidate(
            text=self.text,
            code=self.text if self._style is None else extract_code(self.text, self._style),
            logprob=self._logprob,
            tokens=self.tokens,
            finish=self.finish_reason or "cancelled",
            token_logprobs=tuple(self._tokens) if self._decoding.top_logprobs is not None else (),
        )

    def _find_end(self) -> int | None:
        text = self._text[: find_stop(self._text, self._decoding.stop)]
        end = None if self._style is None else answer_end(text, self._style)
        return end if end is not None or len(text) == len(self._text) else len(text)

    def _exceeds_limits(self) -> bool:
        most = self._decoding.max_new_tokens
        return (
            len(self._tokens) >= most
            or self._chunks >= 2 * most + _EXTRA_CHUNKS
            or len(self._text) > _MAX_TOKEN_CHARACTERS * (most + _EXTRA_CHUNKS)
        )


def parse_logprobs(logprobs: object) -> Iterator[TokenLogprob]:
    """The tokens of a chunk's `logprobs`, in either of OpenAI's forms; nothing where they are broken."""
    if not isinstance(logprobs, dict):
        return
    if "content" in logprobs:
        for entry in _items(logprobs["content"]):
            if isinstance(entry, dict):
                listed = [top for top in _items(entry.get("top_logprobs")) if isinstance(top, dict)]
                pairs = [(top.get("token"), top.get("logprob")) for top in listed]
                yield from _parse_token(entry.get("token"), entry.get("logprob"), pairs)
        return
    tokens, values, tops = (_items(logprobs.get(name)) for name in ("tokens", "token_logprobs", "top_logprobs"))
    for place, (token, value) in enumerate(zip(tokens, values, strict=False)):
        at = tops[place] if place < len(tops) else None
        yield from _parse_token(token, value, list(at.items()) if isinstance(at, dict) else [])


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _parse_token(token: object, value: object, tops: list[tuple[Any, Any]]) -> Iterator[TokenLogprob]:
    logprob = _finite_number(value)
    if isinstance(token, str) and logprob is not None:
        numbers = [(str(name), _finite_number(number)) for name, number in tops]
        yield TokenLogprob(token, logprob, tuple((name, number) for name, number in numbers if number is not None))


def _finite_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
