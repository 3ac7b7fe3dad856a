"""Adding data sets on a page: who may, the limits, messages, and what the process returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errors import DataError, PromptOrTuneError
from serve.engine.llm_engine import EngineLoader
from tasks.datasets.own import RowOptions, read_own_dataset
from tests.fakes import FakeEngine
from tests.ui.own_rows import NAME, add_rows, write_rows
from ui.access.guard import VisitorRegistry
from ui.access.policy import AccessPolicy, Visitor
from ui.access.quota import VisitorLimits
from ui.context import Context
from ui.data import add as add_module
from ui.data.add import AddRequest, added_html, form_values
from ui.data.add import add_rows as add_on_page
from ui.data.add_process import add
from ui.data.page import action_of, download_value, rows_html, sets_html

OWNER, OTHER = Visitor("user-0123456789abcdef", owner=True), Visitor("user-00000000000000bb")
EVIL = "<img src=x onerror=alert(1)>"
FIELDS: list[Any] = [None, "", "", "", "", "", "", 20, 10, 42, False]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))


def make_context(home: Path, **limits: int) -> Context:
    visitors = VisitorRegistry(AccessPolicy(limits=VisitorLimits(**limits)))
    return Context(EngineLoader(lambda report: FakeEngine()).start(), home=home, visitors=visitors)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[AddRequest]:
    """Answer the requests in this process, without the embedding model; return them."""
    requests: list[AddRequest] = []

    def run(request: AddRequest) -> dict[str, Any]:
        requests.append(request)
        values = {**vars(request), "options": dict(request.options)}
        return add(values)

    monkeypatch.setattr(add_module, "_run_process", run)
    monkeypatch.setattr("models.embedder.Embedder.embed", lambda self, texts: _vectors(len(texts)))
    return requests


def _vectors(count: int) -> Any:
    import numpy as np

    return np.eye(count, dtype="float32")


@pytest.mark.slow
def test_process_adds_the_rows_of_an_upload(tmp_path: Path) -> None:
    added = add_on_page(make_context(tmp_path), OWNER, write_rows(tmp_path / "My Rows.jsonl"))
    assert added.info == read_own_dataset("my-rows")
    assert dict(added.info.rows) == {"train": 21, "validation": 3, "test": 6}


def test_others_add_nothing(tmp_path: Path, in_process: list[AddRequest]) -> None:
    with pytest.raises(PromptOrTuneError, match="Only the owner of this app may use own data sets"):
        add_on_page(make_context(tmp_path), OTHER, write_rows(tmp_path / "rows.jsonl"))
    assert in_process == []


def test_large_upload_is_refused_before_it_is_read(tmp_path: Path, in_process: list[AddRequest]) -> None:
    with pytest.raises(PromptOrTuneError, match="is the limit here"):
        add_on_page(make_context(tmp_path, upload_bytes=100), OWNER, write_rows(tmp_path / "rows.jsonl"))
    assert in_process == []


@pytest.mark.parametrize("source", ["/etc/passwd", "nope", "../a", "a/b.csv", "https://x.example/a/b", "starter"])
def test_text_is_a_data_set_of_the_hub_and_no_path(tmp_path: Path, in_process: list[AddRequest], source: str) -> None:
    with pytest.raises(DataError, match=r"is not a data set|that everybody has"):
        add_on_page(make_context(tmp_path), OWNER, source)
    assert in_process == []


def test_request_has_name_options_and_access(tmp_path: Path, in_process: list[AddRequest]) -> None:
    context, options = make_context(tmp_path), RowOptions(seed=7, group_column=None, test_share=0.3)
    added = add_on_page(context, OWNER, write_rows(tmp_path / "rows.jsonl"), "", options)
    assert (added.info.name, added.info.seed, added.info.rows["test"]) == ("rows", 7, 9)
    assert add_on_page(context, OWNER, tmp_path / "rows.jsonl", token="hf_x").info.name == "rows-2"
    assert [request.hub_access["token"] for request in in_process] == [None, "hf_x"]
    assert [request.is_file for request in in_process] == [True, True]


def test_messages_name_the_fields_of_the_page(tmp_path: Path, in_process: list[AddRequest]) -> None:
    context = make_context(tmp_path)
    add_rows(tmp_path)
    with pytest.raises(DataError, match=r"or replace it \(see 'Columns and split'\)\.") as taken:
        add_on_page(context, OWNER, tmp_path / "rows.jsonl", NAME)
    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps({"a": "x", "b": "y"}) + "\n")
    with pytest.raises(DataError, match="see 'Columns and split'") as unknown:
        add_on_page(context, OWNER, odd)
    for message in (str(taken.value), str(unknown.value)):
        assert "--" not in message
        assert str(tmp_path) not in message


def test_fields_are_parsed() -> None:
    source, name, options, overwrite = form_values(["/tmp/x.csv", "", " mine ", " ask ", "", "", "", 25, 5, 3, True])
    assert (source, name, overwrite) == (Path("/tmp/x.csv"), " mine ", True)
    assert options == RowOptions("ask", validation_share=0.05, test_share=0.25, seed=3)
    assert form_values([None, " a/b@main ", *FIELDS[2:]])[0] == "a/b@main"
    for fields, message in (
        (FIELDS, "There are no rows yet"),
        (["/x", *FIELDS[1:7], "many", 10, 42, False], "must be numbers"),
        (["/x", *FIELDS[1:7], 90, 10, 42, False], "at least a fifth"),
    ):
        with pytest.raises(DataError, match=message):
            form_values(fields)


def test_lists_and_rows_are_escaped_and_paged(tmp_path: Path, in_process: list[AddRequest]) -> None:
    path = tmp_path / "evil.jsonl"
    rows = [{"intent": f"{EVIL} {n}", "code": f"x = '{EVIL}{n}'"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"intent": EVIL, "code": ""}]))
    added = add_on_page(make_context(tmp_path), OWNER, path)
    pages = [sets_html(), added_html(added), rows_html("evil", "train"), rows_html("evil", "train", 20)]
    assert not [html for html in pages if "<img" in html]
    assert "&lt;img src=x" in pages[2]
    assert "1 to 10 of 28" in pages[2]
    assert "21 to 28 of 28" in pages[3]
    assert "21 to 28 of 28" in rows_html("evil", "train", 999)
    assert "1 rows left out" in pages[0]
    assert "column &#39;code&#39; is empty" in pages[1]
    lines = [json.loads(line) for line in download_value("evil", 1)["text"].splitlines()]
    assert [line["split"] for line in lines].count("test") == 8
    assert len({line["id"] for line in lines}) == 40


@pytest.mark.parametrize(
    ("data", "action"),
    [
        ({"do": "rows", "name": "x", "split": "test", "from": "20"}, ("rows", "x", "test", 20)),
        ({"do": ["a"], "name": None, "from": "-1"}, ("['a']", "", "", 0)),
        ({"from": "9" * 40}, ("", "", "", 0)),
        ("rows", ("", "", "", 0)),
    ],
)
def test_actions_of_a_browser_are_parsed(data: object, action: tuple[str, str, str, int]) -> None:
    assert action_of(data) == action
