"""`python -m evaluate.arena`: the table of ratings, and export of votes."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluate.arena.__main__ import arena_main
from evaluate.arena.ratings import player_labels
from evaluate.arena.votes import Side, VoteStore
from tests.evaluate.arena.votes import BASE, LORA, ZERO, make_vote


@pytest.fixture
def path(tmp_path: Path) -> Path:
    votes = VoteStore(tmp_path / "votes.sqlite")
    for number in range(12):
        votes.add(make_vote(number, winner="right" if number % 3 else "left", visitor=f"user-{number % 2}"))
    votes.add(make_vote(99, base=replace(BASE, id="org/other")))
    return votes.path


def test_each_base_with_enough_votes_has_ratings(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert arena_main(["--votes", str(path)]) == 0
    first, other = capsys.readouterr().out.split("\n\n")
    assert first.startswith("org/base (abc), nf4\n12 votes of 2 people\n")
    best = first.splitlines()[3].split()
    assert best[0] == "lora-starter"
    assert [int(each) for each in best[-5:]] == [12, 8, 4, 0, 0]
    assert 1000 < int(best[1]) < 1200
    assert other.startswith("org/other (abc), nf4\n1 vote of one person\n")
    assert "Too few votes to say" in other


def test_votes_are_written_as_jsonl_and_csv(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert arena_main(["--votes", str(path), "--export", str(tmp_path / "out.jsonl")]) == 0
    assert arena_main(["--votes", str(path), "--export", str(tmp_path / "out.csv")]) == 0
    assert "13 votes written to" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert json.loads(rows[0]["left"]) == lines[0]["left"]
    assert [line["person"] for line in lines[:3]] == [1, 2, 1]


def test_csv_export_quotes_formulas(path: Path, tmp_path: Path) -> None:
    VoteStore(path).add(make_vote(50, id='=HYPERLINK("x")', data="+data"))
    assert arena_main(["--votes", str(path), "--export", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert (last["id"], last["data"]) == ('\'=HYPERLINK("x")', "'+data")


def test_bad_arguments_print_a_message(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert arena_main(["--votes", str(tmp_path / "none.sqlite")]) == 2
    assert "There are no votes in" in capsys.readouterr().err
    assert arena_main(["--votes", str(path), "--export", str(tmp_path / "out.txt")]) == 2
    assert "neither .jsonl nor .csv" in capsys.readouterr().err


def test_labels_differ_for_adapters_of_the_same_name() -> None:
    newer = replace(LORA, digest="sha256:2")
    names = player_labels([ZERO, LORA, newer])
    assert names[ZERO] == "zero-shot"
    assert names[LORA] != names[newer]
    assert all(name.startswith("lora-starter (") for name in (names[LORA], names[newer]))


def test_export_accepts_any_text_in_a_side(path: Path) -> None:
    votes = VoteStore(path)
    votes.add(make_vote(60, left=Side(ZERO, "\ud800 \x00 '); DROP TABLE votes; --", "x")))
    assert list(votes.export())[-1]["left"]["text"] == "\ud800 \x00 '); DROP TABLE votes; --"
