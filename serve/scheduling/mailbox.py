"""What passes from the thread that generates to the one that asked. Bounded, however slowly it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import Condition

from serve.rows import Answer, Partial

Event = Partial | Answer


class Mailbox:
    """The events of one call that nobody has read yet: of every growing answer the last state, and all whole answers.

    It is over with the last of `answers` answers. `notify` is called, from the thread that has news, whenever
    something new lies here; it must return at once.
    """

    def __init__(self, answers: int, notify: Callable[[], None] | None = None, partials: bool = True) -> None:
        self.wants_partials = partials
        self._changed = Condition()
        self._missing = answers
        self._notify = notify
        self._partials: dict[tuple[int, int], Partial] = {}
        self._answers: list[Answer] = []
        self._over = answers == 0
        self._fault: Exception | None = None

    def put(self, events: Sequence[Event]) -> None:
        """Adds news; after the end they are not heard."""
        with self._changed:
            if self._over:
                return
            for event in events:
                if isinstance(event, Answer):
                    self._answers.append(event)
                else:
                    self._partials[event.index, event.candidate] = event
            self._missing -= sum(isinstance(event, Answer) for event in events)
            self._over = self._missing <= 0
            self._changed.notify()
        self._ring()

    def fail(self, fault: Exception) -> None:
        """Nothing more will come; the reader gets `fault` raised after what lies here."""
        with self._changed:
            if self._over:
                return
            self._over = True
            self._fault = fault
            self._changed.notify()
        self._ring()

    def take(self, wait: bool) -> tuple[list[Event], bool]:
        """All that lies here, growing answers first, and whether that was the last; raises the fault that ended it."""
        with self._changed:
            while wait and not (self._partials or self._answers or self._over):
                self._changed.wait()
            events: list[Event] = [*self._partials.values(), *self._answers]
            self._partials, self._answers = {}, []
            if self._fault is not None and not events:
                raise self._fault
            over = self._over and self._fault is None
        if self._over and not over:
            self._ring()  # its fault is still to be fetched
        return events, over

    def _ring(self) -> None:
        if self._notify is not None:
            # An event loop that was closed meanwhile raises; then nobody reads, and the others must not suffer.
            with suppress(RuntimeError):
                self._notify()


class Stream(Iterator[Event]):
    """A call's events as they come: Partials, and exactly one Answer a request.

    Closing it, or dropping it, stops its rows within a step. One thread reads it. `stop` is told whether to be heard
    at once; `holds` is what must live as long as somebody reads.
    """

    def __init__(self, mailbox: Mailbox, stop: Callable[[bool], None], holds: object = None) -> None:
        self._mailbox = mailbox
        self._stop = stop
        self._holds = holds
        self._pending: list[Event] = []
        self._over = False

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._over and not self._pending

    def __next__(self) -> Event:
        while not self._pending:
            if self._over:
                raise StopIteration
            self._fetch(wait=True)
        return self._pending.pop()

    def ready(self) -> list[Event]:
        """All events that are there, without waiting; raises what has ended the call."""
        if not self._over:
            self._fetch(wait=False)
        events, self._pending = self._pending[::-1], []
        return events

    def close(self) -> None:
        """Ends the call: nobody waits for the rest."""
        if not self._over:
            self._over = True
            self._stop(True)
        self._pending = []

    def __del__(self) -> None:
        # May run in any thread at any moment, so it only leaves a word.
        if not self._over:
            self._stop(False)

    def _fetch(self, wait: bool) -> None:
        try:
            events, self._over = self._mailbox.take(wait)
        except BaseException:
            self.close()
            raise
        # Read from the end, which is cheap.
        self._pending = events[::-1] + self._pending
