"""CodeBLEU of an answer: the n-grams, keywords, syntax and data flow that it shares with a reference.

Tokens of Python code for the n-gram parts of CodeBLEU, the same on every Python. They are the tokens of the lexer of
Python 3.11, with which the stored runs were scored. From 3.12 on, the standard library's `tokenize` splits f-strings,
and splits or refuses code with errors in other places.

Definition: Ren et al., arXiv 2009.10297: the mean of four parts, each in [0, 1]: BLEU over tokens; the same with
weighted unigrams, keywords five times as much as the rest; the share of the reference's subtrees that the candidate
has; the share of the reference's data-flow items that the candidate has. The parts are those of the `codebleu`
package (0.7.0): its keywords, data-flow rules and formulas, without the package itself, which cannot be installed on
every Python. They are computed once per snippet (tokens here, trees in codebleu_trees.py, data flow in
data_flow.py), and combined here with these differences:

- tokens are those of Python's lexer without comments, line ends and indentation (the package splits at blanks, so that
  `print(sum(x))` is one token); code that does not lex is split by a pattern;
- the BLEU order is at most the reference's number of tokens;
- token weights are 5 and 1, not 1 and 0.2: the ratio is the same, but the package uses at least 1 as the sum of the
  reference's weights, so that a short reference without keywords could not be matched in full;
- the weighted part's brevity penalty compares with the reference's tokens; the package uses the length of its pair of
  tokens and weights, which is always 2;
- data flow is undefined if the reference has none: the other three parts then weigh a third each (the package counts
  such a part, and also a candidate's true 0, as 1);
- an empty answer scores 0, one that equals the reference after stripping scores 1, and no input raises;
- the same pair has the same score in every process, on every Python, to the last bit.

The n-gram parts follow section 3.1 as the package computes them, to the last bit: BLEU with a count of 0 taken as 0.1
(Chen and Cherry's method 1), and the same over the recall of n-grams with weighted unigrams.

`codebleu_package_score` is the package's own total where it is installed, for comparison with published figures. Never
mix the two.
"""

from __future__ import annotations

import logging
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from evaluate.metrics.basic import add_in_order
from evaluate.metrics.codebleu_trees import TreeFeatures, tree_features

_PREFIX = r"(?:[bB][rR]?|[rR][bBfF]?|[fF][rR]?|[uU])?"
_DIGITS = r"[0-9](?:_?[0-9])*"
_EXPONENT = rf"[eE][-+]?{_DIGITS}"
_FLOAT = rf"(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS})(?:{_EXPONENT})?|{_DIGITS}{_EXPONENT}"
_OPERATORS = (
    "-> := ... **= //= >>= <<= != %= &= ** *= += -= // /= << <= == >= >> @= ^= |= "
    "% & ( ) * + , - . / : ; < = > @ [ ] ^ { | } ~"
)
_TOKEN = re.compile(
    rf"""[ \f\t]*(?:
        (?P<layout> \\\r?\n | \r?\n | \#[^\r\n]* | \Z )
        | (?P<triple> {_PREFIX}(?:'''|\"\"\") )
        | (?P<token>
            (?:{_DIGITS}|{_FLOAT})[jJ] | {_FLOAT}
            | 0[xX](?:_?[0-9a-fA-F])+ | 0[bB](?:_?[01])+ | 0[oO](?:_?[0-7])+ | 0(?:_?0)* | [1-9](?:_?[0-9])*
            | {"|".join(map(re.escape, _OPERATORS.split()))}
            | {_PREFIX}(?:'[^\n'\\]*(?:\\.[^\n'\\]*)*(?:'|\\\r?\n) | \"[^\n\"\\]*(?:\\.[^\n\"\\]*)*(?:\"|\\\r?\n))
            | \w+
        )
    )""",
    re.VERBOSE,
)
_STRING_END = {
    "'": re.compile(r"[^'\\]*(?:\\.[^'\\]*)*'"),
    '"': re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"'),
    "'''": re.compile(r"[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''"),
    '"""': re.compile(r'[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""'),
}
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_TAB_SIZE = 8

_FALLBACK_PATTERN = re.compile(
    r"""
    \#[^\n]*                                        # a comment, left out below
    | [A-Za-z]{0,2}(?:\"{3}.*?(?:\"{3}|\Z)|'{3}.*?(?:'{3}|\Z))
    | [A-Za-z]{0,2}(?:"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)
    | [^\W\d]\w*
    | \d[\w.]*
    | \*\*=? | //=? | <<=? | >>=? | -> | := | \.\.\. | [-+*/%@&|^=<>!]=
    | \S
    """,
    re.VERBOSE | re.DOTALL,
)
MAX_ORDER = 4
EPSILON = 0.1


class _LexError(Exception):
    """The code has no tokens, or ends within a string or within brackets."""


def python_tokens(code: str) -> tuple[str, ...]:
    """Return the tokens of `code` in order, without comments and layout; code that does not lex is split by a pattern.

    Lines end at a line feed alone.
    """
    try:
        return tuple(_Lexer().tokens(code))
    except _LexError:
        return tuple(token for token in _FALLBACK_PATTERN.findall(code) if not token.startswith("#"))


class _Lexer:
    """The state between lines: open brackets, indentation, and the open string."""

    def __init__(self) -> None:
        self._depth = 0
        self._indents = [0]
        self._joined = False  # whether the last line ended in a backslash
        self._string = ""  # the beginning of a string that continues on the next line, or ""
        self._string_end = _STRING_END["'"]
        self._joined_string = False  # whether the string needs a backslash at the end of each line

    def tokens(self, code: str) -> Iterator[str]:
        for line in re.findall(r"[^\n]*\n|[^\n]+\Z", code):
            at = 0
            if self._string:
                end = self._string_end.match(line)
                if end is None:
                    self._string += line
                    if self._joined_string and not line.endswith(("\\\n", "\\\r\n")):
                        raise _LexError
                    continue
                yield self._string + end[0]
                self._string = ""
                at = end.end()
            elif not self._depth and not self._joined:
                at = _skip_blanks(line)
                if at == len(line):
                    return  # the last line, without a line feed
                if line[at] not in "#\r\n":
                    self._indent(line[:at])
            self._joined = False
            yield from self._line_tokens(line, at)
        if self._string or self._depth or self._joined:
            raise _LexError

    def _indent(self, blanks: str) -> None:
        column = len(blanks[blanks.rfind("\f") + 1 :].expandtabs(_TAB_SIZE))
        if column > self._indents[-1]:
            self._indents.append(column)
        elif column not in self._indents:
            raise _LexError
        del self._indents[self._indents.index(column) + 1 :]

    def _line_tokens(self, line: str, at: int) -> Iterator[str]:
        while at < len(line):
            found = _TOKEN.match(line, at)
            if found is None:
                raise _LexError
            at = found.end()
            if found["layout"] is not None:
                self._joined = found["layout"].startswith("\\")
            elif found["triple"] is not None:
                end = _STRING_END[found["triple"][-3:]].match(line, at)
                if end is None:
                    self._open_string(line[found.start("triple") :], found["triple"][-3:], joined=False)
                    return
                yield found["triple"] + end[0]
                at = end.end()
            elif found["token"].endswith("\n"):
                self._open_string(found["token"], found["token"].lstrip("bBrRuUfF")[0], joined=True)
                return
            else:
                token = found["token"]
                self._depth += (token in _OPENING) - (token in _CLOSING)
                yield token

    def _open_string(self, text: str, quote: str, *, joined: bool) -> None:
        self._string, self._string_end, self._joined_string = text, _STRING_END[quote], joined


def _skip_blanks(line: str) -> int:
    return len(line) - len(line.lstrip(" \t\f"))


@dataclass(frozen=True)
class NgramCounts:
    """The n-grams of one snippet: `counts[n - 1]` has those of order n; for order 1 the keys are tokens."""

    length: int
    counts: tuple[Counter[Any], ...]


def count_ngrams(tokens: Sequence[str]) -> NgramCounts:
    """Count the n-grams of `tokens` of the orders 1 to 4."""
    higher = (zip(*(tokens[offset:] for offset in range(n)), strict=False) for n in range(2, MAX_ORDER + 1))
    return NgramCounts(len(tokens), (Counter(tokens), *(Counter(grams) for grams in higher)))


def bleu_scores(
    reference: NgramCounts, candidate: NgramCounts, keywords: frozenset[str], weight: int
) -> tuple[float, float]:
    """Compute BLEU, and BLEU with `keywords` weighted, of one candidate, both in [0, 1]; neither side may be empty.

    The order is limited by the reference only, so that all answers to a problem are measured with the same order.
    """
    order = min(MAX_ORDER, reference.length)
    common = [_common_counts(reference.counts[n], candidate.counts[n]) for n in range(order)]
    shared = sum(common[0].values())
    if not shared:
        return 0.0, 0.0
    matches = [sum(counts.values()) for counts in common]
    precision = [(matches[n], max(1, candidate.length - n)) for n in range(order)]
    recall = [(matches[n], max(1, reference.length - n)) for n in range(order)]
    recall[0] = (
        _weighted_total(common[0], keywords, weight),
        max(1, _weighted_total(reference.counts[0], keywords, weight)),
    )
    brevity = 1.0
    if candidate.length <= reference.length:
        brevity = math.exp(1 - reference.length / candidate.length)
    return _bleu(precision, brevity), _bleu(recall, brevity)


def _common_counts(reference: Counter[Any], candidate: Counter[Any]) -> dict[Any, int]:
    """Count the n-grams in both. Uses dict keys, because Counter's `&` is much slower."""
    return {gram: min(reference[gram], candidate[gram]) for gram in reference.keys() & candidate.keys()}


def _weighted_total(counts: dict[str, int], keywords: frozenset[str], weight: int) -> int:
    return sum(count * weight if token in keywords else count for token, count in counts.items())


def _bleu(parts: list[tuple[int, int]], brevity: float) -> float:
    """Compute the geometric mean of the parts, each a count and its total, times the brevity penalty."""
    weight = 1 / len(parts)
    logs = math.fsum(weight * math.log((count or EPSILON) / total) for count, total in parts)
    return min(1.0, brevity * math.exp(logs))


MAX_CODE_CHARACTERS = 20_000  # only the beginning of longer code is scored; 1,024 tokens are about 4,000 characters
KEYWORD_WEIGHT = 5
# Those of the package, the same on every Python.
PYTHON_KEYWORDS = frozenset({
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def",
    "del", "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda",
    "nonlocal", "not", "or", "pass", "raise", "return", "try", "while", "with", "yield", "match", "case",
    "type",
})  # fmt: skip
_UNENCODABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class CodeBleu:
    """The score and its parts, all in [0, 1]; `dataflow` is None if the reference has no data flow."""

    score: float
    ngram: float
    weighted_ngram: float
    syntax: float
    dataflow: float | None


@dataclass(frozen=True)
class _CodeFeatures:
    ngrams: NgramCounts
    trees: TreeFeatures
    subtree_set: frozenset[bytes]


def codebleu(reference: str, candidate: str) -> CodeBleu:
    """Compute CodeBLEU of one answer, the same in every process. Never raises."""
    if not candidate.strip():
        return _combine(0.0, 0.0, 0.0, 0.0 if _code_features(reference).trees.flow else None)
    ref = _code_features(reference)
    if reference.strip() == candidate.strip():
        return _combine(1.0, 1.0, 1.0, 1.0 if ref.trees.flow else None)
    cand = _code_features(candidate)
    if not cand.ngrams.length or not ref.ngrams.length:
        return _combine(0.0, 0.0, 0.0, 0.0 if ref.trees.flow else None)
    ngram, weighted = bleu_scores(ref.ngrams, cand.ngrams, PYTHON_KEYWORDS, KEYWORD_WEIGHT)
    syntax = sum(subtree in cand.subtree_set for subtree in ref.trees.subtrees) / len(ref.trees.subtrees)
    flow: float | None = None
    if ref.trees.flow:
        flow = (ref.trees.flow & cand.trees.flow).total() / ref.trees.flow.total()
    return _combine(ngram, weighted, syntax, flow)


def codebleu_package_score(reference: str, candidate: str) -> float | None:
    """Compute the unmodified score of the `codebleu` package, including its defects.

    None if the package fails or is not installed (Python 3.13 and newer, ARM). The score depends on PYTHONHASHSEED, and
    is 0.25 for an empty answer.
    """
    package = _codebleu_package()
    if package is None:
        return None
    longest = max(len(reference), len(candidate))
    if longest > MAX_CODE_CHARACTERS or not (_is_bounded(reference) and _is_bounded(candidate)):
        return None  # the package would take minutes, or overflow the C stack
    try:
        return float(package.calc_codebleu([reference], [candidate], "python")["codebleu"])
    except Exception:  # noqa: BLE001 - a failure of the package must not end a run
        return None


def _combine(ngram: float, weighted: float, syntax: float, dataflow: float | None) -> CodeBleu:
    parts = [ngram, weighted, syntax] if dataflow is None else [ngram, weighted, syntax, dataflow]
    return CodeBleu(add_in_order(parts) / len(parts), ngram, weighted, syntax, dataflow)


@lru_cache(maxsize=2048)  # the references of a test set, used for every method
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
    """Import `codebleu.codebleu` and silence its warning about missing data flow; None if it is not installed."""
    try:
        import codebleu.codebleu as package
        from codebleu import dataflow_match
    except ImportError:
        return None
    # Its `logging.warning` would also configure the root logger of the program. The logger is not registered, because
    # a configuration of logging (uvicorn's) would enable a registered one again.
    quiet = logging.Logger("codebleu")  # noqa: LOG001
    quiet.disabled = True
    dataflow_match.logging = quiet
    return package
