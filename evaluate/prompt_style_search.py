"""Search for the prompt style in which a base answers best, so that no baseline is handicapped.

    python -m evaluate.prompt_style_search --data conala --data-dir ../shared/data --limit 40 --output style.json

Every style of tasks.prompt.STYLES that the base can use answers the first validation problems with greedy decoding,
without examples and with 8 fixed ones. The best style of each has the highest (EM + CodeBLEU) / 2; of equal ones the
first in STYLES. The result is entered by hand in tasks/prompt.py.
"""
# ruff: noqa: T201 - a command prints

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.command import run_command
from common.files import atomic_write, check_writable
from common.format import format_percent, text_table
from errors import PromptOrTuneError
from evaluate.generate import (
    EngineProtocol,
    EvaluationPlan,
    ProgressBar,
    answer_all,
    batch_problems,
    make_results,
    make_sampling_params,
    package_versions,
)
from evaluate.options import add_base_options, build_engine_from_options
from evaluate.scoring import score_candidates
from evaluate.stats import Interval, bootstrap_mean, wilson_interval
from serve.types import Request
from tasks.methods import FixedExamples, Method, NoExamples
from tasks.prompt import STYLES, PromptStyle, get_style

SHOT_METHODS: Mapping[str, Method] = {
    "zero-shot": Method("zero-shot", NoExamples()),
    "few-shot": Method("icl-8", FixedExamples(8)),
}


@dataclass(frozen=True)
class StyleScore:
    """Scores of one style with ("few-shot") or without ("zero-shot") examples."""

    style: str
    fingerprint: str
    shots: str
    n: int
    em: Interval
    codebleu: Interval
    errors: int

    @property
    def mean(self) -> float:
        """The mean of EM and CodeBLEU, by which styles are ranked."""
        return (self.em.value + self.codebleu.value) / 2


def supported_styles(names: Sequence[str], has_chat_template: bool) -> list[PromptStyle]:
    """Return the styles of those names (all for no names) that the base can use, in the order of STYLES.

    Raises PromptOrTuneError if there is none.
    """
    requested = [get_style(name) for name in names] or list(STYLES.values())
    usable = [
        style for style in STYLES.values() if style in requested and (has_chat_template or style.format != "chat")
    ]
    if not usable:
        raise PromptOrTuneError("This base has no chat template and only chat styles are named: name a plain one.")
    return usable


def evaluate_style(
    engine: EngineProtocol,
    plan: EvaluationPlan,
    style: PromptStyle,
    shots: str,
    on_progress: Callable[[int, str], None],
) -> StyleScore:
    """Generate answers to the plan's problems in one style and score them; a prompt that is too long scores 0.

    Raises PromptOrTuneError if the engine still fails after the default retries.
    """
    method = SHOT_METHODS[shots]
    scores: list[dict[str, float | None]] = []
    failures = 0
    for part in batch_problems(plan.problems, plan.batch):
        requests = [Request(problem, method, plan.data, style) for problem in part]
        answers = answer_all(engine, requests, plan.sampling_params)
        for problem, result in zip(part, make_results(part, answers, method.name), strict=True):
            codes = [candidate["code"] for candidate in result.candidates]
            scores.append(score_candidates(codes, problem.reference, 1))
            failures += result.error is not None
        on_progress(len(part), f"{style.name}, {shots}")
    hits = [problem_scores["em@1"] or 0.0 for problem_scores in scores]
    bleu = [problem_scores["codebleu"] or 0.0 for problem_scores in scores]
    em = wilson_interval(round(sum(hits)), len(hits))
    return StyleScore(style.name, style.fingerprint, shots, len(scores), em, bootstrap_mean(bleu), failures)


def best_style(scores: Sequence[StyleScore], shots: str) -> str:
    """Return the name of the best style, the first of equal ones; '' if none was measured."""
    candidates = [score for score in scores if score.shots == shots]
    return max(candidates, key=lambda score: score.mean).style if candidates else ""


def render_scores(scores: Sequence[StyleScore]) -> str:
    """Return the table of styles and the best of each kind as text."""
    lines = [
        [
            each.style,
            each.shots,
            str(each.n),
            format_percent(each.em),
            format_percent(each.codebleu),
            f"{100 * each.mean:.1f}",
        ]
        for each in scores
    ]
    table = text_table(["style", "examples", "n", "EM", "CodeBLEU", "mean"], lines, markdown=False)
    chosen = [f"Best {shots}: {best_style(scores, shots)}" for shots in SHOT_METHODS if best_style(scores, shots)]
    return "\n".join([table, "", *chosen])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(words)
    command = "python -m evaluate.prompt_style_search " + shlex.join(words)
    return run_command(
        lambda: _run_command(options, command), stopped="Stopped: the styles that were finished are in the output file."
    )


def _run_command(options: argparse.Namespace, command: str) -> int:
    from tasks.datasets.registry import dataset_digest, load_examples, load_problems

    check_writable(options.output)
    loaded = load_problems(options.data, "validation", options.data_dir, options.limit)
    problems = [problem for problem in loaded if problem.reference]
    if not problems:
        raise PromptOrTuneError(f"No validation problem of {options.data} has a reference to score against.")
    plan = EvaluationPlan(
        options.data,
        "validation",
        problems,
        dataset_digest(problems),
        lambda: dataset_digest(load_examples(options.data, options.data_dir)),
        make_sampling_params("greedy", 1, options.max_new_tokens, options.seed),
        options.batch,
        options.seed,
    )
    names = [name.strip() for name in options.styles.split(",") if name.strip()]
    for name in names:
        get_style(name)
    engine = build_engine_from_options(options)
    styles = supported_styles(names, engine.base.has_chat_template)
    head = {
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": plan.settings(engine.base),
        "pool_digest": plan.pool_digest(),
        "versions": package_versions(),
    }
    progress = ProgressBar(len(styles) * len(SHOT_METHODS) * len(problems))
    scores: list[StyleScore] = []
    try:
        for style in styles:
            scores += [evaluate_style(engine, plan, style, shots, progress.update) for shots in SHOT_METHODS]
            records = [{**asdict(score), "mean": score.mean} for score in scores]
            chosen = {shots: best_style(scores, shots) for shots in SHOT_METHODS}
            atomic_write(options.output, json.dumps({**head, "best": chosen, "scores": records}, indent=1) + "\n")
    finally:
        progress.close()
    print(render_scores(scores))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evaluate.prompt_style_search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_base_options(parser)
    parser.add_argument("--styles", default="", help="comma-separated names of tasks.prompt.STYLES; all by default")
    parser.add_argument("--output", type=Path, required=True, help="JSON file with the scores of every style")
    return parser


if __name__ == "__main__":
    sys.exit(main())
