"""Jobs as the worker would leave them on disk, in every state, without a worker."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.manifest import Manifest
from jobs.api import JobService
from jobs.job import ComputeTarget, Job, ScoreComparison, ServingOptions, Verdict, job_config
from jobs.store import JobFolder, JobState, exclusive, utc_timestamp
from train.checkpoints import RunDirectory, run_directory
from train.config import TrainConfig

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


class QuietBoard(JobService):
    """A board that starts no process; `woken` counts how often it was asked to."""

    woken = 0

    def ensure_worker(self) -> None:
        self.woken += 1


def begin(
    board: JobService,
    adapter: str = "lora-mine",
    *,
    data_name: str = "mine.csv",
    owner: str = "",
    where: ComputeTarget = "here",
    **config: Any,
) -> Job:
    """A new job in the queue, over an uploaded file."""
    file = board.home / "upload.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(CSV, encoding="utf-8")
    values = {"adapter_name": adapter, **config}
    return board.submit(values, ServingOptions(), owner=owner, data_name=data_name, data=file, where=where)


def stand(board: JobService, id: str, **changes: Any) -> None:
    """Changes how a job stands, as its worker does."""
    folder = JobFolder(board.root, id)
    with exclusive(board.root):
        folder.write_state(replace(folder.read_state(), **changes))


def run_of(board: JobService, id: str) -> RunDirectory:
    """Where the job's training has its log and checkpoints."""
    return run_directory(job_config(board.get_job(id), board.home))


def train(board: JobService, id: str, step: int, *, since: int = 0) -> None:
    """Lets the job's training come to `step`: its log grows as train.callbacks writes it; every 12th is evaluated."""
    place = run_of(board, id)
    if not place.settings.is_file():
        place.create(job_config(board.get_job(id), board.home))
    with place.log.open("a", encoding="utf-8") as file:
        for at in range(since + 1, step + 1):
            entry = {"step": at, "epoch": at / 24, "loss": 0.6 + 1.9 * math.exp(-at / 30) + 0.12 * math.sin(at * 1.7)}
            entry |= {
                "tokens": at * 900,
                "tokens_per_second": 412.5,
                "seconds": at * 2.2,
                "memory_bytes": 1_430_000_000,
            }
            file.write(json.dumps(entry) + "\n")
            if at % 12 == 0:
                looked = {"step": at, "epoch": at / 24, "eval_loss": 0.9 + 1.4 * math.exp(-at / 35) + (at / 900) ** 1.5}
                file.write(json.dumps({**entry, **looked} | {"loss": None}) + "\n")
    begun = standing(board, id).started or utc_timestamp()
    stand(board, id, state="running", stage="training", started=begun, attempts=1, steps=STEPS, message=f"step {step}")


def keep_checkpoint(board: JobService, id: str, step: int) -> None:
    """A whole checkpoint at `step`."""
    folder = run_of(board, id).checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": str(folder)}), encoding="utf-8")


def write_log(board: JobService, id: str, *lines: str) -> None:
    """Lines for people."""
    with JobFolder(board.root, id).log_path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def stop(board: JobService, id: str, step: int = 60) -> None:
    """Stopped by a person at `step`, with a checkpoint there."""
    train(board, id, step)
    keep_checkpoint(board, id, step)
    stand(board, id, state="stopped", stage="", ended=utc_timestamp(), message=f"Stopped at step {step}.")


def fail(board: JobService, id: str, sentence: str) -> None:
    """Failed while it began."""
    write_log(board, id, "Loading the base ...", *(f"line {n}" for n in range(20)), sentence)
    stand(
        board,
        id,
        state="failed",
        stage="training",
        started=utc_timestamp(),
        ended=utc_timestamp(),
        attempts=1,
        message=sentence,
    )


def complete(board: JobService, id: str, folder: Path | None = None, verdict: Verdict = VERDICT) -> None:
    """Trained, scored and done; `folder` (a real adapter) becomes what came of it, else an empty folder."""
    train(board, id, STEPS)
    job, place = board.get_job(id), run_of(board, id)
    here = JobFolder(board.root, id)
    place.log.replace(here.curve_path)
    place.remove()
    target = board.home / "adapters" / job.adapter
    if folder:
        folder.rename(target)
    else:
        target.mkdir(parents=True)
        (target / "adapter_config.json").write_text("{}", encoding="utf-8")
    sign(target, job_config(job, board.home))
    here.write_verdict(verdict)
    stand(board, id, state="done", stage="", ended=utc_timestamp(), trained=True, message="Done.")


def sign(folder: Path, config: TrainConfig) -> None:
    """Writes the manifest that says with which settings the adapter in `folder` was trained."""
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


def standing(board: JobService, id: str) -> JobState:
    """What state.json says."""
    return JobFolder(board.root, id).read_state()
