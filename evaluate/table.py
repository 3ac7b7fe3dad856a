"""From a run's results to its table: one line a method, with intervals, and the comparisons that the table invites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from errors import PeftArenaError
from evaluate.results import Result, Run
from evaluate.stats import Interval, bootstrap_mean, holm, mcnemar, paired_bootstrap, wilson

BASELINE = "zero-shot"
_SIGNIFICANT = 0.05
_ENOUGH = 30  # problems, for a percentile bootstrap to be near its level


@dataclass(frozen=True)
class MethodRow:
    """What a method reached over its n problems.

    Shares and means are in [0, 1] and None where no problem has a reference. `last` is EM@k for the largest k that was
    asked for. `seconds`, `prompt_tokens` and `tokens` are means over the problems that were answered. `errors` counts
    failures, which score 0; `undefined_flow` the references without data flow.
    """

    method: str
    n: int
    k: int
    first: Interval | None
    last: Interval | None
    tree: Interval | None
    codebleu: Interval | None
    parses: Interval
    seconds: float
    prompt_tokens: float
    tokens: float
    errors: int
    undefined_flow: int


@dataclass(frozen=True)
class Pair:
    """`a` minus `b` in one metric on the same problems; `p` of McNemar's exact test for EM, else of the sign-flip test.

    `corrected` is Holm's, over all pairs of the table.
    """

    a: str
    b: str
    metric: str
    difference: Interval
    n: int
    test: str
    p: float
    corrected: float = 1.0


def method_rows(run: Run) -> list[MethodRow]:
    """One row a method that has scored results, in the run's order."""
    k, seed = int(run.settings["decoding"]["candidates"]), int(run.settings["seed"])
    done = ((method, [each for each in run.results(method) if each.scores]) for method in run.methods)
    return [_method_row(method, results, k, seed) for method, results in done if results]


def comparisons(run: Run) -> list[Pair]:
    """Every method against zero-shot, and the last against the first, in EM@1 and CodeBLEU, with Holm's correction."""
    methods = [method for method in run.methods if run.results(method)]
    pairs = [(method, BASELINE) for method in methods if method != BASELINE and BASELINE in methods]
    if len(methods) > 1 and (methods[-1], methods[0]) not in pairs and (methods[0], methods[-1]) not in pairs:
        pairs.append((methods[-1], methods[0]))
    seed = int(run.settings["seed"])
    return corrected([pair for a, b in pairs for pair in compare(run.results(a), run.results(b), a, b, seed)])


def across(runs: Sequence[Run]) -> list[Pair]:
    """Methods of the same name in the first run and in each other one; refuses other problems or other data."""
    first = runs[0]
    pairs: list[Pair] = []
    for run in runs[1:]:
        if run.settings["data_digest"] != first.settings["data_digest"]:
            raise PeftArenaError(
                f"{run.path} and {first.path} are over different problems and cannot be compared: "
                "run both with the same --data, --split and --limit."
            )
        for method in (name for name in run.methods if name in first.methods):
            labels = (f"{method} ({run.path.stem})", f"{method} ({first.path.stem})")
            pairs += compare(run.results(method), first.results(method), *labels, int(first.settings["seed"]))
    return corrected(pairs)


def compare(a: Sequence[Result], b: Sequence[Result], name_a: str, name_b: str, seed: int) -> list[Pair]:
    """Both metrics of two methods; PeftArenaError when they answered different problems."""
    pairs: list[Pair] = []
    for metric in ("em@1", "codebleu"):
        left, right = _values(a, metric), _values(b, metric)
        if not left and not right:
            continue
        found = paired_bootstrap(left, right, seed)
        test, p = "sign flip", found.p
        if metric == "em@1":
            solved = [{problem: value == 1.0 for problem, value in side.items()} for side in (left, right)]
            test, p = "McNemar", mcnemar(*solved).p
        pairs.append(Pair(name_a, name_b, metric, Interval(found.value, found.low, found.high), found.n, test, p))
    return pairs


def corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with Holm's correction over all of them."""
    return [replace(pair, corrected=p) for pair, p in zip(pairs, holm([pair.p for pair in pairs]), strict=True)]


def render_methods(rows: Sequence[MethodRow], markdown: bool = False) -> str:
    """The table of methods; EM, CodeBLEU and parse rate in percent, with 95 % intervals."""
    k = max((row.k for row in rows), default=1)
    at_k = [f"EM@{k}"] if k > 1 else []
    header = ["method", "n", "EM@1", *at_k, "tree@1", "CodeBLEU", "parses", "s/problem", "tokens in", "out"]
    errors = any(row.errors for row in rows)
    lines = [
        [
            row.method,
            str(row.n),
            percent(row.first),
            *([percent(row.last)] if at_k else []),
            _share(row.tree),
            percent(row.codebleu),
            _share(row.parses),
            f"{row.seconds:.2f}",
            f"{row.prompt_tokens:.0f}",
            f"{row.tokens:.0f}",
            *([str(row.errors)] if errors else []),
        ]
        for row in rows
    ]
    return grid([*header, *(["errors"] if errors else [])], lines, markdown)


def render_pairs(pairs: Sequence[Pair], markdown: bool = False) -> str:
    """The comparisons in percentage points; `*` marks those below 0.05 after the correction."""
    header = ["a", "b", "metric", "a - b, points", "test", "p", "p (Holm)"]
    lines = [
        [
            pair.a,
            pair.b,
            "EM@1" if pair.metric == "em@1" else "CodeBLEU",
            _points(pair.difference),
            pair.test,
            _p(pair.p),
            _p(pair.corrected) + (" *" if pair.corrected < _SIGNIFICANT else ""),
        ]
        for pair in pairs
    ]
    return grid(header, lines, markdown)


def footnote(rows: Sequence[MethodRow]) -> str:
    """What a reader must know to read the table."""
    if not rows:
        return ""
    undefined, n = rows[0].undefined_flow, rows[0].n
    few = f" With {n} problems bootstrap intervals are too narrow: take 30 or more." if n < _ENOUGH else ""
    return (
        "EM and parses: Wilson 95 % intervals; CodeBLEU: bootstrap 95 %, first candidate; tree@1: equal syntax trees. "
        f"Data flow is undefined for {undefined} of {n} references and left out of their CodeBLEU. "
        f"Failures score 0.{few}"
    )


def grid(header: Sequence[str], lines: Sequence[Sequence[str]], markdown: bool) -> str:
    """Aligned columns, the first to the left and the others to the right; as Markdown where asked."""
    cells = [[_cell(cell, markdown) for cell in line] for line in [header, *lines]]
    least = 3 if markdown else 1  # Markdown needs a rule of "-:" at least
    widths = [max(least, *(len(line[at]) for line in cells)) for at in range(len(header))]

    def text(line: Sequence[str], pad: Callable[[str, int], str]) -> str:
        rest = (pad(cell, width) for cell, width in zip(line[1:], widths[1:], strict=True))
        columns = [line[0].ljust(widths[0]), *rest]
        return "| " + " | ".join(columns) + " |" if markdown else "  ".join(columns).rstrip()

    rule = ["-" * widths[0], *("-" * (width - 1) + (":" if markdown else "-") for width in widths[1:])]
    return "\n".join([text(cells[0], str.rjust), text(rule, str.rjust), *(text(line, str.rjust) for line in cells[1:])])


def _method_row(method: str, results: Sequence[Result], k: int, seed: int) -> MethodRow:
    answered = [result for result in results if result.error is None]
    scored = [result for result in results if result.scores.get("codebleu") is not None]
    bleu = list(_values(results, "codebleu").values())
    return MethodRow(
        method,
        len(results),
        k,
        _proportion(results, "em@1"),
        _proportion(results, f"em@{k}"),
        _proportion(results, "em_tree@1"),
        bootstrap_mean(bleu, seed) if bleu else None,
        wilson(sum(result.scores["parses"] == 1.0 for result in results), len(results)),
        _mean([result.seconds for result in answered]),
        _mean([result.prompt_tokens for result in answered]),
        _mean([result.tokens for result in answered]),
        len(results) - len(answered),
        sum(result.scores.get("codebleu.dataflow") is None for result in scored),
    )


def _values(results: Sequence[Result], metric: str) -> dict[str, float]:
    values: Mapping[str, float | None] = {result.problem: result.scores.get(metric) for result in results}
    return {problem: value for problem, value in values.items() if value is not None}


def _proportion(results: Sequence[Result], metric: str) -> Interval | None:
    values = list(_values(results, metric).values())
    return wilson(sum(value == 1.0 for value in values), len(values)) if values else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def percent(interval: Interval | None) -> str:
    """A value with its interval, in percent; 'none' where there is none."""
    if interval is None:
        return "none"
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _points(difference: Interval) -> str:
    if difference.low == difference.high == 0:
        return "0 (no problem differs)"  # an interval of no width would look like certainty
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _share(interval: Interval | None) -> str:
    return "none" if interval is None else f"{100 * interval.value:.1f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _cell(text: str, markdown: bool) -> str:
    flat = " ".join(text.split())
    return flat.replace("|", "\\|") if markdown else flat
