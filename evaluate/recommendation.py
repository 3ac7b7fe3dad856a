"""Recommendation: the method to use for such problems, if the scores of a run show one.

All pairs of methods are compared in one metric, Pass@1 if tests ran, else EM@1, and all p are corrected by Holm's
method. A method is recommended if it is better than zero-shot and no other method is better than it; of several such
methods the one that costs least to make: fixed examples (ICL), then retrieved ones (RAG), an adapter, an adapter with
examples, and within a family fewer examples. Without a real difference nothing is recommended in at least 95 of 100
repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from common.format import format_p_value
from evaluate.aggregate import is_binary_metric, metric_title, metric_values
from evaluate.completeness import complete_methods
from evaluate.power import SIGNIFICANCE_LEVEL, detectable_difference, needed_problems, power_text
from evaluate.results import Run
from evaluate.stats import holm_correction, mcnemar_test, paired_bootstrap
from evaluate.table import BASELINE_METHOD, headline_metrics
from tasks.methods import FixedExamples, Method, parse_method

# From the cheapest to make: what a person does, by family.
ADVICE = {
    "zero-shot": "Prompt without examples",
    "icl": "Prompt with fixed examples",
    "rag": "Retrieve examples",
    "adapter": "Fine-tune",
    "adapter with examples": "Fine-tune, and put examples into the prompt",
}
_FAMILIES = tuple(ADVICE)


@dataclass(frozen=True)
class PairTest:
    """`a` minus `b` in the share of right answers, in [-1, 1], with p before and after Holm's correction."""

    a: str
    b: str
    difference: float
    p: float
    corrected: float


@dataclass(frozen=True)
class Recommendation:
    """The recommended method with its family (a key of ADVICE) and its adapter; None where nothing is recommended.

    `sentence` says why. `values` are the scores of all methods in `metric`, in [0, 1], over the same n problems, and
    `comparisons` all pairs, with corrected p. `detectable_difference` is the smallest difference, in [0, 1], that n
    problems show in four of five repeats; None if they cannot show any.
    """

    sentence: str
    method: str | None
    family: str | None
    adapter: str | None
    metric: str
    n: int
    values: Mapping[str, float]
    comparisons: Sequence[PairTest]
    detectable_difference: float | None


def recommend(run: Run) -> Recommendation | None:
    """Return the recommendation of a scored run; None unless it has zero-shot and another method with all answers."""
    names = complete_methods(run)
    if BASELINE_METHOD not in names or len(names) < 2:
        return None
    metric = next(name for name in headline_metrics(run.results(names[0])) if name in ("pass@1", "em@1"))
    scores = {name: metric_values(run.results(name), metric) for name in names}
    if not all(scores.values()):
        return None
    methods = {name: parse_method(name, _adapter_of(name)) for name in names}
    return choose(methods, scores, metric, int(run.settings["seed"]))


def _adapter_of(name: str) -> list[str]:
    """Return the adapter in the canonical name of a method, where it comes first; old runs do not store it apart."""
    first = name.partition("+")[0].partition("*")[0]
    return [] if first == BASELINE_METHOD else [first]


def choose(
    methods: Mapping[str, Method], scores: Mapping[str, Mapping[str, float]], metric: str, seed: int
) -> Recommendation:
    """Choose among methods by their scores of the same problems, as `recommend` does.

    `seed` is that of the sign-flip test, which compares shares of several samples; McNemar's compares right and wrong.
    """
    n = len(scores[BASELINE_METHOD])
    values = {name: sum(found.values()) / n for name, found in scores.items()}
    comparisons = _compare_pairs(scores, values, metric, seed)
    beats = {_winner_first(pair): pair for pair in comparisons if pair.corrected < SIGNIFICANCE_LEVEL}
    losers = {loser for _, loser in beats}
    others = [name for name in methods if name != BASELINE_METHOD]
    winners = [name for name in others if (name, BASELINE_METHOD) in beats and name not in losers]
    if not winners and all((BASELINE_METHOD, name) in beats for name in others):
        winners = [BASELINE_METHOD]
    chosen = min(winners, key=lambda name: _cost(methods[name]), default=None)
    if chosen is None:
        sentence = _no_recommendation(values, n, len(comparisons))
    else:
        sentence = _reason(chosen, methods, values, beats, metric, n)
    return Recommendation(
        sentence,
        chosen,
        None if chosen is None else family(methods[chosen]),
        None if chosen is None else methods[chosen].adapter,
        metric,
        n,
        dict(values),
        tuple(comparisons),
        detectable_difference(n, len(comparisons)),
    )


def _compare_pairs(
    scores: Mapping[str, Mapping[str, float]], values: Mapping[str, float], metric: str, seed: int
) -> list[PairTest]:
    pairs = list(combinations(scores, 2))
    if is_binary_metric(metric, [value for found in scores.values() for value in found.values()]):
        solved = {name: {id: value == 1.0 for id, value in found.items()} for name, found in scores.items()}
        p_values = [mcnemar_test(solved[a], solved[b]).p for a, b in pairs]
    else:
        p_values = [paired_bootstrap(scores[a], scores[b], seed).p for a, b in pairs]
    corrected = holm_correction(p_values)
    return [
        PairTest(a, b, values[a] - values[b], p, holm)
        for (a, b), p, holm in zip(pairs, p_values, corrected, strict=True)
    ]


def family(method: Method) -> str:
    """Return the family of a method, a key of ADVICE."""
    if method.adapter is not None:
        return "adapter with examples" if method.examples.k else "adapter"
    if not method.examples.k:
        return "zero-shot"
    return "icl" if isinstance(method.examples, FixedExamples) else "rag"


def _cost(method: Method) -> tuple[int, int]:
    return _FAMILIES.index(family(method)), method.examples.k


def _winner_first(pair: PairTest) -> tuple[str, str]:
    return (pair.a, pair.b) if pair.difference > 0 else (pair.b, pair.a)


def _reason(
    chosen: str,
    methods: Mapping[str, Method],
    values: Mapping[str, float],
    beats: Mapping[tuple[str, str], PairTest],
    metric: str,
    n: int,
) -> str:
    title = f"{ADVICE[family(methods[chosen])]}: {chosen} is right on {100 * values[chosen]:.1f} % of {n} rows"
    beaten = [
        f"{loser} on {100 * values[loser]:.1f} % (p = {format_p_value(pair.corrected)})".replace("= <", "< ")
        for (winner, loser), pair in beats.items()
        if winner == chosen
    ]
    equal = [name for name in methods if name != chosen and (chosen, name) not in beats]
    rest = f" No difference is shown to {', '.join(equal)}, which cost more or do not beat zero-shot." if equal else ""
    return f"{title} ({metric_title(metric)}), {', '.join(beaten)}.{rest}"


def _no_recommendation(values: Mapping[str, float], n: int, comparisons: int) -> str:
    best = max((name for name in values if name != BASELINE_METHOD), key=values.__getitem__)
    difference = values[best] - values[BASELINE_METHOD]
    text = f"Nothing is recommended: no method is shown to be better than zero-shot. {power_text(n, comparisons)}"
    if difference <= 0:
        return f"{text} None was right more often than zero-shot."
    needed = max(n + 1, needed_problems(difference, comparisons))
    return (
        f"{text} The largest difference seen, {100 * difference:.1f} points of {best}, would take about {needed:,} "
        "rows, if it is real and nothing is lost."
    )
