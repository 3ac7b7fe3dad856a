"""Jobs as the worker would leave them on disk, in every state, without a worker."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.manifest import Manifest
from jobs.board import JobBoard
from jobs.folder import JobFolder, Standing, changing, now
from jobs.job import Compared, Job, Serving, Verdict, Where
from jobs.request import config_of
from train.config import TrainConfig
from train.workspace import Workspace, workspace

CSV = "intent,snippet\n" + "".join(f"add {n} to x,x + {n}\n" for n in range(24))
STEPS = 120
VERDICT = Verdict(
    "LoRA beats RAG-8 by 12.5 points of EM@1, 95 % interval 5.0 to 20.0 (n = 40).",
    40,
    (
        Compared("em", "zero-shot", 0.35, 0.05, 0.30, 0.175, 0.425, 0.0004, 40),
        Compared("em", "rag-8", 0.35, 0.225, 0.125, 0.05, 0.20, 0.012, 40),
        Compared("codebleu", "zero-shot", 0.512, 0.244, 0.268, 0.19, 0.34, 0.0001, 40),
        Compared("codebleu", "rag-8", 0.512, 0.498, 0.014, -0.03, 0.06, 0.41, 40),
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


class QuietBoard(JobBoard):
    """A board that starts no process; `woken` counts how often it was asked to."""

    woken = 0

    def ensure_worker(self) -> None:
        self.woken += 1


def begin(
    board: JobBoard,
    adapter: str = "lora-mine",
    *,
    data_name: str = "mine.csv",
    owner: str = "",
    where: Where = "here",
    **config: Any,
) -> Job:
    """A new job in the queue, over an uploaded file."""
    file = board.home / "upload.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(CSV, encoding="utf-8")
    values = {"adapter_name": adapter, **config}
    return board.submit(values, Serving(), owner=owner, data_name=data_name, data=file, where=where)


def stand(board: JobBoard, id: str, **changes: Any) -> None:
    """Changes how a job stands, as its worker does."""
    folder = JobFolder(board.root, id)
    with changing(board.root):
        folder.write_standing(replace(folder.standing(), **changes))


def run_of(board: JobBoard, id: str) -> Workspace:
    """Where the job's training has its log and checkpoints."""
    return workspace(config_of(board.get(id), board.home))


def train(board: JobBoard, id: str, step: int, *, since: int = 0) -> None:
    """Lets the job's training come to `step`: its log grows as train.callbacks writes it; every 12th is evaluated."""
    place = run_of(board, id)
    if not place.settings.is_file():
        place.begin(config_of(board.get(id), board.home))
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
    begun = standing(board, id).started or now()
    stand(board, id, state="running", stage="training", started=begun, attempts=1, steps=STEPS, message=f"step {step}")


def keep_checkpoint(board: JobBoard, id: str, step: int) -> None:
    """A whole checkpoint at `step`."""
    folder = run_of(board, id).checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": str(folder)}), encoding="utf-8")


def write_log(board: JobBoard, id: str, *lines: str) -> None:
    """Lines for people."""
    with JobFolder(board.root, id).log.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def stop(board: JobBoard, id: str, step: int = 60) -> None:
    """Stopped by a person at `step`, with a checkpoint there."""
    train(board, id, step)
    keep_checkpoint(board, id, step)
    stand(board, id, state="stopped", stage="", ended=now(), message=f"Stopped at step {step}.")


def fail(board: JobBoard, id: str, sentence: str) -> None:
    """Failed while it began."""
    write_log(board, id, "Loading the base ...", *(f"line {n}" for n in range(20)), sentence)
    stand(board, id, state="failed", stage="training", started=now(), ended=now(), attempts=1, message=sentence)


def complete(board: JobBoard, id: str, folder: Path | None = None, verdict: Verdict = VERDICT) -> None:
    """Trained, scored and done; `folder` (a real adapter) becomes what came of it, else an empty folder."""
    train(board, id, STEPS)
    job, place = board.get(id), run_of(board, id)
    here = JobFolder(board.root, id)
    place.log.replace(here.curve)
    place.remove()
    target = board.home / "adapters" / job.adapter
    if folder:
        folder.rename(target)
    else:
        target.mkdir(parents=True)
        (target / "adapter_config.json").write_text("{}", encoding="utf-8")
    sign(target, config_of(job, board.home))
    here.write_verdict(verdict)
    stand(board, id, state="done", stage="", ended=now(), trained=True, message="Done.")


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
        config=config.public(),
    )
    manifest.write(folder)


def standing(board: JobBoard, id: str) -> Standing:
    """What state.json says."""
    return JobFolder(board.root, id).standing()
