r"""What does each technique give, and what does it cost? Trains and scores all of them on one data set.

    python -m benchmarks.techniques --data conala --data-dir ../shared/data --limit 60 \
        --output docs/results/techniques-conala

One technique after the other: `python -m train`, then `python -m evaluate` on the base that it was trained on, each in
a process of its own. What is finished is not done again, an unfinished run is resumed, so the same command goes on
where it was stopped. The scores go to OUTPUT/*.jsonl and into each adapter's manifest and card, the table to OUTPUT.md;
--table prints it again from what is there.

The table of benchmarks.techniques: ours from manifests and runs, the paper's beside it.
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
from common.format import format_gigabytes, format_percent, format_share, text_table
from common.paths import cache_dir
from errors import PromptOrTuneError
from evaluate.aggregate import metric_title
from evaluate.results import Result, Run, read_run
from evaluate.table import (
    MethodRow,
    apply_holm_correction,
    compare_results,
    method_rows,
    render_comparisons,
    table_footnote,
)
from train.checkpoints import RunDirectory
from train.save import record_scores
from train.techniques import TECHNIQUES

# arXiv 2308.10462 v3, Table 3, CodeGen-350M-mono on CoNaLa: parameters, EM@1, EM@10, CodeBLEU, all 543 test problems.
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
        format_gigabytes(config["peak_memory_bytes"]),
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


BASELINE_METHOD = "zero-shot"


@dataclass(frozen=True)
class TechniqueRun:
    """One line of the table: what is trained, and the base and method that answer."""

    technique: str
    data: str
    epochs: str

    @property
    def adapter_name(self) -> str:
        """The adapter's name."""
        return f"{self.technique}-{self.data}"

    @property
    def adapter_folder(self) -> Path:
        """Where the finished adapter or model lies: in the user's own store, where evaluate looks."""
        return cache_dir() / "adapters" / self.adapter_name

    def train_arguments(self, options: argparse.Namespace) -> list[str]:
        """The arguments of `python -m train`."""
        arguments = ["--technique", self.technique, "--dataset-name", self.data, "--adapter-name", self.adapter_name]
        arguments += ["--num-train-epochs", self.epochs, "--model-name-or-path", options.base]
        if options.data_dir:
            arguments += ["--data-dir", str(options.data_dir)]
        return [*arguments, *(["--resume"] if RunDirectory(self.adapter_folder).last_step() else [])]

    def evaluate_arguments(self, options: argparse.Namespace, quantization: str, output: Path) -> list[str]:
        """The arguments of `python -m evaluate`: a fully fine-tuned model is a base of its own."""
        full = self.technique == "full"
        base, method = (str(self.adapter_folder), "zero-shot") if full else (options.base, self.adapter_name)
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
    """Runs the command; 2 with one sentence where something is wrong, else 0."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _options(given)
    jobs = [TechniqueRun(name, options.data, options.epochs.get(name, "2")) for name in options.techniques]
    try:
        if not options.table:
            _run_all(jobs, options)
        _write_report(jobs, options, " ".join(["python -m benchmarks.techniques", *given]))
    except (PromptOrTuneError, subprocess.CalledProcessError) as error:
        print(f"techniques: {error}", file=sys.stderr)
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
    parser.add_argument("--epochs", nargs="+", default=[], metavar="NAME=N", help="other than 2, by technique")
    parser.add_argument("--output", type=Path, required=True, help="without an ending: OUTPUT.md and OUTPUT/*.jsonl")
    parser.add_argument("--table", action="store_true", help="only the table, of what is finished")
    options = parser.parse_args(arguments)
    options.epochs = dict(entry.split("=", 1) for entry in options.epochs)
    return options


def _run_all(runs: Sequence[TechniqueRun], options: argparse.Namespace) -> None:
    for quantization in ("none", "nf4"):
        output = _scores_path(BASELINE_METHOD, quantization, options)
        if not _is_scored(output, options, None):
            _run_module("evaluate", _evaluate_arguments(options, options.base, quantization, BASELINE_METHOD, output))
    for job in runs:
        if not (job.adapter_folder / MANIFEST_NAME).is_file():
            _run_module("train", job.train_arguments(options))
        for quantization in _served_quantizations(job.technique):
            output = _scores_path(job.technique, quantization, options)
            if not _is_scored(output, options, job):
                _run_module("evaluate", job.evaluate_arguments(options, quantization, output))
            record_scores(
                job.adapter_folder,
                manifest_scores(TechniqueResult(job.technique, Manifest.read(job.adapter_folder), read_run(output))),
            )


def _served_quantizations(technique: str) -> list[str]:
    """As it was trained; and what was trained on the unquantized base also on the NF4 base that serves by default."""
    trained = TECHNIQUES[technique].quantizations[0]
    return ["none", "nf4"] if trained == "none" else [trained]


def _scores_path(name: str, quantization: str, options: argparse.Namespace) -> Path:
    return Path(options.output / f"{name}-{quantization}.jsonl")


def _is_scored(output: Path, options: argparse.Namespace, technique_run: TechniqueRun | None) -> bool:
    """Whether all that is asked for is scored, with these very weights; else evaluate goes on, or says what differs."""
    if not output.is_file():
        return False
    run = read_run(output)
    enough = options.limit is None or len(run.problems) == options.limit
    scored = (sum(bool(result.scores) for result in run.results(method)) for method in run.methods)
    done = all(count == len(run.problems) for count in scored)
    if technique_run is None or technique_run.technique == "full":
        return enough and done
    digests = {method.get("adapter_digest") for method in run.methods.values()}
    return enough and done and digests == {Manifest.read(technique_run.adapter_folder).weights_digest}


def _run_module(module: str, arguments: Sequence[str]) -> None:
    print("$ python -m", module, *arguments, flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def _write_report(runs: Sequence[TechniqueRun], options: argparse.Namespace, command: str) -> None:
    lines = [
        TechniqueResult(BASELINE_METHOD, None, read_run(path))
        for name in ("none", "nf4")
        if (path := _scores_path(BASELINE_METHOD, name, options)).is_file()
    ]
    for job in runs:
        for name in _served_quantizations(job.technique):
            path = _scores_path(job.technique, name, options)
            if (job.adapter_folder / MANIFEST_NAME).is_file() and path.is_file():
                lines.append(TechniqueResult(job.technique, Manifest.read(job.adapter_folder), read_run(path)))
    if not lines:
        raise PromptOrTuneError("Nothing is finished yet: run the command without --table.")
    text = render_markdown(lines, command.replace(" --table", ""))
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
