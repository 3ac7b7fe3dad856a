"""Answers in OpenAI's words: choices, log-probabilities, usage, whole responses and what streams of them share."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.api.asks import CompletionRequest
from serve.rows import Candidate, RequestOutput, TokenLogprob

_ID_PREFIXES = {"chat": "chatcmpl", "text": "cmpl"}
_OBJECT_TYPES = {"chat": "chat.completion", "text": "text_completion"}


@dataclass(frozen=True)
class ResponseBuilder:
    """What all parts of one response repeat: its id, when it was asked, the model as it was asked for."""

    request: CompletionRequest
    fingerprint: str
    id: str = field(default="")
    created: int = 0

    @classmethod
    def create(cls, request: CompletionRequest, fingerprint: str) -> ResponseBuilder:
        """A new reply, with an id of its own and the time now."""
        return cls(request, fingerprint, f"{_ID_PREFIXES[request.kind]}-{secrets.token_hex(12)}", int(time.time()))

    def common_fields(self, chunk: bool = False) -> dict[str, Any]:
        """The fields around the choices."""
        kind = _OBJECT_TYPES[self.request.kind]
        return {
            "id": self.id,
            "object": f"{kind}.chunk" if chunk and self.request.kind == "chat" else kind,
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": self.fingerprint,
        }

    def full_response(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """The response with all choices; `answers` are in the order of the prompts."""
        choices = [
            self._choice(place, candidate, answer)
            for answer in outputs
            for place, candidate in enumerate(expand_samples(answer, self.request), answer.index * self.request.n)
        ]
        return {**self.common_fields(), "choices": choices, "usage": usage_info(outputs, self.request)}

    def _choice(self, index: int, candidate: Candidate, output: RequestOutput) -> dict[str, Any]:
        said = {"finish_reason": finish_reason(candidate), "logprobs": logprobs_content(candidate, self.request)}
        if self.request.kind == "text":
            return {"index": index, "text": candidate.text, **said}
        message = {"role": "assistant", "content": candidate.text, "refusal": None, **extra_fields(candidate, output)}
        return {"index": index, "message": message, **said}


def expand_samples(output: RequestOutput, request: CompletionRequest) -> list[Candidate]:
    """The n choices of one answer: its samples as they were said, or the one greedy answer as often as asked for."""
    found = list(output.samples)
    if not found:  # an engine that does not keep them apart says how often each was said
        found = [candidate for candidate in output.candidates for _ in range(candidate.count)]
    return found * request.n if request.sampling_params.mode == "greedy" else found


def extra_fields(candidate: Candidate, output: RequestOutput) -> dict[str, Any]:
    """What our messages hold beside OpenAI's fields: the code in the answer, and notes where there are any."""
    notes = {"notes": list(output.notes)} if output.notes else {}
    return {"code": candidate.code, **notes}


def finish_reason(candidate: Candidate) -> str:
    """Why the answer ended, in OpenAI's words."""
    return "length" if candidate.finish == "length" else "stop"


def usage_info(outputs: Iterable[RequestOutput], request: CompletionRequest) -> dict[str, int]:
    """Tokens read and said; a prompt counts once, whatever the number of its answers."""
    outputs = list(outputs)
    read = sum(answer.prompt_tokens for answer in outputs)
    said = sum(candidate.tokens for answer in outputs for candidate in expand_samples(answer, request))
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def logprobs_content(candidate: Candidate, request: CompletionRequest) -> dict[str, Any] | None:
    """Each token's log-probability and its likeliest rivals, as the endpoint words them; None where not asked for."""
    if request.sampling_params.top_logprobs is None:
        return None
    said = candidate.token_logprobs
    return _chat_logprobs(said) if request.kind == "chat" else _text_logprobs(said)


def _chat_logprobs(token_logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {
            **_token_entry(each.token, each.logprob),
            "top_logprobs": [_token_entry(token, value) for token, value in each.top],
        }
        for each in token_logprobs
    ]
    return {"content": content, "refusal": None}


def _token_entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": _finite_logprob(logprob), "bytes": list(token.encode("utf-8", "replace"))}


def _finite_logprob(logprob: float) -> float:
    """JSON knows no infinity: what OpenAI says of a token that is as good as impossible."""
    return logprob if math.isfinite(logprob) else -9999.0


def _text_logprobs(token_logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The offsets are places in the choice's own text."""
    offsets, place = [], 0
    for each in token_logprobs:
        offsets.append(place)
        place += len(each.token)
    return {
        "tokens": [each.token for each in token_logprobs],
        "token_logprobs": [_finite_logprob(each.logprob) for each in token_logprobs],
        "top_logprobs": [{token: _finite_logprob(value) for token, value in each.top} for each in token_logprobs],
        "text_offset": offsets,
    }
