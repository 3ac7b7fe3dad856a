"""Measured scores, put into a finished folder: its manifest and, through the card, the Hub's model-index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.manifest import MANIFEST_NAME, Manifest
from serve.home import atomic_dir
from train.card import write_model_card

_SCORE_KEY_FIELDS = ("metric", "dataset", "split", "quantization", "method")


def record_scores(folder: Path, scores: Sequence[Mapping[str, Any]]) -> None:
    """Adds scores ({"metric", "value", "n", "dataset", ...}); one of the same metric, data and base is replaced.

    Manifest and card are each replaced in one step.
    """
    manifest = Manifest.read(folder)
    fresh = {_score_key(score) for score in scores}
    kept = [score for score in manifest.scores if _score_key(score) not in fresh]
    changed = replace(manifest, scores=(*kept, *(dict(score) for score in scores)))
    written = folder.parent / f".{folder.name}.scored"
    with atomic_dir(written) as building:
        for name in ("adapter_config.json", "config.json", "loss.png"):
            # The card looks at what lies beside it.
            if (folder / name).is_file():
                (building / name).write_bytes((folder / name).read_bytes())
        changed.write(building)
        write_model_card(changed, building)
    for name in (MANIFEST_NAME, "README.md"):
        (written / name).replace(folder / name)
    for left in written.iterdir():
        left.unlink()
    written.rmdir()


def _score_key(score: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(score.get(name) for name in _SCORE_KEY_FIELDS)
