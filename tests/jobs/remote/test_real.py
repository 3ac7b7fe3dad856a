"""The whole way, with the real client and a machine that really runs the command: sent, trained, published, fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.hf_jobs.follow import PollIntervals
from tests.hub.machines import run_here
from tests.hub_standin import Hub
from tests.jobs.remote.sent import Sent
from tests.serve.tiny import make_base
from train.callbacks import read_log
from train.publish import adapter_answer_fn

CONFIG = {
    "model_name_or_path": "tiny/base",
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 4,
    "max_tokens_at_once": 100_000,
    "learning_rate": 3e-3,
}


@pytest.fixture
def trained_there(hub: Hub, tmp_path: Path) -> Sent:
    hub.repositories["tiny/base"] = make_base("llama", tmp_path / "tiny-base")
    hub.jobs.script = run_here(hub.url, tmp_path / "machines")
    sent = Sent(tmp_path / "home", CONFIG)
    rows = [f'"add {n} to `x` and print it","x += {n}"' for n in range(24)]
    sent.data.write_text("intent,snippet\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return sent


def test_a_job_trains_elsewhere_and_its_adapter_answers_here(hub: Hub, trained_there: Sent) -> None:
    sent = trained_there
    folder = sent.run(pace=PollIntervals(status_seconds=0.3))
    assert hub.jobs.only().stage == "COMPLETED"
    transcripts = adapter_answer_fn("tiny/base", "none", lambda _: None, "cpu")(folder)
    assert transcripts
    assert all(each.tokens for each in transcripts)
    # What came over the line is what the training itself wrote down.
    curve = {(each["step"], "loss" in each): each for each in map(json.loads, _lines(sent))}
    written = {(each["step"], "loss" in each): each for each in read_log(folder / "log.jsonl")}
    assert curve
    for key, entry in curve.items():
        name = "loss" if key[1] else "eval_loss"
        assert entry[name] == pytest.approx(written[key][name], abs=1e-4)
        assert entry["epoch"] == pytest.approx(written[key]["epoch"], abs=1e-3)
    assert any("answers as the folder does" in line for line in sent.lines)


def _lines(sent: Sent) -> list[str]:
    return (sent.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
