"""The table of benchmarks.techniques: ours from manifests and runs, the paper's beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.manifest import Manifest
from common.format import format_percent, format_share, text_table
from evaluate.aggregate import metric_title
from evaluate.results import Result, Run
from evaluate.table import (
    MethodRow,
    apply_holm_correction,
    compare_results,
    method_rows,
    render_comparisons,
    table_footnote,
)
from train.techniques import TECHNIQUES

# arXiv 2308.10462 v3, Table 3, CodeGen-350M-mono on CoNaLa: parameters, EM@1, EM@10, CodeBLEU, all 543 test problems.
_PAPER_ROWS = (
    ("Full FT", "350M", 7.92, 18.42, 14.68),
    ("LoRA", "1.3M", 12.52, 25.60, 17.89),
    ("IA3", "0.16M", 11.42, 25.78, 18.83),
    ("Prompt tuning", "0.02M", 7.92, 20.26, 16.29),
    ("Prefix tuning", "0.4M", 5.34, 12.52, 17.53),
)
_TABLE_HEADER = ("technique", "epochs", "trained on", "answers on", "parameters", "peak memory", "train s", "EM@1", "EM@10",
         "CodeBLEU", "parses")  # fmt: skip

_TABLE_LEGEND = (
    "`trained on` and `answers on` say how the base's weights were quantized. Seconds are those of training steps, "
    "without evaluations; peak memory is the process's resident set during training."
)
_PAPER_NOTE = (
    "CodeGen-350M-mono, arXiv 2308.10462 v3, Table 3, 543 test problems; another base, another tokenizer, and CodeBLEU "
    "as of 2023, so compare orders, not values."
)


@dataclass(frozen=True)
class TechniqueResult:
    """A finished technique: its manifest (None for the untrained base) and the run that scored it."""

    technique: str
    manifest: Manifest | None
    run: Run

    @property
    def label(self) -> str:
        """The technique, and the base that answers where that is not the one that was trained on."""
        return f"{self.title} ({self.run.settings['quantization']})"

    @property
    def title(self) -> str:
        """The technique as people write it."""
        return TECHNIQUES[self.technique].title if self.technique in TECHNIQUES else self.technique

    def results(self) -> list[Result]:
        """The run's one method, problem by problem."""
        return self.run.results(next(iter(self.run.methods)))

    @property
    def row(self) -> MethodRow:
        """The scores."""
        return method_rows(self.run)[0]


def render_markdown(results: Sequence[TechniqueResult], command: str) -> str:
    """The page: provenance, our table, comparisons against LoRA, the paper's rows, and the command."""
    settings = results[0].run.settings
    versions = results[0].run.provenance.get("versions", {})
    untrained = next((line for line in results if line.manifest is None), results[0])
    decoding = f"{settings['decoding']['mode']}, {settings['decoding']['candidates']} candidates"
    facts = [
        f"Base: {untrained.run.settings['base_id']} at {untrained.run.settings['base_revision']}, {settings['device']}",
        f"Data: {settings['data']} {settings['split']}, n = {settings['n']}, {settings['data_digest']}",
        f"Decoding: {decoding}, at most {settings['decoding']['max_new_tokens']} new tokens; seed {settings['seed']}",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]
    parts = [
        f"# Techniques on {settings['data']}",
        "\n".join(f"- {fact}" for fact in facts),
        text_table(_TABLE_HEADER, [_table_cells(line) for line in results], markdown=True),
        table_footnote([line.row for line in results]),
        _TABLE_LEGEND,
        "## Against LoRA, on the same problems",
        _comparisons_section(results),
        "## The study's own, for orientation",
        _PAPER_NOTE,
        text_table(
            ("technique", "parameters", "EM@1", "EM@10", "CodeBLEU"),
            [_paper_cells(row) for row in _PAPER_ROWS],
            markdown=True,
        ),
        f"Made by:\n\n```sh\n{command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def manifest_scores(result: TechniqueResult) -> list[dict[str, Any]]:
    """What the manifest of the adapter keeps of the run."""
    settings, row = result.run.settings, result.row
    shared = {
        "n": row.n,
        "dataset": settings["data"],
        "split": settings["split"],
        "quantization": settings["quantization"],
        "decoding": f"{settings['decoding']['mode']}, {settings['decoding']['candidates']} candidates",
    }
    metrics = dict.fromkeys(["pass@1", f"pass@{row.k}", "tests", "em@1", f"em@{row.k}", "codebleu", "parses"])
    found = ((metric_title(metric), row.interval(metric)) for metric in metrics)
    return [
        {"metric": name, "value": round(value.value, 4), "low": round(value.low, 4), "high": round(value.high, 4)}
        | shared
        for name, value in found
        if value is not None
    ]


def _table_cells(result: TechniqueResult) -> list[str]:
    row = result.row
    scored = ("em@1", f"em@{row.k}", "codebleu")
    quality = [*(format_percent(row.interval(metric)) for metric in scored), format_share(row.interval("parses"))]
    answers = result.run.settings["quantization"]
    if result.manifest is None:
        return [result.title, "-", "-", answers, "0", "-", "-", *quality]
    config: Mapping[str, Any] = result.manifest.config
    return [
        result.title,
        f"{config['num_train_epochs']:g}",
        result.manifest.trained_quantization,
        answers,
        f"{config['trainable_parameters']:,}",
        f"{config['peak_memory_bytes'] / 1e9:.2f} GB",
        f"{config['train_seconds']:.0f}",
        *quality,
    ]


def _comparisons_section(results: Sequence[TechniqueResult]) -> str:
    reference = next((line for line in results if line.technique == "lora"), None)
    if reference is None:
        return "LoRA is not finished yet."
    seed = int(reference.run.settings["seed"])
    pairs = [
        pair
        for line in results
        if line is not reference
        for pair in compare_results(line.results(), reference.results(), line.label, reference.label, seed)
    ]
    note = "Paired over the same problems; bootstrap 95 % intervals; * is a corrected p below 0.05."
    return f"{render_comparisons(apply_holm_correction(pairs), markdown=True)}\n\n{note}"


def _paper_cells(row: tuple[str, str, float, float, float]) -> list[str]:
    name, parameters, *values = row
    return [name, parameters, *(f"{value:.2f}" for value in values)]
