"""Open duels on disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.ui.arena.arenas import ANNA, answered, make_arena
from ui.arena.matches import MATCH_FOLDER, MatchStore


def test_a_duel_comes_back_as_it_was(tmp_path: Path) -> None:
    duel = answered(make_arena(tmp_path))
    assert MatchStore(tmp_path / MATCH_FOLDER).load(ANNA.id) == duel
    assert duel.problem.tests


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"id": 3}'])
def test_a_broken_file_is_no_duel(tmp_path: Path, content: str) -> None:
    (tmp_path / f"{ANNA.id}.json").write_text(content)
    assert MatchStore(tmp_path).load(ANNA.id) is None


@pytest.mark.parametrize("visitor", ["", "../../etc/passwd", "browser-x", "browser-00000000000000aa/../x"])
def test_an_id_reaches_no_other_path(tmp_path: Path, visitor: str) -> None:
    with pytest.raises(ValueError, match="is not a visitor's id"):
        MatchStore(tmp_path).load(visitor)


def test_after_a_month_a_duel_is_forgotten(tmp_path: Path) -> None:
    duel = answered(make_arena(tmp_path))
    path = tmp_path / MATCH_FOLDER / f"{ANNA.id}.json"
    os.utime(path, (time.time() - 31 * 24 * 3600,) * 2)
    assert MatchStore(tmp_path / MATCH_FOLDER).load(ANNA.id) is None
    assert duel.records


def test_windows_of_one_visitor_take_turns(tmp_path: Path) -> None:
    duels = MatchStore(tmp_path)
    with duels.lock(ANNA.id, "first") as held:
        assert held
        assert duels.locked_session(ANNA.id) == "first"
        with duels.lock(ANNA.id, "second", 0.01) as other:
            assert not other
        assert duels.locked_session(ANNA.id) == "first"
    assert duels.locked_session(ANNA.id) == ""
