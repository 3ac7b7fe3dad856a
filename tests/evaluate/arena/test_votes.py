"""The store of votes: uniqueness, durability, concurrency and errors."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from errors import PromptOrTuneError
from evaluate.arena.votes import AlreadyVotedError, Side, VotesError, VoteStore, problem_digest
from tasks.problem import Problem
from tests import messages
from tests.conftest import ROOT
from tests.evaluate.arena.votes import BASE, LORA, RAG, ZERO, make_vote


@pytest.fixture
def votes(tmp_path: Path) -> VoteStore:
    return VoteStore(tmp_path / "home" / "votes.sqlite")


def test_no_file_is_created_before_the_first_vote(votes: VoteStore) -> None:
    assert (votes.count(), votes.bases(), votes.voted_pairs("browser-0", BASE), list(votes.export())) == (
        0,
        [],
        set(),
        [],
    )
    assert not votes.path.exists()


def test_stored_vote_is_read_back_completely(votes: VoteStore) -> None:
    vote = make_vote(7, tests_run=True, reference_seen=True)
    votes.add(vote)
    (record,) = VoteStore(votes.path).export()
    assert record["problem"] == {
        "id": "p7", "intent": "intent 7", "reference": "x = 1",
        "tests": [{"code": "assert x == 1", "setup": "", "tolerance": 0.0}],
        "entry_point": None, "difficulty": None, "comparison": "exact", "prompt": "",
    }  # fmt: skip
    assert (record["base_id"], record["base_revision"], record["quantization"]) == ("org/base", "abc", "nf4")
    assert (record["left_method"], record["right_method"], record["right_digest"]) == (
        "zero-shot", "lora-starter", "sha256:1",
    )  # fmt: skip
    assert record["left"] == {"text": "```\n=1+1\n```", "code": "=1+1", "tokens": 3}
    assert record["settings"] == {"decoding": {"mode": "greedy", "seed": 0}}
    assert (record["winner"], record["seconds"], record["schema"], record["person"]) == ("left", 4.5, 1, 1)
    assert record["tests_run"] is record["reference_seen"] is True
    assert "browser-0" not in json.dumps(record)


def test_second_vote_of_a_person_on_a_pair_and_problem_is_rejected(votes: VoteStore) -> None:
    votes.add(make_vote(1))
    swapped = make_vote(1, id="again", winner="tie", left=Side(LORA, "", ""), right=Side(ZERO, "", ""))
    with pytest.raises(AlreadyVotedError, match=messages.ALREADY_VOTED):
        votes.add(swapped)
    spaced = replace(make_vote(1, id="spaced"), problem=Problem("other", "  intent\n1 "))
    with pytest.raises(AlreadyVotedError):
        votes.add(spaced)
    votes.add(make_vote(1, id="other person", visitor="browser-1"))
    votes.add(make_vote(1, id="other pair", right=Side(RAG, "", "")))
    votes.add(make_vote(1, id="other adapter", right=Side(replace(LORA, digest="sha256:2"), "", "")))
    votes.add(make_vote(1, id="other base", base=replace(BASE, quantization="none")))
    votes.add(make_vote(2))
    assert votes.count() == 6
    assert votes.voted_pairs("browser-0", BASE) >= {
        (problem_digest(Problem("", "intent 1")), (LORA, ZERO)), (problem_digest(Problem("", "intent 1")), (RAG, ZERO)),
    }  # fmt: skip


def test_repeated_vote_with_the_same_id_is_ignored(votes: VoteStore) -> None:
    votes.add(make_vote())
    votes.add(make_vote())
    with pytest.raises(AlreadyVotedError):
        votes.add(make_vote(winner="right"))
    assert votes.count() == 1


def test_invalid_vote_raises() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.VOTE_INVALID):
        make_vote(winner="middle")
    with pytest.raises(PromptOrTuneError, match=messages.COMPARED_WITH_ITSELF):
        make_vote(right=Side(ZERO, "", ""))


def test_votes_on_different_bases_are_separate(votes: VoteStore) -> None:
    other = replace(BASE, revision="def")
    for number in range(3):
        votes.add(make_vote(number, data="conala" if number else "starter"))
    votes.add(make_vote(3, base=other))
    assert votes.bases() == [(BASE, 3), (other, 1)]
    assert [data for data, _ in votes.comparisons(BASE)] == ["starter", "conala", "conala"]
    assert len(votes.comparisons(other)) == 1
    assert votes.count_by_pair(BASE) == {(LORA, ZERO): 3}


def test_concurrent_votes_of_threads_are_each_counted_once(votes: VoteStore) -> None:
    """Eight threads add the same twenty votes of one person: each vote is accepted once and rejected seven times."""

    def add_vote(number: int) -> bool:
        try:
            votes.add(make_vote(number % 20, id=f"try-{number}"))
        except AlreadyVotedError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = list(pool.map(add_vote, range(160)))
    assert (sum(accepted), votes.count()) == (20, 20)


def test_killed_processes_lose_no_confirmed_vote(votes: VoteStore) -> None:
    """Three processes add votes to one file and are killed with SIGKILL."""
    command = [sys.executable, "-m", "tests.evaluate.arena.voter", str(votes.path)]
    voters = [
        subprocess.Popen([*command, f"browser-{who}"], cwd=ROOT, stdout=subprocess.PIPE, text=True) for who in range(3)
    ]
    first = [voter.stdout.readline() if voter.stdout else "" for voter in voters]
    time.sleep(0.5)
    for voter in voters:
        os.kill(voter.pid, signal.SIGKILL)
    confirmed = "".join([*first, *(voter.communicate(timeout=20)[0] for voter in voters)]).split()
    assert len(confirmed) > 10
    assert {record["id"] for record in votes.export()} >= set(confirmed)
    votes.add(make_vote(visitor="browser-3"))
    with sqlite3.connect(votes.path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_every_commit_is_synced_to_disk(votes: VoteStore) -> None:
    """SQLite syncs to disk at every commit, so a power cut after `add` loses no vote."""
    seen: list[int] = []
    prepare = votes._create_table

    def prepared(database: sqlite3.Connection) -> None:
        prepare(database)
        seen.append(database.execute("PRAGMA synchronous").fetchone()[0])

    votes._create_table = prepared  # type: ignore[method-assign]
    votes.add(make_vote())
    assert set(seen) == {2}  # FULL


def test_file_that_is_not_a_database_raises_votes_error(votes: VoteStore) -> None:
    votes.path.parent.mkdir(parents=True)
    votes.path.write_bytes(b"this is no database, however long it may be" * 100)
    for attempt in (votes.count, lambda: votes.add(make_vote())):
        with pytest.raises(VotesError, match=messages.VOTES_FILE_UNUSABLE):
            attempt()


def test_file_of_a_newer_version_is_not_changed(votes: VoteStore) -> None:
    votes.add(make_vote())
    with sqlite3.connect(votes.path) as database:
        database.execute("PRAGMA user_version=2")
    with pytest.raises(VotesError, match=messages.WRITTEN_BY_NEWER_VERSION):
        votes.add(make_vote(1))


def test_folder_that_cannot_be_created_raises_votes_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(VotesError, match=messages.CHECK_THE_DISK):
        VoteStore(tmp_path / "home" / "votes.sqlite").add(make_vote())
