"""The vote, what is kept of it, what is said of it; and that nothing tells a name before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errors import PromptOrTuneError
from evaluate.arena.votes import WINNERS
from tasks.prompt import PROMPT_VERSION
from tests.ui.arena.arenas import ANNA, BERT, EVIL, SAYS, THREE, answered, draw, make_arena
from ui.arena.events import record_vote
from ui.arena.matches import MatchRunner
from ui.arena.view import empty_match_view, match_view

PAIR = ("zero-shot", "lora-quokka")


@pytest.fixture
def arena(tmp_path: Path) -> MatchRunner:
    return make_arena(tmp_path)


def test_before_the_vote_the_board_knows_no_name_and_no_number(arena: MatchRunner) -> None:
    for _ in range(6):
        duel = answered(arena)
        board = match_view(duel)
        text = json.dumps(board)
        assert not [name for name in (*THREE, "quokka", "RAG 8", "example") if name in text]
        assert duel.problem.reference
        assert json.dumps(duel.problem.reference)[1:-1] not in text
        assert [(card["label"], card["numbers"], card["details"]) for card in board["cards"]] == [
            ("Answer A", "", ""), ("Answer B", "", ""),
        ]  # fmt: skip
        assert [card["raw"] for card in board["cards"]] == [SAYS[name] for name in duel.methods]


def test_while_it_is_answered_both_sides_look_the_same(arena: MatchRunner) -> None:
    drawn = next(step.match for step in draw(arena) if step.match)
    left, right = match_view(drawn)["cards"]
    assert {name for name in left if left[name] != right[name]} == {"label", "head"}  # type: ignore[literal-required]


def test_after_the_vote_the_board_tells_everything(arena: MatchRunner) -> None:
    duel = record_vote(arena.votes, ANNA.id, answered(arena, methods=PAIR), "left")
    board = match_view(duel)
    assert {card["label"] for card in board["cards"]} == {f"A: {duel.methods[0]}", f"B: {duel.methods[1]}"}
    assert [card["best"] for card in board["cards"]] == [True, False]
    assert "your pick" in board["cards"][0]["head"]
    assert all("CodeBLEU" in card["numbers"] for card in board["cards"])
    assert board["reference"] == duel.problem.reference


def test_a_vote_holds_what_is_needed_to_repeat_it(arena: MatchRunner) -> None:
    duel = answered(arena)
    record_vote(arena.votes, ANNA.id, duel, "both bad")
    (vote,) = arena.votes.export()
    assert (vote["winner"], vote["data"], vote["problem"]["intent"]) == ("both bad", "starter", duel.problem.intent)
    assert vote["problem"]["tests"]
    assert vote["settings"]["decoding"]["mode"] == "greedy"
    assert vote["settings"]["prompt_version"] == PROMPT_VERSION
    assert {"torch", "transformers", "python"} <= vote["settings"]["versions"].keys()
    for side, player, record in zip(("left", "right"), (duel.left, duel.right), duel.records, strict=True):
        assert (vote[f"{side}_method"], vote[f"{side}_digest"]) == (player.method, player.digest)
        assert vote[side]["code"] == record["code"]
        assert vote[side]["prompt_fingerprint"] == record["prompt_fingerprint"]
        assert vote[side]["prompt"].endswith(record["prompt"][-20:])
        assert bool(player.digest) == (player.method == "lora-quokka")
    assert vote["seconds"] >= 0
    assert (vote["tests_run"], vote["reference_seen"]) == (False, False)


@pytest.mark.parametrize("winner", WINNERS)
def test_each_vote_says_who_was_who(arena: MatchRunner, winner: str) -> None:
    duel = record_vote(arena.votes, ANNA.id, answered(arena, methods=PAIR), winner)  # type: ignore[arg-type]
    assert all(f"<b>{name}</b>" in duel.said for name in PAIR)
    assert "Nobody else has voted on this pair yet." in duel.said
    assert "Too few votes to say who is ahead" in duel.said


def test_others_votes_on_the_pair_are_told_and_ratings_move(arena: MatchRunner) -> None:
    for _ in range(11):
        other = answered(arena, BERT, methods=PAIR)
        record_vote(arena.votes, BERT.id, other, "left" if other.methods[0] == "zero-shot" else "right")
    duel = answered(arena, methods=PAIR)
    said = record_vote(arena.votes, ANNA.id, duel, "left" if duel.methods[0] == "lora-quokka" else "right").said
    assert "Others on this pair, over all questions (11 votes)" in said
    assert "zero-shot 11" in said
    assert "Ratings now: " in said
    assert "zero-shot 1" in said.split("Ratings now: ")[1]
    assert "(-" in said.split("zero-shot 1")[-1]


def test_a_second_vote_on_a_question_is_refused_kindly_and_the_first_stands(arena: MatchRunner) -> None:
    duel = answered(arena, question="reverse a list", methods=PAIR)
    record_vote(arena.votes, ANNA.id, duel, "left")
    again = record_vote(arena.votes, ANNA.id, duel.__class__(**{**duel.__dict__, "id": "other"}), "right")
    assert again.voted
    assert again.winner == ""
    assert "You have voted on this pair and problem already" in again.said
    assert arena.votes.count() == 1
    with pytest.raises(PromptOrTuneError, match="You have voted on every pair of these methods for this question"):
        answered(arena, question="reverse  a list", methods=PAIR)
    assert answered(arena, question="reverse a list").methods != PAIR


def test_a_problem_is_not_drawn_again_for_the_same_pair(arena: MatchRunner) -> None:
    seen = set()
    for _ in range(25):
        duel = answered(arena, methods=PAIR)
        assert duel.problem.id not in seen
        seen.add(duel.problem.id)
        record_vote(arena.votes, ANNA.id, duel, "tie")


def test_hostile_texts_are_text(arena: MatchRunner) -> None:
    duel = answered(arena, question=EVIL, methods=("lora-evil", "zero-shot"))
    for shown in (duel, record_vote(arena.votes, ANNA.id, duel, "tie")):
        board = match_view(shown)
        html = board["head"] + "".join(card["head"] + card["code"] + card["details"] for card in board["cards"])
        assert "<img" not in html
        assert "&lt;img" in html


def test_equal_answers_are_said_to_be_equal(arena: MatchRunner) -> None:
    engine = arena.context.engine_loader.engine()
    engine.says = {**SAYS, "lora-quokka": SAYS["zero-shot"]}  # type: ignore[attr-defined]
    assert "the same, letter by letter" in match_view(answered(arena, methods=PAIR))["head"]
    assert "the same, letter by letter" not in match_view(answered(arena, methods=("zero-shot", "rag-8")))["head"]


def test_the_empty_page_explains_itself() -> None:
    assert "Two methods of the same model answer one question" in empty_match_view()["head"]
