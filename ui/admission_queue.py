"""Admission queue of runs in front of the engine.

Gradio's own queue starts as many runs as its limit allows, in any order once they wait for the engine. The admission
queue shares the engine between addresses, then between the visitors of an address, and lets a waiting run be cancelled
at once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class AdmissionQueue:
    """A queue of runs of which `max_concurrent` may use the engine. Thread-safe.

    The next run is of the address with the fewest runs (running, and waiting before it), of several the one that was
    served longest ago; within an address likewise of a visitor; within a visitor the oldest. So somebody with many
    runs, or many cookies, waits for himself.
    """

    def __init__(self, max_concurrent: int = 1) -> None:
        self._max_concurrent = max_concurrent
        self._changed = threading.Condition()
        self._tickets: list[Ticket] = []
        self._admissions = 0
        # The number of its last admission, for each visitor (of an address) and address with tickets.
        self._served: dict[tuple[str, ...], int] = {}

    @contextmanager
    def enqueue(self, visitor: str = "", address: str = "") -> Iterator[Ticket]:
        """Yield a ticket in the queue; leaving the block removes it. Without `address` the visitor stands for it."""
        ticket = Ticket(self, visitor, address or visitor)
        with self._changed:
            self._tickets.append(ticket)
            self._admit()
        try:
            yield ticket
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                present = {group for ticket in self._tickets for group in ticket.groups}
                self._served = {group: number for group, number in self._served.items() if group in present}
                self._admit()

    def count_ahead(self, ticket: Ticket, timeout: float) -> int:
        """Wait for the turn of `ticket`, at most `timeout` seconds; return the number of runs that must end before."""
        with self._changed:
            self._changed.wait_for(lambda: ticket.admitted, timeout=timeout)
            return 0 if ticket.admitted else self._waiting().index(ticket) + 1

    def is_contended(self, ticket: Ticket) -> bool:
        """Return whether a visitor of another address waits for the end of `ticket`."""
        with self._changed:
            return any(not other.admitted and other.address != ticket.address for other in self._tickets)

    def _admit(self) -> None:
        free = self._max_concurrent - sum(ticket.admitted for ticket in self._tickets)
        for ticket in self._waiting()[: max(0, free)]:
            ticket.admitted = True
            self._admissions += 1
            self._served |= dict.fromkeys(ticket.groups, self._admissions)
        self._changed.notify_all()

    def _waiting(self) -> list[Ticket]:
        """Return the waiting tickets in the order of their turns."""
        waiting = [ticket for ticket in self._tickets if not ticket.admitted]
        for level in (0, 1):
            counts = Counter(ticket.groups[level] for ticket in self._tickets if ticket.admitted)
            ranks = {}
            for ticket in waiting:
                group = ticket.groups[level]
                ranks[ticket] = (counts[group], self._served.get(group, 0))
                counts[group] += 1
            waiting.sort(key=ranks.__getitem__)
        return waiting


@dataclass(eq=False)
class Ticket:
    """One run in the queue."""

    queue: AdmissionQueue
    visitor: str
    address: str
    admitted: bool = False

    @property
    def groups(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The visitor, and the address, as groups that share the engine."""
        return (self.address, self.visitor), (self.address,)

    def wait(self, timeout: float) -> int:
        """Wait for the turn, at most `timeout` seconds; return the number of runs that must end before it."""
        return self.queue.count_ahead(self, timeout)

    def is_contended(self) -> bool:
        """Return whether a visitor of another address waits for the end of this run."""
        return self.queue.is_contended(self)
