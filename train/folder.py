"""The finished folder: PEFT's own format (or, after full fine-tuning, a model), manifest, card, settings, log, plot."""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.manifest import BaseIdentity, Manifest
from adapters.weights import WEIGHTS_NAME, digest
from serve.home import atomic_dir
from tasks.prompt import get_style
from train.card import write_model_card
from train.config import TrainConfig
from train.plot import plot_losses
from train.settings import write_yaml
from train.techniques import TECHNIQUES

# IA3's vectors and DoRA's magnitudes.
_FLOAT32_SUFFIXES = (".ia3_l", ".lora_magnitude_vector")


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to: its log, its cost, and what it learned from."""

    log: Sequence[Mapping[str, Any]]
    dataset: str
    dataset_digest: str
    licence: str
    num_train: int
    num_validation: int
    cost: Mapping[str, Any] = field(default_factory=dict)


def save_adapter(
    model: Any, tokenizer: Any, config: TrainConfig, base: BaseIdentity, result: TrainingResult, target: Path
) -> None:
    """Writes `target` whole or not at all; an older folder of that name goes only when the new one is whole."""
    staged = target.parent / f".{target.name}.new"
    with tempfile.TemporaryDirectory(prefix=".replaced-", dir=target.parent) as aside:
        with atomic_dir(staged) as building:
            if hasattr(model, "peft_config"):
                _save_peft_weights(model, base, building)
                weights = digest(building / WEIGHTS_NAME, config.adapter_name)
                modules = _target_modules(model)
            else:
                _save_full_model(model, tokenizer, building)
                weights, modules = digest(building / "model.safetensors", config.adapter_name), {}
            manifest = _build_manifest(config, base, result, modules, weights)
            manifest.write(building)
            write_yaml(config, building / "config.yaml")
            _write_log(result.log, building / "log.jsonl")
            plot_losses(result.log, building / "loss.png", f"{config.adapter_name} on {result.dataset}")
            write_model_card(manifest, building)
        if target.exists():
            target.rename(Path(aside) / "old")
        staged.rename(target)


def _save_peft_weights(model: Any, base: BaseIdentity, folder: Path) -> None:
    for config in model.peft_config.values():
        config.base_model_name_or_path = base.id
        config.revision = base.revision
    model.save_pretrained(folder, save_embedding_layers=False)
    # PEFT writes a card of its own, full of questions.
    (folder / "README.md").unlink(missing_ok=True)
    _convert_to_bfloat16(folder / WEIGHTS_NAME)
    _normalize_json(folder / "adapter_config.json")


def _save_full_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """A model like any other, in 16-bit floats: `--base <folder>` serves it."""
    import torch

    del model.forward  # the training objective, which stood before the model's own
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1000GB")
    tokenizer.save_pretrained(folder)


def _convert_to_bfloat16(path: Path) -> None:
    """Stores weights as bfloat16, but for the few that multiply and stand close to 1: those are served in 32 bits."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {
        name: (tensor if name.endswith(_FLOAT32_SUFFIXES) else tensor.to(torch.bfloat16)).contiguous()
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _normalize_json(path: Path) -> None:
    """Sorted keys and lists, so that the same run gives the same file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(values.get(name), list):
            values[name] = sorted(values[name])
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _target_modules(model: Any) -> dict[str, list[str]]:
    config = model.peft_config[model.active_adapter]
    names = ("target_modules", "feedforward_modules")
    return {name: sorted(getattr(config, name)) for name in names if getattr(config, name, None)}


def _build_manifest(
    config: TrainConfig, base: BaseIdentity, result: TrainingResult, modules: Mapping[str, list[str]], weights: str
) -> Manifest:
    style = get_style(config.prompt_style)
    evaluations = [entry for entry in result.log if "eval_loss" in entry]
    best = min((entry["eval_loss"] for entry in evaluations), default=None)
    resolved = {
        **config.to_public_dict(),
        "model_name_or_path": base.id,
        "model_revision": base.revision,
        **modules,
        "n_train": result.num_train,
        "n_validation": result.num_validation,
        "lr_scheduler_type": "linear",
        "technique_title": TECHNIQUES[config.technique].title,
        **result.cost,
    }
    score = {
        "metric": "validation loss",
        "value": round(best, 6) if best is not None else None,
        "n": result.num_validation,
        "dataset": result.dataset,
    }
    return Manifest(
        name=config.adapter_name,
        technique=config.technique,
        base_id=base.id,
        base_revision=base.revision,
        trained_quantization=config.quantization,
        prompt_style=style.name,
        prompt_fingerprint=style.fingerprint,
        dataset=result.dataset,
        dataset_digest=result.dataset_digest,
        seed=config.seed,
        licence=result.licence,
        config=resolved,
        log=tuple(_eval_entries(result.log)),
        scores=(score,) if best is not None else (),
        created=dt.datetime.now(dt.UTC).date().isoformat(),
        weights_digest=weights,
    )


def _eval_entries(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations alone, each with the mean training loss since the one before."""
    entries, losses = [], []
    for entry in log:
        if "loss" in entry:
            losses.append(entry["loss"])
        if "eval_loss" in entry:
            mean = {"loss": round(sum(losses) / len(losses), 6)} if losses else {}
            kept = {"step": entry["step"], "epoch": entry["epoch"], "eval_loss": round(entry["eval_loss"], 6)}
            entries.append(kept | mean)
            losses = []
    return entries


def _write_log(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
