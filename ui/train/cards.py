"""The techniques to choose from, a sentence each, with what they scored in docs/results/techniques-conala.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.job import ServingOptions
from train.techniques import TECHNIQUES, get_technique

TECHNIQUE_TABLE = Path(__file__).resolve().parents[2] / "docs" / "results" / "techniques-conala.md"
_TECHNIQUE_TEXTS = {
    "lora": "Two thin matrices beside each attention layer: the usual first choice. It learns on the unquantized base.",
    "qlora-4bit": "LoRA on the base in 4 bits. Slower steps than LoRA on a CPU, less memory on a large base.",
    "qlora-8bit": "LoRA on the base in 8 bits. Slower steps than LoRA on a CPU, less memory on a large base.",
    "ia3": "Only rescales what passes through the layers: by far the smallest adapter that still changes every layer.",
    "prompt-tuning": "Learns a few tokens in front of the prompt and nothing else: the smallest file of all.",
    "prefix-tuning": "Learns keys and values that every layer reads first: small files; minds its learning rate.",
}
_QUANTIZATION_NAMES = {"none": "unquantized", "nf4": "NF4", "int8": "int8"}


@dataclass(frozen=True)
class TechniqueScore:
    """What the table says: how many problems of which base, and per technique the scores where it answered on a base.

    `scores` maps (technique's title, quantization) to the table's cells by their headings.
    """

    description: str
    scores: Mapping[tuple[str, str], Mapping[str, str]]


def technique_choices(serving: ServingOptions) -> list[str]:
    """The techniques of the page: of the QLoRAs the one for the quantization that answers here."""
    quantized = "qlora-8bit" if serving.quantization == "int8" else "qlora-4bit"
    return ["lora", quantized, "ia3", "prompt-tuning", "prefix-tuning"]


def recommended_technique(serving: ServingOptions) -> str:
    """LoRA in the quantization that answers here: what is learned on other weights loses on these."""
    return "lora" if serving.quantization == "none" else technique_choices(serving)[1]


def training_quantization(technique: str, serving: ServingOptions, preset: str = "default") -> str:
    """The base's weights during training: as they answer here, where the technique can."""
    known = get_technique(technique)
    fixed = known.settings(preset).get("quantization")
    if fixed is None and serving.quantization in known.quantizations:
        return serving.quantization
    return str(fixed or known.quantizations[0])


def radio_choices(serving: ServingOptions, technique_score: TechniqueScore | None) -> list[tuple[str, str]]:
    """Labels of several lines (the name, the sentence, the figures) and values of the radio group."""
    return [(_technique_label(name, serving, technique_score), name) for name in technique_choices(serving)]


def scores_note(serving: ServingOptions, technique_score: TechniqueScore | None) -> str:
    """What the figures are of; '' without figures."""
    if technique_score is None:
        return ""
    bare = technique_score.scores.get(("zero-shot", _scored_quantization(serving, "zero-shot", technique_score)))
    nothing = f" Without training: {bare['CodeBLEU']}." if bare else ""
    return (
        f"CodeBLEU of {technique_score.description}, with 95 % intervals in brackets.{nothing} Where intervals overlap much, no "
        "difference is shown, and your rows may say otherwise."
    )


def read_technique_score(path: Path = TECHNIQUE_TABLE) -> TechniqueScore | None:
    """The table, None where it does not come along."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in _first_table(lines)]
    if len(rows) < 3:
        return None
    heads = rows[0]
    cells = [dict(zip(heads, row, strict=False)) for row in rows[2:]]
    wanted = {"technique", "answers on", "CodeBLEU"}
    scores = {(row["technique"], row["answers on"]): row for row in cells if wanted <= row.keys()}
    return TechniqueScore(_table_description(lines), scores)


def _technique_label(name: str, serving: ServingOptions, technique_score: TechniqueScore | None) -> str:
    title = TECHNIQUES[name].title.replace("-4bit", " 4 bit").replace("-8bit", " 8 bit")
    lines = [title, ("Recommended here. " if name == recommended_technique(serving) else "") + _TECHNIQUE_TEXTS[name]]
    if technique_score:
        there = _scored_quantization(serving, TECHNIQUES[name].title, technique_score)
        row = technique_score.scores.get((TECHNIQUES[name].title, there))
        if row:
            lines.append(f"CodeBLEU {row['CodeBLEU']} on the {_QUANTIZATION_NAMES.get(there, there)} base")
    return "\n".join(lines)


def _scored_quantization(serving: ServingOptions, title: str, technique_score: TechniqueScore) -> str:
    """The quantization that answers here where it was measured, else the one that was."""
    known = [where for technique, where in technique_score.scores if technique == title]
    return serving.quantization if serving.quantization in known or not known else known[-1]


def _first_table(lines: list[str]) -> list[str]:
    begin = next((at for at, line in enumerate(lines) if line.startswith("|")), len(lines))
    end = next((at for at in range(begin, len(lines)) if not lines[at].startswith("|")), len(lines))
    return lines[begin:end]


def _table_description(lines: list[str]) -> str:
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("- ") and ": " in line)
    base = facts.get("Base", "").split(" at ")[0].rsplit("/", 1)[-1]
    data = facts.get("Data", "").split(", sha256")[0].replace("conala", "CoNaLa")
    return f"{data} ({base})".replace("test, n = ", "test problems, n = ")
