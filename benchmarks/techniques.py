r"""Benchmark of fine-tuning techniques: trains and scores each on one data set, with a table of quality and cost.

    python -m benchmarks.techniques --data conala --data-dir ../shared/data --limit 60 \
        --output docs/results/techniques-conala

Runs `python -m train` and then `python -m evaluate` for one technique after another, each in a separate process.
Finished runs are skipped and unfinished ones resumed, so that the same command continues after an interruption. Writes
the answers and scores to OUTPUT/*.jsonl, the scores also to each adapter's manifest and card, and the table, with the
paper's results below it, to OUTPUT.md. --table makes the table again from the finished runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.manifest import MANIFEST_NAME, Manifest
from common.files import cache_dir
from common.format import format_gigabytes, format_percent, format_share, text_table
from errors import PromptOrTuneError
from evaluate.results import Result, Run, read_run
from evaluate.stats import metric_title
from evaluate.table import (
    MethodRow,
    apply_holm_correction,
    compare_results,
    method_rows,
    render_comparisons,
    table_footnote,
)
from train.config import RunDirectory
from train.save import record_scores
from train.techniques import TECHNIQUES

# Parameters, EM@1, EM@10, CodeBLEU: arXiv 2308.10462 v3, Table 3, CodeGen-350M-mono on CoNaLa, 543 test problems.
_PAPER_ROWS = (
    ("Full FT", "350M", 7.92, 18.42, 14.68),
    ("LoRA", "1.3M", 12.52, 25.60, 17.89),
    ("IA3", "0.16M", 11.42, 25.78, 18.83),
    ("Prompt tuning", "0.02M", 7.92, 20.26, 16.29),
    ("Prefix tuning", "0.4M", 5.34, 12.52, 17.53),
)
_TABLE_HEADER = ("technique", "epochs", "trained on", "answers on", "parameters", "peak memory", "train s", "EM@1",
                 "EM@10",
         "CodeBLEU", "parses")  # fmt: skip

_TABLE_LEGEND = (
    "`trained on` and `answers on` say how the base's weights were quantized. Seconds are those of training steps, "
    "without evaluation; peak memory is the process's maximum resident set during training."
)
_PAPER_NOTE = (
    "CodeGen-350M-mono, arXiv 2308.10462 v3, Table 3, 543 test problems; with another base, another "
    "tokenizer and CodeBLEU of 2023, so compare the order of the techniques, not the values."
)


@dataclass(frozen=True)
class TechniqueResult:
    """A finished technique: its manifest (None for the untrained base) and the run that scored it."""

    technique: str
    manifest: Manifest | None
    run: Run

    @property
    def label(self) -> str:
        """The technique with the quantization of the base that answers."""
        return f"{self.title} ({self.run.settings['quantization']})"

    @property
    def title(self) -> str:
        """The technique's name in tables."""
        return TECHNIQUES[self.technique].title if self.technique in TECHNIQUES else self.technique

    def results(self) -> list[Result]:
        """Return the results of the run's only method, one per problem."""
        return self.run.results(next(iter(self.run.methods)))

    @property
    def row(self) -> MethodRow:
        """The scores of the run's only method."""
        return method_rows(self.run)[0]


def render_markdown(results: Sequence[TechniqueResult], command: str) -> str:
    """Return the page: provenance, table, comparisons against LoRA, the paper's rows, and the command."""
    settings = results[0].run.settings
    versions = results[0].run.provenance.get("versions", {})
    untrained = next((result for result in results if result.manifest is None), results[0])
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
        text_table(_TABLE_HEADER, [_table_cells(result) for result in results], markdown=True),
        table_footnote([result.row for result in results]),
        _TABLE_LEGEND,
        "## Comparison with LoRA on the same problems",
        _comparisons_section(results),
        "## Published results of the study",
        _PAPER_NOTE,
        text_table(
            ("technique", "parameters", "EM@1", "EM@10", "CodeBLEU"),
            [_paper_cells(row) for row in _PAPER_ROWS],
            markdown=True,
        ),
        f"Command:\n\n```sh\n{command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def manifest_scores(result: TechniqueResult) -> list[dict[str, Any]]:
    """Return the scores of a run as entries of the adapter's manifest."""
    settings, row = result.run.settings, result.row
    shared = {
        "n": row.n,
        "dataset": settings["data"],
        "split": settings["split"],
        "quantization": settings["quantization"],
        "decoding": f"{settings['decoding']['mode']}, {settings['decoding']['candidates']} candidates",
    }
    metrics = dict.fromkeys(["pass@1", f"pass@{row.k}", "tests", "em@1", f"em@{row.k}", "codebleu", "parses"])
    intervals = ((metric_title(metric), row.interval(metric)) for metric in metrics)
    return [
        {
            "metric": name,
            "value": round(interval.value, 4),
            "low": round(interval.low, 4),
            "high": round(interval.high, 4),
        }
        | shared
        for name, interval in intervals
        if interval is not None
    ]


def _table_cells(result: TechniqueResult) -> list[str]:
    row = result.row
    metrics = ("em@1", f"em@{row.k}", "codebleu")
    quality = [*(format_percent(row.interval(metric)) for metric in metrics), format_share(row.interval("parses"))]
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
        format_gigabytes(config["peak_memory_bytes"]),
        f"{config['train_seconds']:.0f}",
        *quality,
    ]


def _comparisons_section(results: Sequence[TechniqueResult]) -> str:
    reference = next((result for result in results if result.technique == "lora"), None)
    if reference is None:
        return "LoRA is not finished yet."
    seed = int(reference.run.settings["seed"])
    pairs = [
        pair
        for result in results
        if result is not reference
        for pair in compare_results(result.results(), reference.results(), result.label, reference.label, seed)
    ]
    note = "Paired over the same problems; bootstrap 95 % intervals; * marks a corrected p below 0.05."
    return f"{render_comparisons(apply_holm_correction(pairs), markdown=True)}\n\n{note}"


def _paper_cells(row: tuple[str, str, float, float, float]) -> list[str]:
    name, parameters, *values = row
    return [name, parameters, *(f"{value:.2f}" for value in values)]


BASELINE_METHOD = "zero-shot"


@dataclass(frozen=True)
class TechniqueRun:
    """A technique to train and score on a data set."""

    technique: str
    data: str
    epochs: str

    @property
    def adapter_name(self) -> str:
        """The adapter's name."""
        return f"{self.technique}-{self.data}"

    @property
    def adapter_folder(self) -> Path:
        """The folder of the finished adapter or model in the user's store, which evaluate reads."""
        return cache_dir() / "adapters" / self.adapter_name

    def train_arguments(self, options: argparse.Namespace) -> list[str]:
        """Return the arguments of `python -m train`, with --resume if there is a checkpoint."""
        arguments = ["--technique", self.technique, "--dataset-name", self.data, "--adapter-name", self.adapter_name]
        arguments += ["--num-train-epochs", self.epochs, "--model-name-or-path", options.base]
        if options.data_dir:
            arguments += ["--data-dir", str(options.data_dir)]
        return [*arguments, *(["--resume"] if RunDirectory(self.adapter_folder).last_step() else [])]

    def evaluate_arguments(self, options: argparse.Namespace, quantization: str, output: Path) -> list[str]:
        """Return the arguments of `python -m evaluate`: a fully fine-tuned model is the base, not an adapter."""
        is_full = self.technique == "full"
        base, method = (str(self.adapter_folder), "zero-shot") if is_full else (options.base, self.adapter_name)
        return _evaluate_arguments(options, base, quantization, method, output)


def _evaluate_arguments(
    options: argparse.Namespace, base: str, quantization: str, method: str, output: Path
) -> list[str]:
    arguments = ["--data", options.data, "--base", base, "--quantization", quantization, "--methods", method]
    if options.data_dir:
        arguments += ["--data-dir", str(options.data_dir)]
    if options.limit:
        arguments += ["--limit", str(options.limit)]
    return [*arguments, "--batch", "8", "--output", str(output)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 2 after an error, which is printed on standard error, else 0."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _options(given)
    runs = [TechniqueRun(name, options.data, options.epochs.get(name, "2")) for name in options.techniques]
    try:
        if not options.table:
            _run_all(runs, options)
        _write_report(runs, options, " ".join(["python -m benchmarks.techniques", *given]))
    except (PromptOrTuneError, subprocess.CalledProcessError) as error:
        print(f"benchmarks.techniques: {error}", file=sys.stderr)
        return 2
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.techniques",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="conala")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--limit", type=int, help="only the first N test problems")
    parser.add_argument("--techniques", nargs="+", default=list(TECHNIQUES), choices=list(TECHNIQUES), metavar="NAME")
    parser.add_argument("--epochs", nargs="+", default=[], metavar="NAME=N", help="epochs by technique (default: 2)")
    parser.add_argument("--output", type=Path, required=True, help="write OUTPUT.md and OUTPUT/*.jsonl")
    parser.add_argument("--table", action="store_true", help="only make the table of finished runs")
    options = parser.parse_args(arguments)
    options.epochs = dict(entry.split("=", 1) for entry in options.epochs)
    return options


def _run_all(runs: Sequence[TechniqueRun], options: argparse.Namespace) -> None:
    for quantization in ("none", "nf4"):
        output = _scores_path(BASELINE_METHOD, quantization, options)
        if not _is_scored(output, options, None):
            _run_module("evaluate", _evaluate_arguments(options, options.base, quantization, BASELINE_METHOD, output))
    for run in runs:
        if not (run.adapter_folder / MANIFEST_NAME).is_file():
            _run_module("train", run.train_arguments(options))
        for quantization in _served_quantizations(run.technique):
            output = _scores_path(run.technique, quantization, options)
            if not _is_scored(output, options, run):
                _run_module("evaluate", run.evaluate_arguments(options, quantization, output))
            record_scores(
                run.adapter_folder,
                manifest_scores(TechniqueResult(run.technique, Manifest.read(run.adapter_folder), read_run(output))),
            )


def _served_quantizations(technique: str) -> list[str]:
    """Return the quantizations to score: that of training, and after "none" also NF4, the default for serving."""
    trained = TECHNIQUES[technique].quantizations[0]
    return ["none", "nf4"] if trained == "none" else [trained]


def _scores_path(name: str, quantization: str, options: argparse.Namespace) -> Path:
    return Path(options.output / f"{name}-{quantization}.jsonl")


def _is_scored(output: Path, options: argparse.Namespace, technique_run: TechniqueRun | None) -> bool:
    """Return whether all problems are scored with the adapter's current weights.

    Otherwise evaluate continues the run, or reports how its settings differ.
    """
    if not output.is_file():
        return False
    run = read_run(output)
    has_all_problems = options.limit is None or len(run.problems) == options.limit
    counts = (sum(bool(result.scores) for result in run.results(method)) for method in run.methods)
    is_complete = all(count == len(run.problems) for count in counts)
    if technique_run is None or technique_run.technique == "full":
        return has_all_problems and is_complete
    digests = {method.get("adapter_digest") for method in run.methods.values()}
    return has_all_problems and is_complete and digests == {Manifest.read(technique_run.adapter_folder).weights_digest}


def _run_module(module: str, arguments: Sequence[str]) -> None:
    print("$ python -m", module, *arguments, flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def _write_report(runs: Sequence[TechniqueRun], options: argparse.Namespace, command: str) -> None:
    results = [
        TechniqueResult(BASELINE_METHOD, None, read_run(path))
        for name in ("none", "nf4")
        if (path := _scores_path(BASELINE_METHOD, name, options)).is_file()
    ]
    for run in runs:
        for name in _served_quantizations(run.technique):
            path = _scores_path(run.technique, name, options)
            if (run.adapter_folder / MANIFEST_NAME).is_file() and path.is_file():
                results.append(TechniqueResult(run.technique, Manifest.read(run.adapter_folder), read_run(path)))
    if not results:
        raise PromptOrTuneError("Nothing is finished yet: run the command without --table.")
    text = render_markdown(results, command.replace(" --table", ""))
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
