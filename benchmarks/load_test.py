"""Many visitors at once on the real program: whose answers are they, how soon do they begin, does memory stay flat?

    python -m benchmarks.load_test --output docs/results/load-test

`python app.py` runs in a process of its own on the embedded base. First every request is asked alone, one after the
other. Then 50 programs (gradio_client, each with a visitor's cookie of its own) ask them at random, in a row, for two
minutes through /stream. An answer is wrong where its method, its question, its adapter, its prompt or its examples are
not those asked for, where it is the text that belongs to another request, or where it is an error and alone it was
none. On a quantized base the rows beside a row move the last bits of its numbers, so that a token of almost equal
probability can change (docs/engine.md): how many answers are the same letter by letter is a figure of its own.
A refusal because too many ask is a right answer and counted apart. Prints one line of JSON.

One question of a visitor through /stream, with its times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradio_client import Client

from benchmarks.load_test_app import MemorySampler, running_app
from benchmarks.report import render_load_test_page
from common.files import atomic_write
from tasks.datasets.registry import load_problems
from ui.visitors import COOKIE_NAME

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
    except Exception as error:  # noqa: BLE001 - whatever a client raises is counted
        seconds, output = time.monotonic() - began, f"{type(error).__name__}: {error}"
        if any(word in output.casefold() for word in BUSY_MESSAGES):
            return LoadResponse(seconds, first, before, rejected=output)
        return LoadResponse(seconds, first, before, error=output)
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


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


METHODS = (
    ("zero-shot", "icl-2"), ("rag-2",), ("lora-starter",), ("lora-conala",), ("ia3-conala",), ("prefix-tuning-conala",),
    ("prompt-tuning-conala", "zero-shot"), ("qlora-4bit-conala",), ("qlora-4bit-mbpp",), ("lora-starter+rag-2",),
)  # fmt: skip
REQUESTS = 20
DRAIN_TIMEOUT_SECONDS = 240
MEAN_PAUSE_SECONDS = 0.5  # seconds between two questions of one visitor, on average


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark, writes OUTPUT.md and OUTPUT.json if asked to; 1 where an answer was wrong or it crashed."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load_test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="without an ending")
    options = parser.parse_args(given)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="visitors-") as folder, running_app(Path(folder)) as app:
        client = connect_visitor(app.url)
        requests = make_requests(options.seed)
        alone = [send_request(client, request) for request in requests]
        if broken := single_user_error(alone):
            print(f"Alone already: {broken}", file=sys.stderr)
            return 1
        with MemorySampler(app.pid) as memory:
            asked, hung = run_load(app.url, requests, options.visitors, options.seconds, options.seed)
        line = summarize_load(asked, alone, requests, options.seconds) | memory.summary()
        line |= {
            "visitors": options.visitors,
            "hung": hung,
            "crashed": app.crashed(),
            "asked_alone": len(alone),
            "cores": os.cpu_count(),
            "load_before": round(load_before, 2),
            "python": platform.python_version(),
            "base": alone[0].records[0]["base_id"] if alone[0].records else "",
            "quantization": alone[0].records[0]["quantization"] if alone[0].records else "",
            "device": alone[0].records[0]["device"] if alone[0].records else "",
        }
    print(json.dumps(line))
    if options.output:
        command = " ".join(["python -m benchmarks.load_test", *given])
        atomic_write(options.output.with_suffix(".json"), json.dumps(line, indent=1) + "\n")
        atomic_write(
            options.output.with_suffix(".md"), render_load_test_page(line, command, options.output.name + ".json")
        )
    return int(bool(line["wrong"] or line["failed"] or line["hung"] or line["crashed"]))


def single_user_error(baseline: Sequence[LoadResponse]) -> str:
    """Why there is nothing to compare with; '' where there is."""
    for each in baseline:
        if each.records is None:
            return each.rejected or each.error or ""
        for record in each.records:
            if record["error"] is not None:
                return str(record["error"])
    return ""


def connect_visitor(url: str) -> Client:
    """A program that is a visitor of its own."""
    return Client(url, verbose=False, headers={"cookie": f"{COOKIE_NAME}={secrets.token_urlsafe(24)}"})


def make_requests(seed: int) -> list[LoadRequest]:
    """Real test problems, with the methods in turn."""
    problems = random.Random(seed).sample(load_problems("starter", "test"), REQUESTS)
    return [LoadRequest(problem.intent, METHODS[index % len(METHODS)]) for index, problem in enumerate(problems)]


def run_load(
    url: str, requests: Sequence[LoadRequest], visitors: int, seconds: float, seed: int
) -> tuple[list[tuple[int, LoadResponse]], int]:
    """What all visitors got, each with the place of its request, and how many of them never got their last answer.

    Who has asked when time is up is waited for, but not for ever.
    """
    clients = [connect_visitor(url) for _ in range(visitors)]
    together = threading.Barrier(visitors)
    got: list[tuple[int, LoadResponse]] = []

    def visit(index: int) -> None:
        chance = random.Random(f"{seed}-{index}")
        together.wait()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            which = chance.randrange(len(requests))
            got.append((which, send_request(clients[index], requests[which])))
            time.sleep(chance.uniform(0, 2 * MEAN_PAUSE_SECONDS))

    threads = [threading.Thread(target=visit, args=(index,), daemon=True) for index in range(visitors)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds + DRAIN_TIMEOUT_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return list(got), sum(thread.is_alive() for thread in threads)


def summarize_load(
    responses: Sequence[tuple[int, LoadResponse]],
    baseline: Sequence[LoadResponse],
    requests: Sequence[LoadRequest],
    seconds: float,
) -> dict[str, Any]:
    """Counts and times of all that was asked."""
    answered = [(which, each) for which, each in responses if each.records is not None]
    pairs = [
        (mine, right, which)
        for which, each in answered
        for mine, right in zip(each.records or [], baseline[which].records or [], strict=True)
    ]
    texts = {
        (record["text"], index)
        for index, each in enumerate(baseline)
        for record in each.records or []
    }  # fmt: skip
    wrong = [pair for pair in pairs if is_wrong_answer(*pair, requests, texts)]
    first = sorted(each.first_token for _, each in answered if each.first_token is not None)
    whole = sorted(each.seconds for _, each in answered)
    return {
        "seconds": seconds,
        "asked": len(responses),
        "answered": len(answered),
        "busy": sum(each.rejected is not None for _, each in responses),
        "failed": sum(each.error is not None for _, each in responses),
        "failures": sorted({each.error for _, each in responses if each.error})[:5],
        "answers": len(pairs),
        "tokens": sum(mine["tokens"] for mine, _, _ in pairs),
        "wrong": len(wrong),
        "identical_share": round(sum(mine["text"] == right["text"] for mine, right, _ in pairs) / len(pairs), 4)
        if pairs
        else None,
        "first_token_p50_seconds": percentile(first, 0.5),
        "first_token_p95_seconds": percentile(first, 0.95),
        "whole_p50_seconds": percentile(whole, 0.5),
        "whole_p95_seconds": percentile(whole, 0.95),
        "first_token_alone_p50_seconds": percentile(sorted(each.first_token or 0.0 for each in baseline), 0.5),
        "most_waiting_before": max((each.max_queue_position for _, each in answered), default=0),
    }


def is_wrong_answer(
    actual: dict[str, Any],
    expected: dict[str, Any],
    request_index: int,
    requests: Sequence[LoadRequest],
    texts: set[tuple[str, int]],
) -> bool:
    """Whether an answer is not the one that was asked for: of another question, another adapter, other examples."""
    same = ("method", "intent", "adapter", "prompt", "examples", "prompt_tokens", "error", "reference")
    if any(actual[name] != expected[name] for name in same) or actual["intent"] != requests[request_index].intent:
        return True
    if actual["text"] == expected["text"]:
        return False
    owners = {location for text, location in texts if text == actual["text"]}
    return bool(owners) and request_index not in owners


def percentile(sorted_values: Sequence[float], share: float) -> float | None:
    """The value below which that share of them lies, to three digits; None of none."""
    return (
        round(sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))], 3) if sorted_values else None
    )


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a visitor who still waits must not keep the program
