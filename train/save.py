"""Adapter folder: saving the weights in PEFT's format (or a full model), manifest, card, settings, log and loss plot.

`record_scores` adds measured scores to a finished folder: to its manifest and, through the card, the Hub's model-index.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.manifest import MANIFEST_NAME, Manifest
from adapters.weights import WEIGHTS_NAME, digest
from common.files import atomic_dir
from models.source import BaseIdentity
from tasks.prompt import get_style
from train.config import TrainConfig
from train.model_card import write_model_card
from train.settings import write_yaml
from train.techniques import TECHNIQUES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_FIGURE_INCHES, _DPI = (12.0, 7.0), 100
_TRAIN_COLOR, _VALIDATION_COLOR, _MUTED_COLOR = "#2f6db5", "#d1603d", "#5f6672"
# Weight of the previous values in the moving average: about the last ten records count.
_EMA_DECAY = 0.9
# More markers than this would hide the line.
_MAX_MARKERS = 60


def plot_losses(log: Sequence[Mapping[str, Any]], target: Path, title: str) -> None:
    """Write a PNG of 1200 x 700 pixels: training and validation loss in nats a token, against the optimizer step.

    `log` has a run's records {"step", "epoch", "loss"} and {"step", "epoch", "eval_loss"} in any order; other fields
    are ignored, losses that are not finite leave a gap. The same log gives the same bytes. Raises OSError.
    """
    # Figure and canvas without pyplot, whose global state all plots of the process share.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_FIGURE_INCHES, dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="white")
    _draw_training(axes, _loss_points(log, "loss"))
    _draw_validation(axes, _loss_points(log, "eval_loss"))
    _label_axes(axes, log, title)
    # Without metadata, so that the same log gives the same bytes.
    figure.savefig(target, format="png", dpi=_DPI, metadata={"Software": None})


def _loss_points(log: Sequence[Mapping[str, Any]], field: str) -> list[tuple[int, float]]:
    """Return (step, loss) sorted by step; of a step logged again after a resume, the later record."""
    points = {int(entry["step"]): float(entry[field]) for entry in log if entry.get(field) is not None}
    return sorted(points.items())


def _smooth(losses: Sequence[float]) -> list[float]:
    """Compute the exponential moving average with bias correction, as in Adam (arXiv 1412.6980, section 3)."""
    total, weight, smooth = 0.0, 0.0, []
    for loss in losses:
        if math.isfinite(loss):
            total, weight = _EMA_DECAY * total + (1 - _EMA_DECAY) * loss, _EMA_DECAY * weight + (1 - _EMA_DECAY)
        smooth.append(total / weight if weight else math.nan)
    return smooth


def _draw_training(axes: Axes, points: list[tuple[int, float]]) -> None:
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    axes.plot(steps, losses, color=_TRAIN_COLOR, alpha=0.35, linewidth=1, label="training, as logged")
    axes.plot(steps, _smooth(losses), color=_TRAIN_COLOR, linewidth=1.8, label="training, smoothed")


def _draw_validation(axes: Axes, points: list[tuple[int, float]]) -> None:
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    mark = "o" if len(points) <= _MAX_MARKERS else ""
    axes.plot(steps, losses, color=_VALIDATION_COLOR, linewidth=2, marker=mark, markersize=5, label="validation")
    step, loss = min(((s, v) for s, v in points if math.isfinite(v)), key=lambda point: point[1], default=(0, math.nan))
    if math.isfinite(loss):
        best = f"best checkpoint: {loss:.4f} at step {step:,}"
        axes.plot([step], [loss], color=_VALIDATION_COLOR, marker="*", markersize=20, markeredgecolor="white",
                  linestyle="none", zorder=5, label=best)  # fmt: skip
        axes.axvline(step, color=_VALIDATION_COLOR, alpha=0.4, linewidth=1, linestyle=(0, (4, 4)))


def _label_axes(axes: Axes, log: Sequence[Mapping[str, Any]], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=15, loc="left", pad=14)
    axes.set_xlabel("optimizer step", fontsize=12)
    axes.set_ylabel("cross-entropy of learned tokens (nats a token)", fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#d9dce1", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=11, colors=_MUTED_COLOR)
    axes.spines[["top", "right"]].set_visible(False)
    _add_epoch_axis(axes, log)
    if axes.has_data():
        axes.legend(fontsize=11, frameon=False, loc="upper right")
    else:
        axes.text(
            0.5, 0.5, "no losses were logged", ha="center", color=_MUTED_COLOR, fontsize=14, transform=axes.transAxes
        )


def _add_epoch_axis(axes: Axes, log: Sequence[Mapping[str, Any]]) -> None:
    """Add a second scale in epochs, if the log has the number of steps of an epoch."""
    last = max(log, key=lambda entry: int(entry["step"]), default={})
    if not last.get("epoch") or not last["step"]:
        return
    steps = int(last["step"]) / float(last["epoch"])

    def to_epochs(step: Any) -> Any:
        return step / steps

    def to_steps(epoch: Any) -> Any:
        return epoch * steps

    above = axes.secondary_xaxis("top", functions=(to_epochs, to_steps))
    above.set_xlabel("epoch", fontsize=11, color=_MUTED_COLOR)
    above.tick_params(labelsize=10, colors=_MUTED_COLOR)
    above.spines["top"].set_visible(False)


# IA3's vectors and DoRA's magnitudes.
_FLOAT32_SUFFIXES = (".ia3_l", ".lora_magnitude_vector")


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run: its log, its data set and its cost."""

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
    """Write the folder `target` atomically; an older folder of that name is replaced once the new one is complete."""
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
    # PEFT writes a template of a card.
    (folder / "README.md").unlink(missing_ok=True)
    _convert_to_bfloat16(folder / WEIGHTS_NAME)
    _normalize_json(folder / "adapter_config.json")


def _save_full_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save the model in 16-bit floats, so that `--base <folder>` can serve it."""
    import torch

    del model.forward  # train.model replaced it with the loss
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1000GB")
    tokenizer.save_pretrained(folder)


def _convert_to_bfloat16(path: Path) -> None:
    """Convert the weights to bfloat16, except factors close to 1 (IA3, DoRA), which are served in 32 bits."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {
        name: (tensor if name.endswith(_FLOAT32_SUFFIXES) else tensor.to(torch.bfloat16)).contiguous()
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _normalize_json(path: Path) -> None:
    """Sort keys and lists, so that the same run gives the same file."""
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
    """Return the evaluations, each with the mean training loss since the previous one."""
    entries, losses = [], []
    for entry in log:
        if "loss" in entry:
            losses.append(entry["loss"])
        if "eval_loss" in entry:
            mean = {"loss": round(sum(losses) / len(losses), 6)} if losses else {}
            evaluation = {"step": entry["step"], "epoch": entry["epoch"], "eval_loss": round(entry["eval_loss"], 6)}
            entries.append(evaluation | mean)
            losses = []
    return entries


def _write_log(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")


_SCORE_KEY_FIELDS = ("metric", "dataset", "split", "quantization", "method")


def record_scores(folder: Path, scores: Sequence[Mapping[str, Any]]) -> None:
    """Add scores ({"metric", "value", "n", "dataset", ...}); one of the same metric, data and base is replaced.

    Manifest and card are each replaced atomically.
    """
    manifest = Manifest.read(folder)
    new_keys = {_score_key(score) for score in scores}
    unchanged = [score for score in manifest.scores if _score_key(score) not in new_keys]
    changed = replace(manifest, scores=(*unchanged, *(dict(score) for score in scores)))
    staging = folder.parent / f".{folder.name}.scored"
    with atomic_dir(staging) as building:
        for name in ("adapter_config.json", "config.json", "loss.png"):
            # The card depends on these files beside it.
            if (folder / name).is_file():
                (building / name).write_bytes((folder / name).read_bytes())
        changed.write(building)
        write_model_card(changed, building)
    for name in (MANIFEST_NAME, "README.md"):
        (staging / name).replace(folder / name)
    for file in staging.iterdir():
        file.unlink()
    staging.rmdir()


def _score_key(score: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(score.get(name) for name in _SCORE_KEY_FIELDS)
