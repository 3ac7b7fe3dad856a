"""Helpers for tests of jobs: a service that starts no worker, and settings of a job that trains in a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.api import JobService
from jobs.job import Job, ServingOptions


class ServiceWithoutWorker(JobService):
    """A job service that starts no worker and counts the requests for one."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.worker_requests = 0

    def ensure_worker(self) -> None:
        self.worker_requests += 1


def tiny_job(base: Path, name: str = "lora-tiny", **changes: Any) -> tuple[dict[str, Any], ServingOptions]:
    """Return the settings of a job on the tiny base, and its serving options."""
    config = {
        "adapter_name": name,
        "dataset_name": "starter",
        "max_train_samples": 24,
        "max_eval_samples": 6,
        "num_train_epochs": 2.0,
        "learning_rate": 3e-3,
        "eval_every": 0.34,
        "max_length": 480,
        "max_tokens_at_once": 100_000,
    }
    return {**config, **changes}, ServingOptions(base=str(base), quantization="none", device="cpu")


def submit_named(service: JobService, name: str, **more: Any) -> Job:
    """Submit a job of that name, which is never run."""
    return service.submit({"adapter_name": name, "dataset_name": "starter"}, ServingOptions(), **more)


def wait_for(ready: Callable[[], Any], description: str, seconds: float = 240.0) -> Any:
    """Wait until `ready()` is true and return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := ready():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds:.0f} s for {description}")
