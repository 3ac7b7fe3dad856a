"""MatchRunner with a fake engine in a temporary home."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

from evaluate.arena.votes import VOTES_FILE, VoteStore
from serve.engine.llm_engine import EngineLoader
from tests.fakes import FakeEngine
from ui.access.policy import Visitor
from ui.arena.matches import MATCH_FOLDER, Match, MatchRequest, MatchRunner, MatchStore, MatchUpdate
from ui.context import Context

ANNA = Visitor("browser-00000000000000aa")
BERT = Visitor("browser-00000000000000bb")
EVIL = "<img src=x onerror=\"document.title = 'owned'\">${document.title = 'owned'}{{value}}"
ANSWERS = {
    "zero-shot": "def zero(): ...", "icl-8": "one = 1", "rag-8": "two = 2", "lora-quokka": "three = 3",
    "lora-evil": EVIL,
}  # fmt: skip
ERRORS = {"lora-broken": "Adapter 'lora-broken': its weights are missing; train it again."}
THREE = ("zero-shot", "rag-8", "lora-quokka")


def make_runner(home: Path, engine: FakeEngine | None = None) -> MatchRunner:
    """Make a runner whose engine has the adapters lora-quokka, lora-evil and lora-broken, which is unusable."""
    engine = engine or FakeEngine(ANSWERS, ERRORS, names=("lora-quokka", "lora-evil", "lora-broken"))
    source = EngineLoader(lambda report: engine).start()
    source.engine()
    context = Context(source, home=home)
    return MatchRunner(context, VoteStore(home / VOTES_FILE), MatchStore(home / MATCH_FOLDER))


def next_match(
    runner: MatchRunner, visitor: Visitor = ANNA, question: str = "", methods: tuple[str, ...] = THREE, known: str = ""
) -> Iterator[MatchUpdate]:
    """Request the next match; yield its updates."""
    return runner.next_match(visitor, "session", MatchRequest(question, "starter", methods), known, Event())


def answered_match(
    runner: MatchRunner, visitor: Visitor = ANNA, question: str = "", methods: tuple[str, ...] = THREE
) -> Match:
    """Return a new answered match, requested while the page shows the earlier one."""
    earlier = runner.matches.load(visitor.id)
    *_, last = next_match(runner, visitor, question, methods, earlier.id if earlier else "")
    assert last.match is not None
    return last.match
