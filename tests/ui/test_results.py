"""Results page: runs on disk, tables, plots, problems, exports and URL state."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from errors import PromptOrTuneError
from evaluate.results import Run, read_run
from evaluate.stats import Interval
from tests import messages
from tests.ui.runs import EVIL, PROBLEMS, write_run
from tests.ui.test_compare_view import SECTIONS, Reader, assert_harmless
from ui.results.page import EXPORT_KINDS, UrlState, export_runs, parse_url_state, read_runs
from ui.results.runs import (
    BUNDLED_RUNS_DIR,
    PAGE_SIZE,
    ProblemRow,
    ProblemTable,
    RunLibrary,
    filter_rows,
    make_problem_table,
    outcome,
    problem_list_value,
)
from ui.results.view import Bar, axis_end, curves, empty_html, interval_bars, problem_view, summary_html

pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("runs")
    write_run(made / "first.jsonl")
    return made


@pytest.fixture
def run(folder: Path) -> Run:
    return read_run(folder / "first.jsonl")


@pytest.fixture
def table(run: Run) -> ProblemTable:
    return make_problem_table([("runs/first.jsonl", run)])


class TagCollector(HTMLParser):
    """Collects the names of all tags and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_library_lists_only_run_files(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs")
    inside = tmp_path / "runs"
    (inside / "notes.txt").write_text("no run")
    (inside / ".hidden.jsonl").write_text("{}")
    (inside / "deep" / "er").mkdir(parents=True)
    shutil.copy(inside / "first.jsonl", inside / "deep" / "er" / "second.jsonl")
    (tmp_path / "secret.jsonl").write_text("outside")
    (inside / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    library = RunLibrary([("runs", inside), ("none", tmp_path / "missing")])
    assert [entry.name for entry in library.list_runs()] == ["runs/first.jsonl", "runs/deep/er/second.jsonl"]
    assert library.load_run("runs/first.jsonl") is library.load_run("runs/first.jsonl"), "read once"


@pytest.mark.parametrize("name", ["../secret.jsonl", "runs/../secret.jsonl", "/etc/passwd", "runs/link.jsonl", ""])
def test_run_names_outside_of_the_folders_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.NO_SUCH_RUN):
        RunLibrary([("runs", folder)]).load_run(name)


def test_changed_run_is_read_again(tmp_path: Path) -> None:
    write_run(tmp_path / "run.jsonl", scored=False)
    library = RunLibrary([("runs", tmp_path)])
    before = library.load_run("runs/run.jsonl")
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "method", "method": "rag-8", "values": {}}) + "\n")
    assert "rag-8" not in before.methods
    assert "rag-8" in library.load_run("runs/run.jsonl").methods


def test_broken_file_is_reported_and_others_are_displayed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "broken.jsonl").write_text("this is no run\n")
    runs, errors = read_runs(RunLibrary([("runs", tmp_path)]), ["runs/broken.jsonl", "runs/first.jsonl"])
    assert [name for name, _ in runs] == ["runs/first.jsonl"]
    assert len(errors) == 1
    assert "'runs/broken.jsonl' is not a file that `python -m evaluate` wrote" in errors[0]
    assert str(tmp_path) not in errors[0]
    (tmp_path / "first.scores.jsonl").write_text("no scores\n")
    assert str(tmp_path) not in read_runs(RunLibrary([("runs", tmp_path)]), ["runs/first.jsonl"])[1][0]


def test_bundled_runs_can_be_read() -> None:
    library = RunLibrary([("docs/results", BUNDLED_RUNS_DIR)])
    names = [entry.name for entry in library.list_runs()]
    assert names
    runs, errors = read_runs(library, names[:2])
    assert (len(runs), errors) == (len(names[:2]), [])


def test_outcomes_of_a_problem_are_marked_by_method(table: ProblemTable) -> None:
    marks = {row.id: [outcome(row.results.get(side.key)) for side in table.columns] for row in table.rows}
    assert marks == {"p1": ["wrong", "solved"], "p2": ["failed", "solved"], "p3": ["solved", "solved"]}
    assert outcome(None) == "missing"


@pytest.mark.parametrize(
    ("show", "method", "words", "expected"),
    [
        ("all", "", "", ["p1", "p2", "p3"]),
        ("failures", "", "", ["p1", "p2"]),
        ("failures", "lora-starter", "", []),
        ("only", "lora-starter", "", ["p1", "p2"]),
        ("only", "zero-shot", "", []),
        ("some", "", "", ["p1", "p2"]),
        ("none", "", "", []),
        ("all", "", "SORT list", ["p3"]),
        ("all", "", "3 * x", ["p1"]),
        ("all", "no such method", "", ["p1", "p2", "p3"]),
    ],
)
def test_problems_are_filtered(table: ProblemTable, show: str, method: str, words: str, expected: list[str]) -> None:
    key = next((side.key for side in table.columns if side.method == method), method)
    assert [row.id for row in filter_rows(table, show, key, words)] == expected


def test_runs_with_the_same_problems_share_a_table(run: Run, tmp_path: Path) -> None:
    other = read_run(write_run(tmp_path / "other.jsonl", failing=False))
    foreign = read_run(write_run(tmp_path / "foreign.jsonl", digest="sha256:2", scored=False))
    table = make_problem_table(
        [("runs/first.jsonl", run), ("runs/other.jsonl", other), ("runs/foreign.jsonl", foreign)]
    )
    assert table.excluded_runs == ("runs/foreign.jsonl",)
    assert [side.label for side in table.columns] == [
        "zero-shot (first)", "lora-starter (first)", "zero-shot (other)", "lora-starter (other)",
    ]  # fmt: skip
    assert len({side.key for side in table.columns}) == 4
    assert "The same methods across runs" in summary_html([("a", run), ("b", other)], table, with_comparisons=True)


def test_open_problem_shows_all_answers_with_their_tests(table: ProblemTable) -> None:
    view = problem_view(table, table.rows[0], table.columns[1].key)
    best, wrong = view["cards"]
    assert (best["label"], best["best"], wrong["label"]) == ("lora-starter", True, "zero-shot")
    assert "All 2 tests pass" in Reader(best["tests"]).text
    assert "double(2) gave 6, expected 4" in Reader(wrong["tests"]).text
    assert "2 tests in the sandbox (" in Reader(view["head"]).text
    assert "lora-starter passes all 2 tests; the other passes none." in Reader(view["head"]).text
    failed = problem_view(table, table.rows[1], "")["cards"][0]
    assert failed["state"] == "failed"
    assert "shorten the intent" in Reader(failed["code"]).text


def test_texts_of_a_run_are_escaped(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.jsonl", failing=False)
    hostile = read_run(path)
    hostile.methods = {EVIL: {"style": EVIL}}
    hostile.add([])
    hostile._results = {(EVIL, problem): result for (_, problem), result in hostile._results.items()}
    hostile.settings |= {"base_id": EVIL, "data": EVIL}
    table = make_problem_table([(EVIL, hostile)])
    for row in table.rows:
        view: Any = problem_view(table, row, "")
        for html in (view["head"], *(card[section] for card in view["cards"] for section in SECTIONS)):
            assert_harmless(html)
    parts = TagCollector(summary_html([(EVIL, hostile)], table, with_comparisons=True) + empty_html(EVIL))
    assert not parts.tags & {"img", "script", "a", "iframe"}
    assert not any(name.startswith("on") for name in parts.attributes)


def test_summary_shows_values_with_intervals(run: Run, table: ProblemTable) -> None:
    text = Reader(summary_html([("first", run)], table, with_comparisons=True)).text
    assert "SmolLM2-135M-Instruct · NF4 · CPU · starter test, 3 problems" in text
    assert "tests in the sandbox (" in text
    assert "Pass@1" in text
    assert "100.0" in text
    assert "Comparisons" in text
    assert "Comparisons" not in summary_html([("first", run)], table, with_comparisons=False)


def test_run_without_scores_shows_the_score_command(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run.jsonl", scored=False))
    text = Reader(
        summary_html([("runs/run.jsonl", run)], make_problem_table([("run", run)]), with_comparisons=True)
    ).text
    assert "6 answers, not scored yet: python -m evaluate score run.jsonl" in text


def test_run_with_missing_answers_has_no_comparison_and_names_the_command(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    last = max(at for at, line in enumerate(lines) if '"kind": "result"' in line and '"lora-starter"' in line)
    dead = json.loads(lines[last]) | {"candidates": [], "error": "No server answers at http://h/v1: start it."}
    path.write_text("".join(line for at, line in enumerate(lines) if at != last) + json.dumps(dead) + "\n")
    run, other = read_run(path), read_run(write_run(tmp_path / "other.jsonl"))
    run.provenance["command"] = "python -m evaluate --data starter --overwrite"
    runs = [("runs/run.jsonl", run), ("runs/other.jsonl", other)]
    text = Reader(summary_html(runs[:1], make_problem_table(runs[:1]), with_comparisons=True)).text
    assert "1 stored result is a failure of the engine, which an earlier version scored 0" in text
    assert "Not finished, of 3 problems: lora-starter 2. 1 answer is missing, so nothing is compared: " in text
    assert "`python -m evaluate --data starter` asks for the rest." in text
    assert "Comparisons" not in text
    across = Reader(summary_html(runs, make_problem_table(runs), with_comparisons=True)).text
    assert "'lora-starter' has 2 of 3 answers in run.jsonl" in across
    assert "The same methods across runs" not in across
    assert str(tmp_path) not in across
    assert outcome(make_problem_table(runs).rows[2].results.get("runs/run.jsonl|lora-starter")) == "missing"
    exported = base64.b64decode(export_runs(runs, "md", 1)["base64"]).decode()
    assert "'lora-starter' has 2 of 3 answers in run.jsonl" in exported
    assert str(tmp_path) not in exported


def test_problem_list_is_paged() -> None:
    rows = tuple(ProblemRow({"id": f"p{n}", "intent": "x"}, {}) for n in range(PAGE_SIZE + 3))
    table = ProblemTable((), rows, (), {})
    assert [len(problem_list_value(table, rows, start)["rows"]) for start in (0, PAGE_SIZE, 10_000, -5)] == [
        PAGE_SIZE,
        3,
        3,
        PAGE_SIZE,
    ]
    assert problem_list_value(table, rows, PAGE_SIZE + 1)["from"] == PAGE_SIZE
    assert "None of 28 problems" in problem_list_value(table, ())["head"]


@pytest.mark.parametrize("kind", EXPORT_KINDS)
def test_every_export_kind_is_a_file(run: Run, kind: str) -> None:
    file = export_runs([("runs/first.jsonl", run)], kind, 3)
    assert (file["name"], file["number"]) == (f"first.{kind}", 3)
    content = base64.b64decode(file["base64"])
    if kind == "png":
        assert content.startswith(b"\x89PNG")
    elif kind == "csv":
        assert {row["method"] for row in csv.DictReader(io.StringIO(content.decode()))} == {"zero-shot", "lora-starter"}
    elif kind == "json":
        assert json.loads(content)
    elif kind == "md":
        assert b"| lora-starter" in content
    else:
        lines = [json.loads(line) for line in gzip.decompress(content).decode().splitlines()]
        assert len(lines) == 2 * len(PROBLEMS)
        assert lines[0]["candidates"][0]["code"] == "def double(x):\n    return 3 * x"
        assert lines[0]["checks"][0][0]["passed"] is False


def test_export_without_a_run_is_refused() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.NO_RUN_CHOSEN):
        export_runs([], "csv", 1)


def test_bars_and_curves_stay_inside_the_plot() -> None:
    bars = interval_bars("EM", [Bar("a <b>", Interval(0.1, 0.05, 0.18)), Bar("none", None)])
    assert "left:50.00%" in bars
    assert "a &lt;b&gt;" in bars
    assert interval_bars("EM", [Bar("a", None)]) == ""
    assert [axis_end(most) for most in (0.0, 0.05, 0.18, 0.99, 1.0)] == [0.05, 0.05, 0.2, 1.0, 1.0]
    drawn = curves("EM@k", "k", {f"method {n}": [0.0, 0.5] for n in range(20)} | {"alone": [0.2]})
    assert drawn.count("<polyline points") == 20
    assert "alone" not in drawn
    assert curves("EM@k", "k", {"alone": [0.2]}) == ""


KNOWN = ["runs/a.jsonl", "runs/b.jsonl"]


def test_url_state_is_parsed() -> None:
    value = {
        "run": ["runs/b.jsonl", "runs/b.jsonl", "runs/a.jsonl"], "method": ["runs/b.jsonl|zero-shot"],
        "show": ["failures"], "words": ["a list"], "problem": ["p1"],
    }  # fmt: skip
    url_state = UrlState(("runs/b.jsonl", "runs/a.jsonl"), "runs/b.jsonl|zero-shot", "failures", "a list", "p1")
    assert parse_url_state(value, KNOWN) == url_state


@pytest.mark.parametrize(
    "value", [None, "run", {}, {"run": "runs/a.jsonl"}, {"run": [5]}, {"run": ["../x"], "show": ["failures"]}]
)
def test_url_without_a_known_run_is_empty_state(value: Any) -> None:
    assert parse_url_state(value, KNOWN) == UrlState()


def test_unknown_filter_in_url_is_ignored() -> None:
    value = {"run": ["runs/a.jsonl"], "show": ["<script>"], "words": [None], "method": 3}
    assert parse_url_state(value, KNOWN) == UrlState(("runs/a.jsonl",))
    assert len(parse_url_state({"run": ["runs/a.jsonl"], "words": ["x" * 10_000]}, KNOWN).query) == 500


def test_url_state_is_restricted_to_the_table() -> None:
    url_state = UrlState(("runs/a.jsonl",), "runs/a.jsonl|zero-shot", "some", "list", "p1")
    assert url_state.restrict_to(ProblemTable()) == UrlState(("runs/a.jsonl",), "", "some", "list", "")
    assert url_state.restrict_to(ProblemTable(row_index={"p1": 0})).problem == "p1"
