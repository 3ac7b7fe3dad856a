"""The scores of one answer, and of all candidates of one problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluate.codebleu import codebleu, codebleu_package_score
from evaluate.exact_match import exact_match, exact_match_at_k, syntax_tree_match
from evaluate.parse_rate import parses_score

# Goes up when a score of the same candidates can come out otherwise: what was scored before is then scored again.
METRICS_VERSION = 2
NO_REFERENCE = "there is no reference to compare with"
NO_DATA_FLOW = "the reference has no data flow"
CODEBLEU_PARTS = ("ngram", "weighted_ngram", "syntax", "dataflow")


@dataclass(frozen=True)
class Score:
    """A metric's name and value, or None and the reason why it has none."""

    metric: str
    value: float | None
    reason: str = ""


def score_code(code: str, reference: str | None) -> list[Score]:
    """All scores of one answer, in the order in which they are shown.

    `em` and `em_tree` (0 or 1), `codebleu` and its parts `codebleu.ngram`, `codebleu.weighted_ngram`,
    `codebleu.syntax`, `codebleu.dataflow`, and `parses` (0 or 1). All lie in [0, 1]. A blank reference is none.
    Never raises.
    """
    valid = Score("parses", parses_score(code))
    if reference is None or not reference.strip():
        names = ["em", "em_tree", "codebleu", *(f"codebleu.{part}" for part in CODEBLEU_PARTS)]
        return [*(Score(name, None, NO_REFERENCE) for name in names), valid]
    bleu = codebleu(reference, code)
    return [
        Score("em", float(exact_match(reference, code))),
        Score("em_tree", float(syntax_tree_match(reference, code))),
        Score("codebleu", bleu.score),
        Score("codebleu.ngram", bleu.ngram),
        Score("codebleu.weighted_ngram", bleu.weighted_ngram),
        Score("codebleu.syntax", bleu.syntax),
        Score("codebleu.dataflow", bleu.dataflow, NO_DATA_FLOW if bleu.dataflow is None else ""),
        valid,
    ]


def score_candidates(codes: Sequence[str], reference: str | None, num_candidates: int) -> dict[str, float | None]:
    """Everything that is measured of one problem: `codes` are its candidates, best first, `asked` how many were wanted.

    `em@k` and `em_tree@k` for k from 1 to `asked`; the rest as in `score_code`, of the first candidate, and
    `codebleu-pypi`, which is None where the package fails. No candidate at all (a failure) scores 0 wherever there is
    something to score against.
    """
    single = {score.metric: score.value for score in score_code(codes[0] if codes else "", reference)}
    scores: dict[str, float | None] = {}
    for name, same in (("em", exact_match), ("em_tree", syntax_tree_match)):
        known = single.pop(name) is not None and reference is not None
        for k in range(1, num_candidates + 1):
            hit = known and exact_match_at_k(reference or "", codes, k, num_candidates, same)
            scores[f"{name}@{k}"] = float(hit) if known else None
    return {**scores, **single, "codebleu-pypi": _package_codebleu(codes, reference)}


def _package_codebleu(codes: Sequence[str], reference: str | None) -> float | None:
    if reference is None or not reference.strip():
        return None
    return codebleu_package_score(reference, codes[0]) if codes else 0.0
