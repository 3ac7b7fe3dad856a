"""Leaderboard: HTML of the ratings, escaping, and selection of base and data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from evaluate.arena.ratings import RatingTable, compute_ratings
from evaluate.arena.votes import Player, VoteStore
from tests.evaluate.arena.votes import BASE, LORA, RAG, ZERO, make_vote, make_votes
from ui.arena.page import ALL_QUESTIONS, NO_VOTES, RatingsSection, build_ratings, ratings_html

REQUEST = gr.Request()


@pytest.fixture
def section(tmp_path: Path) -> RatingsSection:
    votes = VoteStore(tmp_path / "votes.sqlite")
    with gr.Blocks():
        return build_ratings(votes, lambda: BASE)


def test_leaderboard_without_votes_has_a_note() -> None:
    assert NO_VOTES in ratings_html(None, RatingTable())
    assert NO_VOTES in ratings_html(BASE, compute_ratings([]))


def test_methods_with_few_votes_have_no_rating() -> None:
    html = ratings_html(BASE, compute_ratings(make_votes((LORA, ZERO), 2, 1)))
    assert html.count("too few votes to say") == 2
    assert "Too few votes to say who is ahead" in html
    assert "3 votes of 3 people" in html
    assert "Rating with its 95 % interval" not in html


def test_ratings_have_intervals_and_a_matrix() -> None:
    html = ratings_html(BASE, compute_ratings([*make_votes((LORA, ZERO), 9, 3, 2), *make_votes((RAG, ZERO), 1, 0)]))
    assert html.count('class="dot"') == 2
    assert "1 to 2" in html or "<td>1</td>" in html
    assert "71%<span>14 votes</span>" in html
    assert "29%<span>14 votes</span>" in html
    assert '<td class="none">–</td>' in html
    assert "RAG 8" in html


def test_names_are_escaped() -> None:
    evil = Player("<img src=x>", "sha256:1")
    html = ratings_html(BASE, compute_ratings(make_votes((evil, ZERO), 9, 3)))
    assert "<img" not in html
    assert "&lt;img src=x&gt;" in html


def test_section_selects_base_and_data_set(section: RatingsSection) -> None:
    other = replace(BASE, id="org/other")
    for number in range(3):
        section.votes.add(make_vote(number, data="conala" if number else "starter"))
    section.votes.add(make_vote(9, base=other))
    base, data, html, buttons = section.updates(REQUEST)
    assert (base.value, base.visible, [label for label, _ in base.choices]) == (
        "org/base|abc|nf4", True, ["base · NF4", "other · NF4"],
    )  # fmt: skip
    assert [name for _, name in data.choices] == [ALL_QUESTIONS, "conala", "starter"]
    assert "3 votes of one person" in html
    assert buttons.visible
    assert "2 votes of one person" in section.updates(REQUEST, None, "conala")[2]
    assert "1 vote of one person" in section.updates(REQUEST, "org/other|abc|nf4", "conala")[2]


def test_names_of_own_data_sets_are_listed_for_their_owner_alone(section: RatingsSection) -> None:
    for number, data in enumerate(("starter", "", "mine")):
        section.votes.add(make_vote(number, data=data))
    names = [name for _, name in section.updates(REQUEST, None, "mine")[1].choices]
    assert names == [ALL_QUESTIONS, "", "starter"]
    assert "3 votes" in section.updates(REQUEST, None, "mine")[2]
    owners = replace(section, sees_own=lambda request: request is REQUEST)
    assert [name for _, name in owners.updates(REQUEST)[1].choices] == [ALL_QUESTIONS, "", "mine", "starter"]


def test_broken_votes_file_shows_an_error(section: RatingsSection) -> None:
    section.votes.path.write_bytes(b"no database" * 1000)
    assert "file is not a database" in section.updates(REQUEST)[2]
