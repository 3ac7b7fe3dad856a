"""CodeBLEU, its tokens and its n-gram parts, compared with the `codebleu` package."""

from __future__ import annotations

import itertools
import logging
import logging.config
import os
import subprocess
import sys
import time

import pytest
from codebleu.bleu import corpus_bleu
from codebleu.weighted_ngram_match import corpus_bleu as weighted_corpus_bleu
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.metrics.codebleu import bleu_scores, codebleu, codebleu_package_score, count_ngrams, python_tokens
from tests.conftest import ROOT
from tests.evaluate.hostile import HOSTILE

pytestmark = pytest.mark.slow

LOOP = "def f(xs):\n    total = 0\n    for x in xs:\n        total += x\n    return total"
# Code without loops, comments and strings at the start of a statement, which the package parses incorrectly.
PLAIN = [
    "x = y",
    "print(sum(x))",
    "df.groupby(df.index).sum()",
    "sorted(d.items(), key=lambda t: t[1], reverse=True)",
    "result = [n * n for n in numbers if n % 2]",
    "a, b = b, a",
    "with open(path) as f:\n    lines = f.readlines()",
    "def add(a, b=1):\n    c = a + b\n    return c",
    "import os\nos.path.join(root, name)",
    "if a > b:\n    m = a\nelse:\n    m = b",
    "x = {k: v for k, v in zip(keys, values)}",
    "class A:\n    def __init__(self, x):\n        self.x = x",
]
SNIPPETS = st.one_of(st.sampled_from([*PLAIN, LOOP]), st.text(max_size=60), st.sampled_from(["", " ", "# c", "x"]))


@given(SNIPPETS, SNIPPETS)
def test_all_parts_stay_in_bounds(reference: str, candidate: str) -> None:
    found = codebleu(reference, candidate)
    parts = [found.score, found.ngram, found.weighted_ngram, found.syntax]
    assert all(0 <= part <= 1 for part in parts)
    assert found.dataflow is None or 0 <= found.dataflow <= 1
    assert codebleu(reference, candidate) == found


@given(SNIPPETS.filter(str.strip))
def test_identical_code_scores_one(code: str) -> None:
    assert codebleu(code, f"\n{code} \n").score == 1


@pytest.mark.parametrize("code", ["print(sum(x))", "x = y", "x", "a.b()", "'text'", "return", *PLAIN, LOOP])
def test_layout_does_not_change_the_score(code: str) -> None:
    assert codebleu(code, f"{code}  # the same").score == pytest.approx(1)


@pytest.mark.parametrize("candidate", ["", "  \n ", "# nothing here", "# a\n# b\n"])
@pytest.mark.parametrize("reference", ["x = y", "print(sum(x))", LOOP])
def test_empty_answer_scores_zero(reference: str, candidate: str) -> None:
    assert codebleu(reference, candidate).score == 0
    assert codebleu_package_score(reference, candidate) == pytest.approx(0.25)


def test_unrelated_text_scores_zero() -> None:
    assert codebleu(LOOP, "!! ??").score == 0


def test_undefined_data_flow_does_not_increase_the_score() -> None:
    without = codebleu("print(sum(x))", "x = q")
    assert without.dataflow is None
    assert without.score == pytest.approx((without.ngram + without.weighted_ngram + without.syntax) / 3)
    assert without.score < 0.05
    # One of eight items of the reference's data flow is a value without a source, which `x = q` has too.
    wrong = codebleu(LOOP, "x = q")
    assert wrong.dataflow == pytest.approx(1 / 8)
    assert wrong.score < 0.05
    assert codebleu(LOOP, "pass").dataflow == 0


def test_other_parts_weigh_a_third_if_data_flow_is_undefined() -> None:
    found = codebleu("print(sum(x))", "print(max(x))")
    assert found.dataflow is None
    assert found.score == pytest.approx((found.ngram + found.weighted_ngram + found.syntax) / 3)
    assert 0 < found.score < 1


def test_better_answers_score_higher() -> None:
    answers = [LOOP.replace("total += x", "total -= x"), "def f(xs):\n    return sum(xs)", "print(1)", ""]
    scores = [codebleu(LOOP, answer).score for answer in answers]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)


def test_keywords_have_five_times_the_weight() -> None:
    reference = "for x in y"
    assert codebleu(reference, "for a in b").weighted_ngram > codebleu(reference, "a x b y").weighted_ngram
    assert codebleu("return x", "return").weighted_ngram > codebleu("return x", "x").weighted_ngram


def test_string_at_the_start_of_a_statement_is_not_a_docstring() -> None:
    assert codebleu('"a".join(x)', ".join(x)").syntax < 0.5
    documented = 'def f(x):\n    """Adds."""\n    return x + 1'
    assert codebleu("def f(x):\n    return x + 1", documented).syntax == 1


def test_names_after_non_ascii_text_are_read_correctly() -> None:
    latin = codebleu("s = 'aaaa'; total = s + other", "s = 'aaaa'; total = s + other;")
    other = codebleu("s = 'ü🙂变'; total = s + other", "s = 'ü🙂变'; total = s + other;")
    assert other.dataflow == latin.dataflow == 1


@pytest.mark.parametrize(("reference", "candidate"), itertools.permutations(PLAIN, 2))
def test_tree_parts_equal_those_of_the_package_for_plain_code(reference: str, candidate: str) -> None:
    from codebleu.dataflow_match import corpus_dataflow_match
    from codebleu.syntax_match import corpus_syntax_match

    found = codebleu(reference, candidate)
    assert found.syntax == pytest.approx(corpus_syntax_match([[reference]], [candidate], "python"))
    assert (found.dataflow or 0) == pytest.approx(corpus_dataflow_match([[reference]], [candidate], "python"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_neither_raises_nor_takes_long(text: str) -> None:
    start = time.perf_counter()
    for reference, candidate in [("x = y", text), (text, "x = y"), (LOOP, text), (text, text + "x")]:
        assert 0 <= codebleu(reference, candidate).score <= 1
    total = codebleu_package_score("x = y", text)
    assert total is None or 0 <= total <= 1
    assert time.perf_counter() - start < 20


@settings(max_examples=50)
@given(st.text(alphabet="()[]{}'\"\\\n :=xf#", max_size=300))
def test_broken_code_never_raises(text: str) -> None:
    assert 0 <= codebleu(LOOP, text).score <= 1


def test_scores_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "from evaluate.metrics.codebleu import codebleu\n"
        "import itertools\n"
        f"codes = {[LOOP, LOOP.replace('total', 't'), *PLAIN]!r}\n"
        "nested = 'for i in a:\\n    for j, k in b.items():\\n        c[i] = c[j] + k * d + e\\n        f = c, d, e'\n"
        "codes += [nested, nested.replace('k * d', 'd * k'), nested.replace('e', 'm')]\n"
        "print([codebleu(a, b) for a, b in itertools.permutations(codes, 2)])\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_package_logs_no_warnings(caplog: pytest.LogCaptureFixture) -> None:
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})  # as uvicorn does
    with caplog.at_level(logging.DEBUG):
        assert codebleu_package_score("print(sum(x))", "print(sum(x))") == pytest.approx(0.5554, abs=1e-4)
        assert codebleu_package_score("x = y", "x = y") == pytest.approx(0.7643, abs=1e-4)
    assert not caplog.records


def test_weighted_part_has_a_brevity_penalty() -> None:
    # The candidates have only tokens of the reference, so they differ only by recall and brevity.
    long, short = "a = b + c + d + e", "a = b"
    found = codebleu(long, short)
    from codebleu.weighted_ngram_match import corpus_bleu

    weights = dict.fromkeys("a=b+cde", 1)
    without = corpus_bleu([[[list("a=b+c+d+e"), weights]]], [list("a=b")])
    assert found.weighted_ngram == pytest.approx(without * 2.718281828 ** (1 - 9 / 3))


TEXTS = st.text(max_size=80) | st.text(alphabet="()[]{}'\"\\\n :=xf#1.", max_size=80)


@given(TEXTS)
def test_tokens_appear_in_the_text_in_order(code: str) -> None:
    position = 0
    for token in python_tokens(code):
        assert token
        # Python's lexer adds a missing line end and reads \r\n as \n; other characters do not change.
        found = code.find(token.split("\n")[0].rstrip("\r"), position)
        assert found >= 0
        position = found


@given(TEXTS)
def test_tokens_of_a_text_are_reproducible(code: str) -> None:
    assert python_tokens(code) == python_tokens(code)


@given(st.lists(st.sampled_from(["x", "+", "1", "'a b'", "f(", ")", "for", "**", '"""a"""']), max_size=8))
def test_tokens_do_not_depend_on_blanks_and_comments(tokens: list[str]) -> None:
    assert python_tokens(" ".join(tokens)) == python_tokens("  ".join(tokens) + "  # a comment")


@pytest.mark.parametrize(
    ("code", "tokens"),
    [
        ("print(sum(x))", ("print", "(", "sum", "(", "x", ")", ")")),
        ("x **= 0x1F  # c", ("x", "**=", "0x1F")),
        ("f'{a} b' + rb'\\n'", ("f'{a} b'", "+", "rb'\\n'")),
        ("if a:\n    b\n", ("if", "a", ":", "b")),
        ("x = 'open", ("x", "=", "'open")),
        ("f(1 # c\n", ("f", "(", "1")),
        ("# only\n", ()),
        ("", ()),
    ],
)
def test_tokens_of_examples(code: str, tokens: tuple[str, ...]) -> None:
    assert python_tokens(code) == tokens


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_tokens_of_hostile_text_take_bounded_time(text: str) -> None:
    start = time.perf_counter()
    python_tokens(text[:20_000])
    assert time.perf_counter() - start < 5


KEYWORDS = frozenset({"for", "in"})
TOKENS = st.lists(st.sampled_from(["a", "b", "(", ")", "for", "in", "x" * 3]), min_size=1, max_size=14)


class Pair(list[object]):
    """Tokens and weights; its length is that of the tokens, for the package's brevity penalty."""

    def __len__(self) -> int:
        return len(self[0])  # type: ignore[arg-type]


@given(TOKENS, TOKENS)
def test_ngram_parts_equal_those_of_the_package(reference: list[str], candidate: list[str]) -> None:
    order = min(4, len(reference))
    uniform = (1 / order,) * order
    weights = {token: 5 if token in KEYWORDS else 1 for token in reference}
    plain = corpus_bleu([[reference]], [candidate], weights=uniform)
    weighted = weighted_corpus_bleu([[Pair([reference, weights])]], [candidate], weights=uniform)
    found = bleu_scores(count_ngrams(reference), count_ngrams(candidate), KEYWORDS, 5)
    assert found == (min(1.0, plain), min(1.0, weighted))


@given(TOKENS, TOKENS)
def test_ngram_parts_are_in_bounds(reference: list[str], candidate: list[str]) -> None:
    for part in bleu_scores(count_ngrams(reference), count_ngrams(candidate), KEYWORDS, 5):
        assert 0 <= part <= 1
    assert bleu_scores(count_ngrams(reference), count_ngrams(reference), KEYWORDS, 5) == pytest.approx((1, 1))


def test_without_common_tokens_ngram_parts_are_zero() -> None:
    assert bleu_scores(count_ngrams(["a"]), count_ngrams(["b", "b"]), KEYWORDS, 5) == (0, 0)
