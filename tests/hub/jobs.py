"""Hugging Face Jobs on the local Hub: start, list, show, follow and cancel."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from tests.hub.machines import RemoteJob
from tests.hub.reading import Reply, reply_json
from tests.hub.state import Account, Hub

_ALL = re.compile(r"/api/jobs/([^/]+)")
_ONE = re.compile(r"/api/jobs/([^/]+)/([^/]+)(?:/(logs|cancel))?")
HARDWARE = [
    {
        "name": "cpu-basic", "prettyName": "CPU Basic", "cpu": "2 vCPU", "ram": "16 GB", "ephemeralStorage": "20 GB",
        "accelerator": None, "unitCostMicroUSD": 167, "unitCostUSD": 0.000167, "unitLabel": "minute",
    },
    {
        "name": "a10g-small", "prettyName": "Nvidia A10G - small", "cpu": "4 vCPU", "ram": "15 GB",
        "ephemeralStorage": "110 GB", "unitCostMicroUSD": 16667, "unitCostUSD": 0.016667, "unitLabel": "minute",
        "accelerator": {"type": "gpu", "model": "A10G", "quantity": "1", "vram": "24 GB", "manufacturer": "Nvidia"},
    },
]  # fmt: skip


def read(hub: Hub, account: Account | None, path: str, query: str) -> Reply | None:
    """Return the response to a GET about jobs; None for any other request."""
    if path == "/api/jobs/hardware":
        return reply_json(HARDWARE)
    if match := _ALL.fullmatch(path):
        labels = [value.split("=", 1) for key, value in parse_qsl(query) if key == "label"]
        return _refusal(account, match[1]) or reply_json(
            [
                job.values()
                for job in hub.jobs.known.values()
                if all((job.spec.get("labels") or {}).get(key) == value for key, value in labels)
            ]
        )
    if match := _ONE.fullmatch(path):
        job = hub.jobs.known.get(match[2])
        refused = _refusal(account, match[1])
        if refused or job is None:
            return refused or Reply(404, message="Job not found")
        return Reply(stream=_events(hub, job)) if match[3] == "logs" else reply_json(job.values())
    return None


def write(hub: Hub, account: Account | None, path: str, body: Callable[[], bytes]) -> tuple[Reply, bool] | None:
    """Return the response to a POST about jobs, and whether the connection breaks before it; else None."""
    if match := _ALL.fullmatch(path):
        spec = json.loads(body())
        refused = _refusal(account, match[1], write=True)
        if refused is None and not hub.jobs.credit:
            refused = Reply(402, message="Pre-paid credit balance is insufficient")
        if refused:
            return refused, False
        job = hub.jobs.begin(match[1], spec)
        return reply_json(job.values()), hub.breaks("job")
    match = _ONE.fullmatch(path)
    if match is None or match[3] != "cancel":
        return None
    body()
    job = hub.jobs.known[match[2]]
    refused = _refusal(account, match[1], write=True)
    if refused is None and not job.over:
        job.cancelled.set()
        if job.process is None:
            job.end("CANCELED")
    return refused or reply_json(job.values()), False


def _events(hub: Hub, job: RemoteJob) -> Iterator[bytes]:
    """Yield the log as server-sent events from its beginning until the job has ended or the connection is to break."""
    num_sent, deadline = 0, time.monotonic() + 60
    yield _event("===== Job started at 2030-01-01 00:00:00 =====")
    while time.monotonic() < deadline:
        over = job.over
        for line in job.lines[num_sent:]:
            num_sent += 1
            yield _event(line)
            if hub.breaks("log"):
                return
        if over:
            return
        time.sleep(0.02)


def _event(line: str) -> bytes:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return f"data: {json.dumps({'data': line, 'timestamp': now})}\n\n".encode()


def _refusal(account: Account | None, namespace: str, write: bool = False) -> Reply | None:
    if account is None:
        return Reply(401, message="Invalid username or password.")
    if write and not account.may_write(f"{namespace}/any"):
        return Reply(403, message="You don't have the required permissions to perform this operation")
    return None
