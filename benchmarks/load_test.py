"""Load test of the app: correctness, latency and memory with many concurrent visitors.

    python -m benchmarks.load_test --output docs/results/load-test

`python app.py` runs in a separate process on the embedded base. The test first sends all requests one after another, as
the baseline. Then 50 clients (gradio_client, each with its own visitor cookie) send random ones of them to /stream, one
after another, for two minutes. Prints one JSON line.

An answer is wrong if its method, intent, adapter, prompt or examples differ from the request's, if its text is the
baseline of another request, or if it is an error that the baseline does not have. On a quantized base the other rows of
a batch change the last bits of a row's numbers, and so the choice between tokens of almost equal probability
(docs/engine.md); the share of answers identical to the baseline is therefore a separate metric. Rejections because of
too many requests are correct answers and counted separately.
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
from ui.access.guard import COOKIE_NAME

_QUEUE_POSITION = re.compile(r"Waiting: (\d+) run")
SETTLE_SECONDS = 10.0
# Parts of the messages of rejected requests.
BUSY_MESSAGES = ("limit for one person", "busy", "queue is full", "too many")


@dataclass(frozen=True)
class LoadRequest:
    """An intent and the methods that answer it."""

    intent: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class LoadResponse:
    """The result of a request: the records, or the reason of its rejection, or its error.

    Times are in seconds from the start of the request. `max_queue_position` is the highest number of runs before it.
    """

    seconds: float
    first_token: float | None = None
    max_queue_position: int = 0
    records: list[dict[str, Any]] | None = None
    rejected: str | None = None
    error: str | None = None


def send_request(client: Client, request: LoadRequest) -> LoadResponse:
    """Send a request and wait for its end. `first_token` is the time of the first token of any method."""
    _wait_for_closed_stream(client)
    start = time.monotonic()
    first_token: float | None = None
    queue_position, records = 0, None
    try:
        for change in client.submit(request.intent, list(request.methods), api_name="/stream"):
            if first_token is None and any(column["tokens"] for column in change["columns"]):
                first_token = time.monotonic() - start
            if match := _QUEUE_POSITION.match(change["status"]):
                queue_position = max(queue_position, int(match[1]))
            records = change["records"] or None
    except Exception as error:  # noqa: BLE001 - every error of the client is counted
        seconds, message = time.monotonic() - start, f"{type(error).__name__}: {error}"
        if any(text in message.casefold() for text in BUSY_MESSAGES):
            return LoadResponse(seconds, first_token, queue_position, rejected=message)
        return LoadResponse(seconds, first_token, queue_position, error=message)
    seconds = time.monotonic() - start
    if records is None:
        return LoadResponse(seconds, first_token, queue_position, error="The stream ended without records.")
    return LoadResponse(seconds, first_token, queue_position, records)


def _wait_for_closed_stream(client: Client) -> None:
    """Wait until the client has closed the stream of its previous request.

    gradio_client 2 never reads the answer to an event that it sends while the previous stream is closing.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while client.stream_open and time.monotonic() < deadline:
        time.sleep(0.01)


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


METHODS = (
    ("zero-shot", "icl-2"), ("rag-2",), ("lora-starter",), ("lora-conala",), ("ia3-conala",), ("prefix-tuning-conala",),
    ("prompt-tuning-conala", "zero-shot"), ("qlora-4bit-conala",), ("qlora-4bit-mbpp",), ("lora-starter+rag-2",),
)  # fmt: skip
REQUESTS = 20
DRAIN_TIMEOUT_SECONDS = 240
MEAN_PAUSE_SECONDS = 0.5  # between two requests of one visitor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load test; return 1 if an answer is wrong, fails or is missing, or if the app crashed."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load_test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="path of the page and its JSON file, without suffix")
    options = parser.parse_args(given)
    load_before = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="visitors-") as folder,
        running_app(Path(folder), "--rows-per-address", "0", "--requests-per-second", "0") as app,
    ):
        client = connect_visitor(app.url)
        requests = make_requests(options.seed)
        baseline = [send_request(client, request) for request in requests]
        if error := single_user_error(baseline):
            print(f"A request failed without load: {error}", file=sys.stderr)
            return 1
        with MemorySampler(app.pid) as memory:
            responses, hung = run_load(app.url, requests, options.visitors, options.seconds, options.seed)
        line = summarize_load(responses, baseline, requests, options.seconds) | memory.summary()
        line |= {
            "visitors": options.visitors,
            "hung": hung,
            "crashed": app.crashed(),
            "asked_alone": len(baseline),
            "cores": os.cpu_count(),
            "load_before": round(load_before, 2),
            "python": platform.python_version(),
            "base": baseline[0].records[0]["base_id"] if baseline[0].records else "",
            "quantization": baseline[0].records[0]["quantization"] if baseline[0].records else "",
            "device": baseline[0].records[0]["device"] if baseline[0].records else "",
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
    """Return the first error of the baseline, or ""."""
    for response in baseline:
        if response.records is None:
            return response.rejected or response.error or ""
        for record in response.records:
            if record["error"] is not None:
                return str(record["error"])
    return ""


def connect_visitor(url: str) -> Client:
    """Return a client with a new visitor cookie."""
    return Client(url, verbose=False, headers={"cookie": f"{COOKIE_NAME}={secrets.token_urlsafe(24)}"})


def make_requests(seed: int) -> list[LoadRequest]:
    """Return REQUESTS requests for random test problems of the starter set, with the entries of METHODS in turn."""
    problems = random.Random(seed).sample(load_problems("starter", "test"), REQUESTS)
    return [LoadRequest(problem.intent, METHODS[index % len(METHODS)]) for index, problem in enumerate(problems)]


def run_load(
    url: str, requests: Sequence[LoadRequest], visitors: int, seconds: float, seed: int
) -> tuple[list[tuple[int, LoadResponse]], int]:
    """Send requests from `visitors` threads for `seconds`; return (request index, response) pairs, and hung visitors.

    Waits at most DRAIN_TIMEOUT_SECONDS for the last responses; a visitor without its last response counts as hung.
    """
    clients = [connect_visitor(url) for _ in range(visitors)]
    barrier = threading.Barrier(visitors)
    responses: list[tuple[int, LoadResponse]] = []

    def visit(index: int) -> None:
        rng = random.Random(f"{seed}-{index}")
        barrier.wait()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            request_index = rng.randrange(len(requests))
            responses.append((request_index, send_request(clients[index], requests[request_index])))
            time.sleep(rng.uniform(0, 2 * MEAN_PAUSE_SECONDS))

    threads = [threading.Thread(target=visit, args=(index,), daemon=True) for index in range(visitors)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds + DRAIN_TIMEOUT_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(responses), sum(thread.is_alive() for thread in threads)


def summarize_load(
    responses: Sequence[tuple[int, LoadResponse]],
    baseline: Sequence[LoadResponse],
    requests: Sequence[LoadRequest],
    seconds: float,
) -> dict[str, Any]:
    """Return the counts, latencies and shares of all responses. The index is that of the request in `baseline`."""
    answered = [(index, response) for index, response in responses if response.records is not None]
    pairs = [
        (actual, expected, index)
        for index, response in answered
        for actual, expected in zip(response.records or [], baseline[index].records or [], strict=True)
    ]
    texts = {
        (record["text"], index)
        for index, response in enumerate(baseline)
        for record in response.records or []
    }  # fmt: skip
    wrong = [pair for pair in pairs if is_wrong_answer(*pair, requests, texts)]
    first_token = sorted(response.first_token for _, response in answered if response.first_token is not None)
    total = sorted(response.seconds for _, response in answered)
    return {
        "seconds": seconds,
        "asked": len(responses),
        "answered": len(answered),
        "busy": sum(response.rejected is not None for _, response in responses),
        "failed": sum(response.error is not None for _, response in responses),
        "failures": sorted({response.error for _, response in responses if response.error})[:5],
        "answers": len(pairs),
        "tokens": sum(actual["tokens"] for actual, _, _ in pairs),
        "wrong": len(wrong),
        "identical_share": round(
            sum(actual["text"] == expected["text"] for actual, expected, _ in pairs) / len(pairs), 4
        )
        if pairs
        else None,
        "first_token_p50_seconds": percentile(first_token, 0.5),
        "first_token_p95_seconds": percentile(first_token, 0.95),
        "whole_p50_seconds": percentile(total, 0.5),
        "whole_p95_seconds": percentile(total, 0.95),
        "first_token_alone_p50_seconds": percentile(sorted(response.first_token or 0.0 for response in baseline), 0.5),
        "most_waiting_before": max((response.max_queue_position for _, response in answered), default=0),
    }


def is_wrong_answer(
    actual: dict[str, Any],
    expected: dict[str, Any],
    request_index: int,
    requests: Sequence[LoadRequest],
    texts: set[tuple[str, int]],
) -> bool:
    """Return whether an answer belongs to another request or differs from the baseline in more than its text.

    `texts` contains (text, request index) of all answers of the baseline.
    """
    fields = ("method", "intent", "adapter", "prompt", "examples", "prompt_tokens", "error", "reference")
    if any(actual[name] != expected[name] for name in fields) or actual["intent"] != requests[request_index].intent:
        return True
    if actual["text"] == expected["text"]:
        return False
    owners = {index for text, index in texts if text == actual["text"]}
    return bool(owners) and request_index not in owners


def percentile(sorted_values: Sequence[float], share: float) -> float | None:
    """Return the value below which the share `share` of the values lies, to three decimals; None without values."""
    return (
        round(sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))], 3) if sorted_values else None
    )


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # do not wait for threads of hung visitors
