"""CodeBLEU: how much of a reference's n-grams, keywords, syntax and data flow an answer shares.

Definition: Ren et al., arXiv 2009.10297: the mean of four parts, each in [0, 1]: BLEU over tokens; the same with
unigrams weighted, keywords five times as much as the rest; the share of the reference's subtrees that the candidate
has; the share of the reference's data-flow items that the candidate has. The parts are those of the `codebleu` package
(0.7.0), by its parser, data-flow rules and formulas (evaluate/trees.py, dataflow.py, ngrams.py); they are computed once
a snippet, and combined here so that

- tokens are Python's own (evaluate/lexer.py), and the BLEU order is at most the reference's number of tokens;
- token weights are 5 and 1, not 1 and 0.2: the ratio is the same, but the package takes at least 1 as the sum of the
  reference's weights, so a short reference without keywords could not be matched in full;
- the weighted part's brevity penalty compares with the reference's tokens; the package takes the length of its pair of
  tokens and weights, which is always 2;
- data flow is undefined where the reference has none: it drops out and the other three weigh a third each (the package
  counts such a part as a full 1, and a candidate's true 0 too);
- an empty answer is 0, one that equals the reference after stripping is 1, and no input raises;
- the same pair has the same score in every process (evaluate/trees.py says what moved it).

`codebleu_pypi` is the package's own total, kept to compare with published figures. Never mix the two.
"""

from __future__ import annotations

import logging
import re
import textwrap
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from evaluate.lexer import python_tokens
from evaluate.ngrams import NgramCounts, bleu_scores, count_ngrams
from evaluate.trees import TreeFeatures, tree_features

MAX_CODE_CHARACTERS = 20_000  # longer code is scored on its beginning; 1,024 tokens are about 4,000 characters
KEYWORD_WEIGHT = 5
_UNENCODABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class CodeBleu:
    """The score and its parts, all in [0, 1]; `dataflow` is None where the reference has no data flow."""

    score: float
    ngram: float
    weighted_ngram: float
    syntax: float
    dataflow: float | None


@dataclass(frozen=True)
class _CodeFeatures:
    ngrams: NgramCounts
    trees: TreeFeatures
    known_subtrees: frozenset[bytes]


def codebleu(reference: str, candidate: str) -> CodeBleu:
    """CodeBLEU of one answer. The same on every call and in every process; never raises."""
    if not candidate.strip():
        return _combine(0.0, 0.0, 0.0, 0.0 if _code_features(reference).trees.flow else None)
    ref = _code_features(reference)
    if reference.strip() == candidate.strip():
        return _combine(1.0, 1.0, 1.0, 1.0 if ref.trees.flow else None)
    cand = _code_features(candidate)
    if not cand.ngrams.length or not ref.ngrams.length:
        return _combine(0.0, 0.0, 0.0, 0.0 if ref.trees.flow else None)
    ngram, weighted = bleu_scores(ref.ngrams, cand.ngrams, _python_keywords(), KEYWORD_WEIGHT)
    syntax = sum(subtree in cand.known_subtrees for subtree in ref.trees.subtrees) / len(ref.trees.subtrees)
    flow: float | None = None
    if ref.trees.flow:
        flow = (ref.trees.flow & cand.trees.flow).total() / ref.trees.flow.total()
    return _combine(ngram, weighted, syntax, flow)


def codebleu_package_score(reference: str, candidate: str) -> float | None:
    """The total of the `codebleu` package as it stands, faults included; None where the package fails.

    It moves with PYTHONHASHSEED, and gives 0.25 to an empty answer.
    """
    longest = max(len(reference), len(candidate))
    if longest > MAX_CODE_CHARACTERS or not (_is_bounded(reference) and _is_bounded(candidate)):
        return None  # the package would take minutes, or overflow the stack of C
    try:
        return float(_codebleu_package().calc_codebleu([reference], [candidate], "python")["codebleu"])
    except Exception:  # noqa: BLE001 - whatever the package raises, one odd answer must not end a run
        return None


def _combine(ngram: float, weighted: float, syntax: float, dataflow: float | None) -> CodeBleu:
    parts = [ngram, weighted, syntax] if dataflow is None else [ngram, weighted, syntax, dataflow]
    return CodeBleu(sum(parts) / len(parts), ngram, weighted, syntax, dataflow)


@lru_cache(maxsize=2048)  # the references of a test set: all methods are scored against them
def _code_features(code: str) -> _CodeFeatures:
    text = _UNENCODABLE.sub("\ufffd", code).replace("\r\n", "\n").replace("\r", "\n")[:MAX_CODE_CHARACTERS]
    text = textwrap.dedent(text).strip()
    trees = tree_features(text)
    return _CodeFeatures(count_ngrams(python_tokens(text)), trees, frozenset(trees.subtrees))


def _is_bounded(code: str) -> bool:
    try:
        return tree_features(code).bounded
    except UnicodeEncodeError:
        return False


@cache
def _codebleu_package() -> Any:
    """The module `codebleu.codebleu`, with its warning about missing data flow silenced: here that is a value."""
    import codebleu.codebleu as package
    from codebleu import dataflow_match

    # Its `logging.warning` would also set up the root logger of the whole program.
    # Whoever configures logging (uvicorn does) would switch a registered logger on again.
    quiet = logging.Logger("codebleu")  # noqa: LOG001
    quiet.disabled = True
    dataflow_match.logging = quiet
    return package


@cache
def _python_keywords() -> frozenset[str]:
    folder = _codebleu_package().PACKAGE_DIR / "keywords"
    return frozenset((folder / "python.txt").read_text(encoding="utf-8").split())
