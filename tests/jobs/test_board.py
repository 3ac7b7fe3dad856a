"""What a board takes, refuses, shows and keeps, without a process that works on it."""

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

from errors import DataError, DiskSpaceError, PromptOrTuneError, TrainingError, UnknownNameError
from jobs.api import JobService
from jobs.job import Job, JobStatus, ServingOptions, safe_file_name
from jobs.queue import open_queue
from jobs.store import JobFolder, exclusive
from tests.jobs.board import QuietBoard, named
from train.checkpoints import run_directory
from train.settings import make_config

HOSTILE = ["", ".", "..", "../x", "/etc/passwd", "20261122-180012-123456-abcdef/../..", "x" * 5000, "\0", "%2e%2e"]


def put(board: JobService, job: Job, state: JobStatus) -> None:
    """As the job's own process would leave it."""
    folder = JobFolder(board.root, job.id)
    with exclusive(board.root):
        folder.write_state(replace(folder.read_state(), state=state, attempts=1))


def with_checkpoint(board: JobService, job: Job, step: int = 4) -> Path:
    """A checkpoint of the job, as far as anybody looks at it."""
    place = run_directory(make_config(job.config, output_dir=board.home / "adapters"))
    place.create(make_config(job.config, output_dir=board.home / "adapters"))
    checkpoint = place.checkpoints / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    return checkpoint


def test_a_job_waits_with_everything_that_was_asked_for(board: QuietBoard) -> None:
    job = named(board, "lora-mine", owner="visitor-1")
    assert (job.state, job.queue_position, job.owner, job.data_name) == ("queued", 0, "visitor-1", "starter")
    assert job.config["learning_rate"] == 1e-3, "what the technique decides is written down"
    assert job.config["model_name_or_path"] == "embedded"
    assert make_config(job.config).adapter_name == "lora-mine"
    assert JobService(board.home).get_job(job.id) == job, "another program sees the same"
    assert board.asked == 1
    with open_queue(board.root) as queue:
        assert queue.pending() == {(job.id, 1)}


def test_jobs_are_listed_newest_first_and_know_how_many_are_before_them(board: QuietBoard) -> None:
    jobs = [named(board, f"lora-{number}") for number in range(4)]
    elsewhere = named(board, "lora-far", where="hub", flavor="a10g-small")
    put(board, jobs[0], "running")
    board.cancel(jobs[1].id)
    assert [job.adapter for job in board.list_jobs()] == ["lora-far", "lora-3", "lora-2", "lora-1", "lora-0"]
    assert [job.queue_position for job in board.list_jobs()] == [0, 2, 1, 0, 0]
    board.resume(jobs[1].id)
    assert board.get_job(jobs[1].id).queue_position == 3, "who was stopped goes to the end of the line"
    assert board.get_job(elsewhere.id).queue_position == 0, "what trains elsewhere waits for nobody here"


def test_an_upload_is_copied_and_named_safely(board: QuietBoard, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("intent,code\nsay hello,print('hello')\n")
    job = board.submit({"adapter_name": "lora-up"}, ServingOptions(), data=data, data_name="../../<b>my\nrows</b>.csv")
    copy = Path(job.config["dataset_name"])
    assert copy.read_bytes() == data.read_bytes()
    assert copy.parent == board.root / job.id / "data"
    assert job.data_name == "../../<b>my\nrows</b>.csv", "what the person calls it stays theirs to see"
    data.unlink()
    assert copy.exists()


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("pairs.jsonl", "pairs.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("a b;$(rm).csv", "a-b-rm.csv"),
        ("....csv", "data.csv"),
        ("..", "data"),
        ("", "data"),
        ("ä" * 300 + ".json", "data.json"),
        ("x" * 300 + ".json", "x" * 75 + ".json"),
    ],
)
def test_names_of_files_are_nothing_but_names(name: str, safe: str) -> None:
    assert safe_file_name(name) == safe


@pytest.mark.parametrize(
    ("changes", "said"),
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
def test_what_cannot_train_is_refused_and_leaves_nothing(
    board: QuietBoard, changes: dict[str, object], said: str
) -> None:
    config = {"adapter_name": "lora-mine", "dataset_name": "starter", **changes}
    with pytest.raises(PromptOrTuneError, match=said):
        board.submit(config, ServingOptions())
    assert board.list_jobs() == []


def test_what_the_base_brings_along_is_not_the_persons_to_choose(board: QuietBoard) -> None:
    config = {"adapter_name": "lora-mine", "dataset_name": "starter", "trust_remote_code": True, "data_dir": "/etc"}
    job = board.submit(config, ServingOptions(device="cpu"))
    assert job.config["trust_remote_code"] is False
    assert "data_dir" not in job.config
    assert job.config["device"] == "cpu"


def test_a_name_is_taken_by_adapters_jobs_and_runs_begun_by_hand(board: QuietBoard) -> None:
    with pytest.raises(TrainingError, match="An adapter 'lora-starter' exists"):
        named(board, "lora-starter")
    first = named(board, "lora-mine")
    with pytest.raises(TrainingError, match="belongs to the job of"):
        named(board, "lora-mine")
    board.cancel(first.id)
    second = named(board, "lora-mine")  # a job that never began holds no name
    with pytest.raises(TrainingError, match="belongs to the job of"):
        board.resume(first.id)
    put(board, second, "stopped")
    with_checkpoint(board, second)
    with pytest.raises(TrainingError, match="belongs to the job of"):
        named(board, "lora-mine")
    board.delete(second.id)
    assert board.resume(first.id).state == "queued"
    by_hand = make_config({"adapter_name": "lora-hand", "dataset_name": "starter"}, output_dir=board.home / "adapters")
    run_directory(by_hand).create(by_hand)
    checkpoint = run_directory(by_hand).checkpoints / "checkpoint-7"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    with pytest.raises(TrainingError, match="command line stopped at step 7"):
        named(board, "lora-hand")


@pytest.mark.parametrize("id", HOSTILE)
def test_an_id_reaches_no_path(board: QuietBoard, id: str) -> None:
    (board.home / "jobs").mkdir(parents=True)
    asks = (
        board.get_job,
        board.progress,
        board.log_lines,
        board.verdict,
        board.cancel,
        board.resume,
        board.finish_from_checkpoint,
        board.delete,
    )
    for ask in (*asks, board.has_checkpoint, board.adapter_folder):
        with pytest.raises(UnknownNameError, match="There is no job"):
            ask(id)


def test_an_id_that_looks_right_but_is_none_is_unknown(board: QuietBoard) -> None:
    for ask in (board.get_job, board.cancel, board.resume, board.delete, board.log_lines, board.progress):
        with pytest.raises(UnknownNameError):
            ask("20261122-180012-123456-abcdef")


def test_cancel_stops_what_waits_at_once_and_asks_what_runs(board: QuietBoard) -> None:
    waiting, running = named(board, "lora-1"), named(board, "lora-2")
    stopped = board.cancel(waiting.id)
    assert (stopped.state, stopped.message, bool(stopped.ended)) == ("stopped", "Stopped before it began.", True)
    put(board, running, "running")
    assert board.cancel(running.id).state == "stopping"
    assert JobFolder(board.root, running.id).stop_path.exists()
    assert board.cancel(running.id).state == "stopping", "twice is no more than once"
    with pytest.raises(PromptOrTuneError, match="is not running: it is stopped"):
        board.cancel(waiting.id)


def test_only_what_was_stopped_or_failed_goes_on(board: QuietBoard) -> None:
    job = named(board, "lora-1")
    with pytest.raises(PromptOrTuneError, match="is queued: only one that was stopped"):
        board.resume(job.id)
    put(board, job, "failed")
    assert board.resume(job.id).state == "queued"
    with open_queue(board.root) as queue:
        assert (job.id, 2) in queue.pending()
    put(board, job, "done")
    with pytest.raises(PromptOrTuneError, match="is done"):
        board.resume(job.id)


def test_finish_needs_a_checkpoint(board: QuietBoard) -> None:
    job = named(board, "lora-1")
    board.cancel(job.id)
    assert not board.has_checkpoint(job.id)
    with pytest.raises(PromptOrTuneError, match="no checkpoint to make an adapter of"):
        board.finish_from_checkpoint(job.id)
    with_checkpoint(board, job)
    assert board.has_checkpoint(job.id)
    assert board.finish_from_checkpoint(job.id).state == "queued"
    assert JobFolder(board.root, job.id).read_state().finish


def test_a_checkpoint_of_another_run_is_not_the_jobs(board: QuietBoard) -> None:
    job = named(board, "lora-1")
    board.cancel(job.id)
    with_checkpoint(board, replace(job, config={**job.config, "learning_rate": 0.5}))
    assert not board.has_checkpoint(job.id)
    board.delete(job.id)
    assert (board.home / "adapters" / ".lora-1.run").exists()


def test_delete_takes_an_ended_job_with_its_checkpoints_and_nothing_else(board: QuietBoard) -> None:
    job, other = named(board, "lora-1"), named(board, "lora-2")
    with pytest.raises(PromptOrTuneError, match="is queued: stop it before"):
        board.delete(job.id)
    board.cancel(job.id)
    with_checkpoint(board, job)
    finished = board.home / "adapters" / "lora-old"
    finished.mkdir()
    board.delete(job.id)
    assert [each.id for each in board.list_jobs()] == [other.id]
    assert not (board.home / "adapters" / ".lora-1.run").exists()
    assert finished.is_dir()
    assert sorted(path.name for path in board.root.iterdir() if path.is_dir()) == [other.id]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "flying"}', '{"state": "queued", "ticket": "x"}', "\0"])
def test_a_broken_state_is_a_failure_that_can_be_resumed(board: QuietBoard, content: str) -> None:
    job = named(board, "lora-1")
    (board.root / job.id / "state.json").write_text(content)
    broken = board.get_job(job.id)
    assert broken.state == "failed"
    assert "state.json cannot be read" in broken.message
    assert board.resume(job.id).state == "queued"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": 1}', '{"config": 3}'])
def test_a_broken_request_is_shown_and_can_be_deleted(board: QuietBoard, content: str) -> None:
    job, sound = named(board, "lora-1"), named(board, "lora-2")
    (board.root / job.id / "job.json").write_text(content)
    assert [each.id for each in board.list_jobs()] == [sound.id, job.id]
    assert "job.json cannot be read" in board.get_job(job.id).message
    with pytest.raises(PromptOrTuneError, match=r"job\.json cannot be read"):
        board.resume(job.id)
    assert board.progress(job.id).step == 0
    assert board.verdict(job.id) is None
    board.delete(job.id)
    assert [each.id for each in board.list_jobs()] == [sound.id]


def test_two_boards_at_once_never_give_one_name_twice(board: QuietBoard) -> None:
    boards = [QuietBoard(board.home) for _ in range(6)]
    taken: list[Job] = []
    refused: list[PromptOrTuneError] = []

    def begin(each: QuietBoard) -> None:
        try:
            taken.append(named(each, "lora-one"))
        except TrainingError as error:
            refused.append(error)

    threads = [threading.Thread(target=begin, args=(each,)) for each in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert len(refused) == 5
    assert [job.id for job in board.list_jobs()] == [taken[0].id]


def test_a_full_disk_says_so_and_leaves_nothing(
    board: QuietBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("intent,code\na,b\n")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(DiskSpaceError, match="free some room"):
        board.submit({"adapter_name": "lora-1"}, ServingOptions(), data=data)
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DataError, match="No space left"):
        board.submit({"adapter_name": "lora-1"}, ServingOptions(), data=data)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PromptOrTuneError, match="No space left"):
        named(board, "lora-1")
    monkeypatch.undo()
    assert board.list_jobs() == []
    assert [path for path in board.root.iterdir() if path.is_dir()] == []


def test_the_log_is_its_last_lines(board: QuietBoard) -> None:
    job = named(board, "lora-1")
    assert board.log_lines(job.id) == []
    folder = JobFolder(board.root, job.id)
    folder.log_path.write_bytes(b"".join(b"line %d\n" % number for number in range(500)) + b"bad \xff")
    assert board.log_lines(job.id, 3) == ["line 498", "line 499", "bad �"]
    assert board.log_lines(job.id, 0) == []
    folder.log_path.write_bytes(b"x" * 3_000_000 + b"\nend\n")
    assert board.log_lines(job.id, 1) == ["end"]


def test_a_hundred_jobs_are_listed_fast_enough_to_be_asked_each_second(board: QuietBoard) -> None:
    job = named(board, "lora-0")
    request = json.loads((board.root / job.id / "job.json").read_text())
    for number in range(100):
        folder = board.root / f"20250101-000000-{number:06d}-abcdef"
        shutil.copytree(board.root / job.id, folder)
        (folder / "job.json").write_text(json.dumps({**request, "id": folder.name}))
    began = time.perf_counter()
    assert len(board.list_jobs()) == 101
    assert time.perf_counter() - began < 0.5
