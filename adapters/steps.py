"""The checks of something that is to be installed, told one by one as they pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One check: what it is about, and whether it passed. Why one failed is said by the error that follows it."""

    name: str
    ok: bool


StepFn = Callable[[Step], None]


def ignore_steps(_: Step) -> None:
    """For whoever wants to hear of errors alone."""


@contextmanager
def report_step(report: StepFn, name: str) -> Iterator[None]:
    """Reports the check as passed when the block ends, and as failed when it raises."""
    try:
        yield
    except BaseException:
        report(Step(name, ok=False))
        raise
    report(Step(name, ok=True))
