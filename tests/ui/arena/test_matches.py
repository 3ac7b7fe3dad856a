"""Matches: sampling, answering, resuming, locking between windows, and storage."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest

from errors import BusyError, PromptOrTuneError
from tests import messages
from tests.fakes import FakeEngine
from tests.ui.arena.runners import ANNA, ANSWERS, BERT, ERRORS, THREE, answered_match, make_runner, next_match
from ui.access.guard import VisitorRegistry
from ui.access.policy import AccessPolicy
from ui.access.quota import VisitorLimits
from ui.arena.matches import (
    LOCKED_BY_OTHER_WINDOW,
    MATCH_FOLDER,
    MatchRequest,
    MatchRunner,
    MatchStore,
    usable_methods,
)


@pytest.fixture
def runner(tmp_path: Path) -> MatchRunner:
    return make_runner(tmp_path)


def test_both_answers_are_displayed_together(runner: MatchRunner) -> None:
    steps = list(next_match(runner))
    assert [bool(step.match and step.match.records) for step in steps] == [False] * (len(steps) - 1) + [True]
    match = steps[-1].match
    assert match is not None
    assert match == runner.matches.load(ANNA.id)
    assert [record["method"] for record in match.records] == list(match.methods)
    assert [record["code"] for record in match.records] == [ANSWERS[name] for name in match.methods]
    assert set(match.methods) < set(THREE)


def test_status_contains_no_name(runner: MatchRunner) -> None:
    statuses = {step.status for _ in range(10) for step in next_match(runner, known=_known(runner))}
    assert len(statuses) > 1
    assert not [line for line in statuses if any(name in line for name in THREE)]


def test_failing_method_is_excluded_from_the_next_sample(runner: MatchRunner) -> None:
    for _ in range(12):
        match = answered_match(runner, methods=("zero-shot", "rag-8", "lora-broken"))
        assert set(match.methods) == {"zero-shot", "rag-8"}
    assert runner.votes.count() == 0


def test_match_with_fewer_than_two_answers_raises(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, FakeEngine(ANSWERS, ERRORS, longest_intent=10))
    with pytest.raises(PromptOrTuneError, match=messages.FEWER_THAN_TWO_ANSWERS):
        list(next_match(runner, question="far too long a question"))
    assert runner.matches.load(ANNA.id) is None


def test_match_requires_two_methods(runner: MatchRunner) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.DUEL_NEEDS_TWO_METHODS):
        list(next_match(runner, methods=("zero-shot",)))
    with pytest.raises(PromptOrTuneError, match=messages.DUEL_NEEDS_TWO_METHODS):
        list(next_match(runner, methods=("zero-shot", "no such method")))


def test_custom_question_is_used_unchanged(runner: MatchRunner) -> None:
    match = answered_match(runner, question="  reverse a list ")
    assert (match.data, match.problem.intent, match.problem.tests) == ("", "reverse a list", ())


def test_resume_returns_the_same_match(runner: MatchRunner) -> None:
    match = answered_match(runner)
    engine = runner.context.engine_loader.engine()
    assert isinstance(engine, FakeEngine)
    runs = engine.runs
    steps = list(make_runner(runner.context.home).resume_match(ANNA, "other session", Event()))
    assert [step.match for step in steps] == [match]
    assert engine.runs == runs
    assert list(runner.resume_match(BERT, "session", Event())) == []


def test_another_window_gets_the_open_match(runner: MatchRunner) -> None:
    match = answered_match(runner)
    *_, last = next_match(runner, known="an older match")
    assert last.match == match
    *_, last = next_match(runner, known=match.id)
    assert last.match is not None
    assert last.match.id != match.id


def test_unanswered_match_is_answered_on_resume(runner: MatchRunner) -> None:
    """The page was closed before the answers; the match has the same methods on resume."""
    steps = next_match(runner)
    sampled = next(step.match for step in steps if step.match)
    steps.close()  # type: ignore[attr-defined]
    *_, last = runner.resume_match(ANNA, "session", Event())
    assert last.match is not None
    assert (last.match.id, last.match.methods) == (sampled.id, sampled.methods)
    assert last.match.records


def test_open_match_of_another_base_is_deleted(runner: MatchRunner) -> None:
    steps = next_match(runner)
    sampled = next(step.match for step in steps if step.match)
    steps.close()  # type: ignore[attr-defined]
    runner.matches.save(ANNA.id, replace(sampled, base=replace(sampled.base, id="org/other")))
    assert list(runner.resume_match(ANNA, "session", Event())) == []
    assert runner.matches.load(ANNA.id) is None


def test_cancelled_match_has_no_answers(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, FakeEngine(dict.fromkeys(THREE, "word " * 500), delay=0.01, names=("lora-quokka",)))
    cancel = Event()
    updates = []
    for step in runner.next_match(ANNA, "session", MatchRequest("", "starter", THREE), "", cancel):
        updates.append(step)
        if step.status.startswith("Both are answering"):
            Thread(target=cancel.set).start()
    assert not [step for step in updates if step.match and step.match.records]


def test_second_window_waits_for_the_first(runner: MatchRunner) -> None:
    first = next_match(runner)
    next(first)
    other = next_match(runner)
    assert next(other).status == LOCKED_BY_OTHER_WINDOW
    done = [step.match for step in first][-1]
    assert [step.match for step in other][-1] == done


def test_match_counts_two_answers_against_the_quota(runner: MatchRunner) -> None:
    tight = replace(runner.context, visitors=VisitorRegistry(AccessPolicy(limits=VisitorLimits(rows_per_hour=4))))
    runner = MatchRunner(tight, runner.votes, runner.matches)
    answered_match(runner), answered_match(runner)
    with pytest.raises(BusyError, match=messages.HOURLY_LIMIT_REACHED):
        answered_match(runner)
    assert answered_match(runner, BERT).records
    assert runner.matches.load(ANNA.id) is None


def test_usable_methods_exclude_broken_adapters(runner: MatchRunner) -> None:
    assert usable_methods(runner.context.engine_loader.engine()) == [
        "zero-shot",
        "icl-8",
        "rag-8",
        "lora-evil",
        "lora-quokka",
    ]


def test_pairs_and_sides_are_sampled_randomly(runner: MatchRunner) -> None:
    assert len({answered_match(runner).methods for _ in range(40)}) >= 5


def test_match_is_saved_and_loaded(tmp_path: Path) -> None:
    match = answered_match(make_runner(tmp_path))
    assert MatchStore(tmp_path / MATCH_FOLDER).load(ANNA.id) == match
    assert match.problem.tests


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"id": 3}'])
def test_broken_match_file_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / f"{ANNA.id}.json").write_text(content)
    assert MatchStore(tmp_path).load(ANNA.id) is None


@pytest.mark.parametrize("visitor", ["", "../../etc/passwd", "browser-x", "browser-00000000000000aa/../x"])
def test_visitor_id_cannot_be_a_path(tmp_path: Path, visitor: str) -> None:
    with pytest.raises(ValueError, match=messages.VISITOR_ID_INVALID):
        MatchStore(tmp_path).load(visitor)


def test_old_match_is_deleted(tmp_path: Path) -> None:
    match = answered_match(make_runner(tmp_path))
    path = tmp_path / MATCH_FOLDER / f"{ANNA.id}.json"
    os.utime(path, (time.time() - 31 * 24 * 3600,) * 2)
    assert MatchStore(tmp_path / MATCH_FOLDER).load(ANNA.id) is None
    assert match.records


def test_lock_is_per_visitor(tmp_path: Path) -> None:
    matches = MatchStore(tmp_path)
    with matches.lock(ANNA.id, "first") as held:
        assert held
        assert matches.locked_session(ANNA.id) == "first"
        with matches.lock(ANNA.id, "second", 0.01) as other:
            assert not other
        assert matches.locked_session(ANNA.id) == "first"
    assert matches.locked_session(ANNA.id) == ""


def _known(runner: MatchRunner) -> str:
    match = runner.matches.load(ANNA.id)
    return match.id if match else ""
