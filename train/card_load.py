"""The part of a card that says how to load what was trained, with Peft Arena and with PEFT or transformers."""

from __future__ import annotations

from adapters.manifest import Manifest
from tasks.prompt import STYLES, render_prompt
from train.card_front import CardContext

# Stands for the repository until there is one: publishing puts its name in the place of this.
PLACEHOLDER = "USER/NAME"
_QUANTIZATION_SNIPPETS = {
    "nf4": (
        'BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
        "bnb_4bit_compute_dtype=torch.bfloat16\n)"
    ),
    "int8": "BitsAndBytesConfig(load_in_8bit=True)",
}


def usage_section(subject: CardContext) -> str:
    """Commands and code that load it, and the prompt that it was trained with."""
    ways = [_cli_usage(subject), _peft_usage(subject)] if subject.is_adapter else [_transformers_usage(subject)]
    return "\n\n".join(["## Load it", *ways, _prompt_usage(subject.manifest)])


def _cli_usage(subject: CardContext) -> str:
    manifest = subject.manifest
    if manifest.base_id.startswith("embedded/"):
        base = "embedded"
    else:
        base = f"{manifest.base_id}@{manifest.base_revision}" if subject.base_hub_id else "FOLDER-OF-THE-BASE"
    quantization = "" if manifest.trained_quantization == "nf4" else f" --quantization {manifest.trained_quantization}"
    return (
        f"With Peft Arena:\n\n```sh\npython -m adapters pull {PLACEHOLDER}     # add @revision to pin it\n"
        f"python app.py --base {base}{quantization}\n```\n\nIt is then the method `{manifest.name}`, "
        "or whatever name it was pulled under."
    )


def _peft_usage(subject: CardContext) -> str:
    manifest, hub = subject.manifest, subject.base_hub_id
    quantized = _QUANTIZATION_SNIPPETS.get(manifest.trained_quantization, "")
    where = ", revision=revision" if subject.base_is_exact_hub_revision else ""
    how = "quantization_config=quantization" if quantized else "dtype=torch.bfloat16"
    lines = [
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {subject.auto_class}, AutoTokenizer{', BitsAndBytesConfig' if quantized else ''}",
        "",
        f'name = "{hub or "FOLDER-OF-THE-BASE"}"',
        *([f'revision = "{manifest.base_revision}"'] if subject.base_is_exact_hub_revision else []),
        *([f"quantization = {quantized}"] if quantized else []),
        f"tokenizer = AutoTokenizer.from_pretrained(name{where})",
        f"base = {subject.auto_class}.from_pretrained(name{where}, {how})",
        f'model = PeftModel.from_pretrained(base, "{PLACEHOLDER}")  # this repository, or the folder on disk',
    ]
    note = "With PEFT, on the same base:"
    if hub and not subject.base_is_exact_hub_revision:
        note = (
            f"With PEFT. The adapter was trained on the Q4_1 weights that Peft Arena ships; those of `{hub}` are the "
            "same model before that rounding, so answers can differ a little:"
        )
    return f"{note}\n\n```python\n" + "\n".join(lines) + "\n```"


def _transformers_usage(subject: CardContext) -> str:
    return (
        f"It is a model like any other: `python app.py --base {PLACEHOLDER}` in Peft Arena, and in transformers "
        f'`{subject.auto_class}.from_pretrained("{PLACEHOLDER}")` with `AutoTokenizer`; {PLACEHOLDER} is this '
        "repository, or the folder on disk."
    )


def _prompt_usage(manifest: Manifest) -> str:
    style = STYLES.get(manifest.prompt_style)
    if style is None:
        return f"It was trained with the prompt style `{manifest.prompt_style}` and expects it."
    if style.format == "chat":
        asked = style.intent_template.format(intent="YOUR INTENT")
        system = f" after the system turn `{style.system}`" if style.system else ""
        return f"It expects the base's chat template around the user turn `{asked!r}`{system}."
    return f"It expects this prompt, and its answer is the code:\n\n```text\n{render_prompt('YOUR INTENT', (), style)}\n```"
