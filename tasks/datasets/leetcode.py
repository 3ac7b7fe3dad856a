"""LeetCodeDataset (Xia et al., arXiv 2504.14655): reader of LeetCode's problems with about a hundred tests each.

The problems are in the order of LeetCode's numbers, and test has the newest ones. The last 100 problems of the train
file are the validation split, and train is the rest of it.

The intent is the problem's description and the starter code, `class Solution` with a method; the reference is the
completion. The row's prompt, LeetCode's imports and classes of nodes, runs before an answer (tasks.problem). The
tests are the asserts of the row's `check(candidate)`, where `candidate` is the method, and are compared as Python does.
Lists of nodes and trees are compared by their values, so that the expected ones need not enter the sandbox.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from pathlib import Path

from common.parsing import parse_python
from errors import DataError
from tasks.datasets import hub
from tasks.datasets.base import DatasetRow, DatasetSource, read_rows
from tasks.datasets.hub import HubFile
from tasks.problem import AssertTest, Problem

REPO, REVISION = "newfacade/LeetCodeDataset", "215604aeed660029df7de2fea5a4d7b6ed476a08"
VALIDATION_ROWS = 100
_PATTERN = "LeetCodeDataset*{}.jsonl"
# Runs before a test that has lists of nodes or trees: the data set's functions for them, and those that compare.
NODE_HELPERS = """\
def list_node(values):
    first = None
    for value in reversed(values):
        first = ListNode(value, first)
    return first
def tree_node(values):
    nodes = [None if value is None else TreeNode(value) for value in values]
    children = iter(nodes[1:])
    for node in nodes:
        if node is not None:
            node.left, node.right = next(children, None), next(children, None)
    return nodes[0] if nodes else None
def list_values(node):
    values = []
    while node is not None and len(values) < 10**5:
        values.append(node.val)
        node = node.next
    return values
def tree_values(root):
    values, waiting = [], [root]
    for node in waiting:
        values.append(None if node is None else node.val)
        if node is not None and len(waiting) < 10**5:
            waiting += [node.left, node.right]
    while values and values[-1] is None:
        values.pop()
    return values
"""
_COMPARE_NODES = {"is_same_list": ("list_node", "list_values"), "is_same_tree": ("tree_node", "tree_values")}
_NODE_NAMES = frozenset(name for names in _COMPARE_NODES.values() for name in names)


def read_leetcode(path: Path, split: str) -> list[Problem]:
    """Read the problems of the split in a folder with the files of LeetCodeDataset, or in one of the files."""
    part = "test" if split == "test" else "train"
    files = [path] if path.is_file() else _find(path, part)
    if path.is_file() and part not in path.name.casefold():
        raise DataError(f"{path} does not have {part} in its name: name the folder with both files of LeetCodeDataset.")
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        raise DataError(f"{path} has several files of the {part} rows ({listed}): name one of them as --data-dir FILE.")
    file = files[0] if files else path / f"LeetCodeDataset-{part}.jsonl"
    return _select(read_rows(file, "LeetCodeDataset, one JSON object a line with problem_description and test"), split)


def fetch_leetcode(split: str) -> list[Problem]:
    """Load the problems of the split from the Hub."""
    file = HubFile(REPO, REVISION, f"LeetCodeDataset-{'test' if split == 'test' else 'train'}.jsonl", "json")
    return _select(hub.load_rows(file, "LeetCodeDataset"), split)


def _find(folder: Path, part: str) -> list[Path]:
    return sorted({file for end in ("", ".gz") for file in folder.glob(_PATTERN.format(part) + end)})


def _select(rows: Sequence[DatasetRow], split: str) -> list[Problem]:
    if split != "test":
        at = max(0, len(rows) - VALIDATION_ROWS)
        rows = rows[at:] if split == "validation" else rows[:at]
    if not rows:
        raise DataError(
            f"LeetCodeDataset has no row of the split {split}: its last {VALIDATION_ROWS} train rows are validation "
            "and the others train, so give the whole file."
        )
    return [_make_problem(row) for row in rows]


def _make_problem(row: DatasetRow) -> Problem:
    entry_point = row.text("entry_point").strip()
    starter = row.optional_text("starter_code").strip()
    description = row.optional_text("problem_description") or row.text("query")
    return Problem(
        id=f"leetcode-{row.text('task_id').strip()}",
        intent="\n".join(part for part in (description.replace("\xa0", " ").strip(), starter) if part),
        reference=row.text("completion").strip("\n") + "\n",
        tests=_parse_check(row, entry_point),
        entry_point=entry_point,
        difficulty=row.optional_text("difficulty").lower() or None,
        prompt=row.optional_text("prompt"),
    )


def _parse_check(row: DatasetRow, entry_point: str) -> tuple[AssertTest, ...]:
    """Return the asserts of `check` with the answer's method in place of its parameter."""
    try:
        method = parse_python(entry_point, "eval").body
        body = parse_python(row.text("test")).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise DataError(f"{row.location}: column 'test' or 'entry_point' is not Python ({error}).") from error
    match body:
        case [*_, ast.FunctionDef(name="check", args=ast.arguments(args=[ast.arg(arg=candidate)]), body=[*asserts])]:
            tests = tuple(_make_test(row, each, candidate, method) for each in asserts)
        case _:
            raise DataError(f"{row.location}: column 'test' must define check(candidate).")
    return tests


def _make_test(row: DatasetRow, statement: ast.stmt, candidate: str, method: ast.expr) -> AssertTest:
    if not isinstance(statement, ast.Assert):
        raise DataError(
            f"{row.location}: column 'test' must have asserts only in check, line {statement.lineno} is none."
        )
    test = _CallRewriter(candidate, method).visit(statement)
    names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    return AssertTest(ast.unparse(ast.fix_missing_locations(test)), NODE_HELPERS if names & _NODE_NAMES else "")


class _CallRewriter(ast.NodeTransformer):
    """Names the method, and compares the values of lists of nodes and of trees instead of their nodes.

    `inf`, which the data set's prompt defines, becomes a constant, so that the host knows it.
    """

    def __init__(self, candidate: str, method: ast.expr) -> None:
        self._candidate, self._method = candidate, method

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id == self._candidate:
            return self._method
        return ast.Constant(math.inf) if node.id == "inf" else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Call(
                func=ast.Name(id="is_same_list" | "is_same_tree" as name),
                args=[found, ast.Call(func=ast.Name(id=make), args=[ast.List() as values])],
            ) if make == _COMPARE_NODES[name][0]:
                read = ast.Call(ast.Name(_COMPARE_NODES[name][1], ast.Load()), [found], [])
                return ast.Compare(read, [ast.Eq()], [_without_trailing_none(values)])
        return node


def _without_trailing_none(values: ast.List) -> ast.List:
    items = list(values.elts)
    while items and isinstance(items[-1], ast.Constant) and items[-1].value is None:
        items.pop()
    return ast.List(items, ast.Load())


LEETCODE = DatasetSource(
    name="leetcode",
    title="LeetCodeDataset",
    patterns=tuple(_PATTERN.format(part) + end for part in ("train", "test") for end in ("", ".gz")),
    layout="leetcode/LeetCodeDataset-train.jsonl and LeetCodeDataset-test.jsonl (or .jsonl.gz), or one of these files",
    read=read_leetcode,
    fetch=fetch_leetcode,
    is_file=True,
)
