r"""Many visitors at once on the real program: whose answers are they, how soon do they begin, does memory stay flat?

    python -m benchmarks.visitors --output docs/results/visitors

`python app.py` runs in a process of its own on the embedded base. First every request is asked alone, one after the
other. Then 50 programs (gradio_client, each with a visitor's cookie of its own) ask them at random, in a row, for two
minutes through /stream. An answer is wrong where its method, its question, its adapter, its prompt or its examples are
not those asked for, where it is the text that belongs to another request, or where it is an error and alone it was
none. On a quantized base the rows beside a row move the last bits of its numbers, so that a token of almost equal
probability can change (docs/engine.md): how many answers are the same letter by letter is a figure of its own.
A refusal because too many ask is a right answer and counted apart. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from gradio_client import Client

from benchmarks.visitors_app import Memory, running_app
from benchmarks.visitors_ask import Asked, Request, ask
from benchmarks.visitors_page import page
from evaluate.files import write_atomically
from tasks.datasets import load_problems
from ui.visitors import COOKIE

METHODS = (
    ("zero-shot", "icl-2"), ("rag-2",), ("lora-starter",), ("lora-conala",), ("ia3-conala",), ("prefix-tuning-conala",),
    ("prompt-tuning-conala", "zero-shot"), ("qlora-4bit-conala",), ("qlora-4bit-mbpp",), ("lora-starter+rag-2",),
)  # fmt: skip
REQUESTS = 20
DRAIN_SECONDS = 240
PAUSE = 0.5  # seconds between two questions of one visitor, on average


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark, writes OUTPUT.md and OUTPUT.json if asked to; 1 where an answer was wrong or it crashed."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.visitors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="without an ending")
    options = parser.parse_args(given)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="visitors-") as folder, running_app(Path(folder)) as app:
        client = visitor(app.url)
        requests = make_requests(options.seed)
        alone = [ask(client, request) for request in requests]
        if broken := broken_alone(alone):
            print(f"Alone already: {broken}", file=sys.stderr)
            return 1
        with Memory(app.pid) as memory:
            asked, hung = crowd(app.url, requests, options.visitors, options.seconds, options.seed)
        line = figures(asked, alone, requests, options.seconds) | memory.figures()
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
        command = " ".join(["python -m benchmarks.visitors", *given])
        write_atomically(options.output.with_suffix(".json"), json.dumps(line, indent=1) + "\n")
        write_atomically(options.output.with_suffix(".md"), page(line, command, options.output.name + ".json"))
    return int(bool(line["wrong"] or line["failed"] or line["hung"] or line["crashed"]))


def broken_alone(alone: Sequence[Asked]) -> str:
    """Why there is nothing to compare with; '' where there is."""
    for each in alone:
        if each.records is None:
            return each.refused or each.error or ""
        for record in each.records:
            if record["error"] is not None:
                return str(record["error"])
    return ""


def visitor(url: str) -> Client:
    """A program that is a visitor of its own."""
    return Client(url, verbose=False, headers={"cookie": f"{COOKIE}={secrets.token_urlsafe(24)}"})


def make_requests(seed: int) -> list[Request]:
    """Real test problems, with the methods in turn."""
    problems = random.Random(seed).sample(load_problems("starter", "test"), REQUESTS)
    return [Request(problem.intent, METHODS[place % len(METHODS)]) for place, problem in enumerate(problems)]


def crowd(
    url: str, requests: Sequence[Request], visitors: int, seconds: float, seed: int
) -> tuple[list[tuple[int, Asked]], int]:
    """What all visitors got, each with the place of its request, and how many of them never got their last answer.

    Who has asked when time is up is waited for, but not for ever.
    """
    clients = [visitor(url) for _ in range(visitors)]
    together = threading.Barrier(visitors)
    got: list[tuple[int, Asked]] = []

    def visit(place: int) -> None:
        chance = random.Random(f"{seed}-{place}")
        together.wait()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            which = chance.randrange(len(requests))
            got.append((which, ask(clients[place], requests[which])))
            time.sleep(chance.uniform(0, 2 * PAUSE))

    threads = [threading.Thread(target=visit, args=(place,), daemon=True) for place in range(visitors)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds + DRAIN_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return list(got), sum(thread.is_alive() for thread in threads)


def figures(
    asked: Sequence[tuple[int, Asked]], alone: Sequence[Asked], requests: Sequence[Request], seconds: float
) -> dict[str, Any]:
    """Counts and times of all that was asked."""
    answered = [(which, each) for which, each in asked if each.records is not None]
    pairs = [
        (mine, right, which)
        for which, each in answered
        for mine, right in zip(each.records or [], alone[which].records or [], strict=True)
    ]
    texts = {
        (record["text"], place)
        for place, each in enumerate(alone)
        for record in each.records or []
    }  # fmt: skip
    wrong = [pair for pair in pairs if is_wrong(*pair, requests, texts)]
    first = sorted(each.first_token for _, each in answered if each.first_token is not None)
    whole = sorted(each.seconds for _, each in answered)
    return {
        "seconds": seconds,
        "asked": len(asked),
        "answered": len(answered),
        "busy": sum(each.refused is not None for _, each in asked),
        "failed": sum(each.error is not None for _, each in asked),
        "failures": sorted({each.error for _, each in asked if each.error})[:5],
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
        "first_token_alone_p50_seconds": percentile(sorted(each.first_token or 0.0 for each in alone), 0.5),
        "most_waiting_before": max((each.most_before for _, each in answered), default=0),
    }


def is_wrong(
    mine: dict[str, Any], right: dict[str, Any], which: int, requests: Sequence[Request], texts: set[tuple[str, int]]
) -> bool:
    """Whether an answer is not the one that was asked for: of another question, another adapter, other examples."""
    same = ("method", "intent", "adapter", "prompt", "examples", "prompt_tokens", "error", "reference")
    if any(mine[name] != right[name] for name in same) or mine["intent"] != requests[which].intent:
        return True
    if mine["text"] == right["text"]:
        return False
    owners = {place for text, place in texts if text == mine["text"]}
    return bool(owners) and which not in owners


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which that share of them lies, to three digits; None of none."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a visitor who still waits must not keep the program
