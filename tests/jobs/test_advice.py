"""Jobs that give advice, with a fake advisor: queue, result, stop, kill, continue, owner and command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from adapters.manifest import Owner, read_origin, write_origin
from advise.folder import AdviceFolder, AdviseOptions, PlannedStep, ProgressWriter
from errors import AdapterError, PromptOrTuneError, UnknownNameError
from jobs.__main__ import main
from jobs.job import Job, ServingOptions, model_options
from jobs.queue import open_queue
from jobs.runner import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, run_job
from jobs.store import JobFolder
from jobs.worker import recover_job
from serve.options import ModelOptions
from tests import messages
from tests.conftest import ROOT
from tests.jobs.service import ServiceWithoutWorker, submit_named, wait_for

pytestmark = pytest.mark.slow  # a job's process imports torch

STEPS = ("baselines", "search", "test")
SENTENCE = "Retrieve: RAG-4 answers 12 of 40 test rows right, 8 more than zero-shot."
RunAdvice = Callable[[AdviseOptions, ModelOptions, AdviceFolder, Path, Callable[[str], None]], dict[str, Any]]


def advisor(
    pause: Callable[[str], None] = lambda _: None, *, adapter: str | None = None, error: Exception | None = None
) -> RunAdvice:
    """Return an advisor that stores three steps and calls `pause` with the name of each before it is finished."""

    def compute(name: str, model: ModelOptions, options: AdviseOptions) -> list[str | None]:
        pause(name)
        return [model.base, options.data, name]

    def run(options: AdviseOptions, model: ModelOptions, folder: AdviceFolder, home: Path, report: Any) -> Any:
        writer = ProgressWriter(folder, report, options.minutes * 60)
        writer.plan([PlannedStep(name, name, 10.0) for name in STEPS], 30.0)
        result = {"version": 1, "finished": False, "recommendation": {"sentence": SENTENCE, "adapter": None}}
        try:
            for name in STEPS:
                writer.step(name, "running")
                folder.once(name, partial(compute, name, model, options))
                writer.step(name, "done")
            if error:
                raise error
            result["finished"] = True
            if adapter:
                (home / "adapters" / adapter).mkdir(parents=True, exist_ok=True)
                folder.once("adapter", lambda: {"adapter": adapter})
        finally:
            folder.result_path.write_text(json.dumps(result))
            writer.flush()
        return result

    return run


def use_advisor(monkeypatch: pytest.MonkeyPatch, run: RunAdvice) -> None:
    module = ModuleType("advise.advisor")
    module.run_advice = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "advise.advisor", module)


def submit(service: ServiceWithoutWorker, adapter: str = "advice-starter", **more: Any) -> Job:
    return service.submit_advice(AdviseOptions("starter", adapter, minutes=5), ServingOptions(base="mine"), **more)


def steps_of(service: ServiceWithoutWorker, job: Job) -> list[str]:
    return sorted(path.stem for path in (service.advice(job.id).path / "steps").glob("*.json"))


def test_advice_waits_in_the_queue_of_the_trainings(service: ServiceWithoutWorker) -> None:
    training, advice = submit_named(service, "lora-first"), submit(service, owner=Owner("user-1", "ada"))
    assert (training.kind, advice.kind) == ("train", "advise")
    assert (advice.queue_position, advice.data_name, advice.owner_name) == (1, "starter", "ada")
    assert AdviseOptions.from_json(advice.config) == AdviseOptions("starter", "advice-starter", 5.0, 42)
    with open_queue(service.root) as queue:
        assert queue.pending() == {(training.id, 1), (advice.id, 1)}
        assert len(queue.hueys["here"]) == 2
    assert not service.has_checkpoint(advice.id)
    assert service.adapter_folder(advice.id) is None
    assert service.advice(advice.id).read_result() is None
    with pytest.raises(PromptOrTuneError, match=messages.JOB_IS_TRAINING):
        service.advice(training.id)


def test_name_of_an_advice_is_reserved(service: ServiceWithoutWorker) -> None:
    submit(service, "mine")
    with pytest.raises(PromptOrTuneError, match="The name 'mine' belongs to the job"):
        submit_named(service, "mine")
    with pytest.raises(AdapterError, match=messages.ADAPTER_NAME_INVALID):
        submit(service, "../mine")
    with pytest.raises(UnknownNameError, match="data set"):
        service.submit_advice(AdviseOptions("nothing", "other"), ServingOptions())


def test_job_of_an_earlier_version_is_a_training(service: ServiceWithoutWorker) -> None:
    job = submit_named(service, "lora-old")
    path = service.root / job.id / "job.json"
    values = json.loads(path.read_text())
    assert values.pop("kind") == "train"
    path.write_text(json.dumps(values))
    assert service.get_job(job.id) == job


def test_advice_is_run_and_its_recommendation_is_the_message(
    service: ServiceWithoutWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_advisor(monkeypatch, advisor())
    job = submit(service)
    assert run_job(service.home, job.id) == EXIT_DONE
    job = service.get_job(job.id)
    assert (job.state, job.stage, job.message) == ("done", "", SENTENCE)
    progress = service.progress(job.id)
    assert (progress.step, progress.steps) == (3, 3)
    assert service.advice(job.id).once("search", list) == ["mine", "starter", "search"]
    assert any("search: done" in line for line in service.log_lines(job.id))
    assert service.adapter_folder(job.id) is None
    submit_named(service, job.adapter)  # no adapter came of it, so its name is free


def test_adapter_of_an_advice_is_its_owners(service: ServiceWithoutWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    use_advisor(monkeypatch, advisor(adapter="advice-starter"))
    job = submit(service, owner=Owner("user-1", "ada"))
    assert run_job(service.home, job.id) == EXIT_DONE
    folder = service.adapter_folder(job.id)
    assert folder == service.home / "adapters" / "advice-starter"
    origin = read_origin(folder)
    assert origin is not None
    assert (origin.kind, origin.what, origin.owner, origin.owner_name) == ("job", job.id, "user-1", "ada")
    service.delete(job.id)
    assert folder.is_dir()


def test_adapter_of_another_is_not_claimed(service: ServiceWithoutWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(name: str) -> None:
        if name == "test":
            (service.home / "adapters" / "taken").mkdir(parents=True)
            write_origin(service.home / "adapters" / "taken", "zip", "theirs.zip", Owner("user-2"))

    use_advisor(monkeypatch, advisor(add, adapter="taken"))
    job = submit(service, "taken", owner=Owner("user-1"))
    assert run_job(service.home, job.id) == EXIT_DONE
    assert service.adapter_folder(job.id) is None
    origin = read_origin(service.home / "adapters" / "taken")
    assert origin is not None
    assert origin.owner == "user-2"


def test_stopped_advice_goes_on_behind_its_last_step(
    service: ServiceWithoutWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, begun = submit(service), threading.Event()

    def pause(name: str) -> None:
        if name == "search":
            begun.set()
            time.sleep(60)

    use_advisor(monkeypatch, advisor(pause))
    stopper = threading.Thread(target=lambda: (begun.wait(60), service.cancel(job.id)))
    stopper.start()
    assert run_job(service.home, job.id) == EXIT_STOPPED
    stopper.join()
    stopped = service.get_job(job.id)
    assert (stopped.state, stopped.message) == (
        "stopped",
        "Stopped; 1 finished step is stored, and a resumed advice goes on.",
    )
    assert steps_of(service, job) == ["baselines"]
    with pytest.raises(PromptOrTuneError, match=messages.NO_CHECKPOINT_TO_FINISH):
        service.finish_from_checkpoint(job.id)
    with pytest.raises(PromptOrTuneError, match="belongs to the job"):
        submit_named(service, job.adapter)
    ran: list[str] = []
    use_advisor(monkeypatch, advisor(ran.append))
    assert service.resume(job.id).state == "queued"
    assert run_job(service.home, job.id) == EXIT_DONE
    assert ran == ["search", "test"]
    assert service.get_job(job.id).attempts == 2


def test_training_that_was_stopped_stops_the_advice(
    service: ServiceWithoutWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.run import TrainingStoppedError

    job = submit(service)
    use_advisor(monkeypatch, advisor(error=TrainingStoppedError("stopped at step 3")))
    assert run_job(service.home, job.id) == EXIT_STOPPED
    assert service.get_job(job.id).state == "stopped"


def test_error_of_the_advisor_is_the_message(service: ServiceWithoutWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit(service)
    use_advisor(monkeypatch, advisor(error=PromptOrTuneError("These rows are too few: give 40 or more.")))
    assert run_job(service.home, job.id) == EXIT_FAILED
    failed = service.get_job(job.id)
    assert (failed.state, failed.message) == ("failed", "These rows are too few: give 40 or more.")


KILLED = """
    import sys, time
    from pathlib import Path
    import pytest
    from jobs.runner import run_job
    from tests.jobs.test_advice import advisor, use_advisor

    with pytest.MonkeyPatch.context() as patch:
        use_advisor(patch, advisor(lambda name: time.sleep(60) if name == sys.argv[3] else None))
        run_job(Path(sys.argv[1]), sys.argv[2])
"""


def kill_in_step(service: ServiceWithoutWorker, job: Job, step: str) -> None:
    """Run the job in a process that is killed while the step runs."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(service.home), job.id, step]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    finished = STEPS[: STEPS.index(step)]
    running = f'"{step}", "title": "{step}", "state": "running"'
    progress = service.advice(job.id).path / "progress.json"
    try:
        wait_for(lambda: service.get_job(job.id).stage == "advising", "the beginning of the attempt")
        wait_for(lambda: progress.exists() and running in progress.read_text(), f"step {step}")
        assert steps_of(service, job) == sorted(finished)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    with open_queue(service.root) as queue:
        recover_job(JobFolder(service.root, job.id), queue)


def test_killed_advice_continues_and_crashes_count_without_progress(
    service: ServiceWithoutWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(service)
    folder = JobFolder(service.root, job.id)
    kill_in_step(service, job, "search")
    assert folder.read_state().crashes == 1
    kill_in_step(service, job, "search")
    assert (folder.read_state().crashes, folder.read_state().reached) == (1, (1, 0)), "it had got further"
    kill_in_step(service, job, "search")
    assert folder.read_state().crashes == 2
    (service.advice(job.id).subfolder("runs") / "test.jsonl").write_text("{}\n")  # answers count as progress
    ran: list[str] = []
    use_advisor(monkeypatch, advisor(ran.append))
    assert run_job(service.home, job.id) == EXIT_DONE
    assert ran == ["search", "test"]
    assert (folder.read_state().crashes, folder.read_state().reached) == (0, (1, 3))


def test_deleted_advice_leaves_nothing(service: ServiceWithoutWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    use_advisor(monkeypatch, advisor())
    job = submit(service)
    run_job(service.home, job.id)
    service.delete(job.id)
    assert not (service.root / job.id).exists()
    assert service.list_jobs() == []


def test_command_line_knows_advice(
    service: ServiceWithoutWorker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_advisor(monkeypatch, advisor())
    job = submit(service)
    assert main(["list"]) == 0
    assert f"{job.id}  queued    advice on starter  Waits" in capsys.readouterr().out
    run_job(service.home, job.id)
    service.advice(job.id).report_path.write_text("<p>")
    capsys.readouterr()
    assert main(["show", job.id]) == 0
    printed = capsys.readouterr().out
    assert f"Advice on starter: done. {SENTENCE}\n3 of 3 steps" in printed
    assert str(service.advice(job.id).report_path) in printed
    assert main(["log", job.id]) == 0
    assert "search: done" in capsys.readouterr().out
    assert main(["finish", job.id]) == 2
    assert main(["cancel", job.id]) == 2
    assert main(["delete", job.id]) == 0


def test_base_of_the_app_is_that_of_the_advice(tmp_path: Path) -> None:
    serving = ServingOptions("user/base", "int8", "cpu", str(tmp_path), False, "user/embedder")
    assert model_options(serving) == ModelOptions("user/base", "int8", "cpu", tmp_path, False, "user/embedder")
    assert model_options(ServingOptions()).data_dir is None
