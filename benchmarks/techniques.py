r"""What does each technique give, and what does it cost? Trains and scores all of them on one data set.

    python -m benchmarks.techniques --data conala --data-dir ../shared/data --limit 60 \
        --output docs/results/techniques-conala

One technique after the other: `python -m train`, then `python -m evaluate` on the base that it was trained on, each in
a process of its own. What is finished is not done again, an unfinished run is resumed, so the same command goes on
where it was stopped. The scores go to OUTPUT/*.jsonl and into each adapter's manifest and card, the table to OUTPUT.md;
--table prints it again from what is there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.manifest import MANIFEST_NAME, Manifest
from benchmarks.techniques_table import TechniqueResult, manifest_scores, render_markdown
from common.paths import cache_dir
from errors import PromptOrTuneError
from evaluate.results import read_run
from train.checkpoints import RunDirectory
from train.save import record_scores
from train.techniques import TECHNIQUES

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
