"""Votes, their outcomes, and the view of a match before and after the vote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errors import PromptOrTuneError
from evaluate.arena.votes import WINNERS
from tasks.prompt import PROMPT_VERSION
from tests import messages
from tests.ui.arena.runners import ANNA, ANSWERS, BERT, EVIL, THREE, answered_match, make_runner, next_match
from ui.arena.events import record_vote
from ui.arena.matches import MatchRunner
from ui.arena.view import empty_match_view, match_view

PAIR = ("zero-shot", "lora-quokka")


@pytest.fixture
def runner(tmp_path: Path) -> MatchRunner:
    return make_runner(tmp_path)


def test_view_before_the_vote_is_anonymous(runner: MatchRunner) -> None:
    for _ in range(6):
        match = answered_match(runner)
        view = match_view(match)
        text = json.dumps(view)
        assert not [name for name in (*THREE, "quokka", "RAG 8", "example") if name in text]
        assert match.problem.reference
        assert json.dumps(match.problem.reference)[1:-1] not in text
        assert [(card["label"], card["numbers"], card["details"]) for card in view["cards"]] == [
            ("Answer A", "", ""), ("Answer B", "", ""),
        ]  # fmt: skip
        assert [card["raw"] for card in view["cards"]] == [ANSWERS[name] for name in match.methods]


def test_cards_of_a_waiting_match_are_equal(runner: MatchRunner) -> None:
    sampled = next(step.match for step in next_match(runner) if step.match)
    left, right = match_view(sampled)["cards"]
    assert {name for name in left if left[name] != right[name]} == {"label", "head"}  # type: ignore[literal-required]


def test_view_after_the_vote_has_names_and_scores(runner: MatchRunner) -> None:
    match = record_vote(runner.votes, ANNA.id, answered_match(runner, methods=PAIR), "left")
    view = match_view(match)
    assert {card["label"] for card in view["cards"]} == {f"A: {match.methods[0]}", f"B: {match.methods[1]}"}
    assert [card["best"] for card in view["cards"]] == [True, False]
    assert "your pick" in view["cards"][0]["head"]
    assert all("CodeBLEU" in card["numbers"] for card in view["cards"])
    assert view["reference"] == match.problem.reference


def test_stored_vote_contains_everything_to_reproduce_it(runner: MatchRunner) -> None:
    match = answered_match(runner)
    record_vote(runner.votes, ANNA.id, match, "both bad")
    (vote,) = runner.votes.export()
    assert (vote["winner"], vote["data"], vote["problem"]["intent"]) == ("both bad", "starter", match.problem.intent)
    assert vote["problem"]["tests"]
    assert vote["settings"]["decoding"]["mode"] == "greedy"
    assert vote["settings"]["prompt_version"] == PROMPT_VERSION
    assert {"torch", "transformers", "python"} <= vote["settings"]["versions"].keys()
    for side, player, record in zip(("left", "right"), (match.left, match.right), match.records, strict=True):
        assert (vote[f"{side}_method"], vote[f"{side}_digest"]) == (player.method, player.digest)
        assert vote[side]["code"] == record["code"]
        assert vote[side]["prompt_fingerprint"] == record["prompt_fingerprint"]
        assert vote[side]["prompt"].endswith(record["prompt"][-20:])
        assert bool(player.digest) == (player.method == "lora-quokka")
    assert vote["seconds"] >= 0
    assert (vote["tests_run"], vote["reference_seen"]) == (False, False)


@pytest.mark.parametrize("winner", WINNERS)
def test_outcome_names_the_methods(runner: MatchRunner, winner: str) -> None:
    match = record_vote(runner.votes, ANNA.id, answered_match(runner, methods=PAIR), winner)  # type: ignore[arg-type]
    assert all(f"<b>{name}</b>" in match.said for name in PAIR)
    assert "Nobody else has voted on this pair yet." in match.said
    assert "Too few votes to say who is ahead" in match.said


def test_outcome_shows_other_votes_and_rating_changes(runner: MatchRunner) -> None:
    for _ in range(11):
        other = answered_match(runner, BERT, methods=PAIR)
        record_vote(runner.votes, BERT.id, other, "left" if other.methods[0] == "zero-shot" else "right")
    match = answered_match(runner, methods=PAIR)
    outcome = record_vote(runner.votes, ANNA.id, match, "left" if match.methods[0] == "lora-quokka" else "right").said
    assert "Others on this pair, over all questions (11 votes)" in outcome
    assert "zero-shot 11" in outcome
    assert "Ratings now: " in outcome
    assert "zero-shot 1" in outcome.split("Ratings now: ")[1]
    assert "(-" in outcome.split("zero-shot 1")[-1]


def test_second_vote_on_a_question_is_rejected(runner: MatchRunner) -> None:
    match = answered_match(runner, question="reverse a list", methods=PAIR)
    record_vote(runner.votes, ANNA.id, match, "left")
    again = record_vote(runner.votes, ANNA.id, match.__class__(**{**match.__dict__, "id": "other"}), "right")
    assert again.voted
    assert again.winner == ""
    assert "You have voted on this pair and problem already" in again.said
    assert runner.votes.count() == 1
    with pytest.raises(PromptOrTuneError, match=messages.ALL_PAIRS_VOTED):
        answered_match(runner, question="reverse  a list", methods=PAIR)
    assert answered_match(runner, question="reverse a list").methods != PAIR


def test_voted_problem_is_not_sampled_again_for_the_pair(runner: MatchRunner) -> None:
    problem_ids = set()
    for _ in range(25):
        match = answered_match(runner, methods=PAIR)
        assert match.problem.id not in problem_ids
        problem_ids.add(match.problem.id)
        record_vote(runner.votes, ANNA.id, match, "tie")


def test_texts_are_escaped(runner: MatchRunner) -> None:
    match = answered_match(runner, question=EVIL, methods=("lora-evil", "zero-shot"))
    for displayed_match in (match, record_vote(runner.votes, ANNA.id, match, "tie")):
        view = match_view(displayed_match)
        html = view["head"] + "".join(card["head"] + card["code"] + card["details"] for card in view["cards"])
        assert "<img" not in html
        assert "&lt;img" in html


def test_equal_answers_have_a_note(runner: MatchRunner) -> None:
    engine = runner.context.engine_loader.engine()
    engine.answers = {**ANSWERS, "lora-quokka": ANSWERS["zero-shot"]}  # type: ignore[attr-defined]
    assert "the same, letter by letter" in match_view(answered_match(runner, methods=PAIR))["head"]
    assert (
        "the same, letter by letter" not in match_view(answered_match(runner, methods=("zero-shot", "rag-8")))["head"]
    )


def test_empty_view_has_an_introduction() -> None:
    assert "Two methods of the same model answer one question" in empty_match_view()["head"]
