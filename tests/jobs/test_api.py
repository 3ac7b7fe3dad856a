"""JobService without a worker: submit, refuse, list, cancel, resume, delete, and damaged files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.manifest import Owner
from errors import DataError, DiskSpaceError, PromptOrTuneError, TrainingError, UnknownNameError
from jobs.api import JobService
from jobs.job import Job, JobStatus, ServingOptions, safe_file_name
from jobs.queue import open_queue
from jobs.store import JobFolder, exclusive
from tests import messages
from tests.jobs.service import ServiceWithoutWorker, submit_named
from train.config import run_directory
from train.settings import make_config

HOSTILE = ["", ".", "..", "../x", "/etc/passwd", "20261122-180012-123456-abcdef/../..", "x" * 5000, "\0", "%2e%2e"]


def set_state(service: JobService, job: Job, state: JobStatus) -> None:
    """Write the state as the job's process does."""
    folder = JobFolder(service.root, job.id)
    with exclusive(service.root):
        folder.write_state(replace(folder.read_state(), state=state, attempts=1))


def with_checkpoint(service: JobService, job: Job, step: int = 4) -> Path:
    """Create the files of a checkpoint that the service reads."""
    run = run_directory(make_config(job.config, output_dir=service.home / "adapters"))
    run.create(make_config(job.config, output_dir=service.home / "adapters"), "0")
    checkpoint = run.checkpoints / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    return checkpoint


def test_submitted_job_is_queued(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "lora-mine", owner=Owner("visitor-1"))
    assert (job.state, job.queue_position, job.owner, job.data_name) == ("queued", 0, "visitor-1", "starter")
    assert job.config["learning_rate"] == 1e-3, "the values of the technique are stored"
    assert job.config["model_name_or_path"] == "embedded"
    assert make_config(job.config).adapter_name == "lora-mine"
    assert JobService(service.home).get_job(job.id) == job, "another program reads the same"
    assert service.worker_requests == 1
    with open_queue(service.root) as queue:
        assert queue.pending() == {(job.id, 1)}


def test_jobs_are_listed_newest_first_with_queue_positions(service: ServiceWithoutWorker) -> None:
    jobs = [submit_named(service, f"lora-{number}") for number in range(4)]
    elsewhere = submit_named(service, "lora-far", where="hub", flavor="a10g-small")
    set_state(service, jobs[0], "running")
    service.cancel(jobs[1].id)
    assert [job.adapter for job in service.list_jobs()] == ["lora-far", "lora-3", "lora-2", "lora-1", "lora-0"]
    assert [job.queue_position for job in service.list_jobs()] == [0, 2, 1, 0, 0]
    service.resume(jobs[1].id)
    assert service.get_job(jobs[1].id).queue_position == 3, "a resumed job is queued last"
    assert service.get_job(elsewhere.id).queue_position == 0, "a remote job does not wait for local ones"


def test_upload_is_copied_under_safe_name(service: ServiceWithoutWorker, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("intent,code\nsay hello,print('hello')\n")
    job = service.submit(
        {"adapter_name": "lora-up"}, ServingOptions(), data=data, data_name="../../<b>my\nrows</b>.csv"
    )
    copy = Path(job.config["dataset_name"])
    assert copy.read_bytes() == data.read_bytes()
    assert copy.parent == service.root / job.id / "data"
    assert job.data_name == "../../<b>my\nrows</b>.csv", "the displayed name is unchanged"
    data.unlink()
    assert copy.exists()


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("pairs.jsonl", "pairs.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("a b;$(rm).csv", "a-b-rm.csv"),
        ("C:\\rows\\my.csv", "my.csv"),
        ("<img src=x onerror=alert(1)>.csv", "img-src-x-onerror-alert-1.csv"),
        (".hidden.csv", "hidden.csv"),
        ("....csv", "data.csv"),
        ("..", "data"),
        ("", "data"),
        ("ä" * 300 + ".json", "data.json"),
        ("x" * 300 + ".json", "x" * 75 + ".json"),
    ],
)
def test_safe_file_name(name: str, safe: str) -> None:
    assert safe_file_name(name) == safe


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset_name": "/etc/passwd"}, "give the file itself"),
        ({"dataset_name": "errors.py"}, "give the file itself"),
        ({"dataset_name": "~/pairs.jsonl"}, "give the file itself"),
        ({"dataset_name": "nowhere.csv"}, "give the file itself"),
        ({"dataset_name": "sterter"}, "is no data set"),
        ({"validation_file": "/etc/passwd"}, "decides validation_file by itself"),
        ({"output_dir": "/tmp/out"}, "decides output_dir by itself"),
        ({"push_to_hub": True}, "decides push_to_hub by itself"),
        ({"model_name_or_path": "/etc"}, "start the app with that base"),
        ({"adapter_name": "../x"}, "cannot name an adapter"),
        ({"learning_rate": -1}, "learning_rate must be above 0"),
        ({"technique": "lorra"}, "lora"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_invalid_settings_are_refused(service: ServiceWithoutWorker, changes: dict[str, object], expected: str) -> None:
    config = {"adapter_name": "lora-mine", "dataset_name": "starter", **changes}
    with pytest.raises(PromptOrTuneError, match=expected):
        service.submit(config, ServingOptions())
    assert service.list_jobs() == []


def test_serving_options_override_settings(service: ServiceWithoutWorker) -> None:
    config = {"adapter_name": "lora-mine", "dataset_name": "starter", "trust_remote_code": True, "data_dir": "/etc"}
    job = service.submit(config, ServingOptions(device="cpu"))
    assert job.config["trust_remote_code"] is False
    assert "data_dir" not in job.config
    assert job.config["device"] == "cpu"


def test_names_of_adapters_jobs_and_runs_cannot_be_reused(service: ServiceWithoutWorker) -> None:
    with pytest.raises(TrainingError, match=messages.ADAPTER_EXISTS):
        submit_named(service, "lora-starter")
    first = submit_named(service, "lora-mine")
    with pytest.raises(TrainingError, match=messages.NAME_BELONGS_TO_JOB):
        submit_named(service, "lora-mine")
    service.cancel(first.id)
    second = submit_named(service, "lora-mine")  # a job without a checkpoint reserves no name
    with pytest.raises(TrainingError, match=messages.NAME_BELONGS_TO_JOB):
        service.resume(first.id)
    set_state(service, second, "stopped")
    with_checkpoint(service, second)
    with pytest.raises(TrainingError, match=messages.NAME_BELONGS_TO_JOB):
        submit_named(service, "lora-mine")
    service.delete(second.id)
    assert service.resume(first.id).state == "queued"
    by_hand = make_config(
        {"adapter_name": "lora-hand", "dataset_name": "starter"}, output_dir=service.home / "adapters"
    )
    run_directory(by_hand).create(by_hand, "0")
    checkpoint = run_directory(by_hand).checkpoints / "checkpoint-7"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    with pytest.raises(TrainingError, match=messages.STOPPED_COMMAND_LINE_RUN):
        submit_named(service, "lora-hand")


@pytest.mark.parametrize("id", HOSTILE)
def test_malformed_id_is_unknown(service: ServiceWithoutWorker, id: str) -> None:
    (service.home / "jobs").mkdir(parents=True)
    methods = (
        service.get_job,
        service.progress,
        service.log_lines,
        service.verdict,
        service.cancel,
        service.resume,
        service.finish_from_checkpoint,
        service.delete,
    )
    for method in (*methods, service.has_checkpoint, service.adapter_folder):
        with pytest.raises(UnknownNameError, match=messages.NO_SUCH_JOB):
            method(id)


def test_well_formed_id_without_job_is_unknown(service: ServiceWithoutWorker) -> None:
    for method in (
        service.get_job,
        service.cancel,
        service.resume,
        service.delete,
        service.log_lines,
        service.progress,
    ):
        with pytest.raises(UnknownNameError):
            method("20261122-180012-123456-abcdef")


def test_cancel_stops_waiting_and_running_jobs(service: ServiceWithoutWorker) -> None:
    waiting, running = submit_named(service, "lora-1"), submit_named(service, "lora-2")
    stopped = service.cancel(waiting.id)
    assert (stopped.state, stopped.message, bool(stopped.ended)) == ("stopped", "Stopped before it began.", True)
    set_state(service, running, "running")
    assert service.cancel(running.id).state == "stopping"
    assert JobFolder(service.root, running.id).stop_path.exists()
    assert service.cancel(running.id).state == "stopping", "a second cancel changes nothing"
    with pytest.raises(PromptOrTuneError, match=messages.NOT_RUNNING):
        service.cancel(waiting.id)


def test_only_stopped_and_failed_jobs_resume(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "lora-1")
    with pytest.raises(PromptOrTuneError, match=messages.QUEUED_JOB_CANNOT_RESUME):
        service.resume(job.id)
    set_state(service, job, "failed")
    assert service.resume(job.id).state == "queued"
    with open_queue(service.root) as queue:
        assert (job.id, 2) in queue.pending()
    set_state(service, job, "done")
    with pytest.raises(PromptOrTuneError, match=messages.JOB_IS_DONE):
        service.resume(job.id)


def test_finish_requires_a_checkpoint(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "lora-1")
    service.cancel(job.id)
    assert not service.has_checkpoint(job.id)
    with pytest.raises(PromptOrTuneError, match=messages.NO_CHECKPOINT_TO_FINISH):
        service.finish_from_checkpoint(job.id)
    with_checkpoint(service, job)
    assert service.has_checkpoint(job.id)
    assert service.finish_from_checkpoint(job.id).state == "queued"
    assert JobFolder(service.root, job.id).read_state().finish


def test_checkpoint_of_another_run_does_not_belong_to_the_job(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "lora-1")
    service.cancel(job.id)
    with_checkpoint(service, replace(job, config={**job.config, "learning_rate": 0.5}))
    assert not service.has_checkpoint(job.id)
    service.delete(job.id)
    assert (service.home / "adapters" / ".lora-1.run").exists()


def test_delete_removes_job_and_checkpoints_only(service: ServiceWithoutWorker) -> None:
    job, other = submit_named(service, "lora-1"), submit_named(service, "lora-2")
    with pytest.raises(PromptOrTuneError, match=messages.QUEUED_JOB_CANNOT_BE_DELETED):
        service.delete(job.id)
    service.cancel(job.id)
    with_checkpoint(service, job)
    finished = service.home / "adapters" / "lora-old"
    finished.mkdir()
    service.delete(job.id)
    assert [each.id for each in service.list_jobs()] == [other.id]
    assert not (service.home / "adapters" / ".lora-1.run").exists()
    assert finished.is_dir()
    assert sorted(path.name for path in service.root.iterdir() if path.is_dir()) == [other.id]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "flying"}', '{"state": "queued", "ticket": "x"}', "\0"])
def test_damaged_state_is_failed_and_can_be_resumed(service: ServiceWithoutWorker, content: str) -> None:
    job = submit_named(service, "lora-1")
    (service.root / job.id / "state.json").write_text(content)
    broken = service.get_job(job.id)
    assert broken.state == "failed"
    assert "state.json cannot be read" in broken.message
    assert service.resume(job.id).state == "queued"


def test_state_of_earlier_version_is_read(service: ServiceWithoutWorker) -> None:
    """Earlier versions called the generation `ticket`."""
    job = submit_named(service, "lora-1")
    path = service.root / job.id / "state.json"
    values = json.loads(path.read_text())
    values["ticket"] = values.pop("generation") + 6
    path.write_text(json.dumps(values))
    assert JobFolder(service.root, job.id).read_state().generation == 7
    service.cancel(job.id)
    service.resume(job.id)
    assert json.loads(path.read_text())["generation"] == 8
    with open_queue(service.root) as queue:
        assert (job.id, 8) in queue.pending()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": 1}', '{"config": 3}'])
def test_damaged_request_is_listed_and_can_be_deleted(service: ServiceWithoutWorker, content: str) -> None:
    job, valid = submit_named(service, "lora-1"), submit_named(service, "lora-2")
    (service.root / job.id / "job.json").write_text(content)
    assert [each.id for each in service.list_jobs()] == [valid.id, job.id]
    assert "job.json cannot be read" in service.get_job(job.id).message
    with pytest.raises(PromptOrTuneError, match=messages.JOB_FILE_UNREADABLE):
        service.resume(job.id)
    assert service.progress(job.id).step == 0
    assert service.verdict(job.id) is None
    service.delete(job.id)
    assert [each.id for each in service.list_jobs()] == [valid.id]


def test_concurrent_submissions_use_a_name_once(service: ServiceWithoutWorker) -> None:
    services = [ServiceWithoutWorker(service.home) for _ in range(6)]
    taken: list[Job] = []
    refused: list[PromptOrTuneError] = []

    def begin(each: ServiceWithoutWorker) -> None:
        try:
            taken.append(submit_named(each, "lora-one"))
        except TrainingError as error:
            refused.append(error)

    threads = [threading.Thread(target=begin, args=(each,)) for each in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert len(refused) == 5
    assert [job.id for job in service.list_jobs()] == [taken[0].id]


def test_full_disk_is_reported_and_leaves_no_files(
    service: ServiceWithoutWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("intent,code\na,b\n")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(DiskSpaceError, match=messages.DISK_FULL):
        service.submit({"adapter_name": "lora-1"}, ServingOptions(), data=data)
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DataError, match=messages.NO_SPACE_LEFT):
        service.submit({"adapter_name": "lora-1"}, ServingOptions(), data=data)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PromptOrTuneError, match=messages.NO_SPACE_LEFT):
        submit_named(service, "lora-1")
    monkeypatch.undo()
    assert service.list_jobs() == []
    assert [path for path in service.root.iterdir() if path.is_dir()] == []


def test_log_returns_the_last_lines(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "lora-1")
    assert service.log_lines(job.id) == []
    folder = JobFolder(service.root, job.id)
    folder.log_path.write_bytes(b"".join(b"line %d\n" % number for number in range(500)) + b"bad \xff")
    assert service.log_lines(job.id, 3) == ["line 498", "line 499", "bad �"]
    assert service.log_lines(job.id, 0) == []
    folder.log_path.write_bytes(b"x" * 3_000_000 + b"\nend\n")
    assert service.log_lines(job.id, 1) == ["end"]


def test_hundred_jobs_are_listed_quickly(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "lora-0")
    request = json.loads((service.root / job.id / "job.json").read_text())
    for number in range(100):
        folder = service.root / f"20250101-000000-{number:06d}-abcdef"
        shutil.copytree(service.root / job.id, folder)
        (folder / "job.json").write_text(json.dumps({**request, "id": folder.name}))
    began = time.perf_counter()
    assert len(service.list_jobs()) == 101
    assert time.perf_counter() - began < 0.5
