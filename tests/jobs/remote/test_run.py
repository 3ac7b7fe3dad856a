"""A job that trains elsewhere, on a Hub that stands in: sent once, followed, cancelled, fetched; and all that fails."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from adapters.store import Store
from errors import PromptOrTuneError, TrainingError
from jobs.hf_jobs.follow import PollIntervals, read_remote_state
from jobs.hf_jobs.run import RemoteJobStoppedError
from jobs.hf_jobs.submit import JOB_SCRIPT
from tests.adapters.folders import write_adapter
from tests.hub.client import OWNER, TOKEN
from tests.hub.machines import RemoteJob
from tests.hub.state import Account
from tests.hub_standin import Hub
from tests.jobs.remote.sent import QUICK, ROWS, Sent

STEP = "  step 5/20  epoch 0.5  loss 1.2500  300 tokens/s  0:04 gone, about 0:12 left"
VALIDATION = "  step 10/20  epoch 1.0  validation loss 0.7500  310 tokens/s  0:09 gone, about 0:09 left"
SOURCE = f"datasets/{OWNER}/prompt-or-tune-jobs"


@pytest.fixture
def trains(hub: Hub, tmp_path: Path) -> Callable[[RemoteJob], None]:
    """A machine that prints what a training prints, and publishes an adapter."""

    def run(job: RemoteJob) -> None:
        folder = write_adapter(tmp_path / "elsewhere" / "lora-mine")
        repo = str(settings(hub, job)["hub_model_id"])
        hub.private.add(repo)
        job.say(STEP, VALIDATION, f"Published as {hub.url}/{repo}/tree/{hub.add(repo, folder)}.")
        job.end()

    return run


def settings(hub: Hub, job: RemoteJob) -> dict[str, Any]:
    """What the machine would read."""
    values: dict[str, Any] = yaml.safe_load(archive(hub, job)["config.yaml"])
    return values


def archive(hub: Hub, job: RemoteJob) -> dict[str, bytes]:
    """What was sent along with the job, by name."""
    commit = hub.at(SOURCE, job.spec["environment"]["PROMPT_OR_TUNE_COMMIT"])
    assert commit is not None
    packed = commit.files[f"{job.spec['environment']['PROMPT_OR_TUNE_JOB']}/job.tar.gz"].content
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        return {entry.name: files.extractfile(entry).read() for entry in files}  # type: ignore[union-attr]


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_a_job_is_sent_followed_and_its_adapter_stands_in_the_store(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None]
) -> None:
    hub.jobs.script = trains
    folder = sent.run()
    assert folder == sent.store / "lora-mine"
    assert Store((sent.store,)).inspect("lora-mine").manifest.technique == "lora"
    job = hub.jobs.only()
    assert (job.owner, job.spec["flavor"], job.spec["dockerImage"]) == (OWNER, "a10g-small", "python:3.11")
    assert job.spec["timeoutSeconds"] == 6 * 3600
    curve = [json.loads(line) for line in (sent.folder / "log.jsonl").read_text().splitlines()]
    assert [(each["step"], each.get("loss"), each.get("eval_loss")) for each in curve] == [
        (5, 1.25, None),
        (10, None, 0.75),
    ]
    assert STEP in sent.lines
    assert VALIDATION in sent.lines
    assert SOURCE in hub.private


def test_what_is_sent_is_the_program_the_rows_and_the_settings(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None]
) -> None:
    hub.jobs.script = trains
    sent.run()
    job = hub.jobs.only()
    files = archive(hub, job)
    assert files["data/my rows.csv"].decode() == ROWS
    assert {"errors.py", "train/__main__.py", "common/paths.py", "requirements.txt"} <= set(files)
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


def test_the_token_is_a_secret_of_the_job_and_stands_nowhere_else(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None]
) -> None:
    hub.jobs.script = trains
    sent.run()
    job = hub.jobs.only()
    assert job.spec["secrets"] == {"HF_TOKEN": TOKEN}
    assert TOKEN not in json.dumps({key: value for key, value in job.spec.items() if key != "secrets"})
    kept = [path for path in sent.folder.parents[1].rglob("*") if path.is_file()]
    assert not [path for path in kept if TOKEN.encode() in path.read_bytes()]
    assert not [name for name, content in archive(hub, job).items() if TOKEN.encode() in content]
    assert TOKEN not in "\n".join(sent.lines)


def test_no_name_of_a_job_is_read_as_a_command(hub: Hub, tmp_path: Path, trains: Callable[[RemoteJob], None]) -> None:
    sent = Sent(tmp_path / "home", {"intent_column": "$(touch /tmp/x)"})
    evil = sent.data.with_name("'; rm -rf ~ #.csv")
    sent.data.rename(evil)
    sent.job.config["dataset_name"] = str(evil)  # type: ignore[index]
    hub.jobs.script = trains
    sent.run()
    job = hub.jobs.only()
    assert job.spec["command"] == ["bash", "-c", JOB_SCRIPT]
    assert settings(hub, job)["dataset_name"] == "data/'; rm -rf ~ #.csv"
    assert "rm -rf" not in json.dumps(job.spec)


def test_a_process_that_is_killed_follows_the_same_job_when_it_comes_back(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None]
) -> None:
    first = sent.start(stopped=lambda: bool(sent.lines) and STEP in sent.lines)
    until(lambda: bool(hub.jobs.known))
    hub.jobs.only().say(STEP)
    with pytest.raises(RemoteJobStoppedError):
        first.result()
    assert not hub.jobs.only().cancelled.is_set()
    (sent.folder / "log.jsonl").unlink()  # as the job's process does before it goes on
    second = sent.start()
    hub.jobs.only().lines.clear()
    hub.jobs.only().say(STEP)
    until((sent.folder / "log.jsonl").exists)
    trains(RemoteJob("other", OWNER, hub.jobs.only().spec))
    hub.jobs.only().say(VALIDATION)
    hub.jobs.only().end()
    assert second.result().name == "lora-mine"
    assert len(hub.jobs.known) == 1
    assert sent.lines.count(STEP) == 1
    assert [json.loads(line)["step"] for line in (sent.folder / "log.jsonl").read_text().splitlines()] == [5, 10]


def test_an_answer_that_is_lost_on_the_way_begins_no_second_job(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None]
) -> None:
    hub.cuts["job"] = 1
    hub.jobs.script = trains
    sent.run()
    assert len(hub.jobs.known) == 1


def test_a_job_whose_id_never_came_to_disk_is_found_by_its_label(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("jobs.hf_jobs.submit.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            sent.run()
    assert read_remote_state(sent.folder).id == ""
    hub.jobs.script = trains
    running = sent.start()
    trains(hub.jobs.only())
    assert running.result().name == "lora-mine"
    assert len(hub.jobs.known) == 1


def test_a_log_that_breaks_is_read_on_without_a_line_twice(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None]
) -> None:
    hub.cuts["log"] = 1
    hub.jobs.script = trains
    sent.run()
    assert sent.lines.count(STEP) == sent.lines.count(VALIDATION) == 1


def test_a_person_who_stops_it_gives_the_machine_back_and_begins_again_later(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None]
) -> None:
    running = sent.start(stopped=(sent.folder / "stop").exists)
    until(lambda: any("Waits for a machine" in line for line in sent.lines))
    (sent.folder / "stop").touch()
    with pytest.raises(RemoteJobStoppedError):
        running.result()
    assert hub.jobs.only().stage == "CANCELED"
    assert "Cancelled on the Hub" in sent.lines[-1]
    (sent.folder / "stop").unlink()
    hub.jobs.script = trains
    assert sent.run().name == "lora-mine"
    assert len(hub.jobs.known) == 2


def test_a_cancel_that_cannot_be_delivered_is_said(hub: Hub, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    running = sent.start(stopped=(sent.folder / "stop").exists)
    until(lambda: any("Waits for a machine" in line for line in sent.lines))
    hub.accounts[TOKEN] = Account(OWNER, role="read")
    (sent.folder / "stop").touch()
    with pytest.raises(RemoteJobStoppedError):
        running.result()
    assert "may run on, and cost, until you cancel it at" in sent.lines[-1]
    assert hub.jobs.only().stage == "SCHEDULING"
    assert not read_remote_state(sent.folder).over


@pytest.mark.parametrize(
    ("stage", "message", "said", "sentence"),
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
def test_a_job_that_ends_badly_says_why_and_the_next_run_begins_another(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None], stage: str, message: str, said: list[str], sentence: str
) -> None:
    def fail(job: RemoteJob) -> None:
        job.say(*said)
        job.end(stage, message)

    hub.jobs.script = fail
    with pytest.raises(TrainingError) as error:
        sent.run()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    hub.jobs.script = trains
    assert sent.run().name == "lora-mine"
    assert [job.spec["labels"]["prompt-or-tune"][-2:] for job in hub.jobs.known.values()] == ["-1", "-2"]


def test_without_credit_nothing_is_begun(hub: Hub, sent: Sent) -> None:
    hub.jobs.credit = False
    with pytest.raises(TrainingError, match=r"'someone' has no credit left: add some at huggingface\.co/settings"):
        sent.run()
    assert not hub.jobs.known


def test_without_a_token_nothing_is_sent(hub: Hub, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(TrainingError, match="needs a token of the Hub"):
        sent.run()
    assert not hub.requests


def test_a_token_that_may_only_read_is_refused_before_anything_is_sent(hub: Hub, sent: Sent) -> None:
    hub.accounts[TOKEN] = Account(OWNER, role="read")
    with pytest.raises(TrainingError, match="may only read"):
        sent.run()
    assert SOURCE not in hub.history


def test_a_gated_base_is_refused_before_anything_is_sent(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["vendor/gated"] = tmp_path
    hub.gated.add("vendor/gated")
    sent = Sent(tmp_path / "home", {"model_name_or_path": "vendor/gated"})
    with pytest.raises(PromptOrTuneError, match="gated"):
        sent.run()
    assert SOURCE not in hub.history


def test_rows_are_not_put_where_everybody_can_read_them(hub: Hub, sent: Sent, tmp_path: Path) -> None:
    hub.add(SOURCE, tmp_path)
    with pytest.raises(TrainingError, match="prompt-or-tune-jobs is public"):
        sent.run()
    assert not hub.jobs.known


def test_a_repository_that_was_there_before_is_not_touched(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None], tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    before = hub.add(f"{OWNER}/lora-mine", tmp_path / "old")
    hub.jobs.script = trains
    sent.run()
    assert hub.commit(f"{OWNER}/lora-mine") == before
    assert read_remote_state(sent.folder).adapter == f"{OWNER}/lora-mine-abc123"


def test_a_hub_out_of_reach_for_long_is_said_and_the_job_is_followed_again_later(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = sent.start()
    until(lambda: any("Waits for a machine" in line for line in sent.lines))
    with monkeypatch.context() as patched:
        # The client made its address of the Hub when it was made.
        patched.setattr("huggingface_hub.hf_api.HfApi.inspect_job", _broken)
        with pytest.raises(TrainingError, match="The connection to the Hub broke while following the job of"):
            running.result()
    assert "The Hub cannot be reached" in sent.lines[-1]
    again = sent.start()
    trains(hub.jobs.only())
    assert again.result().name == "lora-mine"
    assert len(hub.jobs.known) == 1


def _broken(*_: Any, **__: Any) -> None:
    raise ConnectionError("no route")


@pytest.mark.parametrize("base", ["~/models/mine", "/models/mine.gguf", "."])
def test_a_base_that_lies_here_is_not_sent(hub: Hub, tmp_path: Path, base: str) -> None:
    sent = Sent(tmp_path / "home", {"model_name_or_path": base})
    with pytest.raises(TrainingError, match="lies on this machine and is not sent"):
        sent.run()
    assert not hub.requests


def test_a_machine_that_does_not_exist_is_refused_with_the_nearest(hub: Hub, tmp_path: Path) -> None:
    sent = Sent(tmp_path / "home", flavor="a10-small")
    with pytest.raises(PromptOrTuneError, match="did you mean 'a10g-small'"):
        sent.run()
    assert not hub.requests


def test_an_adapter_that_arrives_damaged_is_fetched_again(
    hub: Hub, sent: Sent, trains: Callable[[RemoteJob], None]
) -> None:
    hub.jobs.script = trains
    hub.cuts["download"] = 20
    with pytest.raises(PromptOrTuneError):
        sent.run(
            pace=PollIntervals(
                status_seconds=0.02, log_retry_seconds=0.02, unreachable_timeout=0.3, log_wait_seconds=0.02
            )
        )
    assert not (sent.store / "lora-mine").exists()
    hub.cuts["download"] = 0
    assert sent.run(pace=QUICK).name == "lora-mine"
    assert len(hub.jobs.known) == 1
    assert hub.url == constants.ENDPOINT
