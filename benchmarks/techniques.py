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
from benchmarks.techniques_table import Line, markdown, scores
from errors import PeftArenaError
from evaluate.results import read_run
from serve.home import home
from train.scores import record_scores
from train.techniques import TECHNIQUES
from train.workspace import Workspace

BASELINE = "zero-shot"


@dataclass(frozen=True)
class Job:
    """One line of the table: what is trained, and the base and method that answer."""

    technique: str
    data: str
    epochs: str

    @property
    def name(self) -> str:
        """The adapter's name."""
        return f"{self.technique}-{self.data}"

    @property
    def folder(self) -> Path:
        """Where the finished adapter or model lies: in the user's own store, where evaluate looks."""
        return home() / "adapters" / self.name

    def train(self, options: argparse.Namespace) -> list[str]:
        """The arguments of `python -m train`."""
        arguments = ["--technique", self.technique, "--dataset-name", self.data, "--adapter-name", self.name]
        arguments += ["--num-train-epochs", self.epochs, "--model-name-or-path", options.base]
        if options.data_dir:
            arguments += ["--data-dir", str(options.data_dir)]
        return [*arguments, *(["--resume"] if Workspace(self.folder).step() else [])]

    def evaluate(self, options: argparse.Namespace, quantization: str, output: Path) -> list[str]:
        """The arguments of `python -m evaluate`: a fully fine-tuned model is a base of its own."""
        full = self.technique == "full"
        base, method = (str(self.folder), "zero-shot") if full else (options.base, self.name)
        return _scoring(options, base, quantization, method, output)


def _scoring(options: argparse.Namespace, base: str, quantization: str, method: str, output: Path) -> list[str]:
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
    jobs = [Job(name, options.data, options.epochs.get(name, "2")) for name in options.techniques]
    try:
        if not options.table:
            _work(jobs, options)
        _write(jobs, options, " ".join(["python -m benchmarks.techniques", *given]))
    except (PeftArenaError, subprocess.CalledProcessError) as fault:
        print(f"techniques: {fault}", file=sys.stderr)
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


def _work(jobs: Sequence[Job], options: argparse.Namespace) -> None:
    for quantization in ("none", "nf4"):
        output = _scored(BASELINE, quantization, options)
        if not _finished(output, options, None):
            _call("evaluate", _scoring(options, options.base, quantization, BASELINE, output))
    for job in jobs:
        if not (job.folder / MANIFEST_NAME).is_file():
            _call("train", job.train(options))
        for quantization in _served(job.technique):
            output = _scored(job.technique, quantization, options)
            if not _finished(output, options, job):
                _call("evaluate", job.evaluate(options, quantization, output))
            record_scores(job.folder, scores(Line(job.technique, Manifest.read(job.folder), read_run(output))))


def _served(technique: str) -> list[str]:
    """As it was trained; and what was trained on the unquantized base also on the NF4 base that serves by default."""
    trained = TECHNIQUES[technique].quantizations[0]
    return ["none", "nf4"] if trained == "none" else [trained]


def _scored(name: str, quantization: str, options: argparse.Namespace) -> Path:
    return Path(options.output / f"{name}-{quantization}.jsonl")


def _finished(output: Path, options: argparse.Namespace, job: Job | None) -> bool:
    """Whether all that is asked for is scored, with these very weights; else evaluate goes on, or says what differs."""
    if not output.is_file():
        return False
    run = read_run(output)
    enough = options.limit is None or len(run.problems) == options.limit
    scored = (sum(bool(result.scores) for result in run.results(method)) for method in run.methods)
    done = all(count == len(run.problems) for count in scored)
    if job is None or job.technique == "full":
        return enough and done
    digests = {method.get("adapter_digest") for method in run.methods.values()}
    return enough and done and digests == {Manifest.read(job.folder).weights_digest}


def _call(module: str, arguments: Sequence[str]) -> None:
    print("$ python -m", module, *arguments, flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def _write(jobs: Sequence[Job], options: argparse.Namespace, command: str) -> None:
    lines = [
        Line(BASELINE, None, read_run(path))
        for name in ("none", "nf4")
        if (path := _scored(BASELINE, name, options)).is_file()
    ]
    for job in jobs:
        for name in _served(job.technique):
            path = _scored(job.technique, name, options)
            if (job.folder / MANIFEST_NAME).is_file() and path.is_file():
                lines.append(Line(job.technique, Manifest.read(job.folder), read_run(path)))
    if not lines:
        raise PeftArenaError("Nothing is finished yet: run the command without --table.")
    text = markdown(lines, command.replace(" --table", ""))
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
