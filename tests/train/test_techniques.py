"""Every technique on every architecture of the study: it trains, what is saved is what was best, the base stays."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from adapters.store import Store
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.types import Row, RowOutput, SamplingParams
from tasks.datasets.registry import load_problems
from tasks.problem import Example
from tasks.prompt import STYLES, render_prompt
from tests.serve.tiny import make_base
from tests.train.runs import tiny_config
from train.model import patch_loss
from train.run import train
from train.techniques import TECHNIQUES
from train.tokenize import IGNORE_INDEX, ExampleTokenizer

FINGERPRINTS = {name: style.fingerprint for name, style in STYLES.items()}
ARCHITECTURES = ("llama", "qwen2", "codegen", "t5")
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {} for name in TECHNIQUES},
    "rslora": {"technique": "lora", "use_rslora": True},
    "dora": {"technique": "lora", "use_dora": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("techniques")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def place(request: pytest.FixtureRequest, folder: Path) -> Path:
    """A folder with a tiny base of one architecture."""
    made = folder / request.param
    make_base(request.param, made / "base")
    return made


@pytest.mark.parametrize("name", OPTIONS)
def test_it_trains_and_what_is_saved_is_the_best_checkpoint(place: Path, name: str) -> None:
    changes = {"technique": name, **OPTIONS[name]}
    config = tiny_config(place, adapter_name=name, max_train_samples=16, eval_every=1, **changes)
    made = train(config, lambda _: None)
    manifest = json.loads((made / "manifest.json").read_text())
    best = manifest["scores"][0]["value"]
    assert best == min(entry["eval_loss"] for entry in manifest["log"])
    assert _validation_loss(place, made, manifest) == pytest.approx(best, rel=0.02)
    if name != "full":
        _check_the_base_stays(place, name, manifest["trained_quantization"])


def _validation_loss(place: Path, made: Path, manifest: dict[str, Any]) -> float:
    """The loss of the folder as PEFT itself (for full fine-tuning: transformers) reads it."""
    full = manifest["technique"] == "full"
    loaded = load_base(
        str(made if full else place / "base"), manifest["trained_quantization"], "cpu", lambda _: None, training=True
    )
    model: Any = loaded.model
    if not full:
        from peft import PeftModel

        from train.model import cast_outputs

        model = PeftModel.from_pretrained(model, str(made))
        cast_outputs(model, loaded.model.dtype)
    patch_loss(model.eval())
    encoder = ExampleTokenizer(loaded.tokenizer, STYLES["plain"], loaded.identity.is_encoder_decoder)
    problems = load_problems("starter", "validation")[:16]
    rows = [encoder.to_features(encoder.tokenize(Example(p.id, p.intent, p.reference or ""))) for p in problems]
    rows = [row for row in rows if _length(row, loaded.identity.is_encoder_decoder) <= 480]
    batch = encoder.collate(rows)
    assert int((batch["labels"] != IGNORE_INDEX).sum()) > 0
    with torch.no_grad():
        return float(model(**batch)["loss"])


def _length(row: dict[str, list[int]], apart: bool) -> int:
    return len(row["input_ids"]) + (len(row["labels"]) if apart else 0)


def _check_the_base_stays(place: Path, name: str, quantization: str) -> None:
    """Rows without an adapter answer as before it was loaded, to the bit, and those with it otherwise."""
    backend = LocalBackend(load_base(str(place / "base"), quantization, "cpu", lambda _: None))
    prompt = render_prompt("sort a list", (), STYLES["plain"])
    bare = Row(prompt, STYLES["plain"])
    before = _answers(backend, [bare])[0]
    backend.load_adapter(Store((place / "store",), fingerprints=FINGERPRINTS).open(name, backend.base))
    backend.prefix_cache.clear()  # a prompt that is read in two pieces is rounded in other places
    after = _answers(backend, [bare])[0]
    assert after == before
    assert _answers(backend, [Row(prompt, STYLES["plain"], name)])[0] != before


def _answers(backend: LocalBackend, rows: list[Row]) -> list[tuple[str, float]]:
    events = backend.generate(rows, SamplingParams(max_new_tokens=8), Event())
    done = {event.index: event.candidates[0] for event in events if isinstance(event, RowOutput)}
    return [(done[index].text, done[index].logprob) for index in range(len(rows))]
