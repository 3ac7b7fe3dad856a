"""How long an honest visitor waits beside somebody who tries to stop the app.

    python -m benchmarks.attacks --before ../older-checkout --output docs/results/attacks

For each attack `python app.py` runs in a process of its own on the embedded base. An honest visitor asks two methods a
few times alone, then again while four threads of another process repeat the attack and never read an answer; they have
another address, given by X-Forwarded-For (`--trust-proxy`), and the lowest priority, because an attacker brings a
machine of his own. `--before` measures another checkout of the program in the same run: the two
take turns. A wait of more than LIMIT_SECONDS counts as LIMIT_SECONDS. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from gradio_client import Client

from benchmarks.load_test_app import PROJECT_ROOT, running_app
from common.files import atomic_write
from common.format import text_table
from ui.access.guard import COOKIE_NAME

ATTACKERS, RUNS, LIMIT_SECONDS = 4, 3, 60.0
SETTLE_SECONDS = 3.0  # before the first wait under attack is measured
HONEST_METHODS = ["zero-shot", "rag-2"]
HONEST_ADDRESS, ATTACKER_ADDRESS = "198.51.100.9", "203.0.113.7"
EIGHT_METHODS = ["zero-shot", *(f"rag-{n}" for n in range(1, 5)), *(f"icl-{n}" for n in range(1, 4))]


@dataclass(frozen=True)
class Target:
    """The running app under attack, and the id of the component with a server function."""

    client: httpx.Client
    component: int


def post(target: Target, path: str, body: Any) -> int:
    """Send JSON as a new visitor, read the status alone, and return it."""
    cookie = f"{COOKIE_NAME}={secrets.token_urlsafe(24)}"
    headers = {"cookie": cookie, "x-forwarded-for": ATTACKER_ADDRESS}
    with target.client.stream("POST", path, json=body, headers=headers) as response:
        return response.status_code


def compare(target: Target, intent: str, methods: Sequence[str], tests: str | None = None) -> int:
    """Begin a comparison and leave."""
    return post(target, "gradio_api/call/compare", {"data": [intent, list(methods), None, tests]})


def attack_tests(target: Target) -> int:
    """Pasted tests of 80 kB: 20,000 assignments and one assert."""
    return compare(target, "x", ["zero-shot"], "a=1\n" * 20_000 + "assert a\n")


def attack_intent(target: Target) -> int:
    """An intent of 2 MB for four methods."""
    return compare(target, "a " * 1_000_000, ["rag-8", "rag-4", "icl-8", "zero-shot"])


def attack_runs(target: Target) -> int:
    """Runs of eight methods whose answers nobody reads, each by a new cookie."""
    return compare(target, "reverse a string", EIGHT_METHODS)


def attack_difference(target: Target) -> int:
    """The difference of two codes of 200 lines with 490 characters each."""
    sides = {
        side: "\n".join(f"{n} {word * 120}" for n in range(200))
        for side, word in (("mine", "ab c"), ("theirs", "a bc"))
    }
    body = {
        "data": sides,
        "fn_name": "difference",
        "component_id": target.component,
        "session_hash": secrets.token_hex(5),
    }
    return post(target, "gradio_api/component_server", body)


def attack_body(target: Target) -> int:
    """JSON of 30 MB to the queue."""
    return post(target, "gradio_api/queue/join", {"data": ["x" * 30_000_000], "fn_index": 0, "session_hash": "x" * 10})


def attack_readers(target: Target) -> int:
    """Runs of eight methods whose answers are read, each by a new cookie."""
    cookie = f"{COOKIE_NAME}={secrets.token_urlsafe(24)}"
    headers = {"cookie": cookie, "x-forwarded-for": ATTACKER_ADDRESS}
    body = {"data": ["reverse a string", EIGHT_METHODS, None, None]}
    begun = target.client.post("gradio_api/call/compare", json=body, headers=headers)
    if begun.status_code == 200:
        target.client.get(f"gradio_api/call/compare/{begun.json()['event_id']}", headers=headers)
    return begun.status_code


def attack_config(target: Target) -> int:
    """The configuration of the page, 400 kB."""
    return target.client.get("config", headers={"x-forwarded-for": ATTACKER_ADDRESS}).status_code


ATTACKS: dict[str, Callable[[Target], int]] = {
    "tests": attack_tests,
    "intent": attack_intent,
    "runs": attack_runs,
    "readers": attack_readers,
    "config": attack_config,
    "difference": attack_difference,
    "body": attack_body,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the attacks and print one JSON line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--before", type=Path, help="another checkout of the program to measure beside this one")
    parser.add_argument("--output", type=Path, help="path of the page and its JSON file, without suffix")
    options = parser.parse_args(given)
    roots = {"now": PROJECT_ROOT} | ({"before": options.before.resolve()} if options.before else {})
    load_before = os.getloadavg()[0]
    rows = []
    for name in options.attacks:
        row: dict[str, Any] = {"attack": name, "what": ATTACKS[name].__doc__}
        for label, root in roots.items():
            row[label] = measure(ATTACKS[name], root)
        rows.append(row)
    line = {
        "attacks": rows, "runs": RUNS, "attackers": ATTACKERS, "limit_seconds": LIMIT_SECONDS, "cores": os.cpu_count(),
        "load_before": round(load_before, 2), "python": platform.python_version(),
        "commits": {label: commit_of(root) for label, root in roots.items()},
    }  # fmt: skip
    print(json.dumps(line))
    if options.output:
        atomic_write(options.output.with_suffix(".json"), json.dumps(line, indent=1) + "\n")
        atomic_write(options.output.with_suffix(".md"), render_page(line, options.output.name + ".json"))
    return 0


def measure(attack: Callable[[Target], int], root: Path) -> dict[str, Any]:
    """Return the honest visitor's median wait alone and under attack, their ratio, and the attack's statuses."""
    with (
        tempfile.TemporaryDirectory(prefix="attacks-") as folder,
        running_app(Path(folder), *proxy_options(root), root=root) as app,
    ):
        honest = Client(app.url, verbose=False, headers={"x-forwarded-for": HONEST_ADDRESS})
        alone = [wait(honest) for _ in range(RUNS + 1)][1:]  # the first one makes the index of the examples
        with attackers(attack, app.url) as statuses:
            time.sleep(SETTLE_SECONDS)
            attacked = [wait(honest) for _ in range(RUNS)]
        crashed = app.crashed()
    before, after = statistics.median(alone), statistics.median(attacked)
    return {
        "alone_seconds": round(before, 2), "attacked_seconds": round(after, 2), "ratio": round(after / before, 2),
        "statuses": dict(statuses), "crashed": crashed,
    }  # fmt: skip


@contextmanager
def attackers(attack: Callable[[Target], int], url: str) -> Iterator[Counter[str]]:
    """Let ATTACKERS threads of a process repeat the attack until the block ends; yields the statuses, filled then."""
    context = multiprocessing.get_context("spawn")
    stop, results, statuses = context.Event(), context.Queue(), Counter[str]()
    process = context.Process(target=repeat_attack, args=(attack.__name__, url, stop, results), daemon=True)
    process.start()
    try:
        yield statuses
    finally:
        stop.set()
        statuses.update(results.get(timeout=2 * LIMIT_SECONDS))
        process.join()


def repeat_attack(name: str, url: str, stop: Any, results: Any) -> None:
    """Repeat the attack with this name in threads until `stop` is set, then put the Counter of the statuses."""
    os.nice(19)
    components = httpx.get(f"{url}config").json()["components"]
    component = next(each["id"] for each in components if each["props"].get("server_fns"))
    statuses = Counter[str]()

    def repeat() -> None:
        with httpx.Client(base_url=url, timeout=LIMIT_SECONDS) as client:
            while not stop.is_set():
                try:
                    statuses[str(globals()[name](Target(client, component)))] += 1
                except httpx.HTTPError as error:
                    statuses[type(error).__name__] += 1

    threads = [threading.Thread(target=repeat, daemon=True) for _ in range(ATTACKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_SECONDS)
    results.put(statuses)


def proxy_options(root: Path) -> list[str]:
    """Return the option with which that checkout's app believes X-Forwarded-For; none if it has no such option."""
    done = subprocess.run([sys.executable, "app.py", "--help"], cwd=root, capture_output=True, text=True, check=True)
    return ["--trust-proxy"] if "--trust-proxy" in done.stdout else []


def commit_of(root: Path) -> str:
    """Return the short id of the commit that is checked out in `root`."""
    command = ["git", "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def wait(client: Client) -> float:
    """Ask once and return the seconds until the answer, LIMIT_SECONDS if it takes longer or is refused."""
    start = time.monotonic()
    job = client.submit("reverse the string `s`", HONEST_METHODS, api_name="/compare")
    with suppress(Exception):
        if all(record["error"] is None for record in job.result(timeout=LIMIT_SECONDS)):
            return time.monotonic() - start
    return LIMIT_SECONDS


def render_page(line: dict[str, Any], file: str) -> str:
    """Return the page in Markdown."""
    labels = [label for label in ("before", "now") if label in line["attacks"][0]]
    figures = ("alone, attacked (s)", "ratio")
    header = ["attack", *(f"{label}: {figure}" for figure in figures for label in labels)]
    rows = [
        [
            row["what"],
            *(f"{row[label]['alone_seconds']:g}, {row[label]['attacked_seconds']:g}" for label in labels),
            *(f"{row[label]['ratio']:g}" for label in labels),
        ]
        for row in line["attacks"]
    ]
    return (
        "# An honest visitor beside an attack\n\n"
        f"{line['attackers']} threads of another address repeat the attack, in a process of the lowest priority, "
        "because they would have a machine of their own. They read no answer, except for the runs whose answers are "
        "read: those are the rows in flight that a visitor may have. The honest visitor asks "
        f"{' and '.join(HONEST_METHODS)} {line['runs']} times (medians). {line['limit_seconds']:g} s: not answered "
        f"until then, or refused. Commits: {', '.join(f'{label} {id}' for label, id in line['commits'].items())}.\n\n"
        f"{text_table(header, rows, markdown=True)}\n\n"
        f"{line['cores']} cores, which the attackers used too; load average before the start {line['load_before']:g}. "
        f"Python {line['python']}. [{file}]({file}) has the statuses with which each attack was answered.\n\n"
        "```sh\npython -m benchmarks.attacks --before <an older checkout> --output docs/results/attacks\n```\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
