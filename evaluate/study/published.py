"""The study's published scores (arXiv 2308.10462 v3), read from the CSV files in `paper/`. Scores are in percent."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAPER_DIR = Path(__file__).parent / "paper"
# Names of the techniques in the study's tables.
TABLE3_TECHNIQUES = {
    "full": "Full FT",
    "lora": "LoRA",
    "qlora-8bit": "QLoRA-8bit",
    "qlora-4bit": "QLoRA-4bit",
    "ia3": "IA3",
    "prompt-tuning": "Prompt tuning",
    "prefix-tuning": "Prefix tuning",
}
# Memory of the GPU of Figure 1, an RTX A5000.
GPU_BYTES = 24e9
# Figure 1 omits that the larger models are the Python variants (section 4.4).
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
    """Return the row of Table 3; None if the study has none."""
    for row in _read_rows("table3_tuning"):
        if row["model"] == model and row["tuning"] == TABLE3_TECHNIQUES.get(technique) and f"{data}_em1" in row:
            scores = (float(row[f"{data}_{metric}"]) for metric in ("em1", "em10", "codebleu"))
            return PublishedScore(row["params"], *scores)
    return None


def published_apps_scores(technique: str, difficulty: str) -> dict[str, float]:
    """Return the row of Table 4 for CodeLlama-7B-Instruct: `tests`, `pass@1`, `pass@2`, `pass@5`; {} without one."""
    for row in _read_rows("table4_apps"):
        if row["model"] == _APPS_ROWS.get(technique) and row["difficulty"] == difficulty:
            names = {"tests": "avg_tests_passed", "pass@1": "pass_at_1", "pass@2": "pass_at_2", "pass@5": "pass_at_5"}
            return {metric: float(row[column]) for metric, column in names.items()}
    return {}


def published_em10(model: str, data: str, method: str) -> float | None:
    """Return the published EM@10 of "zero-shot", the best "icl", the best "rag" or a technique; else None."""
    column = {"zero-shot": "zero_shot", "icl": "icl_best", "rag": "rag_best", "lora": "lora"}.get(method)
    for row in _read_rows("figure7_icl_rag_lora_em10"):
        if column and row["model"] == model and row["dataset"] == data and row[column]:
            return float(row[column])
    found = published_score(model, method, data)
    return found.em10 if found else published_quantized_em10(model, data, method)


def published_quantized_em10(model: str, data: str, technique: str) -> float | None:
    """Return EM@10 of Figure 5; None without one."""
    for row in _read_rows("figure5_quantization"):
        if (row["model"], row["dataset"], row["tuning"]) == (model, data, TABLE3_TECHNIQUES.get(technique)):
            return float(row["em10"])
    return None


def published_peak_memory() -> dict[tuple[str, str], float]:
    """Return Figure 1: GB by (model, technique), with the techniques `full`, `lora` and `qlora-4bit`."""
    endings = {"-QLoRA-4bit": "qlora-4bit", "-lora": "lora", "-ft": "full"}
    found = {}
    for row in _read_rows("figure1_peak_memory"):
        ending = next(ending for ending in endings if row["run"].endswith(ending))
        name = row["run"].removesuffix(ending)
        found[_FIGURE1_MODELS.get(name, name), endings[ending]] = float(row["peak_gpu_memory_gb"])
    return found


def published_models(data: str = "conala") -> list[str]:
    """Return the models of Table 3 that have scores on a data set, the smallest first."""
    return list(dict.fromkeys(row["model"] for row in _read_rows("table3_tuning") if row.get(f"{data}_em1")))


@cache
def _read_rows(name: str) -> tuple[dict[str, str], ...]:
    with (PAPER_DIR / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
