"""`python -m space publish` with the real client and a local server in place of the Hub."""

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

pytestmark = pytest.mark.slow

NAME = "ada/arena"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Serve a local Hub with the account "ada", whose token the client uses."""
    with hub_standin() as running:
        use_hub(running, monkeypatch, tmp_path)
        running.accounts = {TOKEN: Account("ada", orgs={"lab": "read"})}
        log_in(monkeypatch)
        yield running


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path | bytes]:
    """Replace the built Space by one of four files."""
    picture = space_files(NAME)["thumbnail.png"]
    made: dict[str, Path | bytes] = {
        "README.md": b"---\ntitle: Prompt or Tune\nsdk: gradio\n---\n",
        "app.py": b"print('up')\n",
        "serve/engine/llm_engine.py": b"# the engine\n",
        "thumbnail.png": picture,
    }
    monkeypatch.setattr(publishing, "space_files", lambda repo_id: dict(made))
    return made


def error_message(call: Callable[[], object]) -> str:
    """Return the message of the error that the call raises; it must be one line."""
    with pytest.raises(PromptOrTuneError) as caught:
        call()
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert TOKEN not in message
    return message


def ignore(_: str) -> None:
    return


def test_new_space_gets_all_files_and_settings_and_runs(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "wait_until_running", partial(wait_until_running, poll_seconds=0))
    options = ["--private", "--hardware", "t4-small", "--storage", "ada/kept"]
    pairs = ["--secret", "HF_TOKEN=hf_secret", "--variable", "PROMPT_OR_TUNE_BASE=Qwen/Qwen3-0.6B@main"]
    hub.spaces.fresh = lambda: Space(stages=["BUILDING", "BUILDING", "RUNNING"], log=["Cloning\n", "Installing torch"])
    assert main(["publish", NAME, *options, *pairs]) == 0
    out = capsys.readouterr().out
    space = hub.spaces.known[NAME]
    assert (space.sdk, space.hardware) == ("gradio", "t4-small")
    assert space.secrets == {"HF_TOKEN": "hf_secret"}
    assert space.variables == {"PROMPT_OR_TUNE_BASE": "Qwen/Qwen3-0.6B@main"}
    assert space.volumes == [{"type": "bucket", "source": "ada/kept", "mountPath": "/data"}]
    assert hub.spaces.buckets == {"ada/kept": True}
    assert f"spaces/{NAME}" in hub.private
    remote, expected = files(hub, NAME), space_files(NAME)
    assert set(remote) == {*expected, ".gitattributes"}
    for name, source in expected.items():
        assert remote[name] == (source if isinstance(source, bytes) else source.read_bytes()), name
    assert front_matter(remote["README.md"].decode())["thumbnail"].endswith(
        f"/spaces/{NAME}/resolve/main/thumbnail.png"
    )
    assert len(hub.history[f"spaces/{NAME}"]) == 2, "one commit after the Hub's initial commit"
    assert "  Cloning\n" in out
    assert "  Installing torch\n" in out
    assert out.splitlines()[-1] == f"It runs on t4-small: {hub.url}/spaces/{NAME}"
    assert "hf_secret" not in out


def test_publishing_an_unchanged_space_makes_no_commit_and_no_restart(hub: Hub, small: dict[str, Path | bytes]) -> None:
    options = SpaceOptions(hardware="l4x1", storage="ada/kept", variables={"A": "1"})
    first = publish_space(NAME, options, ignore)
    assert first.changed
    num_requests = len(hub.requests)
    again = publish_space(NAME, options, ignore)
    assert (again.changed, again.commit) == (False, first.commit)
    written = [line for line in hub.requests[num_requests:] if not line.startswith(("GET", "HEAD"))]
    # The bucket and the requests before a commit, but no commit and no change of a setting.
    expected_writes = ("/api/buckets/", "/preupload/", "/api/validate-yaml", "/lfs/objects/batch")
    assert [line for line in written if not any(part in line for part in expected_writes)] == []


def test_changed_files_are_sent_and_removed_files_deleted(hub: Hub, small: dict[str, Path | bytes]) -> None:
    first = publish_space(NAME, SpaceOptions(), ignore)
    old = dict(hub.history[f"spaces/{NAME}"][-1].files)
    hub.append(f"spaces/{NAME}", old | {"ui/gone.py": Blob(b"old", 3), "notes.txt": Blob(b"mine", 4)})
    small["app.py"] = b"print('newer')\n"
    second = publish_space(NAME, SpaceOptions(hardware="t4-small", variables={"A": "2"}, secrets={"S": "x"}), ignore)
    assert second.changed
    assert second.commit != first.commit
    remote = files(hub, NAME)
    assert remote["app.py"] == b"print('newer')\n"
    assert "ui/gone.py" not in remote
    assert remote["notes.txt"] == b"mine", "files that were not published from here are not deleted"
    space = hub.spaces.known[NAME]
    assert (space.hardware, space.variables, space.secrets) == ("t4-small", {"A": "2"}, {"S": "x"})


def test_other_volumes_remain_mounted(hub: Hub, small: dict[str, Path | bytes]) -> None:
    publish_space(NAME, SpaceOptions(storage="ada/old"), ignore)
    model = {"type": "model", "source": "ada/base", "mountPath": "/base", "readOnly": True}
    hub.spaces.known[NAME].volumes.append(model)
    publish_space(NAME, SpaceOptions(storage="ada/new"), ignore)
    sources = [(volume["source"], volume["mountPath"]) for volume in hub.spaces.known[NAME].volumes]
    assert sources == [("ada/base", "/base"), ("ada/new", "/data")]


def test_model_repository_of_the_same_name_is_not_changed(
    hub: Hub, small: dict[str, Path | bytes], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    hub.add(NAME, tmp_path / "model")
    publish_space(NAME, SpaceOptions(), ignore)
    assert set(files(hub, NAME)) >= set(small)
    assert set(hub.history[NAME][-1].files) == {"config.json"}


@pytest.mark.parametrize("marker", ["serve/engine/llm_engine.py", "serve/engine.py"])
def test_space_of_the_current_or_an_earlier_version_is_updated(
    marker: str, hub: Hub, small: dict[str, Path | bytes]
) -> None:
    hub.spaces.known[NAME] = Space()
    hub.append(f"spaces/{NAME}", {"README.md": Blob(b"x", 1), marker: Blob(b"x", 1)})
    assert publish_space(NAME, SpaceOptions(), ignore).changed
    assert set(files(hub, NAME)) == set(small)


def test_space_with_another_program_is_refused(hub: Hub, small: dict[str, Path | bytes]) -> None:
    hub.spaces.known[NAME] = Space()
    hub.append(f"spaces/{NAME}", {"README.md": Blob(b"x", 1), "chess.py": Blob(b"x", 1)})
    message = error_message(lambda: publish_space(NAME, SpaceOptions(), ignore))
    assert message == (
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
def test_missing_rights_are_reported_before_any_write(
    account: Account | None, name: str, expected: str, hub: Hub, small: dict[str, Path | bytes]
) -> None:
    hub.accounts = {TOKEN: account} if account else {}
    assert error_message(lambda: publish_space(name, SpaceOptions(), ignore)).startswith(expected)
    assert not [line for line in hub.requests if line.startswith(("POST", "PUT"))]


def test_error_without_a_token_explains_how_to_log_in(
    hub: Hub, small: dict[str, Path | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "needs a token of the Hub: run `hf auth login`" in error_message(
        lambda: publish_space(NAME, SpaceOptions(), ignore)
    )


def test_name_taken_by_a_hidden_space_is_reported(hub: Hub, small: dict[str, Path | bytes]) -> None:
    hub.spaces.known[NAME] = Space(hidden=True)
    assert f"The name '{NAME}' is taken on the Hub" in error_message(
        lambda: publish_space(NAME, SpaceOptions(), ignore)
    )


@pytest.mark.parametrize("exists", [False, True])
def test_hardware_without_a_payment_method_is_reported(exists: bool, hub: Hub, small: dict[str, Path | bytes]) -> None:
    if exists:
        publish_space(NAME, SpaceOptions(), ignore)
    hub.spaces.unpaid.add("a100-large")
    message = error_message(lambda: publish_space(NAME, SpaceOptions(hardware="a100-large"), ignore))
    assert "wants a subscription or a payment method for that (HTTP 402)" in message


@pytest.mark.parametrize("name", ["arena", "a/b/c", "ada/ar ena", "", "../x"])
def test_invalid_name_is_refused(name: str, small: dict[str, Path | bytes]) -> None:
    assert error_message(lambda: publish_space(name, SpaceOptions(), ignore)).startswith(
        "That cannot name a Space on the Hub"
    )


def test_broken_connection_is_reported_and_the_next_run_succeeds(
    hub: Hub, small: dict[str, Path | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cuts["commit"] = 1
    assert "The connection to the Hub broke while uploading to" in error_message(
        lambda: publish_space(NAME, SpaceOptions(), ignore)
    )
    assert publish_space(NAME, SpaceOptions(), ignore).changed
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
def test_invalid_options_are_refused(options: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", NAME, *options]) == 2
    output = capsys.readouterr().err
    assert output.startswith(f"space: {expected}")
    assert len(output.splitlines()) == 1


def test_secret_can_be_read_from_the_environment(
    hub: Hub, small: dict[str, Path | bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "from-here")
    assert main(["publish", NAME, "--secret", "MY_KEY", "--no-wait"]) == 0
    assert hub.spaces.known[NAME].secrets == {"MY_KEY": "from-here"}
    assert "from-here" not in capsys.readouterr().out


class Clock:
    """A clock that advances by `step` seconds with every call."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def wait_for_space(hub: Hub, space: Space, clock: Clock, commit: str | None = None) -> str:
    """Set the state of the Space, and wait until it runs `commit`, by default the latest one."""
    hub.spaces.known[NAME] = space
    hub.append(f"spaces/{NAME}", {"app.py": Blob(b"x", 1)})
    expected = commit or hub.history[f"spaces/{NAME}"][-1].oid
    return wait_until_running(NAME, expected, ignore, timeout=100, poll_seconds=0, clock=clock)


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
def test_reason_of_a_failed_start_is_reported(stage: str, error: str, expected: str, hub: Hub) -> None:
    log = ["Installing\n", "ERROR: No matching distribution found\n"]
    space = Space(stages=["BUILDING", "BUILDING", stage], log=log, error=error)
    assert expected in error_message(lambda: wait_for_space(hub, space, Clock(1)))


def test_waiting_ends_at_the_timeout(hub: Hub) -> None:
    space = Space(stages=["BUILDING"])
    assert "does not run after 1 min 40 s (it says BUILDING)" in error_message(
        lambda: wait_for_space(hub, space, Clock(10))
    )


def test_running_earlier_commit_is_not_accepted_as_the_new_one(hub: Hub) -> None:
    space = Space(stages=["RUNNING"])
    error_message(lambda: wait_for_space(hub, space, Clock(10), commit="0" * 40))
    assert space.asked > 5


def test_running_stage_must_persist_if_the_status_has_no_commit(hub: Hub) -> None:
    space = Space(stages=["RUNNING"], names_commit=False)
    assert wait_for_space(hub, space, Clock(1)) == "cpu-basic"
    assert space.asked > 5


def test_lines_of_the_build_log_are_printed_once_and_escaped(hub: Hub) -> None:
    lines: list[str] = []
    hub.spaces.known[NAME] = Space(
        stages=["BUILDING", "BUILDING", "BUILDING", "RUNNING"], log=["one\n", "two \x1b[31m\n", "three"]
    )
    commit = hub.append(f"spaces/{NAME}", {"app.py": Blob(b"x", 1)})
    wait_until_running(NAME, commit, lines.append, poll_seconds=0)
    assert lines == ["Building ...", "  one", r"  'two \x1b[31m'", "  three", "Running ..."]
