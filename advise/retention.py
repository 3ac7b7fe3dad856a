"""What an adapter forgot: its score on general Python, and the perplexity of general rows, before and after."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from advise.answering import Answerer, mean_scores
from advise.plan import RETENTION_ROWS
from common.files import ProgressFn
from evaluate.aggregate import metric_values
from evaluate.stats import paired_bootstrap
from tasks.datasets.registry import STARTER, load_problems
from tasks.problem import Example
from train.config import TrainConfig

_NEW_TOKENS = 96


def measure_retention(answerer: Answerer, config: TrainConfig, adapter: Path, report: ProgressFn) -> dict[str, Any]:
    """Ask the base and the adapter RETENTION_ROWS test rows of starter, and compute the perplexity of its rows.

    The share of tests passed tells more than Pass@1 for so few rows. Returns the field `retention` of an advice.
    """
    from train.perplexity import measure_perplexity

    rows = load_problems(STARTER, "test")
    rows = [
        rows[at] for at in sorted(random.Random(config.seed).sample(range(len(rows)), min(RETENTION_ROWS, len(rows))))
    ]
    with answerer.open():
        run = answerer.answer("retention", next(iter(answerer.pools)), rows, ["zero-shot", adapter.name], _NEW_TOKENS)
    tests = all("tests" in result.scores for result in run.results(adapter.name))
    metric, title = ("tests", "tests passed") if tests else ("codebleu", "CodeBLEU")
    before, after = (mean_scores(run, name, metric)[0] for name in ("zero-shot", adapter.name))
    difference = paired_bootstrap(
        metric_values(run.results(adapter.name), metric), metric_values(run.results("zero-shot"), metric), config.seed
    )
    general = [
        Example(problem.id, problem.intent, problem.reference or "") for problem in load_problems(STARTER, "validation")
    ]
    perplexity = measure_perplexity(config, adapter, general, report)
    bounds = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    change = f"{100 * before:.1f} to {100 * after:.1f} % of {title} on {len(rows)} rows of {STARTER}"
    perplexities = f"perplexity of {perplexity.rows} rows {perplexity.base:.1f} to {perplexity.adapter:.1f}"
    return {
        "sentence": f"On general Python: {change} ({100 * difference.value:+.1f} points {bounds}); {perplexities}.",
        "metric": title,
        "n": len(rows),
        "before": before,
        "after": after,
        "perplexity_rows": perplexity.rows,
        "perplexity_before": perplexity.base,
        "perplexity_after": perplexity.adapter,
    }
