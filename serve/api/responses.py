"""OpenAI responses: choices, log-probabilities and usage, shared by whole responses and chunks of streams."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from serve.api.protocol import OpenAIRequest
from serve.types import Candidate, RequestOutput, TokenLogprob

_ID_PREFIXES = {"chat": "chatcmpl", "text": "cmpl"}
_OBJECT_TYPES = {"chat": "chat.completion", "text": "text_completion"}


@dataclass(frozen=True)
class ResponseBuilder:
    """Builds one response, or the common fields of its chunks: id, creation time, model as requested."""

    request: OpenAIRequest
    fingerprint: str
    id: str
    created: int

    @classmethod
    def create(cls, request: OpenAIRequest, fingerprint: str) -> ResponseBuilder:
        """Return a builder with a new id and the current time."""
        return cls(request, fingerprint, f"{_ID_PREFIXES[request.kind]}-{secrets.token_hex(12)}", int(time.time()))

    def common_fields(self, chunk: bool = False) -> dict[str, Any]:
        """Return the fields beside the choices."""
        kind = _OBJECT_TYPES[self.request.kind]
        return {
            "id": self.id,
            "object": f"{kind}.chunk" if chunk and self.request.kind == "chat" else kind,
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": self.fingerprint,
        }

    def full_response(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """Return the whole response; `outputs` are in the order of the prompts."""
        choices = [
            self._choice(index, candidate, output)
            for output in outputs
            for index, candidate in enumerate(expand_samples(output, self.request), output.index * self.request.n)
        ]
        return {**self.common_fields(), "choices": choices, "usage": usage_info(outputs, self.request)}

    def _choice(self, index: int, candidate: Candidate, output: RequestOutput) -> dict[str, Any]:
        fields = {"finish_reason": finish_reason(candidate), "logprobs": logprobs_content(candidate, self.request)}
        if self.request.kind == "text":
            return {"index": index, "text": candidate.text, **fields}
        message = {"role": "assistant", "content": candidate.text, "refusal": None, **extra_fields(candidate, output)}
        return {"index": index, "message": message, **fields}


def expand_samples(output: RequestOutput, request: OpenAIRequest) -> list[Candidate]:
    """Return the n choices of one prompt: its samples, or n copies of the one greedy answer."""
    samples = list(output.samples)
    if not samples:  # an engine that returns only merged candidates counts the equal ones
        samples = [candidate for candidate in output.candidates for _ in range(candidate.count)]
    return samples * request.n if request.sampling_params.mode == "greedy" else samples


def extra_fields(candidate: Candidate, output: RequestOutput) -> dict[str, Any]:
    """Return the fields of a message that OpenAI does not have: the code in the answer, and notes if there are any."""
    notes = {"notes": list(output.notes)} if output.notes else {}
    return {"code": candidate.code, **notes}


def finish_reason(candidate: Candidate) -> str:
    """Return OpenAI's finish reason."""
    return "length" if candidate.finish == "length" else "stop"


def usage_info(outputs: Iterable[RequestOutput], request: OpenAIRequest) -> dict[str, int]:
    """Return the token counts; a prompt counts once, whatever the number of its answers."""
    outputs = list(outputs)
    prompt = sum(output.prompt_tokens for output in outputs)
    completion = sum(candidate.tokens for output in outputs for candidate in expand_samples(output, request))
    return usage_fields(prompt, completion)


def usage_fields(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the fields of `usage`."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def logprobs_content(candidate: Candidate, request: OpenAIRequest) -> dict[str, Any] | None:
    """Return the log-probabilities in the format of the endpoint; None if they were not requested."""
    if request.sampling_params.top_logprobs is None:
        return None
    format_logprobs = _chat_logprobs if request.kind == "chat" else _text_logprobs
    return format_logprobs(candidate.token_logprobs)


def _chat_logprobs(token_logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {
            **_token_entry(entry.token, entry.logprob),
            "top_logprobs": [_token_entry(token, value) for token, value in entry.top],
        }
        for entry in token_logprobs
    ]
    return {"content": content, "refusal": None}


def _token_entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": _finite_logprob(logprob), "bytes": list(token.encode("utf-8", "replace"))}


def _finite_logprob(logprob: float) -> float:
    """Replace infinity, which JSON does not have, by OpenAI's value for a token that is practically impossible."""
    return logprob if math.isfinite(logprob) else -9999.0


def _text_logprobs(token_logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`text_offset` counts characters from the start of the choice's own text."""
    offsets, offset = [], 0
    for entry in token_logprobs:
        offsets.append(offset)
        offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in token_logprobs],
        "token_logprobs": [_finite_logprob(entry.logprob) for entry in token_logprobs],
        "top_logprobs": [{token: _finite_logprob(value) for token, value in entry.top} for entry in token_logprobs],
        "text_offset": offsets,
    }
