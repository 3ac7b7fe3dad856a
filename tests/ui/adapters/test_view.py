"""Values of adapter cards and details, also of hostile manifests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.manifest import Origin
from tests.ui.adapters.sample_home import BASE, EVIL, SMALL, copy_adapter, fill_home, loading_context, ready_context
from ui.adapters.catalog import AdapterCatalog, CatalogEntry
from ui.adapters.view import (
    best_scores,
    card_value,
    details_value,
    parse_number,
    score_conditions,
    score_row,
)


def _score(metric: Any, quantization: str = "nf4", **more: Any) -> dict[str, Any]:
    return {"metric": metric, "value": 0.25, "n": 100, "dataset": "conala", "quantization": quantization, **more}


def test_best_scores_prefer_the_served_quantization() -> None:
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
    assert best_scores(scores, replace(BASE, quantization="int8")), (
        "scores of another quantization are used if there are no others"
    )


def test_best_scores_are_measured_under_the_same_conditions() -> None:
    scores = [_score("EM@1", dataset="mbpp"), _score("CodeBLEU")]
    assert best_scores(scores, BASE) == scores[:1]
    assert score_conditions(_score("EM@1", split="test", decoding="greedy")) == "conala test, base NF4, greedy"


@pytest.mark.parametrize("value", [None, True, "0.5", float("nan"), float("inf"), 10**400, 1e13, [1]])
def test_parse_number_rejects_values_that_are_not_finite_numbers(value: object) -> None:
    assert parse_number(value) is None


def test_score_row_shows_an_interval_only_with_both_ends() -> None:
    assert score_row(_score("EM@1", low=0.1, high=0.4)) == ["EM@1", "0.250", "0.100 to 0.400", "100"]
    assert score_row(_score("EM@1", low=0.1))[2] == ""
    assert score_row({"metric": "EM@1", "value": "much", "n": 1234})[1:] == ["much", "", "1,234"]


def test_bundled_adapters_have_complete_cards(tmp_path: Path) -> None:
    with ready_context(tmp_path) as context:
        catalog = AdapterCatalog(context)
        for entry in catalog.entries(catalog.states()):
            card = card_value(entry, BASE)
            assert card["usable"] == "yes", card
            assert card["kind"]
            assert card["place"] == "Comes with Prompt or Tune"
            assert not card["own"]
            facts = dict(card["facts"])
            assert facts["Trained on"].endswith("rows")
            assert facts["Size"].endswith(("kB", "MB"))
            assert {"Base", "Licence", "Created"} <= set(facts)
            assert all(all(row) for row in card["scores"]), "value, interval and n"
            assert "base NF4" in card["scored_on"]
            details = details_value(entry.path or Path(), entry.manifest)
            assert details["readme"].startswith(f"# {entry.name}"), "without the front matter"
            assert json.loads(details["manifest"])["name"] == entry.name


def test_hostile_manifest_is_truncated_and_serializable(tmp_path: Path) -> None:
    with ready_context(fill_home(tmp_path)) as context:
        catalog = AdapterCatalog(context)
        states = {state.name: state for state in catalog.states()}
        entry = catalog.entries([states["evil"]])[0]
        card = card_value(entry, BASE)
        assert json.loads(json.dumps(card, allow_nan=False)) == card
        assert max(len(value) for _, value in card["facts"]) < 80
        assert card["scores"] == [], "neither is a number"
        details = details_value(entry.path or Path(), entry.manifest)
        assert EVIL in details["readme"], "the text of the file is not changed"
        assert max(len(cell) for row in details["scores"] for cell in row) < 120


def test_long_model_card_is_truncated(tmp_path: Path) -> None:
    folder = copy_adapter(SMALL, tmp_path / "long")
    (folder / "README.md").write_text("x" * 200_000)
    assert details_value(folder, None)["readme"].endswith("(cut here)")
    (folder / "README.md").write_bytes(b"x" * (2 << 20))
    assert "README.md has" in details_value(folder, None)["readme"]
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/passwd")
    assert "is a symbolic link" in details_value(folder, None)["readme"]


def test_usability_is_unknown_while_the_model_is_loading(tmp_path: Path) -> None:
    catalog = AdapterCatalog(loading_context(fill_home(tmp_path)))
    usable = {entry.name: entry.usable for entry in catalog.entries(catalog.states())}
    assert usable["lora-conala"] is None
    assert usable["other-base"] is None
    assert usable["broken"] is False


def test_origin_describes_where_an_adapter_comes_from(tmp_path: Path) -> None:
    entry = CatalogEntry("a", "own", tmp_path, None, True)
    entries = [
        replace(entry, origin=Origin("hub", "someone/lora@0123456789abcdef")),
        replace(entry, origin=Origin("zip", "mail.zip")),
        entry,
        replace(entry, location="registered"),
    ]
    assert [card_value(item, None)["place"] for item in entries] == [
        "From the Hub: someone/lora@01234567",
        "From the zip mail.zip",
        "Trained here, or copied here by hand",
        "Registered through the API",
    ]
