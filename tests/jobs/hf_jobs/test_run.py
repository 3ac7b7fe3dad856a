"""Remote jobs with a local Hub: submission, following, cancellation, download, and every kind of failure."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from adapters.store import Store
from errors import PromptOrTuneError, TrainingError
from jobs.hf_jobs.follow import read_remote_state, write_remote_state
from jobs.hf_jobs.run import RemoteJobStoppedError
from jobs.hf_jobs.submit import JOB_SCRIPT
from tests import messages
from tests.adapters.folders import write_adapter
from tests.hub.client import OWNER, TOKEN
from tests.hub.machines import RemoteJob
from tests.hub.state import Account
from tests.hub_standin import Hub
from tests.jobs.hf_jobs.remote_run import ROWS, RemoteRun
from tests.jobs.service import wait_for

pytestmark = pytest.mark.slow

STEP = "  step 5/20  epoch 0.5  loss 1.2500  300 tokens/s  0:04 gone, about 0:12 left"
VALIDATION = "  step 10/20  epoch 1.0  validation loss 0.7500  310 tokens/s  0:09 gone, about 0:09 left"
SOURCE = f"datasets/{OWNER}/prompt-or-tune-jobs"


@pytest.fixture
def train_remotely(hub: Hub, tmp_path: Path) -> Callable[[RemoteJob], None]:
    """Return a script for the remote machine that prints the lines of a training and publishes an adapter."""

    def run(job: RemoteJob) -> None:
        folder = write_adapter(tmp_path / "elsewhere" / "lora-mine")
        repo = str(settings(hub, job)["hub_model_id"])
        hub.private.add(repo)
        job.say(STEP, VALIDATION, f"Published as {hub.url}/{repo}/tree/{hub.add(repo, folder)}.")
        job.end()

    return run


def settings(hub: Hub, job: RemoteJob) -> dict[str, Any]:
    """Return the settings in the archive."""
    values: dict[str, Any] = yaml.safe_load(archive(hub, job)["config.yaml"])
    return values


def archive(hub: Hub, job: RemoteJob) -> dict[str, bytes]:
    """Return the files of the archive by name."""
    commit = hub.at(SOURCE, job.spec["environment"]["PROMPT_OR_TUNE_COMMIT"])
    assert commit is not None
    packed = commit.files[f"{job.spec['environment']['PROMPT_OR_TUNE_JOB']}/job.tar.gz"].content
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        return {entry.name: files.extractfile(entry).read() for entry in files}  # type: ignore[union-attr]


def test_remote_job_ends_with_adapter_in_store(
    hub: Hub, remote_run: RemoteRun, train_remotely: Callable[[RemoteJob], None]
) -> None:
    hub.jobs.script = train_remotely
    folder = remote_run.run()
    assert folder == remote_run.store / "lora-mine"
    assert Store((remote_run.store,)).inspect("lora-mine").manifest.technique == "lora"
    job = hub.jobs.only()
    assert (job.owner, job.spec["flavor"], job.spec["dockerImage"]) == (OWNER, "a10g-small", "python:3.11")
    assert job.spec["timeoutSeconds"] == 6 * 3600
    curve = [json.loads(line) for line in (remote_run.folder / "log.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in curve] == [
        (5, 1.25, None),
        (10, None, 0.75),
    ]
    assert STEP in remote_run.lines
    assert VALIDATION in remote_run.lines
    assert SOURCE in hub.private


def test_archive_contains_program_rows_and_settings(
    hub: Hub, remote_run: RemoteRun, train_remotely: Callable[[RemoteJob], None]
) -> None:
    hub.jobs.script = train_remotely
    remote_run.run()
    job = hub.jobs.only()
    files = archive(hub, job)
    assert files["data/my rows.csv"].decode() == ROWS
    assert {"errors.py", "train/__main__.py", "common/files.py", "requirements.txt"} <= set(files)
    assert not [
        name for name in files if name.startswith(("ui/", "jobs/", "tests/", "adapters/library/")) or ".pyc" in name
    ]
    assert settings(hub, job) == {
        "adapter_name": "lora-mine",
        "dataset_name": "data/my rows.csv",
        "model_name_or_path": "embedded",
        "trust_remote_code": False,
        "push_to_hub": True,
        "hub_model_id": f"{OWNER}/lora-mine",
        "hub_private_repo": True,
    }


def test_token_is_only_sent_as_secret(
    hub: Hub, remote_run: RemoteRun, train_remotely: Callable[[RemoteJob], None]
) -> None:
    hub.jobs.script = train_remotely
    remote_run.run()
    job = hub.jobs.only()
    assert job.spec["secrets"] == {"HF_TOKEN": TOKEN}
    assert TOKEN not in json.dumps({key: value for key, value in job.spec.items() if key != "secrets"})
    stored = [path for path in remote_run.folder.parents[1].rglob("*") if path.is_file()]
    assert not [path for path in stored if TOKEN.encode() in path.read_bytes()]
    assert not [name for name, content in archive(hub, job).items() if TOKEN.encode() in content]
    assert TOKEN not in "\n".join(remote_run.lines)


def test_names_are_not_interpreted_as_commands(
    hub: Hub, tmp_path: Path, train_remotely: Callable[[RemoteJob], None]
) -> None:
    remote_run = RemoteRun(tmp_path / "home", {"intent_column": "$(touch /tmp/x)"})
    evil = remote_run.data.with_name("'; rm -rf ~ #.csv")
    remote_run.data.rename(evil)
    remote_run.job.config["dataset_name"] = str(evil)  # type: ignore[index]
    hub.jobs.script = train_remotely
    remote_run.run()
    job = hub.jobs.only()
    assert job.spec["command"] == ["bash", "-c", JOB_SCRIPT]
    assert settings(hub, job)["dataset_name"] == "data/'; rm -rf ~ #.csv"
    assert "rm -rf" not in json.dumps(job.spec)


def test_restarted_process_follows_the_same_job(
    hub: Hub, remote_run: RemoteRun, train_remotely: Callable[[RemoteJob], None]
) -> None:
    first = remote_run.start(stopped=lambda: bool(remote_run.lines) and STEP in remote_run.lines)
    wait_for(lambda: bool(hub.jobs.known), "the condition", 10)
    hub.jobs.only().say(STEP)
    with pytest.raises(RemoteJobStoppedError):
        first.result()
    assert not hub.jobs.only().cancelled.is_set()
    (remote_run.folder / "log.jsonl").unlink()  # as the job's process does when it continues
    second = remote_run.start()
    hub.jobs.only().lines.clear()
    hub.jobs.only().say(STEP)
    wait_for((remote_run.folder / "log.jsonl").exists, "the condition", 10)
    train_remotely(RemoteJob("other", OWNER, hub.jobs.only().spec))
    hub.jobs.only().say(VALIDATION)
    hub.jobs.only().end()
    assert second.result().name == "lora-mine"
    assert len(hub.jobs.known) == 1
    assert remote_run.lines.count(STEP) == 1
    assert [json.loads(line)["step"] for line in (remote_run.folder / "log.jsonl").read_text().splitlines()] == [5, 10]


def test_lost_response_starts_no_second_job(
    hub: Hub, remote_run: RemoteRun, train_remotely: Callable[[RemoteJob], None]
) -> None:
    hub.cuts["job"] = 1
    hub.jobs.script = train_remotely
    remote_run.run()
    assert len(hub.jobs.known) == 1


def test_job_without_stored_id_is_found_by_label(
    hub: Hub, remote_run: RemoteRun, train_remotely: Callable[[RemoteJob], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("jobs.hf_jobs.submit.replace", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            remote_run.run()
    assert read_remote_state(remote_run.folder).id == ""
    hub.jobs.script = train_remotely
    running = remote_run.start()
    train_remotely(hub.jobs.only())
    assert running.result().name == "lora-mine"
    assert len(hub.jobs.known) == 1


@pytest.mark.parametrize("is_created", [True, False])
def test_job_of_earlier_version_is_followed(
    hub: Hub,
    remote_run: RemoteRun,
    train_remotely: Callable[[RemoteJob], None],
    monkeypatch: pytest.MonkeyPatch,
    is_created: bool,
) -> None:
    """Under its old name the product used another label and another data set on the Hub."""
    with monkeypatch.context() as patched:
        patched.setattr("jobs.hf_jobs.run.start_job", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            remote_run.run()
    state = replace(read_remote_state(remote_run.folder), source=f"{OWNER}/peft-arena-jobs")
    write_remote_state(remote_run.folder, state)
    hub.history[f"datasets/{state.source}"] = hub.history[SOURCE]
    hub.jobs.script = train_remotely
    if is_created:
        environment = {"PROMPT_OR_TUNE_COMMIT": state.commit, "PROMPT_OR_TUNE_JOB": remote_run.job.id}
        hub.jobs.begin(OWNER, {"environment": environment, "labels": {"peft-arena": state.label}})
    assert remote_run.run().name == "lora-mine"
    assert ("peft-arena" in hub.jobs.only().spec["labels"]) is is_created


def test_interrupted_log_is_continued_without_repeated_lines(
    hub: Hub, remote_run: RemoteRun, train_remotely: Callable[[RemoteJob], None]
) -> None:
    hub.cuts["log"] = 1
    hub.jobs.script = train_remotely
    remote_run.run()
    assert remote_run.lines.count(STEP) == remote_run.lines.count(VALIDATION) == 1


def test_stopped_job_is_cancelled_and_starts_again_later(
    hub: Hub, remote_run: RemoteRun, train_remotely: Callable[[RemoteJob], None]
) -> None:
    running = remote_run.start(stopped=(remote_run.folder / "stop").exists)
    wait_for(lambda: any("Waiting for a machine" in line for line in remote_run.lines), "the condition", 10)
    (remote_run.folder / "stop").touch()
    with pytest.raises(RemoteJobStoppedError):
        running.result()
    assert hub.jobs.only().stage == "CANCELED"
    assert "Cancelled on the Hub" in remote_run.lines[-1]
    (remote_run.folder / "stop").unlink()
    hub.jobs.script = train_remotely
    assert remote_run.run().name == "lora-mine"
    assert len(hub.jobs.known) == 2


def test_failed_cancel_is_reported(hub: Hub, remote_run: RemoteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    running = remote_run.start(stopped=(remote_run.folder / "stop").exists)
    wait_for(lambda: any("Waiting for a machine" in line for line in remote_run.lines), "the condition", 10)
    hub.accounts[TOKEN] = Account(OWNER, role="read")
    (remote_run.folder / "stop").touch()
    with pytest.raises(RemoteJobStoppedError):
        running.result()
    assert "may continue, and cost, until you cancel it at" in remote_run.lines[-1]
    assert hub.jobs.only().stage == "SCHEDULING"
    assert not read_remote_state(remote_run.folder).over


@pytest.mark.parametrize(
    ("stage", "message", "lines", "expected"),
    [
        (
            "ERROR",
            "Job failed with exit code: 2",
            ["train: my rows.csv, line 3: no answer."],
            "my rows.csv, line 3: no answer.",
        ),
        ("ERROR", "Job failed with exit code: 137", [], "(Job failed with exit code: 137)"),
        ("ERROR", "Job timeout", [STEP], "was ended after 6 hours"),
        ("CANCELED", None, [], "was cancelled on the Hub"),
        ("DELETED", None, [], "was cancelled on the Hub"),
    ],
)
def test_failed_job_reports_its_reason_and_the_next_run_starts_another(
    hub: Hub,
    remote_run: RemoteRun,
    train_remotely: Callable[[RemoteJob], None],
    stage: str,
    message: str,
    lines: list[str],
    expected: str,
) -> None:
    def fail(job: RemoteJob) -> None:
        job.say(*lines)
        job.end(stage, message)

    hub.jobs.script = fail
    with pytest.raises(TrainingError) as error:
        remote_run.run()
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    hub.jobs.script = train_remotely
    assert remote_run.run().name == "lora-mine"
    assert [job.spec["labels"]["prompt-or-tune"][-2:] for job in hub.jobs.known.values()] == ["-1", "-2"]


def test_no_job_is_started_without_credit(hub: Hub, remote_run: RemoteRun) -> None:
    hub.jobs.credit = False
    with pytest.raises(TrainingError, match=messages.NO_CREDIT_LEFT):
        remote_run.run()
    assert not hub.jobs.known


def test_nothing_is_sent_without_token(hub: Hub, remote_run: RemoteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(TrainingError, match=messages.TOKEN_REQUIRED):
        remote_run.run()
    assert not hub.requests


def test_nothing_is_sent_with_read_only_token(hub: Hub, remote_run: RemoteRun) -> None:
    hub.accounts[TOKEN] = Account(OWNER, role="read")
    with pytest.raises(TrainingError, match=messages.TOKEN_IS_READ_ONLY):
        remote_run.run()
    assert SOURCE not in hub.history


def test_nothing_is_sent_for_gated_base(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["vendor/gated"] = tmp_path
    hub.gated.add("vendor/gated")
    remote_run = RemoteRun(tmp_path / "home", {"model_name_or_path": "vendor/gated"})
    with pytest.raises(PromptOrTuneError, match=messages.IS_GATED):
        remote_run.run()
    assert SOURCE not in hub.history


def test_public_dataset_is_refused(hub: Hub, remote_run: RemoteRun, tmp_path: Path) -> None:
    hub.add(SOURCE, tmp_path)
    with pytest.raises(TrainingError, match=messages.JOBS_DATA_SET_PUBLIC):
        remote_run.run()
    assert not hub.jobs.known


def test_existing_repository_is_not_changed(
    hub: Hub, remote_run: RemoteRun, train_remotely: Callable[[RemoteJob], None], tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    before = hub.add(f"{OWNER}/lora-mine", tmp_path / "old")
    hub.jobs.script = train_remotely
    remote_run.run()
    assert hub.commit(f"{OWNER}/lora-mine") == before
    assert read_remote_state(remote_run.folder).adapter == f"{OWNER}/lora-mine-abc123"


def test_unreachable_hub_is_reported_and_job_followed_later(
    hub: Hub, remote_run: RemoteRun, train_remotely: Callable[[RemoteJob], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = remote_run.start()
    wait_for(lambda: any("Waiting for a machine" in line for line in remote_run.lines), "the condition", 10)
    with monkeypatch.context() as patched:
        # The client stores the address of the Hub when it is created.
        patched.setattr("huggingface_hub.hf_api.HfApi.inspect_job", _raise_connection_error)
        with pytest.raises(TrainingError, match=messages.FOLLOWING_BROKE_OFF):
            running.result()
    assert "The Hub cannot be reached" in remote_run.lines[-1]
    again = remote_run.start()
    train_remotely(hub.jobs.only())
    assert again.result().name == "lora-mine"
    assert len(hub.jobs.known) == 1


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def _raise_connection_error(*_: Any, **__: Any) -> None:
    raise ConnectionError("no route")


@pytest.mark.parametrize("base", ["~/models/mine", "/models/mine.gguf", "."])
def test_local_base_is_refused(hub: Hub, tmp_path: Path, base: str) -> None:
    remote_run = RemoteRun(tmp_path / "home", {"model_name_or_path": base})
    with pytest.raises(TrainingError, match=messages.LOCAL_BASE_NOT_SENT):
        remote_run.run()
    assert not hub.requests


def test_unknown_machine_is_refused_with_nearest_name(hub: Hub, tmp_path: Path) -> None:
    remote_run = RemoteRun(tmp_path / "home", flavor="a10-small")
    with pytest.raises(PromptOrTuneError, match=messages.UNKNOWN_MACHINE_SUGGESTS_A10G):
        remote_run.run()
    assert not hub.requests


def test_failed_download_is_retried(
    hub: Hub, remote_run: RemoteRun, train_remotely: Callable[[RemoteJob], None]
) -> None:
    hub.jobs.script = train_remotely
    hub.cuts["download"] = 20
    with pytest.raises(PromptOrTuneError):
        remote_run.run()
    assert not (remote_run.store / "lora-mine").exists()
    hub.cuts["download"] = 0
    assert remote_run.run().name == "lora-mine"
    assert len(hub.jobs.known) == 1
    assert hub.url == constants.ENDPOINT
