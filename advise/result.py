"""Result of an advice: the recommendation, the families with scores and costs, who beats whom, the learning curve.

Everything is computed from what is on disk, so it can be made at any time; before the test rows are answered there are
only the scores on validation rows, and nothing is recommended.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from advise.answering import describe_answer
from advise.folder import ADAPTER_STEP, AdviseOptions, Fold, Folds
from advise.training import Trained, all_settings, describe_settings
from evaluate.results import Result, Run
from evaluate.stats import (
    SIGNIFICANCE_LEVEL,
    Interval,
    bootstrap_mean,
    detectable_difference,
    is_binary_metric,
    metric_title,
    metric_values,
    paired_bootstrap,
    power_text,
    summarize,
    summarize_cost,
    wilson_interval,
)
from evaluate.table import Recommendation, choose
from serve.options import ModelOptions
from tasks.datasets.registry import BUNDLED, DATASETS
from tasks.methods import Method, parse_method

VERSION = 1
FAMILY_LABELS = {
    "zero-shot": "zero-shot",
    "icl": "ICL",
    "rag": "RAG",
    "adapter": "adapter",
    "adapter with examples": "adapter + RAG",
}


@dataclass(frozen=True)
class FoldAnswers:
    """What was chosen in a fold: the method of each family, validation scores, trainings; and the answers, if any."""

    fold: Fold
    finalists: Mapping[str, str]
    scores: Mapping[str, Sequence[float]]
    trials: Sequence[Trained]
    run: Run | None

    def trial_of(self, family: str) -> Trained:
        """Return the training whose adapter the family's method has."""
        name = self.finalists[family].partition("+")[0]
        return next(trial for trial in self.trials if trial.name == name)

    def results(self, family: str) -> list[Result]:
        """Return the answers of the family's method to the test rows."""
        return [] if self.run is None else self.run.results(self.finalists[family])


def recommendation_of(options: AdviseOptions, metric: str, answers: Sequence[FoldAnswers]) -> Recommendation | None:
    """Return the recommendation among the families, over the test rows of all folds; None before all are answered."""
    if not answers or any(found.run is None for found in answers):
        return None
    methods: dict[str, Method] = {}
    scores: dict[str, dict[str, float]] = {}
    for family, label in FAMILY_LABELS.items():
        name = answers[0].finalists[family]
        methods[label] = parse_method(name, [trial.name for trial in answers[0].trials])
        scores[label] = {
            id: value for found in answers for id, value in metric_values(found.results(family), metric).items()
        }
    return choose(methods, scores, metric, options.seed)


def chosen_family(options: AdviseOptions, metric: str, answers: Sequence[FoldAnswers], families: Sequence[str]) -> str:
    """Return the recommended family if it is one of `families`, else the one of them with the best test scores."""
    found = recommendation_of(options, metric, answers)
    if found is not None and found.family in families:
        return str(found.family)

    def score(family: str) -> tuple[float, float]:
        results = [result for each in answers for result in each.results(family)]
        return _mean(results, metric), _mean(results, "codebleu")

    return max(families, key=score)


def build_result(
    options: AdviseOptions,
    model: ModelOptions,
    folds: Folds,
    metric: str,
    answers: Sequence[FoldAnswers],
    *,
    finished: bool,
    started: str,
    seconds: float,
    steps: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the result as values for JSON. `steps` are the results of the steps after the answers, as far as done."""
    complete = len(answers) == len(folds) and all(found.run is not None for found in answers)
    recommendation = recommendation_of(options, metric, answers) if complete else None
    added = steps.get(ADAPTER_STEP) or {}
    return {
        "version": VERSION,
        "finished": finished,
        "missing": [] if finished else _missing(folds, answers, complete),
        "data": {
            "name": folds.data,
            "train": len(folds.folds[0].train),
            "validation": len(folds.folds[0].validation),
            "test": folds.test_rows,
            "folds": len(folds),
            "note": folds.note,
        },
        "metric": metric,
        "metric_title": metric_title(metric),
        "recommendation": _recommendation(recommendation, answers, added),
        "families": _families(options, metric, answers, complete),
        "comparisons": [asdict(pair) for pair in recommendation.comparisons] if recommendation else [],
        "power": _power(folds.test_rows),
        "curve": steps.get("curve"),
        "retention": steps.get("retention"),
        "search": _search(answers),
        "answers": _answers(options, metric, answers) if complete else [],
        "commands": _commands(options, model, recommendation, answers, added),
        "provenance": _provenance(options, answers) | {"started": started, "seconds": round(seconds, 1)},
    }


def _missing(folds: Folds, answers: Sequence[FoldAnswers], complete: bool) -> list[str]:
    if complete:
        return ["the steps after the answers to the test rows"]
    done = sum(found.run is not None for found in answers)
    return [f"the answers to the test rows of {len(folds) - done} of {len(folds)} folds"]


def _recommendation(
    found: Recommendation | None, answers: Sequence[FoldAnswers], added: Mapping[str, Any]
) -> dict[str, Any]:
    if found is None:
        sentence = "The test rows are not answered yet, so nothing is recommended."
        return {"sentence": sentence, "method": None, "family": None, "adapter": None}
    if found.family is None:
        return {"sentence": found.sentence, "method": None, "family": None, "adapter": None}
    method, adapter = answers[0].finalists[found.family], None
    if found.adapter is not None:
        adapter = added.get("adapter") if added.get("family") == found.family else None
        method = method.replace(found.adapter, adapter, 1) if adapter else method
    return {"sentence": found.sentence, "method": method, "family": found.family, "adapter": adapter}


def _families(
    options: AdviseOptions, metric: str, answers: Sequence[FoldAnswers], complete: bool
) -> list[dict[str, Any]]:
    rows = []
    for family, label in FAMILY_LABELS.items():
        if not answers:
            continue
        results = [result for found in answers for result in found.results(family)] if complete else []
        trials = [found.trial_of(family) for found in answers] if family.startswith("adapter") else []
        scores = [found.scores.get(found.finalists[family]) for found in answers]
        validation = [score[0] for score in scores if score is not None]  # zero-shot has nothing to choose
        row: dict[str, Any] = {
            "family": family,
            "label": label,
            "method": _chosen_methods(answers, family)[0][0],
            "validation": _mean_of(validation) if validation else None,
            "train_seconds": _mean_of([trial.seconds for trial in trials]) if trials else None,
            "adapter_bytes": max((trial.bytes for trial in trials), default=None),
            "settings": trials[0].settings if trials else {},
            "note": _cross_fit_note(answers, family),
        }
        summary = summarize(results, metric, options.seed)
        cost = summarize_cost(results, {})
        memory = [
            int(found.run.methods[found.finalists[family]].get("peak_memory_bytes") or 0)
            for found in answers
            if found.run is not None
        ]
        row |= {
            "value": summary.interval.value if summary else None,
            "low": summary.interval.low if summary else None,
            "high": summary.interval.high if summary else None,
            "n": summary.n if summary else 0,
            "codebleu": _mean(results, "codebleu") if results else None,
            "prompt_tokens": cost.prompt_tokens if results else None,
            "tokens": cost.tokens if results else None,
            "seconds": cost.seconds if results else None,
            "memory_bytes": max(memory, default=None) if results else None,
        }
        rows.append(row)
    return rows


def _chosen_methods(answers: Sequence[FoldAnswers], family: str) -> list[tuple[str, int]]:
    """Return the methods that the folds chose with how many chose each, the most frequent first."""
    return Counter(_method_text(found, family, ended=len(answers) == 1) for found in answers).most_common()


def _method_text(found: FoldAnswers, family: str, *, ended: bool) -> str:
    """Return the method of a family; `ended` adds how much of its steps a training made if it ended early."""
    method = found.finalists[family]
    if not family.startswith("adapter"):
        return method
    trial = found.trial_of(family)
    text = trial.describe() if ended else describe_settings(trial.settings)
    return text + (f" + {method.partition('+')[2]}" if "+" in method else "")


def _cross_fit_note(answers: Sequence[FoldAnswers], family: str) -> str:
    chosen = _chosen_methods(answers, family)
    if len(chosen) == 1:
        return ""
    return f"the choice of {chosen[0][1]} of {len(answers)} folds; each chose anew"


def _search(answers: Sequence[FoldAnswers]) -> list[dict[str, Any]]:
    """Return every candidate with its score on validation rows."""
    rows = []
    for found in answers:
        by_name = {trial.name: trial for trial in found.trials}
        for method, (value, _) in found.scores.items():
            trial = by_name.get(method.partition("+")[0])
            text = trial.describe() if trial else method
            examples = f" + {method.partition('+')[2]}" if trial and "+" in method else ""
            state = "chosen" if method in found.finalists.values() else ""
            rows.append({"fold": found.fold.number, "name": text + examples, "validation": value, "state": state})
        for trial in found.trials:
            if trial.name not in found.scores:
                state = "stopped early" if trial.pruned else "not among the best losses"
                rows.append(
                    {
                        "fold": found.fold.number,
                        "name": trial.describe(),
                        "validation": None,
                        "loss": trial.loss,
                        "state": state,
                    }
                )
    return rows


def _answers(options: AdviseOptions, metric: str, answers: Sequence[FoldAnswers]) -> list[dict[str, Any]]:
    """Return all test rows with the answer of each family: those that the best family misses first."""
    best = chosen_family(options, metric, answers, tuple(FAMILY_LABELS))
    rows = []
    for found in answers:
        by_family = {family: {result.problem: result for result in found.results(family)} for family in FAMILY_LABELS}
        for problem in found.fold.test:
            described = {
                family: describe_answer(by_family[family][problem.id], problem.reference or "", metric)
                for family in FAMILY_LABELS
            }
            right = sum(each["right"] for each in described.values())
            rows.append(
                (
                    (described[best]["right"], right),
                    {
                        "id": problem.id,
                        "intent": problem.intent,
                        "reference": problem.reference,
                        "answers": [{"label": FAMILY_LABELS[family], **each} for family, each in described.items()],
                    },
                )
            )
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def _power(n: int) -> dict[str, Any]:
    comparisons = len(FAMILY_LABELS) * (len(FAMILY_LABELS) - 1) // 2
    return {
        "n": n,
        "comparisons": comparisons,
        "detectable_difference": detectable_difference(n, comparisons),
        "text": power_text(n, comparisons),
    }


def _commands(
    options: AdviseOptions,
    model: ModelOptions,
    found: Recommendation | None,
    answers: Sequence[FoldAnswers],
    added: Mapping[str, Any],
) -> dict[str, list[str]]:
    base = [] if model.base in (None, "embedded") else ["--base", str(model.base)]
    quantization = [] if model.quantization == "nf4" else ["--quantization", model.quantization]
    files = ["--data-dir", "DATA_DIR"] if options.data in DATASETS and options.data not in BUNDLED else []
    memory = ["--memory-gb", f"{options.memory_gb:g}"] if options.memory_gb else []
    repeat = ["advise", options.data, "--minutes", f"{options.minutes:g}", "--seed", str(options.seed)]
    repeat += [*base, *quantization, *files, *memory]
    commands = {"repeat": [_command(repeat)], "use": []}
    if found is None or found.family is None or not answers:
        return commands
    method = answers[0].finalists[found.family]
    if found.adapter is not None:
        settings = all_settings(answers[0].trial_of(found.family).settings, options.seed)
        flags = [part for name, value in settings.items() for part in _flag(name, value)]
        train = ["train", "--dataset-name", options.data, "--adapter-name", options.adapter]
        train += [*(["--model-name-or-path", base[1]] if base else []), *files, *flags]
        if added.get("adapter") is None:
            commands["use"].append(_command(train))
        else:
            commands["repeat"].append(_command(train))
        method = method.replace(found.adapter, options.adapter, 1)
    pool = ["--pool", options.data] if "rag" in method or "icl" in method else []
    served = [*base, *quantization, *files]
    commands["use"] += [
        _command(["serve", *served, *pool]) + f"   # then ask the model {method}",
        f"{shlex.join(['python', 'app.py', *served])}   # then add the method {method} on Compare",
    ]
    return commands


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def _command(words: Sequence[str]) -> str:
    return "python -m " + shlex.join(words)


def _provenance(options: AdviseOptions, answers: Sequence[FoldAnswers]) -> dict[str, Any]:
    runs = [found.run for found in answers if found.run is not None]
    if not runs:
        return {"seed": options.seed}
    settings = runs[0].settings
    names = ("base_id", "base_revision", "quantization", "device", "decoding", "prompt_version")
    styles = {
        FAMILY_LABELS[family]: {
            "style": runs[0].methods[method].get("style"),
            "fingerprint": runs[0].methods[method].get("fingerprint"),
        }
        for family, method in answers[0].finalists.items()
    }
    return {
        **{name: settings.get(name) for name in names},
        "data_digests": [run.settings["data_digest"] for run in runs],
        "seed": options.seed,
        "prompts": styles,
        "tests": runs[0].scored_with.get("tests"),
        "versions": runs[0].provenance.get("versions"),
    }


def _mean(results: Sequence[Result], metric: str) -> float:
    return _mean_of(list(metric_values(results, metric).values()))


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


ShareFn = Callable[[FoldAnswers, str, float], Mapping[str, float]]
_NEAR_TOP = 0.95


def learning_curve(
    answers: Sequence[FoldAnswers],
    family: str,
    label: str,
    metric: str,
    shares: Sequence[float],
    seed: int,
    answer_with_share: ShareFn,
) -> dict[str, Any]:
    """Return `label`, `points` (rows, value, low, high, n) from the smallest share to all rows, and a `sentence`.

    `trained` says that the family learns by training, and not by retrieval alone.

    `answer_with_share` returns the scores of the test rows of a fold after learning from a share of its rows.
    """
    sizes = [round(share * len(answers[0].fold.train)) for share in shares]
    scores = [
        {id: value for found in answers for id, value in answer_with_share(found, family, share).items()}
        for share in shares
    ]
    scores.append({id: v for found in answers for id, v in metric_values(found.results(family), metric).items()})
    sizes.append(len(answers[0].fold.train))
    points = []
    for rows, found in zip(sizes, scores, strict=True):
        interval = _interval(metric, list(found.values()), seed)
        points.append(
            {"rows": rows, "value": interval.value, "low": interval.low, "high": interval.high, "n": len(found)}
        )
    sentence = _sentence(label, sizes, scores, seed)
    return {"label": label, "trained": family != "rag", "points": points, "sentence": sentence}


def _interval(metric: str, values: Sequence[float], seed: int) -> Interval:
    if is_binary_metric(metric, values):
        return wilson_interval(min(sum(values), len(values)), len(values))
    return bootstrap_mean(values, seed)


def _sentence(label: str, sizes: Sequence[int], scores: Sequence[Mapping[str, float]], seed: int) -> str:
    """Return whether the last doubling helped, and how many rows the next step would take if it goes on so."""
    last = paired_bootstrap(scores[-1], scores[-2], seed)
    now = sum(scores[-1].values()) / len(scores[-1])
    gain = 100 * last.value
    bounds = f"[{100 * last.low:.1f}, {100 * last.high:.1f}]"
    change = f"from {sizes[-2]} to {sizes[-1]} rows {label} gained {gain:.1f} points {bounds}"
    if now >= _NEAR_TOP:
        return f"More rows can hardly help: {label} is right on {100 * now:.0f} % already; {change}."
    if last.p >= SIGNIFICANCE_LEVEL or last.value <= 0:
        return f"No gain of more rows is shown: {change}, which may be chance."
    doubling = last.value / math.log2(sizes[-1] / sizes[-2])
    step = min(0.1, 1 - now)
    needed = round(sizes[-1] * 2 ** (step / doubling))
    return (
        f"More rows would probably help: {change}. If it goes on so, {100 * step:.0f} points more take about "
        f"{needed:,} rows; curves flatten, so take that as the least."
    )
