"""From the draw to two answers: shown together, replaced where one fails, and found again by the same visitor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest

from errors import BusyError, PeftArenaError
from tests.fakes import FakeEngine
from tests.ui.arena.arenas import ANNA, BERT, FAILS, SAYS, THREE, answered, draw, make_arena
from ui.arena.answering import ELSEWHERE, Arena
from ui.arena.drawing import Wish, usable_methods
from ui.limits import Limits
from ui.visitors import Policy, Visitors


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    return make_arena(tmp_path)


def test_both_answers_are_shown_together(arena: Arena) -> None:
    steps = list(draw(arena))
    assert [bool(step.duel and step.duel.records) for step in steps] == [False] * (len(steps) - 1) + [True]
    duel = steps[-1].duel
    assert duel is not None
    assert duel == arena.duels.open(ANNA.id)
    assert [record["method"] for record in duel.records] == list(duel.methods)
    assert [record["code"] for record in duel.records] == [SAYS[name] for name in duel.methods]
    assert set(duel.methods) < set(THREE)


def test_nothing_that_a_status_says_tells_a_name(arena: Arena) -> None:
    said = {step.status for _ in range(10) for step in draw(arena, known=_known(arena))}
    assert len(said) > 1
    assert not [line for line in said if any(name in line for name in THREE)]


def test_a_method_that_fails_is_replaced_by_another_draw(arena: Arena) -> None:
    for _ in range(12):
        duel = answered(arena, methods=("zero-shot", "rag-8", "lora-broken"))
        assert set(duel.methods) == {"zero-shot", "rag-8"}
    assert arena.votes.count() == 0


def test_where_no_two_methods_answer_a_sentence_says_why(tmp_path: Path) -> None:
    arena = make_arena(tmp_path, FakeEngine(SAYS, FAILS, longest_intent=10))
    with pytest.raises(PeftArenaError, match="No two of the chosen methods gave an answer"):
        list(draw(arena, question="far too long a question"))
    assert arena.duels.open(ANNA.id) is None


def test_one_method_alone_is_no_duel(arena: Arena) -> None:
    with pytest.raises(PeftArenaError, match="A duel needs two methods"):
        list(draw(arena, methods=("zero-shot",)))
    with pytest.raises(PeftArenaError, match="A duel needs two methods"):
        list(draw(arena, methods=("zero-shot", "no such method")))


def test_an_own_question_is_asked_as_it_is(arena: Arena) -> None:
    duel = answered(arena, question="  reverse a list ")
    assert (duel.data, duel.problem.intent, duel.problem.tests) == ("", "reverse a list", ())


def test_a_refresh_finds_the_same_duel(arena: Arena) -> None:
    duel = answered(arena)
    engine = arena.context.source.engine()
    assert isinstance(engine, FakeEngine)
    runs = engine.runs
    steps = list(make_arena(arena.context.home).open_duel(ANNA, "other session", Event()))
    assert [step.duel for step in steps] == [duel]
    assert engine.runs == runs
    assert list(arena.open_duel(BERT, "session", Event())) == []


def test_another_window_gets_the_open_duel_and_no_new_draw(arena: Arena) -> None:
    duel = answered(arena)
    *_, last = draw(arena, known="an older duel")
    assert last.duel == duel
    *_, last = draw(arena, known=duel.id)
    assert last.duel is not None
    assert last.duel.id != duel.id


def test_a_draw_that_was_not_answered_is_answered_when_the_page_comes_back(arena: Arena) -> None:
    """The page was closed in between: the names of the draw stay what they were."""
    steps = draw(arena)
    drawn = next(step.duel for step in steps if step.duel)
    steps.close()  # type: ignore[attr-defined]
    *_, last = arena.open_duel(ANNA, "session", Event())
    assert last.duel is not None
    assert (last.duel.id, last.duel.methods) == (drawn.id, drawn.methods)
    assert last.duel.records


def test_a_draw_of_another_base_is_forgotten(arena: Arena) -> None:
    steps = draw(arena)
    drawn = next(step.duel for step in steps if step.duel)
    steps.close()  # type: ignore[attr-defined]
    arena.duels.save(ANNA.id, replace(drawn, base=replace(drawn.base, id="org/other")))
    assert list(arena.open_duel(ANNA, "session", Event())) == []
    assert arena.duels.open(ANNA.id) is None


def test_stopping_shows_no_answer(tmp_path: Path) -> None:
    arena = make_arena(tmp_path, FakeEngine(dict.fromkeys(THREE, "word " * 500), delay=0.01, names=("lora-quokka",)))
    cancel = Event()
    seen = []
    for step in arena.next_duel(ANNA, "session", Wish("", "starter", THREE), "", cancel):
        seen.append(step)
        if step.status.startswith("Both are answering"):
            Thread(target=cancel.set).start()
    assert not [step for step in seen if step.duel and step.duel.records]


def test_two_windows_take_turns(arena: Arena) -> None:
    first = draw(arena)
    next(first)
    other = draw(arena)
    assert next(other).status == ELSEWHERE
    done = [step.duel for step in first][-1]
    assert [step.duel for step in other][-1] == done


def test_a_person_has_two_rows_a_duel(arena: Arena) -> None:
    tight = replace(arena.context, visitors=Visitors(Policy(limits=Limits(rows_per_hour=4))))
    arena = Arena(tight, arena.votes, arena.duels)
    answered(arena), answered(arena)
    with pytest.raises(BusyError, match="You have had 4 answers within an hour"):
        answered(arena)
    assert answered(arena, BERT).records
    assert arena.duels.open(ANNA.id) is None


def test_only_what_can_be_used_takes_part(arena: Arena) -> None:
    assert usable_methods(arena.context.source.engine()) == ["zero-shot", "icl-8", "rag-8", "lora-evil", "lora-quokka"]


def test_pairs_and_sides_are_not_always_the_same(arena: Arena) -> None:
    assert len({answered(arena).methods for _ in range(40)}) >= 5


def _known(arena: Arena) -> str:
    duel = arena.duels.open(ANNA.id)
    return duel.id if duel else ""
