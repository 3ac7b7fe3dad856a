"""What is wrong with an answer, in a few kinds, so that a person sees at a glance what a method cannot do."""

from __future__ import annotations

import ast
import re
from typing import Any

from common.parsing import dotted_name, parse_python
from evaluate.results import Result

_ERROR_NAME = re.compile(r"\b([A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit|Iteration))\b")
_STATUS_KINDS = {
    "timeout": "takes too long",
    "memory": "takes too much memory",
    "output": "prints too much",
    "killed": "is ended by a signal",
    "refused": "cannot be run",
}


def describe_answer(result: Result, reference: str, metric: str) -> dict[str, Any]:
    """Return `code`, `right`, `kind` ('right', or what is wrong) and `detail`, a line about it, of an answer."""
    code = str(result.candidates[0]["code"]) if result.candidates else ""
    right = result.scores.get(metric) == 1.0
    kind, detail = ("right", "") if right else _failure(result, code, reference)
    return {"code": code, "right": right, "kind": kind, "detail": detail}


def _failure(result: Result, code: str, reference: str) -> tuple[str, str]:
    if result.error is not None:
        return "has no answer", result.error
    if not code.strip():
        return "has no code", ""
    if result.scores.get("parses") != 1.0:
        return "is no valid Python", ""
    checks = [check for check in (result.checks[0] if result.checks else ()) if not check["passed"]]
    if checks:
        first = checks[0]
        return _test_kind(str(first["status"]), str(first["reason"])), str(first["reason"])
    if result.scores.get("em_tree@1") == 1.0:
        return "differs in layout alone", ""
    called, expected = _calls(code), _calls(reference)
    missing = sorted(expected - called)
    if missing:
        return "calls other functions", f"without {', '.join(missing[:3])}"
    return "has other arguments or steps", ""


def _test_kind(status: str, reason: str) -> str:
    if status in _STATUS_KINDS:
        return _STATUS_KINDS[status]
    if status != "ok" and (found := _ERROR_NAME.search(reason)):
        return f"raises {found[1]}"
    return "gives a wrong value" if status == "ok" else "fails"


def _calls(code: str) -> set[str]:
    """Return the names of the functions and methods that code calls; of a method on a value, its name."""
    try:
        tree = parse_python(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {
        dotted_name(node.func) or (f".{node.func.attr}" if isinstance(node.func, ast.Attribute) else "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    } - {""}
