"""Data sets of the owner, asked for over HTTP by somebody else: no name, no row and no run of theirs comes back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security import policy_app
from tests.security.policy_app import Pages, team_app
from tests.ui.own_rows import NAME, add_rows
from tests.ui.runs import write_run

pytestmark = pytest.mark.slow
# No more like the names that everybody has than that of the owner, so that both get the same hint.
NO_NAME = "secret-rowz"
RUN = "salaries.jsonl"


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """The app with logins; carol owns it, with a data set and a run over it."""
    folder = tmp_path_factory.mktemp("team")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPT_OR_TUNE_HOME", str(folder / "home"))
        add_rows(folder)
        run = write_run(folder / "home" / "runs" / RUN, scored=False)
        run.write_text(run.read_text().replace('"data": "starter"', f'"data": "{NAME}"'))
        with team_app(folder, "--owner", "carol") as pages:
            yield pages


# Handlers of events that fill lists, which are sent as from an untouched page.
LISTS = (
    "restore_fields", "refresh", "load_form", "restore_draft", "opened", "look_again", "open_tab", "updates",
)  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_others_do_not_have_its_name(team: Pages, name: str) -> None:
    answer = team.person("bob").send(name)
    assert '"success": true' in answer
    for secret in (NAME, RUN, "return the number"):
        assert secret not in answer, secret


def test_owner_sees_the_names(team: Pages) -> None:
    carol = team.person("carol")
    for name in ("restore_fields", "refresh", "load_form", "restore_draft", "opened"):
        assert NAME in carol.send(name), name
    assert RUN in carol.send("look_again")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("show", ["{}"]),
        ("pick", ["{}", "rows-00003"]),
        ("pick_random", ["{}"]),
        ("compare", ["add two numbers", ["rag-2"], None, None, "{}"]),
        ("stream", ["add two numbers", ["rag-2"], None, None, "{}"]),
        ("next_match", ["", "", "{}", ["zero-shot", "icl-8"]]),
        ("select_dataset", ["{}"]),
    ],
)
def test_named_by_others_it_does_not_exist(team: Pages, name: str, values: list[Any]) -> None:
    bob, answers = team.person("bob"), []
    for data in (NAME, NO_NAME):
        filled = [data if value == "{}" else value for value in values]
        answers.append(_without_times(bob.send(name, *filled)).replace(data, "?"))
    assert answers[0] == answers[1]
    assert "return the number" not in answers[0]


@pytest.mark.parametrize(
    ("name", "target", "data"),
    [
        ("act", "data-sets", {"do": "rows", "name": NAME}),
        ("act", "data-sets", {"do": "save", "name": NAME}),
        ("act", "data-rows", {"do": "delete", "name": NAME}),
        ("start", "data-run", None),
        ("stop", "data-stop", None),
        ("resume", "data-resume", None),
        ("select_run", "data-runs", None),
        ("add", "data-add", None),
        ("suggest", "data-file", None),
        ("tick", "", None),
    ],
)
def test_data_page_is_its_owners(team: Pages, name: str, target: str, data: Any) -> None:
    answer = team.person("bob").send(name, target=target, data=data) if name != "tick" else _tick(team)
    assert "Only the owner of this app may use own data sets here" in answer
    assert NAME not in answer
    assert (team.home / "datasets" / NAME).is_dir()


def _tick(team: Pages) -> str:
    """Send the tick of the Data page: the header and other pages have timers of the same name."""
    events = {
        index: event
        for index, event in team.blocks.fns.items()
        if "run_section" in str(getattr(event.fn, "__module__", "")) and event.fn.__name__ == "tick"
    }
    ((index, event),) = events.items()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_app, "find_event", lambda *_: (index, event))
        return team.person("bob").send("tick")


def test_run_over_it_is_not_read_by_its_name(team: Pages) -> None:
    answers = {}
    for name in ("bob", "carol"):
        person = team.person(name)
        person.send("look_again")
        answers[name] = person.send("load_runs", [f"runs/{RUN}"])
    assert "double a value" in answers["carol"]
    assert "double a value" not in answers["bob"]


def test_rows_of_the_owner_are_their_owners_files(team: Pages, tmp_path: Path) -> None:
    bob = team.person("bob")
    path = team.home / "datasets" / NAME / "train.jsonl"
    assert path.is_file()
    assert bob.http.get(f"gradio_api/file={path}").status_code in (403, 404)


def _without_times(answer: str) -> str:
    return re.sub(r'"(?:[a-z_]*duration|avg_time|event_id|eta)": [^,}]+', "", answer)
