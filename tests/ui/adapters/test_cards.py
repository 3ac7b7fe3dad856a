"""What a card says: numbers that can be trusted, or none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.manifest import Origin
from tests.ui.adapters.rig import BASE, EVIL, SMALL, context_of, copy_of, furnish, unstarted
from ui.adapters.catalog import AdapterCatalog, CatalogEntry
from ui.adapters.view import (
    best_scores,
    card_value,
    details_value,
    format_size,
    parse_number,
    score_conditions,
    score_row,
)


def _score(metric: Any, quantization: str = "nf4", **more: Any) -> dict[str, Any]:
    return {"metric": metric, "value": 0.25, "n": 100, "dataset": "conala", "quantization": quantization, **more}


def test_the_scores_on_the_base_as_it_is_here_come_first() -> None:
    scores = [
        _score("validation loss", n=None),
        _score("EM@1", "none"),
        _score("CodeBLEU"),
        _score("EM@1"),
        _score("x"),
    ]
    assert [score["metric"] for score in best_scores(scores, BASE)] == ["EM@1", "CodeBLEU", "x"]
    assert {score["quantization"] for score in best_scores(scores, BASE)} == {"nf4"}
    assert best_scores(scores, replace(BASE, quantization="none")) == [_score("EM@1", "none")]
    assert best_scores(scores, replace(BASE, quantization="int8")), "measured elsewhere, and says so"


def test_scores_of_two_places_never_stand_under_one_heading() -> None:
    scores = [_score("EM@1", dataset="mbpp"), _score("CodeBLEU")]
    assert best_scores(scores, BASE) == scores[:1]
    assert score_conditions(_score("EM@1", split="test", decoding="greedy")) == "conala test, base NF4, greedy"


@pytest.mark.parametrize("value", [None, True, "0.5", float("nan"), float("inf"), 10**400, 1e13, [1]])
def test_what_is_no_number(value: object) -> None:
    assert parse_number(value) is None


def test_an_interval_needs_both_ends() -> None:
    assert score_row(_score("EM@1", low=0.1, high=0.4)) == ["EM@1", "0.250", "0.100 to 0.400", "100"]
    assert score_row(_score("EM@1", low=0.1))[2] == ""
    assert score_row({"metric": "EM@1", "value": "much", "n": 1234})[1:] == ["much", "", "1,234"]


def test_sizes() -> None:
    assert [format_size(size) for size in (1, 512_000, 3_700_000)] == ["1 kB", "512 kB", "3.7 MB"]


def test_every_adapter_of_the_library_has_a_full_card(tmp_path: Path) -> None:
    with context_of(tmp_path) as context:
        shelf = AdapterCatalog(context)
        for entry in shelf.entries(shelf.states()):
            shown = card_value(entry, BASE)
            assert shown["usable"] == "yes", shown
            assert shown["kind"]
            assert shown["place"] == "Comes with Prompt or Tune"
            assert not shown["own"]
            facts = dict(shown["facts"])
            assert facts["Trained on"].endswith("rows")
            assert facts["Size"].endswith(("kB", "MB"))
            assert {"Base", "Licence", "Created"} <= set(facts)
            assert all(all(row) for row in shown["scores"]), "value, interval and n"
            assert "base NF4" in shown["scored_on"]
            told = details_value(entry.path or Path(), entry.manifest)
            assert told["readme"].startswith(f"# {entry.name}"), "without the lines for machines"
            assert json.loads(told["manifest"])["name"] == entry.name


def test_a_hostile_one_is_cut_and_can_be_sent(tmp_path: Path) -> None:
    with context_of(furnish(tmp_path)) as context:
        shelf = AdapterCatalog(context)
        states = {state.name: state for state in shelf.states()}
        entry = shelf.entries([states["evil"]])[0]
        shown = card_value(entry, BASE)
        assert json.loads(json.dumps(shown, allow_nan=False)) == shown
        assert max(len(value) for _, value in shown["facts"]) < 80
        assert shown["scores"] == [], "neither is a number"
        told = details_value(entry.path or Path(), entry.manifest)
        assert EVIL in told["readme"], "as it stands in the file: it is text"
        assert max(len(cell) for row in told["scores"] for cell in row) < 120


def test_a_card_without_end_is_cut(tmp_path: Path) -> None:
    folder = copy_of(SMALL, tmp_path / "long")
    (folder / "README.md").write_text("x" * 200_000)
    assert details_value(folder, None)["readme"].endswith("(cut here)")
    (folder / "README.md").write_bytes(b"x" * (2 << 20))
    assert "README.md has" in details_value(folder, None)["readme"]
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/passwd")
    assert "is a symbolic link" in details_value(folder, None)["readme"]


def test_before_the_model_is_there_nothing_is_promised(tmp_path: Path) -> None:
    shelf = AdapterCatalog(unstarted(furnish(tmp_path)))
    usable = {entry.name: entry.usable for entry in shelf.entries(shelf.states())}
    assert usable["lora-conala"] is None
    assert usable["other-base"] is None
    assert usable["broken"] is False


def test_where_an_adapter_came_from(tmp_path: Path) -> None:
    entry = CatalogEntry("a", "own", tmp_path, None, True)
    entries = [
        replace(entry, origin=Origin("hub", "someone/lora@0123456789abcdef")),
        replace(entry, origin=Origin("zip", "mail.zip")),
        entry,
        replace(entry, location="registered"),
    ]
    assert [card_value(each, None)["place"] for each in entries] == [
        "From the Hub: someone/lora@01234567",
        "From the zip mail.zip",
        "Trained here, or copied here by hand",
        "Registered through the API",
    ]
