"""The numbers that the study published (arXiv 2308.10462 v3), from the files in `paper/`. Scores are in percent."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAPER_DIR = Path(__file__).parent / "paper"
# The study's names of what this project calls by a technique's name.
TABLE3_TECHNIQUES = {
    "full": "Full FT",
    "lora": "LoRA",
    "qlora-8bit": "QLoRA-8bit",
    "qlora-4bit": "QLoRA-4bit",
    "ia3": "IA3",
    "prompt-tuning": "Prompt tuning",
    "prefix-tuning": "Prefix tuning",
}
# Figure 1 leaves out that the larger ones are the Python variants (section 4.4).
_FIGURE1_MODELS = {"CodeLlama-13B": "CodeLlama-13B-Python", "CodeLlama-34B": "CodeLlama-34B-Python"}
_APPS_ROWS = {"": "CodeLlama-7B-Instruct", "lora": "+LoRA", "qlora-8bit": "+QLoRA-8bit", "qlora-4bit": "+QLoRA-4bit"}


@dataclass(frozen=True)
class PublishedScore:
    """A row of Table 3 for one data set: trainable parameters as printed, EM@1, EM@10 and CodeBLEU."""

    parameters: str
    em1: float
    em10: float
    codebleu: float


def published_score(model: str, technique: str, data: str) -> PublishedScore | None:
    """Table 3's row; None where the study has none."""
    for row in _read_rows("table3_tuning"):
        if row["model"] == model and row["tuning"] == TABLE3_TECHNIQUES.get(technique) and f"{data}_em1" in row:
            scores = (float(row[f"{data}_{metric}"]) for metric in ("em1", "em10", "codebleu"))
            return PublishedScore(row["params"], *scores)
    return None


def published_apps_scores(technique: str, difficulty: str) -> dict[str, float]:
    """Table 4's row of CodeLlama-7B-Instruct: `tests`, `pass@1`, `pass@2`, `pass@5`; empty where there is none."""
    for row in _read_rows("table4_apps"):
        if row["model"] == _APPS_ROWS.get(technique) and row["difficulty"] == difficulty:
            names = {"tests": "avg_tests_passed", "pass@1": "pass_at_1", "pass@2": "pass_at_2", "pass@5": "pass_at_5"}
            return {ours: float(row[theirs]) for ours, theirs in names.items()}
    return {}


def published_em10(model: str, data: str, method: str) -> float | None:
    """EM@10 as the study states it for "zero-shot", "icl" (the best), "rag" (the best) or a technique; else None."""
    column = {"zero-shot": "zero_shot", "icl": "icl_best", "rag": "rag_best", "lora": "lora"}.get(method)
    for row in _read_rows("figure7_icl_rag_lora_em10"):
        if column and row["model"] == model and row["dataset"] == data and row[column]:
            return float(row[column])
    found = published_score(model, method, data)
    return found.em10 if found else published_quantized_em10(model, data, method)


def published_quantized_em10(model: str, data: str, technique: str) -> float | None:
    """EM@10 of Figure 5."""
    for row in _read_rows("figure5_quantization"):
        if (row["model"], row["dataset"], row["tuning"]) == (model, data, TABLE3_TECHNIQUES.get(technique)):
            return float(row["em10"])
    return None


def published_peak_memory() -> dict[tuple[str, str], float]:
    """Figure 1: GB by model and technique (`full`, `lora`, `qlora-4bit`)."""
    endings = {"-QLoRA-4bit": "qlora-4bit", "-lora": "lora", "-ft": "full"}
    found = {}
    for row in _read_rows("figure1_peak_memory"):
        ending = next(each for each in endings if row["run"].endswith(each))
        name = row["run"].removesuffix(ending)
        found[_FIGURE1_MODELS.get(name, name), endings[ending]] = float(row["peak_gpu_memory_gb"])
    return found


def published_models(data: str = "conala") -> list[str]:
    """The models of Table 3, from the smallest on, that have scores on a data set."""
    return list(dict.fromkeys(row["model"] for row in _read_rows("table3_tuning") if row.get(f"{data}_em1")))


@cache
def _read_rows(name: str) -> tuple[dict[str, str], ...]:
    with (PAPER_DIR / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
