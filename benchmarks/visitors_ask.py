"""One question of a visitor through /stream, with its times."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from gradio_client import Client

_QUEUE_POSITION = re.compile(r"Waiting: (\d+) run")
SETTLE_SECONDS = 10.0
# The sentences with which a visitor is asked to come back later.
BUSY_MESSAGES = ("limit for one person", "busy", "queue is full", "too many")


@dataclass(frozen=True)
class LoadRequest:
    """An intent and the methods that answer it."""

    intent: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class LoadResponse:
    """What came of it: the records, or why it was refused for now, or what went wrong. Times in seconds from asking.

    `most_before` is how many runs were before it in the line at most.
    """

    seconds: float
    first_token: float | None = None
    max_queue_position: int = 0
    records: list[dict[str, Any]] | None = None
    rejected: str | None = None
    error: str | None = None


def send_request(client: Client, request: LoadRequest) -> LoadResponse:
    """Asks and waits for the end. The first token is that of whichever method begins first."""
    _wait_for_closed_stream(client)
    began = time.monotonic()
    first: float | None = None
    before, records = 0, None
    try:
        for change in client.submit(request.intent, list(request.methods), api_name="/stream"):
            if first is None and any(column["tokens"] for column in change["columns"]):
                first = time.monotonic() - began
            if found := _QUEUE_POSITION.match(change["status"]):
                before = max(before, int(found[1]))
            records = change["records"] or None
    except Exception as fault:  # noqa: BLE001 - whatever a client raises is counted
        seconds, said = time.monotonic() - began, f"{type(fault).__name__}: {fault}"
        if any(word in said.casefold() for word in BUSY_MESSAGES):
            return LoadResponse(seconds, first, before, rejected=said)
        return LoadResponse(seconds, first, before, error=said)
    seconds = time.monotonic() - began
    if records is None:
        return LoadResponse(seconds, first, before, error="The stream ended without records.")
    return LoadResponse(seconds, first, before, records)


def _wait_for_closed_stream(client: Client) -> None:
    """Waits until the client has closed the stream of its last question.

    gradio_client 2 loses an event that is sent while the stream of the one before is on its way to be closed: nobody
    reads its answer.
    """
    until = time.monotonic() + SETTLE_SECONDS
    while client.stream_open and time.monotonic() < until:
        time.sleep(0.01)
