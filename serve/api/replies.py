"""Answers in OpenAI's words: choices, log-probabilities, usage, whole responses and what streams of them share."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.api.asks import Ask
from serve.rows import Answer, Candidate, TokenLogprob

_PREFIXES = {"chat": "chatcmpl", "text": "cmpl"}
_OBJECTS = {"chat": "chat.completion", "text": "text_completion"}


@dataclass(frozen=True)
class Reply:
    """What all parts of one response repeat: its id, when it was asked, the model as it was asked for."""

    ask: Ask
    fingerprint: str
    id: str = field(default="")
    created: int = 0

    @classmethod
    def to(cls, ask: Ask, fingerprint: str) -> Reply:
        """A new reply, with an id of its own and the time now."""
        return cls(ask, fingerprint, f"{_PREFIXES[ask.kind]}-{secrets.token_hex(12)}", int(time.time()))

    def head(self, chunk: bool = False) -> dict[str, Any]:
        """The fields around the choices."""
        kind = _OBJECTS[self.ask.kind]
        return {
            "id": self.id,
            "object": f"{kind}.chunk" if chunk and self.ask.kind == "chat" else kind,
            "created": self.created,
            "model": self.ask.model,
            "system_fingerprint": self.fingerprint,
        }

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The response with all choices; `answers` are in the order of the prompts."""
        choices = [
            self._choice(place, candidate, answer)
            for answer in answers
            for place, candidate in enumerate(samples(answer, self.ask), answer.index * self.ask.n)
        ]
        return {**self.head(), "choices": choices, "usage": usage(answers, self.ask)}

    def _choice(self, place: int, candidate: Candidate, answer: Answer) -> dict[str, Any]:
        said = {"finish_reason": finish_reason(candidate), "logprobs": logprobs(candidate, self.ask)}
        if self.ask.kind == "text":
            return {"index": place, "text": candidate.text, **said}
        message = {"role": "assistant", "content": candidate.text, "refusal": None, **extras(candidate, answer)}
        return {"index": place, "message": message, **said}


def samples(answer: Answer, ask: Ask) -> list[Candidate]:
    """The n choices of one answer: its samples as they were said, or the one greedy answer as often as asked for."""
    found = list(answer.samples)
    if not found:  # an engine that does not keep them apart says how often each was said
        found = [candidate for candidate in answer.candidates for _ in range(candidate.times)]
    return found * ask.n if ask.decoding.mode == "greedy" else found


def extras(candidate: Candidate, answer: Answer) -> dict[str, Any]:
    """What our messages hold beside OpenAI's fields: the code in the answer, and notes where there are any."""
    notes = {"notes": list(answer.notes)} if answer.notes else {}
    return {"code": candidate.code, **notes}


def finish_reason(candidate: Candidate) -> str:
    """Why the answer ended, in OpenAI's words."""
    return "length" if candidate.finish == "length" else "stop"


def usage(answers: Iterable[Answer], ask: Ask) -> dict[str, int]:
    """Tokens read and said; a prompt counts once, whatever the number of its answers."""
    answers = list(answers)
    read = sum(answer.prompt_tokens for answer in answers)
    said = sum(candidate.tokens for answer in answers for candidate in samples(answer, ask))
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def logprobs(candidate: Candidate, ask: Ask) -> dict[str, Any] | None:
    """Each token's log-probability and its likeliest rivals, as the endpoint words them; None where not asked for."""
    if ask.decoding.top_logprobs is None:
        return None
    said = candidate.token_logprobs
    return _chat_logprobs(said) if ask.kind == "chat" else _text_logprobs(said)


def _chat_logprobs(said: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {**_token(each.token, each.logprob), "top_logprobs": [_token(token, value) for token, value in each.top]}
        for each in said
    ]
    return {"content": content, "refusal": None}


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": _finite(logprob), "bytes": list(token.encode("utf-8", "replace"))}


def _finite(logprob: float) -> float:
    """JSON knows no infinity: what OpenAI says of a token that is as good as impossible."""
    return logprob if math.isfinite(logprob) else -9999.0


def _text_logprobs(said: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The offsets are places in the choice's own text."""
    offsets, place = [], 0
    for each in said:
        offsets.append(place)
        place += len(each.token)
    return {
        "tokens": [each.token for each in said],
        "token_logprobs": [_finite(each.logprob) for each in said],
        "top_logprobs": [{token: _finite(value) for token, value in each.top} for each in said],
        "text_offset": offsets,
    }
