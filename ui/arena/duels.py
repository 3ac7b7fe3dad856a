"""The open duel of each visitor, on disk: who reloads the page finds the same two answers, and their names stay hidden.

Everything that would tell the names lies here and in the engine, never in the browser, until the vote is kept.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from evaluate.arena.vote import Base, Player
from evaluate.files import atomic_write
from tasks.problem import AssertTest, Problem, StdioTest
from ui.records import Record

MATCH_FOLDER = "arena"
_MAX_AGE_SECONDS = 30 * 24 * 3600
_VISITOR_ID = re.compile(r"[a-z]+-[0-9a-f]{16}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """Two methods and one problem. Without `records` it is drawn but not answered yet.

    `data` is the problem's data set, '' for a question of the person's own. `answered` is when both answers stood, in
    ISO 8601. After the vote `voted` is set, and `said` is the HTML of what came of it.
    """

    id: str
    data: str
    pool: str
    problem: Problem
    base: Base
    left: Player
    right: Player
    records: tuple[Record, ...] = ()
    answered: str = ""
    tests_run: bool = False
    reference_seen: bool = False
    voted: bool = False
    winner: str = ""
    said: str = ""

    @property
    def methods(self) -> tuple[str, str]:
        return self.left.method, self.right.method


@dataclass
class MatchLock:
    """Serializes what one visitor does with a match, and names the session that holds it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    session: str = ""


class MatchStore:
    """One file a visitor under `folder`; what is older than a month is forgotten. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._visitor_locks: dict[str, MatchLock] = {}
        self._delete_expired()

    def load(self, visitor: str) -> Match | None:
        """The visitor's duel; None where there is none, or its file cannot be read."""
        path = self._path(visitor)
        try:
            return _parse_match(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as fault:
            _log.warning("The open duel of %s cannot be read (%s): a new one is drawn.", visitor, fault)
            return None

    def save(self, visitor: str, match: Match) -> None:
        """Keeps it; PromptOrTuneError where the disk says no."""
        atomic_write(self._path(visitor), json.dumps(asdict(match)))

    def delete(self, visitor: str) -> None:
        """Forgets the visitor's duel."""
        self._path(visitor).unlink(missing_ok=True)

    @contextmanager
    def lock(self, visitor: str, session: str = "", timeout: float = -1) -> Iterator[bool]:
        """One at a time of a visitor's windows; False where the turn did not come within `seconds`."""
        turn = self._visitor_lock(visitor)
        held = turn.lock.acquire(timeout=timeout)
        if held:
            turn.session = session
        try:
            yield held
        finally:
            if held:
                turn.session = ""
                turn.lock.release()

    def locked_session(self, visitor: str) -> str:
        """The session whose turn it is, '' where nobody's."""
        return self._visitor_lock(visitor).session

    def _visitor_lock(self, visitor: str) -> MatchLock:
        with self._lock:
            return self._visitor_locks.setdefault(visitor, MatchLock())

    def _path(self, visitor: str) -> Path:
        if not _VISITOR_ID.fullmatch(visitor):
            raise ValueError(f"{visitor!r} is no visitor's id")
        return self._folder / f"{visitor}.json"

    def _delete_expired(self) -> None:
        with suppress(OSError):
            for path in self._folder.glob("*.json"):
                if path.stat().st_mtime < time.time() - _MAX_AGE_SECONDS:
                    path.unlink()


def _parse_match(values: dict[str, Any]) -> Match:
    tests = tuple(AssertTest(**test) if "code" in test else StdioTest(**test) for test in values["problem"]["tests"])
    known = {each.name: values[each.name] for each in fields(Match)}
    return Match(
        **{
            **known,
            "problem": Problem(**{**values["problem"], "tests": tests}),
            "base": Base(**values["base"]),
            "left": Player(**values["left"]),
            "right": Player(**values["right"]),
            "records": tuple(values["records"]),
        }
    )
