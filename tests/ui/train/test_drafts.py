"""Drafts of training jobs: storage per visitor, file names and data set names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from errors import DataError, PromptOrTuneError
from tests import messages
from ui.train.drafts import DraftStore, check_dataset_name

VISITOR, OTHER = "browser-0123456789abcdef", "browser-fedcba9876543210"
EVIL = "<script>alert(1)</script>${alert(1)}"


def upload(folder: Path, name: str = "mine.csv", text: str = "intent,code\na,b\n") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_draft_is_stored_per_visitor(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home")
    draft = drafts.save_upload(VISITOR, upload(tmp_path), 1000)
    drafts.save(VISITOR, dataclasses.replace(draft, columns=("a", "b"), technique="ia3", settings={"seed": "7"}))
    again = DraftStore(tmp_path / "home").get(VISITOR)
    assert again is not None
    assert (again.name, again.columns, again.technique, again.settings) == (
        "mine.csv",
        ("a", "b"),
        "ia3",
        {"seed": "7"},
    )
    assert drafts.path(VISITOR, again).read_text(encoding="utf-8") == "intent,code\na,b\n"
    assert drafts.get(OTHER) is None


def test_new_upload_replaces_the_earlier_one(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home")
    first = drafts.save_upload(VISITOR, upload(tmp_path), 0)
    second = drafts.save_upload(VISITOR, upload(tmp_path, text="intent,code\nc,d\n"), 0)
    assert first.digest != second.digest
    assert not drafts.path(VISITOR, first).exists()
    assert drafts.get(VISITOR) == second
    drafts.delete(VISITOR)
    assert drafts.get(VISITOR) is None
    assert list((tmp_path / "home" / "uploads").iterdir()) == []


def test_too_large_file_does_not_replace_the_draft(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home")
    draft = drafts.save_upload(VISITOR, upload(tmp_path), 0)
    with pytest.raises(PromptOrTuneError, match=messages.BIG_CSV_TOO_LARGE):
        drafts.save_upload(VISITOR, upload(tmp_path, "big.csv", "x" * 2000), 1000)
    assert drafts.get(VISITOR) == draft


@pytest.mark.parametrize("state", ["", "{", "[1]", '{"name": 1, "what": 2}', '{"digest": "x"}'])
def test_broken_draft_file_is_ignored(tmp_path: Path, state: str) -> None:
    drafts = DraftStore(tmp_path)
    drafts.select_dataset(VISITOR, "starter")
    (tmp_path / "uploads" / VISITOR / "draft.json").write_text(state, encoding="utf-8")
    assert drafts.get(VISITOR) is None


def test_draft_without_its_file_is_ignored(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home")
    draft = drafts.save_upload(VISITOR, upload(tmp_path), 0)
    drafts.path(VISITOR, draft).unlink()
    assert drafts.get(VISITOR) is None


@pytest.mark.parametrize("visitor", ["", "..", "../../etc", "browser-0123456789abcdef/..", "BROWSER-x"])
def test_visitor_id_cannot_be_a_path(tmp_path: Path, visitor: str) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.PAGE_OUTDATED):
        DraftStore(tmp_path).get(visitor)


@pytest.mark.parametrize("name", ["starter", "conala", "someone/pairs", " someone/pairs@main ", "a.b/c-d@0123456"])
def test_valid_data_set_names(name: str) -> None:
    assert check_dataset_name(name) == name.strip()


@pytest.mark.parametrize(
    "name", ["", "nope", "/etc/passwd", "../secrets", "~/rows", "tasks/starter", "a/b.csv", "./x/y", "a/../b", EVIL]
)
def test_invalid_data_set_names(name: str) -> None:
    with pytest.raises(DataError, match=messages.NOT_A_DATA_SET):
        check_dataset_name(name)


def test_draft_file_is_json(tmp_path: Path) -> None:
    drafts = DraftStore(tmp_path / "home")
    drafts.save_upload(VISITOR, upload(tmp_path), 0)
    state = json.loads((tmp_path / "home" / "uploads" / VISITOR / "draft.json").read_text(encoding="utf-8"))
    assert (state["name"], state["size"], len(state["digest"])) == ("mine.csv", 16, 16)
