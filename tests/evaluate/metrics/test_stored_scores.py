"""CodeBLEU of the stored runs is the same to the last bit on every Python and with every pinned parser."""

from __future__ import annotations

import sys
import tokenize
from io import StringIO
from pathlib import Path

import pytest
from codebleu.codebleu import PACKAGE_DIR
from codebleu.parser import DFG_python
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.metrics.codebleu import PYTHON_KEYWORDS, _Lexer, _LexError, codebleu, python_tokens
from evaluate.metrics.codebleu_trees import _parser, _TreeWalker, tree_features
from evaluate.metrics.data_flow import _DataFlowRules
from evaluate.results import attach_scores, read_run
from tests.conftest import ROOT

RUNS = sorted(path for path in (ROOT / "docs" / "results").rglob("*.jsonl*") if ".scores." not in path.name)
PARTS = ("ngram", "weighted_ngram", "syntax", "dataflow")


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_stored_scores_are_computed_again_to_the_last_bit(path: Path) -> None:
    run = read_run(path)
    attach_scores(run)
    references = {problem["id"]: problem.get("reference") for problem in run.problems}
    compared = 0
    for method in run.methods:
        for result in run.results(method):
            reference = references[result.problem]
            if not reference or not reference.strip() or not result.candidates or "codebleu" not in result.scores:
                continue
            found = codebleu(reference, result.candidates[0]["code"])
            assert result.scores["codebleu"] == found.score
            assert [result.scores[f"codebleu.{part}"] for part in PARTS] == [getattr(found, part) for part in PARTS]
            compared += 1
    assert compared or not any(references.values())  # APPS gives none


@pytest.mark.parametrize(
    ("code", "same"),
    [  # pairs that only one of the two pinned grammars would tell apart
        ("x = '\\0'", "x = 'a'"),
        ("x = '\\12b'", "x = 'ab'"),
        ("x = '\\w+'", "x = 'w+'"),
        ("x = '\\n\\0'", "x = '\\na'"),
    ],
)
def test_escapes_of_newer_grammars_are_text(code: str, same: str) -> None:
    assert tree_features(code).subtrees == tree_features(same).subtrees


@pytest.mark.parametrize("operator", ["not in", "is not", "not  in"])
def test_an_operator_of_two_words_is_two_leaves(operator: str) -> None:
    walk = _TreeWalker(_parser().parse(f"a {operator} b".encode()), f"a {operator} b".encode())
    assert len(walk.leaves) == 4


def test_keywords_are_those_of_the_package() -> None:
    listed = (PACKAGE_DIR / "keywords" / "python.txt").read_text(encoding="utf-8")
    assert set(listed.split()) == PYTHON_KEYWORDS


PIECES = [
    "x",
    "y = f(x)",
    "a, b = b, a",
    "x += 1",
    "d: int = 3",
    "z = [i for i in x if i not in y]",
    "s = 'ü'",
    "return",
]
LINES = st.lists(st.tuples(st.sampled_from(["", "for i in x:", "if x:", "else:", "while y:"]), st.sampled_from(PIECES)))


@settings(max_examples=200)
@given(LINES)
def test_data_flow_rules_are_those_of_the_package(lines: list[tuple[str, str]]) -> None:
    code = "\n".join(f"{head}\n    {body}" if head else body for head, body in lines)
    walk = _TreeWalker(_parser().parse(code.encode()), code.encode())
    texts = [code.encode()[start:end].decode("latin-1") for start, end in walk.leaves]
    index = {span: (leaf, texts[leaf]) for leaf, span in enumerate(walk.leaves)}
    try:
        items, _ = DFG_python(walk.root, index, {})
    except Exception:  # noqa: BLE001 - a tree with errors
        with pytest.raises(LookupError):
            _DataFlowRules(walk.leaves, texts).read(walk.root, {})
        return
    found, _ = _DataFlowRules(walk.leaves, texts).read(walk.root, {})
    expected = [(leaf, relation, sorted(set(parents))) for _, leaf, relation, _, parents in items]
    assert [(leaf, relation, sorted(set(parents))) for leaf, relation, parents in found] == expected


@pytest.mark.parametrize(
    ("code", "tokens"),
    [  # what tokenize of Python 3.12 and newer reads in another way
        ("f'{a!r:>{w}}' + f'{{b}}'", ("f'{a!r:>{w}}'", "+", "f'{{b}}'")),
        ("f'{d['k']}'", ("f'{d['", "k", "']}'")),
        ("int(0101)", ("int", "(", "0", "101", ")")),
        ("470FC6", ("470", "FC6")),
        ("x = a ? b", ("x", "=", "a", "?", "b")),
        ("f(1))", ("f", "(", "1", ")", ")")),
        ("if a:\n    b\n  c", ("if", "a", ":", "b", "c")),
        ("x = '''a\nb''' 'c\\\nd'", ("x", "=", "'''a\nb'''", "'c\\\nd'")),
    ],
)
def test_tokens_are_those_of_python_3_11(code: str, tokens: tuple[str, ...]) -> None:
    assert python_tokens(code) == tokens


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="The lexer of this Python is another one.")
@settings(max_examples=500)
@given(st.text(alphabet="'\"\\\n \t#()[]{}frb x01_.ej:=!$é", max_size=30))
def test_the_lexer_is_that_of_python_3_11(code: str) -> None:
    layout = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER"}
    try:
        found = [
            (tokenize.tok_name[each.type], each.string) for each in tokenize.generate_tokens(StringIO(code).readline)
        ]
    except (tokenize.TokenError, IndentationError):
        found = [("ERRORTOKEN", "")]
    if any(kind == "ERRORTOKEN" for kind, _ in found):
        with pytest.raises(_LexError):
            list(_Lexer().tokens(code))
        return
    assert list(_Lexer().tokens(code)) == [text for kind, text in found if kind not in layout]
