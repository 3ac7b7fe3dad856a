"""Rewriting of unittest's and pytest's assertions to asserts and to one form of block for expected exceptions.

`self.assertEqual(f(2), 4)` becomes `assert f(2) == 4`, `f(2) == pytest.approx(4)` an inequality, and each way to expect
an exception a `with` block whose context is a call of RAISES.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Mapping
from typing import Any

from common.parsing import dotted_name
from tasks.pasted_tests.text import copy_tree, is_literal, parse_expression, walk

RAISES = "__raises__"
TEST_CASE = "unittest.TestCase"
_COMPARED = {
    "Equal": ast.Eq, "Equals": ast.Eq, "NotEqual": ast.NotEq, "NotEquals": ast.NotEq, "Is": ast.Is, "IsNot": ast.IsNot,
    "In": ast.In, "NotIn": ast.NotIn, "Greater": ast.Gt, "GreaterEqual": ast.GtE, "Less": ast.Lt, "LessEqual": ast.LtE,
    "ListEqual": ast.Eq, "TupleEqual": ast.Eq, "SetEqual": ast.Eq, "DictEqual": ast.Eq, "SequenceEqual": ast.Eq,
    "MultiLineEqual": ast.Eq,
}  # fmt: skip
_APPROX_DEFAULTS = {"rel": 1e-6, "abs": 1e-12}
_VALUE = "_value"  # holds what is compared item by item


class Rewriter(ast.NodeTransformer):
    """Rewrites statements. `aliases` gives the full names of imported ones, `receiver` is the `self` of a TestCase."""

    def __init__(self, aliases: Mapping[str, str], receiver: str = "") -> None:
        self._aliases = aliases
        self._receiver = receiver

    def statements(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """Return rewritten copies of the statements."""
        found: list[ast.stmt] = []
        for statement in map(copy_tree, body):
            rewritten = self.visit(statement)
            found += rewritten if isinstance(rewritten, list) else [rewritten]
        return found

    def function(self, definition: ast.FunctionDef) -> ast.FunctionDef:
        """Return a copy of the function with a rewritten body."""
        rewritten = copy.copy(definition)
        rewritten.body = self.statements(definition.body)
        return rewritten

    def canonical_name(self, node: ast.expr) -> str:
        """Return 'pytest.raises' for whatever name the text has given that function."""
        root, dot, rest = dotted_name(node).partition(".")
        return f"{self._aliases.get(root, root)}{dot}{rest}"

    def visit_With(self, node: ast.With) -> Any:
        self.generic_visit(node)
        item = node.items[0]
        call = item.context_expr
        if len(node.items) > 1 or not isinstance(call, ast.Call):
            return node
        if self._method(call) == "subTest":
            return node.body
        raises = self._raises_call(call)
        if raises is None:
            return node
        changed = ast.With([ast.withitem(raises, item.optional_vars)], node.body)
        return ast.copy_location(changed, node)

    def visit_Assert(self, node: ast.Assert) -> Any:
        test = node.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            left, right = test.left, test.comparators[0]
            if self._is_approx(left):
                left, right = right, left
            items = self._approx_items(right) if isinstance(right, ast.Call) and self._is_approx(right) else None
            if items is not None:
                assign = ast.Assign([ast.Name(_VALUE, ast.Store())], left)
                return [_placed(assign, node), _placed(ast.Assert(ast.BoolOp(ast.And(), items), node.msg), node)]
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> Any:
        self.generic_visit(node)
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Eq | ast.NotEq):
            return node
        left, right = node.left, node.comparators[0]
        if self._is_approx(left):
            left, right = right, left
        if not isinstance(right, ast.Call) or not self._is_approx(right) or not right.args:
            return node
        close = _is_close(left, right.args[0], _approx_options(right))
        return _placed(close if isinstance(node.ops[0], ast.Eq) else ast.UnaryOp(ast.Not(), close), node)

    def visit_Expr(self, node: ast.Expr) -> Any:
        self.generic_visit(node)
        call = node.value
        if not isinstance(call, ast.Call):
            return node
        raises = self._raises_call(call)
        if raises is not None and len(call.args) > 1:
            function, *arguments = call.args[1:]
            if self._method(call) == "assertRaisesRegex":
                function, *arguments = arguments
            called = ast.Call(function, arguments, [each for each in call.keywords if each.arg not in {"match", "msg"}])
            raises.keywords = [each for each in raises.keywords if each.arg == "match"]
            return _placed(ast.With([ast.withitem(raises)], [ast.Expr(called)]), node)
        condition = self._unittest_condition(call)
        return node if condition is None else _placed(ast.Assert(condition), node)

    def _method(self, call: ast.Call) -> str:
        """Return the name of the TestCase's method that is called; '' for other calls."""
        match call.func:
            case ast.Attribute(value=ast.Name(id=owner), attr=method) if owner == self._receiver:
                return method
        return ""

    def _raises_call(self, call: ast.Call) -> ast.Call | None:
        method = self._method(call)
        if self.canonical_name(call.func) == "pytest.raises" and call.args:
            match = [each for each in call.keywords if each.arg == "match"]
            return ast.Call(ast.Name(RAISES, ast.Load()), [call.args[0]], match)
        if method == "assertRaises" and call.args:
            return ast.Call(ast.Name(RAISES, ast.Load()), [call.args[0]], [])
        if method == "assertRaisesRegex" and len(call.args) >= 2:
            return ast.Call(ast.Name(RAISES, ast.Load()), [call.args[0]], [ast.keyword("match", call.args[1])])
        return None

    def _is_approx(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and self.canonical_name(node.func) == "pytest.approx"

    def _approx_items(self, call: ast.Call) -> list[ast.expr] | None:
        """Return the conditions for approx of a list, tuple or dict; None for a number."""
        expected, options = call.args[0] if call.args else None, _approx_options(call)
        value = ast.Name(_VALUE, ast.Load())
        if isinstance(expected, ast.List | ast.Tuple):
            keys: list[ast.expr] = [ast.Constant(at) for at in range(len(expected.elts))]
            pairs = list(zip(keys, expected.elts, strict=True))
        elif isinstance(expected, ast.Dict) and all(key is not None for key in expected.keys):
            pairs = [(key, item) for key, item in zip(expected.keys, expected.values, strict=True) if key is not None]
        else:
            return None
        length = ast.Compare(ast.Call(ast.Name("len", ast.Load()), [value], []), [ast.Eq()], [ast.Constant(len(pairs))])
        return [length, *(_is_close(ast.Subscript(value, key, ast.Load()), item, options) for key, item in pairs)]

    def _unittest_condition(self, call: ast.Call) -> ast.expr | None:
        """Return what the call of a TestCase's method asserts; None for other calls."""
        method = self._method(call)
        if not method.startswith(("assert", "fail")) or any(isinstance(each, ast.Starred) for each in call.args):
            return None
        named = {each.arg: each.value for each in call.keywords if each.arg}
        arguments = [*call.args, *(named[name] for name in _parameter_names(method)[len(call.args) :] if name in named)]
        builder = _CONDITIONS.get(method)
        if method.removeprefix("assert") in _COMPARED and len(arguments) >= 2:
            return ast.Compare(arguments[0], [_COMPARED[method.removeprefix("assert")]()], [arguments[1]])
        if builder is None or len(arguments) < builder[0]:
            return None
        return builder[1](arguments, named)


def _placed(node: Any, origin: ast.AST) -> Any:
    """Return the node with the lines of the one that it replaces."""
    for each in walk(node):
        if isinstance(each, ast.stmt | ast.expr) and not hasattr(each, "lineno"):
            ast.copy_location(each, origin)
    return node


def _parameter_names(method: str) -> tuple[str, ...]:
    if method in {"assertTrue", "assertFalse"}:
        return ("expr",)
    if method in {"assertIsNone", "assertIsNotNone"}:
        return ("obj",)
    if method in {"assertIsInstance", "assertNotIsInstance"}:
        return ("obj", "cls")
    if method in {"assertIn", "assertNotIn"}:
        return ("member", "container")
    if method in {"assertGreater", "assertLess", "assertGreaterEqual", "assertLessEqual"}:
        return ("a", "b")
    return ("first", "second")


def _almost(arguments: list[ast.expr], named: Mapping[str, ast.expr]) -> ast.expr:
    difference = _call("abs", ast.BinOp(arguments[0], ast.Sub(), arguments[1]))
    delta = named.get("delta") or (arguments[4] if len(arguments) > 4 else None)
    if delta is not None:
        return ast.Compare(difference, [ast.LtE()], [delta])
    digits = named.get("places") or (arguments[2] if len(arguments) > 2 else ast.Constant(7))
    return ast.Compare(_call("round", difference, digits), [ast.Eq()], [ast.Constant(0)])


def _same_items(arguments: list[ast.expr], _: Mapping[str, ast.expr]) -> ast.expr:
    sides = []
    for side in arguments[:2]:
        if isinstance(side, ast.List | ast.Tuple) and is_literal(side):
            sides.append(parse_expression(repr(sorted(ast.literal_eval(side), key=repr))) or side)
        else:
            ordered = ast.Call(ast.Name("sorted", ast.Load()), [side], [])
            ordered.keywords = [ast.keyword("key", ast.Name("repr", ast.Load()))]
            sides.append(ordered)
    return ast.Compare(sides[0], [ast.Eq()], [sides[1]])


def _search(arguments: list[ast.expr], _: Mapping[str, ast.expr]) -> ast.expr:
    imported = _call("__import__", ast.Constant("re"))
    return ast.Call(ast.Attribute(imported, "search", ast.Load()), [arguments[1], arguments[0]], [])


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _not(node: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), node)


_Builder = Callable[[list[ast.expr], Mapping[str, ast.expr]], ast.expr]
_CONDITIONS: dict[str, tuple[int, _Builder]] = {
    "assertTrue": (1, lambda args, _: args[0]),
    "assert_": (1, lambda args, _: args[0]),
    "assertFalse": (1, lambda args, _: _not(args[0])),
    "assertIsNone": (1, lambda args, _: ast.Compare(args[0], [ast.Is()], [ast.Constant(None)])),
    "assertIsNotNone": (1, lambda args, _: ast.Compare(args[0], [ast.IsNot()], [ast.Constant(None)])),
    "assertIsInstance": (2, lambda args, _: _call("isinstance", *args[:2])),
    "assertNotIsInstance": (2, lambda args, _: _not(_call("isinstance", *args[:2]))),
    "assertAlmostEqual": (2, _almost),
    "assertNotAlmostEqual": (2, lambda args, named: _not(_almost(args, named))),
    "assertCountEqual": (2, _same_items),
    "assertItemsEqual": (2, _same_items),
    "assertRegex": (2, _search),
    "assertNotRegex": (2, lambda args, named: _not(_search(args, named))),
    "fail": (0, lambda _, __: ast.Constant(False)),
}


def _approx_options(call: ast.Call) -> dict[str, ast.expr]:
    options = {each.arg: each.value for each in call.keywords if each.arg in _APPROX_DEFAULTS}
    if len(call.args) > 1:
        options["rel"] = call.args[1]
    return {name: value for name, value in options.items() if name}


def _is_close(value: ast.expr, expected: ast.expr, options: Mapping[str, ast.expr]) -> ast.expr:
    """Return the condition of pytest.approx: `abs(value - expected)` is within the larger tolerance."""
    numbers = [each for each in (expected, *options.values()) if is_literal(each)]
    relative = options.get("rel") or (None if "abs" in options else ast.Constant(_APPROX_DEFAULTS["rel"]))
    absolute = options.get("abs") or ast.Constant(_APPROX_DEFAULTS["abs"])
    difference = _call("abs", ast.BinOp(value, ast.Sub(), expected))
    if len(numbers) == 1 + len(options) and isinstance(ast.literal_eval(expected), int | float):
        size = abs(ast.literal_eval(expected))
        tolerance = max(ast.literal_eval(relative) * size if relative is not None else 0, ast.literal_eval(absolute))
        return ast.Compare(difference, [ast.LtE()], [ast.Constant(tolerance)])
    if relative is None:
        return ast.Compare(difference, [ast.LtE()], [absolute])
    scaled = ast.BinOp(relative, ast.Mult(), _call("abs", expected))
    return ast.Compare(difference, [ast.LtE()], [_call("max", absolute, scaled)])


class RaisesToTry(ast.NodeTransformer):
    """Rewrites blocks for expected exceptions to plain Python, for code that runs as a whole in the sandbox."""

    def visit_With(self, node: ast.With) -> Any:
        self.generic_visit(node)
        call = raises_call(node)
        if call is None:
            return node
        bound = node.items[0].optional_vars
        handled: list[ast.stmt] = []
        if isinstance(bound, ast.Name):
            handled.append(info_assignment(bound.id))
        match = next((each.value for each in call.keywords if each.arg == "match"), None)
        if match is not None:
            found = _search([_call("str", ast.Name("_raised", ast.Load())), match], {})
            handled.append(ast.Assert(found))
        otherwise = ast.Assert(ast.Constant(False), ast.Constant("nothing was raised"))
        handler = ast.ExceptHandler(call.args[0], "_raised", handled or [ast.Pass()])
        return _placed(ast.Try(node.body, [handler], [otherwise], []), node)


def raises_call(node: ast.stmt) -> ast.Call | None:
    """Return the call of RAISES with which the block begins; None for other statements."""
    if not isinstance(node, ast.With) or not isinstance(node.items[0].context_expr, ast.Call):
        return None
    call = node.items[0].context_expr
    return call if isinstance(call.func, ast.Name) and call.func.id == RAISES else None


def info_assignment(name: str) -> ast.stmt:
    """Return the statement that gives `name` what pytest and unittest give for a caught exception."""
    source = (
        f"{name} = __import__('types').SimpleNamespace(value=_raised, exception=_raised, type=type(_raised), "
        "match=lambda pattern, raised=_raised: __import__('re').search(pattern, str(raised)))"
    )
    return ast.parse(source).body[0]
