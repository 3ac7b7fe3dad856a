"""`python -m space publish` against a stand-in of the Hub, with the real client over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from errors import PromptOrTuneError
from space import publish as publishing
from space.__main__ import main
from space.build import front_matter, space_files
from space.publish import SpaceOptions, publish_space, wait_until_running
from tests.hub.client import TOKEN, log_in, use_hub
from tests.hub.space_state import Space
from tests.hub.spaces import files
from tests.hub.state import Account, Blob
from tests.hub_standin import Hub, hub_standin

NAME = "ada/arena"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that knows Ada, to which the real client speaks with her token."""
    with hub_standin() as known:
        use_hub(known, monkeypatch, tmp_path)
        known.accounts = {TOKEN: Account("ada", orgs={"lab": "read"})}
        log_in(monkeypatch)
        yield known


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path | bytes]:
    """A Space of four files in place of all of them."""
    picture = space_files(NAME)["thumbnail.png"]
    made: dict[str, Path | bytes] = {
        "README.md": b"---\ntitle: Prompt or Tune\nsdk: gradio\n---\n",
        "app.py": b"print('up')\n",
        "serve/engine/llm_engine.py": b"# the engine\n",
        "thumbnail.png": picture,
    }
    monkeypatch.setattr(publishing, "space_files", lambda repo_id: dict(made))
    return made


def said_of(call: Callable[[], object]) -> str:
    """The one sentence that the call ends with."""
    with pytest.raises(PromptOrTuneError) as caught:
        call()
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert TOKEN not in sentence
    return sentence


def quietly(_: str) -> None:
    return


def test_a_new_space_gets_all_files_and_wishes_and_runs(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "wait_until_running", partial(wait_until_running, poll_seconds=0))
    wishes = ["--private", "--hardware", "t4-small", "--storage", "ada/kept"]
    pairs = ["--secret", "HF_TOKEN=hf_secret", "--variable", "PROMPT_OR_TUNE_BASE=Qwen/Qwen3-0.6B@main"]
    hub.spaces.fresh = lambda: Space(stages=["BUILDING", "BUILDING", "RUNNING"], log=["Cloning\n", "Installing torch"])
    assert main(["publish", NAME, *wishes, *pairs]) == 0
    out = capsys.readouterr().out
    space = hub.spaces.known[NAME]
    assert (space.sdk, space.hardware) == ("gradio", "t4-small")
    assert space.secrets == {"HF_TOKEN": "hf_secret"}
    assert space.variables == {"PROMPT_OR_TUNE_BASE": "Qwen/Qwen3-0.6B@main"}
    assert space.volumes == [{"type": "bucket", "source": "ada/kept", "mountPath": "/data"}]
    assert hub.spaces.buckets == {"ada/kept": True}
    assert f"spaces/{NAME}" in hub.private
    there, wanted = files(hub, NAME), space_files(NAME)
    assert set(there) == {*wanted, ".gitattributes"}
    for name, source in wanted.items():
        assert there[name] == (source if isinstance(source, bytes) else source.read_bytes()), name
    assert front_matter(there["README.md"].decode())["thumbnail"].endswith(f"/spaces/{NAME}/resolve/main/thumbnail.png")
    assert len(hub.history[f"spaces/{NAME}"]) == 2, "all in one commit on top of the Hub's own first one"
    assert "  Cloning\n" in out
    assert "  Installing torch\n" in out
    assert out.splitlines()[-1] == f"It runs on t4-small: {hub.url}/spaces/{NAME}"
    assert "hf_secret" not in out


def test_publishing_the_same_again_makes_no_commit_and_restarts_nothing(
    hub: Hub, small: dict[str, Path | bytes]
) -> None:
    wishes = SpaceOptions(hardware="l4x1", storage="ada/kept", variables={"A": "1"})
    first = publish_space(NAME, wishes, quietly)
    assert first.changed
    asked = len(hub.requests)
    again = publish_space(NAME, wishes, quietly)
    assert (again.changed, again.commit) == (False, first.commit)
    written = [line for line in hub.requests[asked:] if not line.startswith(("GET", "HEAD"))]
    # The bucket and what the client asks before a commit; no commit, no setting.
    harmless = ("/api/buckets/", "/preupload/", "/api/validate-yaml", "/lfs/objects/batch")
    assert [line for line in written if not any(part in line for part in harmless)] == []


def test_only_what_changed_is_sent_and_what_is_gone_is_deleted(hub: Hub, small: dict[str, Path | bytes]) -> None:
    first = publish_space(NAME, SpaceOptions(), quietly)
    old = dict(hub.history[f"spaces/{NAME}"][-1].files)
    hub.append(f"spaces/{NAME}", old | {"ui/gone.py": Blob(b"old", 3), "notes.txt": Blob(b"mine", 4)})
    small["app.py"] = b"print('newer')\n"
    second = publish_space(NAME, SpaceOptions(hardware="t4-small", variables={"A": "2"}, secrets={"S": "x"}), quietly)
    assert second.changed
    assert second.commit != first.commit
    there = files(hub, NAME)
    assert there["app.py"] == b"print('newer')\n"
    assert "ui/gone.py" not in there
    assert there["notes.txt"] == b"mine", "what this program never put there stays"
    space = hub.spaces.known[NAME]
    assert (space.hardware, space.variables, space.secrets) == ("t4-small", {"A": "2"}, {"S": "x"})


def test_other_volumes_stay_mounted(hub: Hub, small: dict[str, Path | bytes]) -> None:
    publish_space(NAME, SpaceOptions(storage="ada/old"), quietly)
    model = {"type": "model", "source": "ada/base", "mountPath": "/base", "readOnly": True}
    hub.spaces.known[NAME].volumes.append(model)
    publish_space(NAME, SpaceOptions(storage="ada/new"), quietly)
    sources = [(each["source"], each["mountPath"]) for each in hub.spaces.known[NAME].volumes]
    assert sources == [("ada/base", "/base"), ("ada/new", "/data")]


def test_a_model_of_the_same_name_is_no_obstacle(hub: Hub, small: dict[str, Path | bytes], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    hub.add(NAME, tmp_path / "model")
    publish_space(NAME, SpaceOptions(), quietly)
    assert set(files(hub, NAME)) >= set(small)
    assert set(hub.history[NAME][-1].files) == {"config.json"}


def test_somebodys_other_program_is_left_alone(hub: Hub, small: dict[str, Path | bytes]) -> None:
    hub.spaces.known[NAME] = Space()
    hub.append(f"spaces/{NAME}", {"README.md": Blob(b"x", 1), "chess.py": Blob(b"x", 1)})
    sentence = said_of(lambda: publish_space(NAME, SpaceOptions(), quietly))
    assert sentence == (
        f"The Space '{NAME}' holds another program already (chess.py): publish under another name, or delete it there."
    )
    assert set(files(hub, NAME)) == {"README.md", "chess.py"}


@pytest.mark.parametrize(
    ("account", "name", "expected"),
    [
        (None, NAME, "The Hub does not accept your token (HTTP 401)"),
        (Account("ada", role="read"), NAME, "The token may only read"),
        (Account("ada"), "bob/arena", "'bob/arena' is not yours to publish to: the token belongs to 'ada'"),
        (Account("ada", orgs={"lab": "read"}), "lab/arena", "'ada' may only read in 'lab'"),
        (Account("ada", role="fineGrained", scopes=("lab",)), NAME, "The fine-grained token may not create"),
    ],
)
def test_rights_that_are_missing_are_one_sentence_before_anything_is_sent(
    account: Account | None, name: str, expected: str, hub: Hub, small: dict[str, Path | bytes]
) -> None:
    hub.accounts = {TOKEN: account} if account else {}
    assert said_of(lambda: publish_space(name, SpaceOptions(), quietly)).startswith(expected)
    assert not [line for line in hub.requests if line.startswith(("POST", "PUT"))]


def test_without_a_token_the_way_to_one_is_named(
    hub: Hub, small: dict[str, Path | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "needs a token of the Hub: run `hf auth login`" in said_of(
        lambda: publish_space(NAME, SpaceOptions(), quietly)
    )


def test_a_name_that_is_taken_unseen_is_one_sentence(hub: Hub, small: dict[str, Path | bytes]) -> None:
    hub.spaces.known[NAME] = Space(hidden=True)
    assert f"The name '{NAME}' is taken on the Hub" in said_of(lambda: publish_space(NAME, SpaceOptions(), quietly))


@pytest.mark.parametrize("exists", [False, True])
def test_hardware_that_nobody_pays_for_is_one_sentence(exists: bool, hub: Hub, small: dict[str, Path | bytes]) -> None:
    if exists:
        publish_space(NAME, SpaceOptions(), quietly)
    hub.spaces.unpaid.add("a100-large")
    sentence = said_of(lambda: publish_space(NAME, SpaceOptions(hardware="a100-large"), quietly))
    assert "wants a subscription or a payment method for that (HTTP 402)" in sentence


@pytest.mark.parametrize("name", ["arena", "a/b/c", "ada/ar ena", "", "../x"])
def test_a_name_that_is_none_is_one_sentence(name: str, small: dict[str, Path | bytes]) -> None:
    assert said_of(lambda: publish_space(name, SpaceOptions(), quietly)).startswith(
        "That cannot name a Space on the Hub"
    )


def test_a_line_that_breaks_is_one_sentence_and_the_next_run_finishes(
    hub: Hub, small: dict[str, Path | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cuts["commit"] = 1
    assert "The connection to the Hub broke while uploading to" in said_of(
        lambda: publish_space(NAME, SpaceOptions(), quietly)
    )
    assert publish_space(NAME, SpaceOptions(), quietly).changed
    assert set(files(hub, NAME)) >= set(small)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--hardware", "t4-smal"], "Unknown hardware 't4-smal': did you mean 't4-small'?"),
        (["--secret", "no-key=x"], "--secret wants KEY=VALUE"),
        (["--secret", "NOT_THERE"], "--secret NOT_THERE has no value"),
        (["--secret", "A=1", "--secret", "A=2"], "--secret A is given twice"),
        (["--secret", "A=1", "--variable", "A=2"], "A is given as --secret and as --variable"),
        (["--storage", "bucket"], "--storage names no bucket"),
    ],
)
def test_wishes_that_make_no_sense_are_one_sentence(
    options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", NAME, *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"space: {expected}")
    assert len(said.splitlines()) == 1


def test_a_secret_may_come_from_the_environment(
    hub: Hub, small: dict[str, Path | bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "from-here")
    assert main(["publish", NAME, "--secret", "MY_KEY", "--no-wait"]) == 0
    assert hub.spaces.known[NAME].secrets == {"MY_KEY": "from-here"}
    assert "from-here" not in capsys.readouterr().out


class Clock:
    """Seconds that pass with every look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def waits(hub: Hub, space: Space, clock: Clock, commit: str | None = None) -> str:
    """Waits for `commit`, the latest one by default, of a Space in this state."""
    hub.spaces.known[NAME] = space
    hub.append(f"spaces/{NAME}", {"app.py": Blob(b"x", 1)})
    wanted = commit or hub.history[f"spaces/{NAME}"][-1].oid
    return wait_until_running(NAME, wanted, quietly, timeout=100, poll_seconds=0, clock=clock)


@pytest.mark.parametrize(
    ("stage", "error", "expected"),
    [
        ("BUILD_ERROR", "", "its build failed (BUILD_ERROR: ERROR: No matching distribution found)"),
        ("CONFIG_ERROR", "sdk_version is unknown", "the Hub refuses its card (CONFIG_ERROR: sdk_version is unknown)"),
        ("RUNTIME_ERROR", "Exit code: 1", "it ended with an error (RUNTIME_ERROR: Exit code: 1)"),
        ("NO_APP_FILE", "", "the Hub finds no app.py in it"),
        ("PAUSED", "", "is paused: start it again in its settings"),
    ],
)
def test_a_space_that_does_not_come_up_says_why(stage: str, error: str, expected: str, hub: Hub) -> None:
    log = ["Installing\n", "ERROR: No matching distribution found\n"]
    space = Space(stages=["BUILDING", "BUILDING", stage], log=log, error=error)
    assert expected in said_of(lambda: waits(hub, space, Clock(1)))


def test_a_space_that_never_comes_up_is_given_up_on(hub: Hub) -> None:
    space = Space(stages=["BUILDING"])
    assert "does not run after 1.66667 min (it says BUILDING)" in said_of(lambda: waits(hub, space, Clock(10)))


def test_the_former_version_that_still_runs_is_not_taken_for_the_new_one(hub: Hub) -> None:
    space = Space(stages=["RUNNING"])
    said_of(lambda: waits(hub, space, Clock(10), commit="0" * 40))
    assert space.asked > 5


def test_where_the_hub_names_no_commit_the_stage_must_last(hub: Hub) -> None:
    space = Space(stages=["RUNNING"], names_commit=False)
    assert waits(hub, space, Clock(1)) == "cpu-basic"
    assert space.asked > 5


def test_each_line_of_the_build_is_told_once_and_fit_for_a_terminal(hub: Hub) -> None:
    lines: list[str] = []
    hub.spaces.known[NAME] = Space(
        stages=["BUILDING", "BUILDING", "BUILDING", "RUNNING"], log=["one\n", "two \x1b[31m\n", "three"]
    )
    commit = hub.append(f"spaces/{NAME}", {"app.py": Blob(b"x", 1)})
    wait_until_running(NAME, commit, lines.append, poll_seconds=0)
    assert lines == ["Building ...", "  one", r"  'two \x1b[31m'", "  three", "Running ..."]
