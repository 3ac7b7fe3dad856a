"""From what a visitor filled in to the settings of a job: read, named, put together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import PromptOrTuneError
from jobs.job import Job, ServingOptions
from jobs.request import check_name
from ui.train import cards, settings_form
from ui.train.drafts import Draft

_FLAG_PATTERN = re.compile(r"--([a-z][a-z-]+)")
_MAX_NAME_ATTEMPTS = 1000


@dataclass(frozen=True)
class FormValues:
    """The fields as a browser sent them, in the order of Form.filled."""

    intent: str
    code: str
    technique: str
    location: str
    flavor: str
    settings: Mapping[str, Any]

    @classmethod
    def parse(cls, values: Sequence[Any]) -> FormValues:
        """Reads them; anything that is no text counts as empty."""
        first, fields = values[:5], values[5:]
        intent, code, technique, place, flavor = (each if isinstance(each, str) else "" for each in first)
        return cls(intent, code, technique, place, flavor, settings_form.parse_settings(fields))


def train_config_fields(draft: Draft, serving: ServingOptions) -> dict[str, Any]:
    """TrainConfig's fields of this draft, but for those that a job takes from the base that is served."""
    technique = draft.technique or cards.recommended_technique(serving)
    if technique not in cards.technique_choices(serving):
        raise PromptOrTuneError("This technique is not offered here: choose one of those on the page.")
    settings = settings_form.settings_for_technique(draft.settings, technique)
    intent, code = draft.columns or (None, None)
    return {
        "dataset_name": draft.name,
        "technique": technique,
        "quantization": cards.training_quantization(technique, serving, str(settings.get("preset", "default"))),
        "intent_column": intent,
        "code_column": code,
        **settings,
    }


def suggest_adapter_name(technique: str, rows: str) -> str:
    """'lora-my-pairs' for LoRA on my_pairs.csv or someone/my-pairs."""
    kind = technique.split("-", maxsplit=1)[0] or "lora"
    last = re.split(r"[@:]", rows)[0].rsplit("/", 1)[-1]
    stem = re.sub(r"\.(jsonl?|ndjson|[ct]sv|parquet)$", "", last.casefold())
    slug = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:40].strip("-")
    return f"{kind}-{slug or 'mine'}"


def find_unused_name(name: str, home: Path, jobs: Iterable[Job]) -> str:
    """The name, or one with a number that no adapter and no job has yet."""
    others, stem = list(jobs), re.sub(r"-\d+$", "", name)[:58]
    for number in range(1, _MAX_NAME_ATTEMPTS):
        wanted = name if number == 1 else f"{stem}-{number}"
        try:
            check_name(wanted, home, others)
        except PromptOrTuneError:
            continue
        return wanted
    return name


def flags_to_setting_names(message: str) -> str:
    """The sentence with settings' own names where it speaks of a command's flags."""
    return _FLAG_PATTERN.sub(lambda found: found[1].replace("-", "_"), message)
