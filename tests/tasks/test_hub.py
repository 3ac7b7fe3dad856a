"""Data sets from the Hub: a stand-in at its boundary, and a Hub that cannot be reached."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest

from errors import DataError
from tasks.datasets.registry import load_problems
from tasks.problem import Problem
from tests.tasks.sets import MBPP_ROW, PAIR, ROOT, FakeHub, write_rows


@pytest.mark.parametrize(
    ("name", "split", "asked"),
    [
        ("conala", "train", ("json", "neulab/docprompting-conala", "conala-train.jsonl")),
        ("conala", "validation", ("json", "neulab/docprompting-conala", "conala-dev.jsonl")),
        ("codealpacapy", "validation", ("parquet", "antolin/codealpaca-filtered", "default/valid/0000.parquet")),
    ],
)
def test_pairs_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, name: str, split: str, asked: tuple[str, str, str]
) -> None:
    hub = FakeHub(monkeypatch, [{"nl": "a", "cmd": "b", "question_id": "5-1", "oracle_man": ["x"]}])
    assert load_problems(name, split) == [Problem("5-1", "a", "b")]
    ((format, address),) = hub.asked
    assert format == asked[0]
    assert address.startswith(f"hf://datasets/{asked[1]}@")
    assert address.endswith(f"/{asked[2]}")
    assert len(address.split("@")[1].split("/")[0]) == 40  # a pinned revision


def test_mbpp_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch, [MBPP_ROW])
    (problem,) = load_problems("mbpp", "train")
    assert (problem.id, problem.entry_point) == ("mbpp-602", "double")
    assert hub.asked[0][1].endswith("/full/train-00000-of-00001.parquet")


def test_a_bad_row_of_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, [{"nl": "a", "cmd": "b"}, {"nl": None, "cmd": "b"}])
    with pytest.raises(DataError, match=r"docprompting-conala, conala-test\.jsonl, row 2: column 'nl' must be text"):
        load_problems("conala", "test")


def test_a_file_that_is_in_the_cache_is_read_without_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    cached = write_rows(tmp_path / "conala-test.jsonl", PAIR)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(cached))
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: load(*a, **k, cache_dir=str(tmp_path / "cache")))
    assert load_problems("conala", "test") == [Problem("q-1", PAIR["nl"], PAIR["cmd"])]


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_a_hub_out_of_reach_is_one_sentence_soon_and_quietly(tmp_path: Path, environment: dict[str, str]) -> None:
    script = """
import sys, time
from errors import DataError
from tasks.datasets.registry import DATASETS, load_problems
assert "datasets" not in sys.modules and "torch" not in sys.modules and "pandas" not in sys.modules
for name in DATASETS[1:]:
    begun = time.monotonic()
    try:
        load_problems(name, "train")
    except DataError as fault:
        print(f"{time.monotonic() - begun:.1f} {fault}")
assert "torch" not in sys.modules
"""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**variables, "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert time.monotonic() - begun < 60  # most of it is the import of `datasets`; retries alone would be 23 s a name
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for title, line in zip(("CoNaLa", "CodeAlpacaPy", "MBPP", "APPS"), lines, strict=True):
        seconds, _, sentence = line.partition(" ")
        assert float(seconds) < 15
        assert sentence.startswith(f"{title} (")
        assert "could not be loaded from the Hugging Face Hub" in sentence
        assert "--data-dir FOLDER (JSONL)" in sentence
