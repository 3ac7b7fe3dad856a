"""A growing answer as server-sent events: chunks of text, a last one a choice, the usage, and [DONE]."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from serve.api.errors import ApiError
from serve.api.replies import Reply, extras, finish_reason, logprobs, samples, usage
from serve.rows import Answer, Partial
from tasks.prompt import INSTRUCTION, RESPONSE

DONE = b"data: [DONE]\n\n"
# An answer is cut where one of these begins a line (tasks/extract.py), so a line that may become one waits.
_TURNS = (INSTRUCTION, RESPONSE, "<|im_start|>", "<|im_end|>")


class Chunks:
    """Turns one call's events into server-sent events; what has been sent is never taken back."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._ask = reply.ask
        self._head = reply.head(chunk=True)
        self._sent: dict[int, str] = {}
        self._tokens: dict[int, int] = {}
        self._answers: list[Answer] = []

    def of(self, event: Partial | Answer) -> Iterator[bytes]:
        """The server-sent events that one event makes; none where nothing of it is certain yet."""
        if isinstance(event, Partial):
            yield from self._grown(event)
        else:
            yield from self._finished(event)

    def end(self) -> Iterator[bytes]:
        """What comes after the last answer."""
        if self._ask.include_usage:
            yield _sse({**self._head, "choices": [], "usage": usage(self._answers, self._ask)})
        yield DONE

    def broken(self, fault: ApiError) -> Iterator[bytes]:
        """What ends a stream that cannot be finished."""
        yield b"data: " + fault.encoded() + b"\n\n"
        yield DONE

    def _grown(self, partial: Partial) -> Iterator[bytes]:
        text = partial.text if self._ask.kind == "text" else settled(partial.text)
        copies = range(self._ask.n) if self._ask.decoding.mode == "greedy" else (partial.candidate,)
        for copy in copies:
            place = partial.index * self._ask.n + copy
            self._tokens[place] = partial.tokens
            yield from self._text(place, text)

    def _finished(self, answer: Answer) -> Iterator[bytes]:
        self._answers.append(answer)
        for place, candidate in enumerate(samples(answer, self._ask), answer.index * self._ask.n):
            self._tokens[place] = candidate.tokens
            yield from self._text(place, candidate.text)
            more = extras(candidate, answer) if self._ask.kind == "chat" else {}
            yield self._chunk(place, "", more, finish_reason(candidate), logprobs(candidate, self._ask))

    def _text(self, place: int, text: str) -> Iterator[bytes]:
        """What is new in the choice's text."""
        if place not in self._sent:
            self._sent[place] = ""
            if self._ask.kind == "chat":
                yield self._chunk(place, "", {"role": "assistant", "content": ""})
        sent = self._sent[place]
        if len(text) > len(sent) and text.startswith(sent):
            self._sent[place] = text
            yield self._chunk(place, text[len(sent) :])

    def _chunk(
        self,
        place: int,
        text: str,
        delta: dict[str, Any] | None = None,
        finish: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        if self._ask.kind == "text":
            choice: dict[str, Any] = {"index": place, "text": text}
        else:
            choice = {"index": place, "delta": delta if delta is not None else {"content": text}}
        choice |= {"finish_reason": finish, "logprobs": logprobs}
        more = {"usage": self._usage_so_far()} if self._ask.include_usage else {}
        return _sse({**self._head, "choices": [choice], **more})

    def _usage_so_far(self) -> dict[str, int] | None:
        """Where it is asked for in every chunk. A prompt's tokens are known once its answer is whole."""
        if not self._ask.count_on:
            return None
        read, said = sum(answer.prompt_tokens for answer in self._answers), sum(self._tokens.values())
        return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def settled(text: str) -> str:
    """The part of a growing answer that no further token can cut off again.

    Left out are blanks at its end and a last line that may become the beginning of a further turn.
    """
    text = text.rstrip()
    start = text.rfind("\n") + 1
    line = text[start:].lstrip()
    if line and any(turn.startswith(line) or line.startswith(turn) for turn in _TURNS):
        return text[:start].rstrip()
    return text


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"
