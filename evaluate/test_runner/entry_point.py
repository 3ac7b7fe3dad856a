"""Entry points: the function of a program that tests call without its name, and the lines that run before a program.

LeetCode's examples (`Input: nums = [2, 7], target = 9`) and HumanEval's `check(candidate)` do not name the function.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from common.parsing import parse_python
from tasks.datasets.leetcode import NODE_HELPERS
from tasks.datasets.registry import LIBRARY, library_prelude
from tasks.problem import ENTRY_POINT, ScriptTest, Step

SOLUTION = "Solution"  # the class of LeetCode's answers
# What LeetCode imports before such an answer. Built-in names come last, because math and operator have a `pow`.
SOLUTION_PRELUDE = """\
import bisect, collections, copy, datetime, functools, heapq, itertools, math, operator, random, re, string, sys, typing
from typing import *
from collections import *
from functools import *
from itertools import *
from heapq import *
from bisect import *
from string import *
from operator import *
from math import *
from builtins import *
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
"""
# LeetCode writes a list of nodes as the list of its values, and a tree as those of its levels with null for no node.
# The functions are those of LeetCodeDataset, under names that answers do not define.
_NODE_NAMES = {
    "list_node": "_make_list",
    "tree_node": "_make_tree",
    "list_values": "_plain_list",
    "tree_values": "_plain_tree",
}
_NODE_HELPERS = re.sub(r"\w+", lambda match: _NODE_NAMES.get(match.group(), match.group()), NODE_HELPERS)
_NODE_FUNCTIONS = {"ListNode": ("_make_list", "_plain_list"), "TreeNode": ("_make_tree", "_plain_tree")}


class NoEntryPointError(ValueError):
    """The program has no function that fits; the message is a part of a sentence."""


@dataclass(frozen=True)
class _Function:
    """A function of the program: the expression that gives it, its parameters without `self`, and its definition."""

    expression: str
    parameters: tuple[str, ...]
    required: int
    variadic: bool
    definition: ast.FunctionDef | ast.AsyncFunctionDef

    def fits(self, arguments: int) -> bool:
        return self.required <= arguments and (self.variadic or arguments <= len(self.parameters))


def code_prelude(code: str) -> str:
    """Return the lines to run before `code`; '' for most code.

    They are LeetCode's imports for a `class Solution`, and house's library for code that names it.
    """
    solution = SOLUTION_PRELUDE if any(_is_solution(node) for node in _statements(code)) else ""
    return library_prelude() + solution if _names_library(code) else solution


def resolve_entry_point(code: str, tests: Sequence[ScriptTest]) -> Sequence[ScriptTest]:
    """Return the tests with the program's function in them; raises NoEntryPointError if it has none that fits."""
    sources = [source for test in tests for source in (test.code, *(step.source for step in test.steps))]
    if not any(ENTRY_POINT in source for source in sources):
        return tests
    function = _choose_function(code, [call for source in sources for call in _entry_calls(source)])
    return [_with_function(test, function) for test in tests]


def _entry_calls(source: str) -> list[ast.Call]:
    return [
        node
        for node in (ast.walk(parse_python(source)) if ENTRY_POINT in source else ())
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == ENTRY_POINT
    ]


@lru_cache(maxsize=256)
def _statements(code: str) -> tuple[ast.stmt, ...]:
    try:
        return tuple(parse_python(code).body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return ()


def _is_solution(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and node.name == SOLUTION


def _names_library(code: str) -> bool:
    """Return whether `code` uses or imports the library of the data set house."""
    if LIBRARY not in code:
        return False
    for node in (inner for statement in _statements(code) for inner in ast.walk(statement)):
        match node:
            case ast.Name(id=name) | ast.alias(name=name) | ast.ImportFrom(module=name) if name == LIBRARY:
                return True
    return False


def _choose_function(code: str, calls: list[ast.Call]) -> _Function:
    functions = _functions(code)
    arguments = sorted({len(call.args) + len(call.keywords) for call in calls})
    names = [keyword.arg for call in calls for keyword in call.keywords]
    fitting = [function for function in functions if all(function.fits(number) for number in arguments)]
    named = [function for function in fitting if names and set(names) <= set(function.parameters)]
    if named or fitting:
        return (named or fitting)[-1]
    if not functions:
        raise NoEntryPointError("the program defines no function that the test can call")
    wanted = f"the arguments {', '.join(map(str, dict.fromkeys(names)))}" if names else f"{arguments[0]} arguments"
    raise NoEntryPointError(f"no function of the program takes {wanted}")


def _functions(code: str) -> list[_Function]:
    """Return the public methods of `Solution`, else the functions, in an order in which the last is the likeliest."""
    body = _statements(code)
    solution = next((node for node in reversed(body) if isinstance(node, ast.ClassDef) and _is_solution(node)), None)
    defined = [
        _describe(node, in_class=solution is not None)
        for node in (solution.body if solution is not None else body)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    ]
    called = {
        name
        for function in defined
        if function.definition.name != "main"
        for name in _names(function.definition) - {function.definition.name}
    }
    outermost = [function for function in defined if function.definition.name not in called | {"main"}] or defined
    return outermost[::-1] if solution is not None else outermost


def _names(definition: ast.AST) -> set[str]:
    names = {node.attr for node in ast.walk(definition) if isinstance(node, ast.Attribute)}
    return names | {node.id for node in ast.walk(definition) if isinstance(node, ast.Name)}


def _describe(node: ast.FunctionDef | ast.AsyncFunctionDef, *, in_class: bool) -> _Function:
    decorators = {each.id for each in node.decorator_list if isinstance(each, ast.Name)}
    parameters = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
    if in_class and "staticmethod" not in decorators:
        parameters = parameters[1:]
    return _Function(
        f"{SOLUTION}().{node.name}" if in_class else node.name,
        (*parameters, *(each.arg for each in node.args.kwonlyargs)),
        max(0, len(parameters) - len(node.args.defaults)),
        node.args.vararg is not None,
        node,
    )


def _with_function(test: ScriptTest, function: _Function) -> ScriptTest:
    code, steps = _rewrite(test.code, function), [replace(s, source=_rewrite(s.source, function)) for s in test.steps]
    if ENTRY_POINT in test.code and _returns_none(function):
        code, more = _compare_argument(code, test.scope)
        steps += more
    if any(name in code for names in _NODE_FUNCTIONS.values() for name in names):
        steps.insert(0, Step(_NODE_HELPERS))
    return replace(test, code=code, steps=tuple(steps))


def _rewrite(source: str, function: _Function) -> str:
    if ENTRY_POINT not in source:
        return source
    tree = _EntryPointRewriter(function).visit(parse_python(source))
    return ast.unparse(ast.fix_missing_locations(tree))


class _EntryPointRewriter(ast.NodeTransformer):
    """Replaces the unnamed function; arguments whose names it does not have become positional."""

    def __init__(self, function: _Function) -> None:
        self._function = function

    def visit_Call(self, node: ast.Call) -> ast.expr:
        is_entry = isinstance(node.func, ast.Name) and node.func.id == ENTRY_POINT
        self.generic_visit(node)
        if not is_entry:
            return node
        parameters = self._function.parameters
        annotations = _annotations(self._function.definition)
        for at, keyword in enumerate(node.keywords):
            name = keyword.arg if keyword.arg in parameters else (parameters[at] if at < len(parameters) else "")
            kind = _node_type(annotations.get(name or "", ""))
            if kind and isinstance(keyword.value, ast.List):
                keyword.value = _call(_NODE_FUNCTIONS[kind][0], keyword.value)
        if not {keyword.arg for keyword in node.keywords} <= set(parameters):
            node.args += [keyword.value for keyword in node.keywords]
            node.keywords = []
        kind = _node_type(annotations["return"])
        return _call(_NODE_FUNCTIONS[kind][1], node) if kind else node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return parse_python(self._function.expression, "eval").body if node.id == ENTRY_POINT else node


def _annotations(definition: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, str]:
    arguments = (*definition.args.posonlyargs, *definition.args.args, *definition.args.kwonlyargs)
    found = {each.arg: ast.unparse(each.annotation) for each in arguments if each.annotation}
    return {**found, "return": ast.unparse(definition.returns) if definition.returns else ""}


def _node_type(annotation: str) -> str:
    """Return the kind of node that `Optional[ListNode]` or `TreeNode` names; '' for other types and lists of nodes."""
    plain = annotation.replace("Optional[", "").replace("Union[", "").strip("]'\" ")
    plain = plain.replace("| None", "").replace(", None", "").strip("'\" ")
    return plain if plain in _NODE_FUNCTIONS else ""


def _call(name: str, value: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name, ast.Load()), [value], [])


def _returns_none(function: _Function) -> bool:
    returns = function.definition.returns
    return isinstance(returns, ast.Constant) and returns.value is None


def _compare_argument(code: str, scope: str) -> tuple[str, list[Step]]:
    """Return the assert of a function that changes its first argument: the example gives the argument's new value."""
    statement = parse_python(code).body[0]
    comparison = statement.test if isinstance(statement, ast.Assert) else None
    if not isinstance(comparison, ast.Compare) or not isinstance(comparison.left, ast.Call):
        return code, []
    call, expected = comparison.left, ast.unparse(comparison.comparators[0])
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    if expected == "None" or not values:
        return code, []
    value = ast.unparse(values[0])
    first = ast.Name("_argument", ast.Load())
    if call.args:
        call.args[0] = first
    else:
        call.keywords[0].value = first
    return f"assert _argument == {expected}", [Step(f"_argument = {value}\n{ast.unparse(call)}", scope)]
