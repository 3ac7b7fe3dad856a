"""Data sets of the owner on the pages: who may use them, and that replaced rows are never used again."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from errors import PromptOrTuneError, UnknownNameError
from jobs.hf_jobs.submit import SETTINGS_NAME, build_archive
from jobs.job import Job, ServingOptions
from tasks.datasets.own import remove_own_dataset
from tasks.problem import Problem
from tests.serve.tiny import make_base
from tests.ui.arena.runners import ANNA, THREE, make_runner
from tests.ui.own_rows import NAME, add_rows
from tests.ui.runs import write_run
from tests.ui.train.test_events import form_fields, make, request
from ui.access.guard import check_dataset, data_choices, load_split_problems, own_names, pool_choices
from ui.access.policy import AccessPolicy, Visitor
from ui.arena.matches import MatchRequest, MatchRunner
from ui.compare.comparison import make_comparison
from ui.compare.events import parse_browser_state
from ui.form_fields import _field_values, _problem_choices
from ui.results.runs import RunLibrary
from ui.train.events import TrainFormHandlers

QUESTION = Problem("typed", "add two numbers")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path / "home"))
    add_rows(tmp_path)


def test_owner_sees_the_names_and_nobody_else_does() -> None:
    for choices in (data_choices, pool_choices):
        assert choices(None, own=True)[0] == (NAME, NAME)
        assert NAME not in {name for _, name in choices(None)}
    assert (own_names(own=True), own_names(own=False)) == ([NAME], [])


@pytest.mark.parametrize("examples", [False, True])
def test_name_of_the_owner_is_unknown_to_others_as_any_other(examples: bool) -> None:
    assert check_dataset(NAME, own=True, examples=examples) == NAME
    messages = []
    for name in (NAME, "secret-rowz"):
        with pytest.raises(UnknownNameError) as caught:
            check_dataset(name, own=False, examples=examples)
        messages.append(str(caught.value).replace(name, "?"))
    assert messages[0] == messages[1]
    with pytest.raises(UnknownNameError, match=f"did you mean '{NAME}'"):
        check_dataset("secret-rowz", own=True, examples=examples)


def test_comparison_takes_its_examples_for_the_owner_alone() -> None:
    assert make_comparison(QUESTION, ["rag-2"], pool=NAME, own=True).pool == NAME
    with pytest.raises(UnknownNameError, match=NAME):
        make_comparison(QUESTION, ["rag-2"], pool=NAME)


def test_problem_of_the_owner_brings_reference_tests_and_pool() -> None:
    choices, error = _problem_choices(NAME, None, own=True)
    assert (len(choices), error) == (6, "")
    problem = load_split_problems(NAME, None, own=True)[0]
    number = re.sub(r"\D", "", problem.intent)
    selected, intent, reference, tests, pool = _field_values(problem, NAME)
    assert (selected, intent, pool) == (problem, f"return the number {number}", NAME)
    assert reference == f"def number_{number}():\n    return {number}"
    assert tests == f"assert number_{number}() == {number}"
    choices, error = _problem_choices(NAME, None, own=False)
    assert (choices, f"Unknown data set '{NAME}'" in error) == ([], True)


def test_replaced_and_removed_rows_are_not_offered_again(tmp_path: Path) -> None:
    before = load_split_problems(NAME, None, own=True)
    assert load_split_problems(NAME, None, own=True) is before
    add_rows(tmp_path, "figure")
    assert all("figure" in problem.intent for problem in load_split_problems(NAME, None, own=True))
    remove_own_dataset(NAME)
    with pytest.raises(UnknownNameError):
        load_split_problems(NAME, None, own=True)


def test_browser_restores_own_names_for_the_owner_alone() -> None:
    stored = {"fields": {"data": NAME, "pool": NAME}}
    assert parse_browser_state(stored, [NAME]).fields == {"data": NAME, "pool": NAME}
    assert parse_browser_state(stored).fields == {}


def ask_match(runner: MatchRunner, visitor: Visitor) -> Any:
    return list(runner.next_match(visitor, "session", MatchRequest("", NAME, THREE), "", Event()))


def test_arena_asks_own_rows_for_the_owner_alone(tmp_path: Path) -> None:
    runner = make_runner(tmp_path / "home")
    with pytest.raises(UnknownNameError, match="Unknown data set"):
        ask_match(runner, ANNA)
    owner = Visitor(ANNA.id, owner=True)
    match = ask_match(runner, owner)[-1].match
    assert (match.data, match.pool, "return the number" in match.problem.intent) == (NAME, NAME, True)
    add_rows(tmp_path, "figure")
    runner.matches.delete(ANNA.id)
    assert "return the figure" in ask_match(runner, owner)[-1].match.problem.intent


def test_results_hide_runs_over_own_rows(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    public, private = write_run(folder / "public.jsonl", scored=False), folder / "private.jsonl"
    private.write_text(public.read_text().replace('"data": "starter"', f'"data": "{NAME}"'))
    library = RunLibrary([("runs", folder)])
    assert {run.name: run.data for run in library.list_runs()} == {
        "runs/public.jsonl": "starter", "runs/private.jsonl": NAME,
    }  # fmt: skip
    assert [run.name for run in library.list_runs(own=False)] == ["runs/public.jsonl"]
    assert library.load_run("runs/private.jsonl").settings["data"] == NAME
    with pytest.raises(UnknownNameError, match=r"There is no run .runs/private\.jsonl. any more"):
        library.load_run("runs/private.jsonl", own=False)
    private.write_text(public.read_text())
    assert len(library.list_runs(own=False)) == 2


@pytest.fixture
def handlers(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TrainFormHandlers]:
    """Return the handlers of an app that serves a tiny base."""
    serving = ServingOptions(base=str(make_base("llama", tmp_path / "base")), quantization="none", device="cpu")
    made = make(tmp_path / "home", AccessPolicy(local=getattr(request, "param", True)), serving)
    yield made
    made.reporter.preview_client.close()


def test_owner_trains_on_own_rows(handlers: TrainFormHandlers, tmp_path: Path) -> None:
    form = handlers.form
    first = next(handlers.restore_draft(request(), "", *form_fields()))
    assert (first[form.own_data].choices, first[form.own_data].visible) == ([(NAME, NAME)], True)
    updates = list(handlers.select_dataset(request(), NAME, *form_fields(adapter_name="lora-mine")))
    report = "".join(str(update.get(form.report, "")) for update in updates)
    assert "21" in report, report
    handlers.start(request(), *form_fields(adapter_name="lora-mine"))
    (job,) = handlers.job_service.list_jobs()
    assert (job.config["dataset_name"], job.data_name) == (NAME, NAME)
    add_rows(tmp_path, "figure")
    again = list(handlers.select_dataset(request(), NAME, *form_fields(adapter_name="lora-mine")))
    examples = "".join(str(update.get(form.examples, "")) for update in again)
    assert "figure" in examples, "the report is of the rows that were replaced"


@pytest.mark.parametrize("handlers", [False], indirect=True)
def test_others_do_not_train_on_own_rows(handlers: TrainFormHandlers) -> None:
    form, visitor = handlers.form, handlers.context.visitors.identify(request()).id
    first = next(handlers.restore_draft(request(), "", *form_fields()))
    assert (first[form.own_data].choices, first[form.own_data].visible) == ([], False)
    answers = [list(handlers.select_dataset(request(), name, *form_fields()))[-1][form.note] for name in (NAME, "nine")]
    assert answers[0].replace(NAME, "nine") == answers[1]
    handlers.drafts.select_dataset(visitor, NAME, own=True)  # of a time when this visitor owned the app
    refused = handlers.start(request(), *form_fields(adapter_name="lora-mine"))
    assert "is not a data set" in refused[form.start_note]
    assert handlers.job_service.list_jobs() == []


def test_job_on_hugging_face_gets_the_rows() -> None:
    job = Job("20300101-120000-000000-abc123", "a", {"adapter_name": "a", "dataset_name": NAME}, ServingOptions(), NAME)
    with tarfile.open(fileobj=BytesIO(build_archive(job, "someone/a"))) as archive:
        settings = archive.extractfile(SETTINGS_NAME)
        rows = [archive.extractfile(f"data/{NAME}{end}.jsonl") for end in ("", "-validation")]
        assert [len(file.read().splitlines()) if file else None for file in rows] == [21, 3]
        text = settings.read().decode() if settings else ""
    assert f"dataset_name: data/{NAME}.jsonl" in text
    assert f"validation_file: data/{NAME}-validation.jsonl" in text


def test_unknown_names_are_errors_of_the_user() -> None:
    with pytest.raises(PromptOrTuneError, match="Unknown data set"):
        check_dataset(None, own=True)
