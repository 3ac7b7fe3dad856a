"""A remote job from submission to the installed adapter, with the real client and a process as the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.hf_jobs.follow import PollIntervals
from tests.hub.machines import run_here
from tests.hub_standin import Hub
from tests.jobs.hf_jobs.remote_run import RemoteRun
from tests.serve.tiny import make_base
from train.publish import adapter_answer_fn
from train.trainer import read_log

pytestmark = pytest.mark.slow

CONFIG = {
    "model_name_or_path": "tiny/base",
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 4,
    "max_tokens_at_once": 100_000,
    "learning_rate": 3e-3,
}


@pytest.fixture
def remote_run(hub: Hub, tmp_path: Path) -> RemoteRun:
    hub.repositories["tiny/base"] = make_base("llama", tmp_path / "tiny-base")
    hub.jobs.script = run_here(hub.url, tmp_path / "machines")
    run = RemoteRun(tmp_path / "home", CONFIG)
    rows = [f'"add {n} to `x` and print it","x += {n}"' for n in range(24)]
    run.data.write_text("intent,snippet\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return run


def test_remote_job_trains_and_its_adapter_answers_here(hub: Hub, remote_run: RemoteRun) -> None:
    folder = remote_run.run(intervals=PollIntervals(status_seconds=0.3))
    assert hub.jobs.only().stage == "COMPLETED"
    transcripts = adapter_answer_fn("tiny/base", "none", lambda _: None, "cpu")(folder)
    assert transcripts
    assert all(transcript.tokens for transcript in transcripts)
    # The curve parsed from the log has the values that the training wrote.
    lines = (remote_run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    curve = {(entry["step"], "loss" in entry): entry for entry in map(json.loads, lines)}
    written = {(entry["step"], "loss" in entry): entry for entry in read_log(folder / "log.jsonl")}
    assert curve
    for key, entry in curve.items():
        name = "loss" if key[1] else "eval_loss"
        assert entry[name] == pytest.approx(written[key][name], abs=1e-4)
        assert entry["epoch"] == pytest.approx(written[key]["epoch"], abs=1e-3)
    assert any("answers as the folder does" in line for line in remote_run.lines)
