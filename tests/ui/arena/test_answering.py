"""From the draw to two answers: shown together, replaced where one fails, and found again by the same visitor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest

from errors import BusyError, PromptOrTuneError
from tests.fakes import FakeEngine
from tests.ui.arena.arenas import ANNA, BERT, FAILS, SAYS, THREE, answered, draw, make_arena
from ui.arena.matches import LOCKED_BY_OTHER_WINDOW, MatchRequest, MatchRunner, usable_methods
from ui.visitors import AccessPolicy, Limits, VisitorRegistry


@pytest.fixture
def arena(tmp_path: Path) -> MatchRunner:
    return make_arena(tmp_path)


def test_both_answers_are_shown_together(arena: MatchRunner) -> None:
    steps = list(draw(arena))
    assert [bool(step.match and step.match.records) for step in steps] == [False] * (len(steps) - 1) + [True]
    duel = steps[-1].match
    assert duel is not None
    assert duel == arena.matches.load(ANNA.id)
    assert [record["method"] for record in duel.records] == list(duel.methods)
    assert [record["code"] for record in duel.records] == [SAYS[name] for name in duel.methods]
    assert set(duel.methods) < set(THREE)


def test_nothing_that_a_status_says_tells_a_name(arena: MatchRunner) -> None:
    said = {step.status for _ in range(10) for step in draw(arena, known=_known(arena))}
    assert len(said) > 1
    assert not [line for line in said if any(name in line for name in THREE)]


def test_a_method_that_fails_is_replaced_by_another_draw(arena: MatchRunner) -> None:
    for _ in range(12):
        duel = answered(arena, methods=("zero-shot", "rag-8", "lora-broken"))
        assert set(duel.methods) == {"zero-shot", "rag-8"}
    assert arena.votes.count() == 0


def test_where_no_two_methods_answer_a_sentence_says_why(tmp_path: Path) -> None:
    arena = make_arena(tmp_path, FakeEngine(SAYS, FAILS, longest_intent=10))
    with pytest.raises(PromptOrTuneError, match="No two of the chosen methods gave an answer"):
        list(draw(arena, question="far too long a question"))
    assert arena.matches.load(ANNA.id) is None


def test_one_method_alone_is_no_duel(arena: MatchRunner) -> None:
    with pytest.raises(PromptOrTuneError, match="A duel needs two methods"):
        list(draw(arena, methods=("zero-shot",)))
    with pytest.raises(PromptOrTuneError, match="A duel needs two methods"):
        list(draw(arena, methods=("zero-shot", "no such method")))


def test_an_own_question_is_asked_as_it_is(arena: MatchRunner) -> None:
    duel = answered(arena, question="  reverse a list ")
    assert (duel.data, duel.problem.intent, duel.problem.tests) == ("", "reverse a list", ())


def test_a_refresh_finds_the_same_duel(arena: MatchRunner) -> None:
    duel = answered(arena)
    engine = arena.context.engine_loader.engine()
    assert isinstance(engine, FakeEngine)
    runs = engine.runs
    steps = list(make_arena(arena.context.home).resume_match(ANNA, "other session", Event()))
    assert [step.match for step in steps] == [duel]
    assert engine.runs == runs
    assert list(arena.resume_match(BERT, "session", Event())) == []


def test_another_window_gets_the_open_duel_and_no_new_draw(arena: MatchRunner) -> None:
    duel = answered(arena)
    *_, last = draw(arena, known="an older duel")
    assert last.match == duel
    *_, last = draw(arena, known=duel.id)
    assert last.match is not None
    assert last.match.id != duel.id


def test_a_draw_that_was_not_answered_is_answered_when_the_page_comes_back(arena: MatchRunner) -> None:
    """The page was closed in between: the names of the draw stay what they were."""
    steps = draw(arena)
    drawn = next(step.match for step in steps if step.match)
    steps.close()  # type: ignore[attr-defined]
    *_, last = arena.resume_match(ANNA, "session", Event())
    assert last.match is not None
    assert (last.match.id, last.match.methods) == (drawn.id, drawn.methods)
    assert last.match.records


def test_a_draw_of_another_base_is_forgotten(arena: MatchRunner) -> None:
    steps = draw(arena)
    drawn = next(step.match for step in steps if step.match)
    steps.close()  # type: ignore[attr-defined]
    arena.matches.save(ANNA.id, replace(drawn, base=replace(drawn.base, id="org/other")))
    assert list(arena.resume_match(ANNA, "session", Event())) == []
    assert arena.matches.load(ANNA.id) is None


def test_stopping_shows_no_answer(tmp_path: Path) -> None:
    arena = make_arena(tmp_path, FakeEngine(dict.fromkeys(THREE, "word " * 500), delay=0.01, names=("lora-quokka",)))
    cancel = Event()
    seen = []
    for step in arena.next_match(ANNA, "session", MatchRequest("", "starter", THREE), "", cancel):
        seen.append(step)
        if step.status.startswith("Both are answering"):
            Thread(target=cancel.set).start()
    assert not [step for step in seen if step.match and step.match.records]


def test_two_windows_take_turns(arena: MatchRunner) -> None:
    first = draw(arena)
    next(first)
    other = draw(arena)
    assert next(other).status == LOCKED_BY_OTHER_WINDOW
    done = [step.match for step in first][-1]
    assert [step.match for step in other][-1] == done


def test_a_person_has_two_rows_a_duel(arena: MatchRunner) -> None:
    tight = replace(arena.context, visitors=VisitorRegistry(AccessPolicy(limits=Limits(rows_per_hour=4))))
    arena = MatchRunner(tight, arena.votes, arena.matches)
    answered(arena), answered(arena)
    with pytest.raises(BusyError, match="You have had 4 answers within an hour"):
        answered(arena)
    assert answered(arena, BERT).records
    assert arena.matches.load(ANNA.id) is None


def test_only_what_can_be_used_takes_part(arena: MatchRunner) -> None:
    assert usable_methods(arena.context.engine_loader.engine()) == [
        "zero-shot",
        "icl-8",
        "rag-8",
        "lora-evil",
        "lora-quokka",
    ]


def test_pairs_and_sides_are_not_always_the_same(arena: MatchRunner) -> None:
    assert len({answered(arena).methods for _ in range(40)}) >= 5


def _known(arena: MatchRunner) -> str:
    duel = arena.matches.load(ANNA.id)
    return duel.id if duel else ""
