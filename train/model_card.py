"""Model card: Hub metadata, usage, data and licence, settings, scores, losses and cost of an adapter or full model.

The metadata (the card's YAML front matter) has scores only if the manifest has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.manifest import CONFIG_NAME, Manifest
from common.format import format_bytes, format_duration, quantization_label
from tasks.prompt import STYLES, render_prompt

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData


# The Hub model with the weights of the embedded base: the card needs a Hub id.
_EMBEDDED_HUB_IDS = {"embedded/SmolLM2-135M-Instruct-Q4_1": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_DATASET_HUB_IDS = {
    "conala": "neulab/docprompting-conala",
    "codealpacapy": "antolin/codealpaca-filtered",
    "mbpp": "google-research-datasets/mbpp",
    "apps": "codeparrot/apps",
    "leetcode": "newfacade/LeetCodeDataset",
}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")


# PEFT's names of the techniques, for folders without its config.
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
    """What a card describes: the manifest, and PEFT's config, which is empty for a full model."""

    manifest: Manifest
    peft_config: Mapping[str, Any]
    is_adapter: bool

    @classmethod
    def from_folder(cls, manifest: Manifest, folder: Path) -> CardContext:
        """Make the context of `folder`; an empty folder is an adapter unless the technique is "full"."""
        path = folder / CONFIG_NAME
        if path.is_file():
            return cls(manifest, json.loads(path.read_text(encoding="utf-8")), True)
        return cls(manifest, {}, manifest.technique != "full" and not (folder / "config.json").is_file())

    @property
    def peft_type(self) -> str:
        """PEFT's name of the technique, '' for a full model."""
        if not self.is_adapter:
            return ""
        return str(
            self.peft_config.get("peft_type") or _PEFT_TYPES.get(self.manifest.technique, self.manifest.technique)
        )

    @property
    def title(self) -> str:
        """The technique's name for display."""
        return str(self.manifest.config.get("technique_title") or self.manifest.technique)

    @property
    def auto_class(self) -> str:
        """The Auto class of transformers that loads the base."""
        return (
            "AutoModelForSeq2SeqLM" if self.peft_config.get("task_type") == "SEQ_2_SEQ_LM" else "AutoModelForCausalLM"
        )

    @property
    def base_hub_id(self) -> str:
        """The Hub id of the base; '' for one from a folder or file, whose name could be that of another model."""
        if self.manifest.base_id in _EMBEDDED_HUB_IDS:
            return _EMBEDDED_HUB_IDS[self.manifest.base_id]
        return self.manifest.base_id if _COMMIT_SHA.fullmatch(self.manifest.base_revision) else ""

    @property
    def base_is_exact_hub_revision(self) -> bool:
        """Whether the Hub has exactly the weights that it was trained on."""
        return bool(self.base_hub_id) and self.base_hub_id == self.manifest.base_id


def card_metadata(context: CardContext) -> ModelCardData:
    """Make the card's metadata."""
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
        tags=["prompt-or-tune", manifest.technique, *family, "code", "python"],
        model_name=manifest.name if results else None,
        eval_results=results or None,
    )


def dataset_hub_id(dataset: str) -> str:
    """Return the Hub id of a data set, '' for a file."""
    return _DATASET_HUB_IDS.get(dataset, dataset if _HUB_ID.fullmatch(dataset) else "")


def _eval_results(manifest: Manifest) -> list[EvalResult]:
    """Convert the manifest's scores to results of the model-index."""
    from huggingface_hub import EvalResult

    results = []
    for score in manifest.scores:
        metric, value = score.get("metric"), score.get("value")
        if not isinstance(metric, str) or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        dataset = str(score.get("dataset", manifest.dataset))
        results.append(
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
    return results


def _metric_label(metric: str, score: Mapping[str, Any]) -> str:
    """Return the metric with the number of problems and the quantization of the base."""
    facts = [f"n = {score['n']}"] if "n" in score else []
    facts += [f"base {quantization_label(str(score['quantization']))}"] if "quantization" in score else []
    return f"{metric} ({', '.join(facts)})" if facts else metric


# Placeholder for the repository; publishing replaces it by the repository's name.
PLACEHOLDER = "USER/NAME"
_QUANTIZATION_SNIPPETS = {
    "nf4": (
        'BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
        "bnb_4bit_compute_dtype=torch.bfloat16\n)"
    ),
    "int8": "BitsAndBytesConfig(load_in_8bit=True)",
}


def usage_section(context: CardContext) -> str:
    """Return commands and code that load it, and the prompt that it was trained with."""
    snippets = [_cli_usage(context), _peft_usage(context)] if context.is_adapter else [_transformers_usage(context)]
    return "\n\n".join(["## Load it", *snippets, _prompt_usage(context.manifest)])


def _cli_usage(context: CardContext) -> str:
    manifest = context.manifest
    if manifest.base_id.startswith("embedded/"):
        base = "embedded"
    else:
        base = f"{manifest.base_id}@{manifest.base_revision}" if context.base_hub_id else "FOLDER-OF-THE-BASE"
    quantization = "" if manifest.trained_quantization == "nf4" else f" --quantization {manifest.trained_quantization}"
    return (
        f"With Prompt or Tune:\n\n```sh\npython -m adapters pull {PLACEHOLDER}     # add @revision to pin it\n"
        f"python app.py --base {base}{quantization}\n```\n\nIt is then the method `{manifest.name}`, "
        "or whatever name it was pulled under."
    )


def _peft_usage(context: CardContext) -> str:
    manifest, hub = context.manifest, context.base_hub_id
    quantized = _QUANTIZATION_SNIPPETS.get(manifest.trained_quantization, "")
    where = ", revision=revision" if context.base_is_exact_hub_revision else ""
    how = "quantization_config=quantization" if quantized else "dtype=torch.bfloat16"
    lines = [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {context.auto_class}, AutoTokenizer{', BitsAndBytesConfig' if quantized else ''}",
        "",
        f'name = "{hub or "FOLDER-OF-THE-BASE"}"',
        *([f'revision = "{manifest.base_revision}"'] if context.base_is_exact_hub_revision else []),
        *([f"quantization = {quantized}"] if quantized else []),
        f"tokenizer = AutoTokenizer.from_pretrained(name{where})",
        f"base = {context.auto_class}.from_pretrained(name{where}, {how})",
        f'model = PeftModel.from_pretrained(base, "{PLACEHOLDER}")  # this repository, or the folder on disk',
    ]
    note = "With PEFT, on the same base:"
    if hub and not context.base_is_exact_hub_revision:
        note = (
            f"With PEFT. The adapter was trained on the Q4_1 weights that Prompt or Tune ships; those of `{hub}` are "
            "the same model before that rounding, so answers can differ a little:"
        )
    return f"{note}\n\n```python\n" + "\n".join(lines) + "\n```"


def _transformers_usage(context: CardContext) -> str:
    return (
        f"It is a model like any other: `python app.py --base {PLACEHOLDER}` in Prompt or Tune, and in transformers "
        f'`{context.auto_class}.from_pretrained("{PLACEHOLDER}")` with `AutoTokenizer`; {PLACEHOLDER} is this '
        "repository, or the folder on disk."
    )


def _prompt_usage(manifest: Manifest) -> str:
    style = STYLES.get(manifest.prompt_style)
    if style is None:
        return f"It was trained with the prompt style `{manifest.prompt_style}` and expects it."
    if style.format == "chat":
        user_turn = style.intent_template.format(intent="YOUR INTENT")
        system = f" after the system turn `{style.system}`" if style.system else ""
        return f"It expects the base's chat template around the user turn `{user_turn!r}`{system}."
    prompt = render_prompt("YOUR INTENT", (), style)
    return f"It expects this prompt, and its answer is the code:\n\n```text\n{prompt}\n```"


_DATASET_DESCRIPTIONS = {
    "conala": (
        "CoNaLa (Yin et al., 2018) in the split of DocPrompting (Zhou et al., 2023); its texts come from Stack "
        "Overflow and are licensed CC BY-SA, so this model is shared under CC BY-SA 4.0 as well."
    ),
    "starter": "`starter`, the set of short intents in Prompt or Tune's repository (tasks/starter), Apache-2.0.",
    "house": (
        "`house`, the set in the style of a team with its own library in Prompt or Tune's repository (tasks/house), "
        "Apache-2.0."
    ),
    "codealpacapy": "The Python part of CodeAlpaca 20k, CC BY-NC 4.0, answers generated by text-davinci-003.",
    "mbpp": "MBPP (Austin et al., 2021), CC BY 4.0.",
    "apps": "APPS (Hendrycks et al., 2021), MIT.",
    "leetcode": "LeetCodeDataset (Xia et al., 2025), Apache-2.0; the problems are LeetCode's.",
}
_MAX_EVAL_ROWS = 25
# The values that vLLM's --max-lora-rank accepts.
_VLLM_MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Settings of a technique, by PEFT's name of it: keys of the configuration and their labels.
_TECHNIQUE_SETTINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "LORA": (
        ("lora_r", "rank r"),
        ("lora_alpha", "alpha"),
        ("lora_dropout", "dropout"),
        ("use_rslora", "rsLoRA scaling"),
        ("use_dora", "DoRA"),
        ("target_modules", "modules"),
    ),
    "IA3": (("target_modules", "modules"), ("feedforward_modules", "of them scaled at their input")),
    "PROMPT_TUNING": (("num_virtual_tokens", "virtual tokens"), ("virtual_tokens_init", "they started from")),
    "PREFIX_TUNING": (("num_virtual_tokens", "virtual tokens"), ("virtual_tokens_init", "they started from")),
}
_INIT_LABELS = {
    "examples": "training examples as text",
    "vocabulary": "tokens drawn at random",
    "random": "random numbers",
}
_COMMON_SETTINGS = (
    ("optim", "optimizer"),
    ("learning_rate", "learning rate"),
    ("lr_scheduler_type", "schedule"),
    ("warmup_ratio", "warmup"),
    ("weight_decay", "weight decay"),
    ("per_device_train_batch_size", "batch"),
    ("gradient_accumulation_steps", "gradient accumulation"),
    ("num_train_epochs", "epochs at most"),
    ("max_length", "longest sample, tokens"),
    ("preset", "preset"),
)
# Keys in manifests of earlier versions.
_OLD_SETTING_NAMES = {"optim": "optimizer", "target_modules": "lora_target_modules"}


def write_model_card(manifest: Manifest, folder: Path) -> None:
    """Write README.md into `folder`. The card includes the loss plot and PEFT's config if they are already there."""
    from huggingface_hub import ModelCard

    context = CardContext.from_folder(manifest, folder)
    parts = [
        _title_section(context),
        usage_section(context),
        _data_section(manifest),
        _settings_section(context),
        _scores_section(manifest),
        _losses_section(manifest, (folder / "loss.png").is_file()),
        _cost_section(manifest),
        _serving_section(context),
    ]
    text = "\n\n".join(part for part in parts if part)
    card = ModelCard(f"---\n{card_metadata(context).to_yaml()}\n---\n{text}\n")
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def downsample_evals(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Select at most 25 evaluations, evenly spaced, with the first, the last and the best."""
    if len(entries) <= _MAX_EVAL_ROWS:
        return list(entries)
    best = min(range(len(entries)), key=lambda index: entries[index]["eval_loss"])
    spread = {round(step * (len(entries) - 1) / (_MAX_EVAL_ROWS - 2)) for step in range(_MAX_EVAL_ROWS - 1)}
    return [entries[index] for index in sorted(spread | {best})]


def _title_section(context: CardContext) -> str:
    manifest, hub = context.manifest, context.base_hub_id
    article = "An" if context.title[:1] in "AEIOaeio" else "A"
    what = f"{article} {context.title} adapter" if context.is_adapter else "A fully fine-tuned model"
    if context.base_is_exact_hub_revision:
        base = f"[{hub}](https://huggingface.co/{hub}) (revision `{manifest.base_revision}`)"
    elif hub:
        base = (
            f"`{manifest.base_id}` (revision `{manifest.base_revision}`): the weights of "
            f"[{hub}](https://huggingface.co/{hub}) as Prompt or Tune ships them, a GGUF file in Q4_1"
        )
    else:
        base = f"`{manifest.base_id}`, which is not on the Hub (revision `{manifest.base_revision}`)"
    quantized = manifest.trained_quantization
    weights = "16-bit floats" if quantized == "none" else quantized.upper()
    trained = f" It was trained with the base's weights in {weights}." if context.is_adapter else ""
    created = f" Made on {manifest.created}." if manifest.created else ""
    purpose = "that answers intents in natural language with Python"
    return f"# {manifest.name}\n\n{what} {purpose}. Base: {base}.{trained}{created}"


def _data_section(manifest: Manifest) -> str:
    source = _DATASET_DESCRIPTIONS.get(
        manifest.dataset, f"`{manifest.dataset}`, a data set of the person who trained it."
    )
    counts = [
        f"{manifest.config[key]} {label}"
        for key, label in (("n_train", "training samples"), ("n_validation", "validation samples"))
        if manifest.config.get(key) is not None
    ]
    facts = ", ".join([*counts, f"digest `{manifest.dataset_digest}`"])
    if manifest.licence.lower() == "other":
        licence = "The data's licence is not known to the program: ask who trained it before you use this model."
    else:
        licence = f"Licence of this model: {manifest.licence}."
    return f"## Data and licence\n\n{source} {facts}. {licence} The base has a licence of its own."


def _settings_section(context: CardContext) -> str:
    manifest, config = context.manifest, context.manifest.config
    lines = []
    for key, label in (*_TECHNIQUE_SETTINGS.get(context.peft_type, ()), *_COMMON_SETTINGS):
        value = config.get(key, config.get(_OLD_SETTING_NAMES.get(key, key)))
        if value not in (None, False, [], ()):
            lines.append(f"| {label} | {_format_setting(key, value)} |")
    lines.append(f"| seed | {manifest.seed} |")
    lines.append(f"| prompt style | `{manifest.prompt_style}` (fingerprint `{manifest.prompt_fingerprint}`) |")
    head = (
        f"Technique: {context.title}. The loss counts the tokens of the code and the end token alone; the checkpoint "
        "with the lowest validation loss was kept."
    )
    return "\n".join(["## Settings", "", head, "", "| | |", "| --- | --- |", *lines])


def _format_setting(key: str, value: Any) -> str:
    if key == "virtual_tokens_init":
        return _INIT_LABELS.get(str(value), str(value))
    if isinstance(value, list | tuple):
        return ", ".join(f"`{item}`" for item in value)
    return "yes" if value is True else str(value)


def _scores_section(manifest: Manifest) -> str:
    if not manifest.scores:
        return ""
    rows = [
        f"| {score.get('metric', '?')} | {_format_score(score)} | {score.get('n', 'not stated')} | "
        f"{score.get('dataset', manifest.dataset)} {score.get('split', '')} | {_evaluated_base(score)} |"
        for score in manifest.scores
    ]
    head = ["| metric | value | n | data | base |", "| --- | ---: | ---: | --- | --- |"]
    return "\n".join(["## Scores", "", *head, *rows])


def _format_score(score: Mapping[str, Any]) -> str:
    """Format the value, with its 95 % interval if there is one."""
    value = score.get("value", "?")
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{text} [{score['low']:.4g}, {score['high']:.4g}]" if "low" in score and "high" in score else text


def _evaluated_base(score: Mapping[str, Any]) -> str:
    """Return the quantization of the evaluated base and the decoding method; '' for a loss."""
    facts = [quantization_label(str(score["quantization"]))] if "quantization" in score else []
    return ", ".join([*facts, *([str(score["decoding"])] if "decoding" in score else [])])


def _losses_section(manifest: Manifest, has_plot: bool) -> str:
    entries = [entry for entry in manifest.log if "eval_loss" in entry]
    if not entries:
        return ""
    rows = [f"| {row['step']} | {row['epoch']:.2f} | {row['eval_loss']:.4f} |" for row in downsample_evals(entries)]
    picture = ["![Training and validation loss](loss.png)", ""] if has_plot else []
    note = [] if len(rows) == len(entries) else ["", f"{len(rows)} of {len(entries)} evaluations; log.jsonl has all."]
    heads = ["| step | epoch | validation loss |", "| ---: | ---: | ---: |"]
    return "\n".join(["## Loss", "", *picture, *heads, *rows, *note])


def _cost_section(manifest: Manifest) -> str:
    config = manifest.config
    figures: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("trainable_parameters", "trained parameters", "{:,}".format),
        ("train_seconds", "of training", format_duration),
        ("train_tokens", "tokens read", "{:,}".format),
        ("peak_memory_bytes", "of memory at the peak", format_bytes),
    )
    found = [f"{text(config[key])} {what}" for key, what, text in figures if config.get(key) is not None]
    return f"## Cost\n\n{'; '.join(found)}." if found else ""


def _serving_section(context: CardContext) -> str:
    config, peft = context.manifest.config, context.peft_config
    here = "Prompt or Tune, which answers with many adapters and the bare base in one batch, and PEFT."
    rank = peft.get("r", config.get("lora_r"))
    if not context.is_adapter:
        where = "Wherever its architecture is: Prompt or Tune (`--base`), transformers, vLLM."
    elif context.peft_type != "LORA":
        where = f"{here} vLLM loads LoRA alone, so it has no way to serve {context.title}."
    elif config.get("use_dora") or peft.get("use_dora"):
        where = f"{here} vLLM serves plain LoRA and refuses DoRA."
    elif peft.get("task_type") == "SEQ_2_SEQ_LM":
        where = f"{here} vLLM serves causal bases alone, and this one has an encoder."
    elif rank not in _VLLM_MAX_LORA_RANKS:
        where = f"{here} vLLM takes ranks of {', '.join(map(str, _VLLM_MAX_LORA_RANKS))}, and this one has {rank}."
    else:
        where = (
            f"{here} vLLM, and Ray Serve LLM over it, load the folder unchanged, on the base served under the name "
            f"`{context.manifest.base_id}` with `--enable-lora --max-lora-rank {rank}`."
        )
    return f"## Where it can be served\n\n{where}"
