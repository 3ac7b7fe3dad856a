"""Jobs on disk in every state as a worker writes them, without a worker."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.manifest import Manifest, Owner
from common.format import utc_timestamp
from jobs.api import JobService
from jobs.job import ComputeTarget, Job, ScoreComparison, ServingOptions, Verdict, job_config
from jobs.store import JobFolder, JobState, exclusive
from train.config import RunDirectory, TrainConfig, run_directory

CSV = "intent,snippet\n" + "".join(f"add {n} to x,x + {n}\n" for n in range(24))
STEPS = 120
VERDICT = Verdict(
    "LoRA beats RAG-8 by 12.5 points of EM@1, 95 % interval 5.0 to 20.0 (n = 40).",
    40,
    (
        ScoreComparison("em", "zero-shot", 0.35, 0.05, 0.30, 0.175, 0.425, 0.0004, 40),
        ScoreComparison("em", "rag-8", 0.35, 0.225, 0.125, 0.05, 0.20, 0.012, 40),
        ScoreComparison("codebleu", "zero-shot", 0.512, 0.244, 0.268, 0.19, 0.34, 0.0001, 40),
        ScoreComparison("codebleu", "rag-8", 0.512, 0.498, 0.014, -0.03, 0.06, 0.41, 40),
    ),
    {
        "base": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "revision": "sha256:0123456789abcdef",
        "quantization": "nf4",
        "seed": 42,
        "prompt_fingerprint": "5f0c2a91",
        "command": "python -m evaluate --dataset mine.csv --methods zero-shot rag-8 lora-mine",
    },
)


class WorkerlessJobService(JobService):
    """A job service that starts no worker; `wake_count` counts the requests for one."""

    wake_count = 0

    def ensure_worker(self) -> None:
        self.wake_count += 1


def submit(
    service: JobService,
    adapter: str = "lora-mine",
    *,
    data_name: str = "mine.csv",
    owner: str = "",
    where: ComputeTarget = "here",
    **config: Any,
) -> Job:
    """Submit a job with an uploaded file."""
    file = service.home / "upload.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(CSV, encoding="utf-8")
    values = {"adapter_name": adapter, **config}
    return service.submit(values, ServingOptions(), owner=Owner(owner), data_name=data_name, data=file, where=where)


def set_state(service: JobService, id: str, **changes: Any) -> None:
    """Change a job's state as its worker does."""
    folder = JobFolder(service.root, id)
    with exclusive(service.root):
        folder.write_state(replace(folder.read_state(), **changes))


def run_directory_of(service: JobService, id: str) -> RunDirectory:
    """Return the directory of the job's training with its log and checkpoints."""
    return run_directory(job_config(service.get_job(id), service.home))


def write_training(service: JobService, id: str, step: int, *, since: int = 0) -> None:
    """Write the training log after `since` up to `step`, as train.trainer does, with an evaluation every 12 steps."""
    run = run_directory_of(service, id)
    if not run.settings.is_file():
        run.create(job_config(service.get_job(id), service.home), "0")
    with run.log.open("a", encoding="utf-8") as file:
        for number in range(since + 1, step + 1):
            entry = {"step": number, "epoch": number / 24, "loss": _loss(number)}
            entry |= {
                "tokens": number * 900,
                "tokens_per_second": 412.5,
                "seconds": number * 2.2,
                "memory_bytes": 1_430_000_000,
            }
            file.write(json.dumps(entry) + "\n")
            if number % 12 == 0:
                file.write(json.dumps({**entry, "loss": None, "eval_loss": _eval_loss(number)}) + "\n")
    started = read_state(service, id).started or utc_timestamp()
    set_state(
        service, id, state="running", stage="training", started=started, attempts=1, steps=STEPS, message=f"step {step}"
    )


def _loss(step: int) -> float:
    return 0.6 + 1.9 * math.exp(-step / 30) + 0.12 * math.sin(step * 1.7)


def _eval_loss(step: int) -> float:
    return 0.9 + 1.4 * math.exp(-step / 35) + (step / 900) ** 1.5


def write_checkpoint(service: JobService, id: str, step: int) -> None:
    """Write a checkpoint at `step`."""
    folder = run_directory_of(service, id).checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": str(folder)}), encoding="utf-8")


def write_log(service: JobService, id: str, *lines: str) -> None:
    """Append lines to the job's log."""
    with JobFolder(service.root, id).log_path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def stop(service: JobService, id: str, step: int = 60) -> None:
    """Stop the job at `step`, with a checkpoint there."""
    write_training(service, id, step)
    write_checkpoint(service, id, step)
    set_state(service, id, state="stopped", stage="", ended=utc_timestamp(), message=f"Stopped at step {step}.")


def fail(service: JobService, id: str, message: str) -> None:
    """Set the job to failed during its start."""
    write_log(service, id, "Loading the base ...", *(f"line {n}" for n in range(20)), message)
    set_state(
        service,
        id,
        state="failed",
        stage="training",
        started=utc_timestamp(),
        ended=utc_timestamp(),
        attempts=1,
        message=message,
    )


def complete(service: JobService, id: str, folder: Path | None = None, verdict: Verdict = VERDICT) -> None:
    """Finish the job; `folder` (a real adapter) becomes its adapter, else an empty folder."""
    write_training(service, id, STEPS)
    job, run = service.get_job(id), run_directory_of(service, id)
    job_folder = JobFolder(service.root, id)
    run.log.replace(job_folder.curve_path)
    run.remove()
    target = service.home / "adapters" / job.adapter
    if folder:
        folder.rename(target)
    else:
        target.mkdir(parents=True)
        (target / "adapter_config.json").write_text("{}", encoding="utf-8")
    write_manifest(target, job_config(job, service.home))
    job_folder.write_verdict(verdict)
    set_state(service, id, state="done", stage="", ended=utc_timestamp(), trained=True, message="Done.")


def write_manifest(folder: Path, config: TrainConfig) -> None:
    """Write the manifest of the adapter in `folder` with its training settings."""
    manifest = Manifest(
        name=folder.name,
        technique=config.technique,
        base_id=config.model_name_or_path,
        base_revision="sha256:0123456789abcdef",
        trained_quantization=config.quantization,
        prompt_style=config.prompt_style,
        prompt_fingerprint="5f0c2a91",
        dataset="mine.csv",
        dataset_digest="sha256:0",
        seed=config.seed,
        licence="mit",
        config=config.to_public_dict(),
    )
    manifest.write(folder)


def read_state(service: JobService, id: str) -> JobState:
    """Return the state in state.json."""
    return JobFolder(service.root, id).read_state()
