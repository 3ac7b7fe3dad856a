"""Choice among the code blocks of one answer, and which of them are joined, by what kind of code each has.

Order of preference:

1. Blocks named Python; where none of them is more than imports, a signature or commands, blocks without a name that are
   Python too.
2. Of those the first program. Blocks before it that only import, or declare what it does not define, are joined with
   it; a signature before an indented body too.
3. A later block replaces it where the text between says that it was wrong, or that the later one is the complete
   program. A later block that defines more, and uses what was defined, is joined with it. Other later blocks are usage,
   tests and alternatives.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import NamedTuple

from tasks.extract.bare_code import is_valid_python, syntax_tree

_CORRECTION = re.compile(
    r"\b(?:wrong|incorrect|mistakes?|mistaken|bug|buggy|oops|sorry|apologi[sz]e|apologies|corrected|correction|fix(?:ed|es)?|"
    r"wait|actually|revised|does(?:n't| not) work|won't work|fails?)\b",
    re.IGNORECASE,
)
_COMPLETE = re.compile(
    r"\b(?:complete|full|final|whole|entire|together|overall|combined|putting it all)\b", re.IGNORECASE
)


class Shape(Enum):
    """The kinds of code; all but INVALID, INSTALL and SIGNATURE are valid Python."""

    EMPTY = auto()  # nothing, or comments only
    INSTALL = auto()  # commands of a shell
    IMPORTS = auto()
    SIGNATURE = auto()  # the first line of a function or class
    STUB = auto()  # functions and classes without a body
    LITERAL = auto()  # constants, as a program prints them
    EXPRESSION = auto()  # names, attributes and operators, without a call
    PROGRAM = auto()
    INVALID = auto()


ANSWERS = (Shape.PROGRAM, Shape.EXPRESSION, Shape.LITERAL, Shape.INVALID)


class CodeInfo(NamedTuple):
    """The shape of code, the names that its top level defines, and all names that it reads."""

    shape: Shape
    defined: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()


_COMMAND = re.compile(
    r"[ \t]*[$!%]?[ \t]*(?:pip3?|conda|mamba|poetry|uv|apt|apt-get|brew|npm|git|cd|mkdir|sudo"
    r"|python3?[ \t]+(?:-m|\S+\.py))\b(?![ \t]*[=.(\[])"
)


def describe(code: str) -> CodeInfo:
    """Return the shape and the names of `code`. Never raises."""
    lines = [line for line in code.split("\n") if line.strip()]
    if not lines:
        return CodeInfo(Shape.EMPTY)
    tree = syntax_tree(code)
    if tree is None:
        if all(_COMMAND.match(line) or line.lstrip().startswith("#") for line in lines):
            return CodeInfo(Shape.INSTALL)
        if lines and lines[-1].rstrip().endswith(":") and _is_signature(code):
            return CodeInfo(Shape.SIGNATURE, _defined(syntax_tree(code.rstrip() + " pass")))
        return CodeInfo(Shape.INVALID, frozenset(re.findall(r"(?m)^(?:async def|def|class)[ \t]+(\w+)", code)))
    used = frozenset(
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    )
    return CodeInfo(_shape(tree), _defined(tree), used)


def _shape(tree: ast.Module) -> Shape:
    body = [node for node in tree.body if not _is_docstring(node)]
    if not body:
        return Shape.LITERAL if tree.body else Shape.EMPTY
    if all(isinstance(node, ast.Import | ast.ImportFrom) for node in body):
        return Shape.IMPORTS
    definitions = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    if all(_is_stub(node) for node in definitions):
        return Shape.STUB
    if all(isinstance(node, ast.Expr) for node in body):
        nodes = [inner for node in body for inner in ast.walk(node)]
        if not any(isinstance(node, _ACTIVE) for node in nodes):
            names = any(isinstance(node, ast.Name) for node in nodes)
            return Shape.EXPRESSION if names else Shape.LITERAL
    return Shape.PROGRAM


_ACTIVE = (
    *(ast.Call, ast.Subscript, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
    *(ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.JoinedStr, ast.IfExp),
)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_stub(node: ast.stmt) -> bool:
    """Whether a function has no body: `pass`, `...`, or raising NotImplementedError."""
    if isinstance(node, ast.ClassDef):
        return all(_is_docstring(inner) or _is_nothing(inner) or _is_stub(inner) for inner in node.body)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return all(_is_docstring(inner) or _is_nothing(inner) for inner in node.body)


def _is_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise):
        return "NotImplementedError" in ast.dump(node)
    is_ellipsis = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...
    return is_ellipsis or isinstance(node, ast.Pass)


def _is_signature(code: str) -> bool:
    source = code.rstrip()
    last = source.rpartition("\n")[2]
    tree = syntax_tree(source + " pass") if is_valid_python(source + " pass") else None
    return (
        tree is not None
        and not last[:1].isspace()
        and isinstance(tree.body[-1], ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    )


def _defined(tree: ast.Module | None) -> frozenset[str]:
    names: set[str] = set()
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name))
    return frozenset(names)


@dataclass(frozen=True, eq=False)
class Candidate:
    """Code of one block: where it stands (1 is the first), the prose before it, and what the block is called."""

    code: str
    number: int
    name: str
    is_named_python: bool = False
    is_closed: bool = True
    prose_before: str = ""

    @cached_property
    def info(self) -> CodeInfo:
        """The shape and the names of the code."""
        return describe(self.code)


@dataclass(frozen=True)
class Choice:
    """The chosen code, the candidate that it is mainly of, and all candidates that were joined for it."""

    code: str
    main: Candidate
    parts: tuple[Candidate, ...]


def choose(candidates: Sequence[Candidate]) -> Choice | None:
    """Choose the code of an answer from its blocks; None where no block is named Python or is Python."""
    filled = [candidate for candidate in candidates if candidate.code.strip()]
    pool = [candidate for candidate in filled if candidate.is_named_python]
    if not any(candidate.info.shape in ANSWERS for candidate in pool):
        unnamed = [c for c in filled if not c.is_named_python and c.info.shape not in (Shape.INVALID, Shape.EMPTY)]
        programs = [c for c in unnamed if c.info.shape is Shape.PROGRAM]
        pool = [c for c in filled if c in pool or c in (unnamed if not pool else programs)]
    if not pool:
        return None
    main = _first_program(pool)
    parts = [c for c in pool[: pool.index(main)] if _belongs_before(c, main)]
    before, parts = parts, [main]
    for later in pool[pool.index(main) + 1 :]:
        defined = frozenset[str]().union(*(part.info.defined for part in parts))
        if _replaces(later, defined):
            parts = [later]
            main = later
        elif _extends(later, defined):
            parts.append(later)
    before = [c for c in before if c is not main and _belongs_before(c, main)]
    return Choice(_join(before, parts), main, (*before, *parts))


def _first_program(pool: Sequence[Candidate]) -> Candidate:
    for shapes in (ANSWERS, (Shape.STUB,), (Shape.SIGNATURE,), (Shape.IMPORTS,)):
        found = [candidate for candidate in pool if candidate.info.shape in shapes]
        if not found:
            continue
        first = found[0]
        if shapes is not ANSWERS or first.info.shape is Shape.PROGRAM:
            return first
        programs = [candidate for candidate in found if candidate.info.shape is Shape.PROGRAM]
        if first.info.shape is Shape.INVALID:
            if _is_body(first.code):
                return first
            # A block with an error stays the answer, except where a later one defines what it failed to define.
            programs = [c for c in programs if c.info.defined and c.info.defined >= first.info.defined]
        elif not any(candidate.info.defined for candidate in programs):
            return first
        return programs[0] if programs else first
    return pool[0]


def _belongs_before(candidate: Candidate, main: Candidate) -> bool:
    shape = candidate.info.shape
    if shape is Shape.IMPORTS:
        return True
    if shape is Shape.SIGNATURE:
        return _is_body(main.code)
    return shape is Shape.STUB and candidate.info.defined.isdisjoint(main.info.defined)


def _is_body(code: str) -> bool:
    """Whether code is the body of a function without its first line."""
    return is_valid_python("def f():\n" + textwrap.indent(code, "    ")) and (
        code[:1].isspace() or re.search(r"(?m)^(?:return|yield)\b", code) is not None
    )


def _replaces(later: Candidate, defined: frozenset[str]) -> bool:
    if later.info.shape not in (Shape.PROGRAM, Shape.EXPRESSION):
        return False
    if _COMPLETE.search(later.prose_before) and defined and later.info.defined >= defined:
        return True
    same = bool(defined & later.info.defined) or not (defined or later.info.defined)
    return same and _CORRECTION.search(later.prose_before) is not None


def _extends(later: Candidate, defined: frozenset[str]) -> bool:
    names = later.info.defined
    is_program = later.info.shape is Shape.PROGRAM and re.search(r"(?m)^(?:async def|def|class|@)", later.code)
    return (
        bool(is_program) and names.isdisjoint(defined) and bool(later.info.used & defined) and not _is_test(later.code)
    )


def _is_test(code: str) -> bool:
    return (
        re.search(r"(?m)^(?:def test_|class Test\w*|(?:import|from) (?:unittest|pytest)\b|def check\b)", code)
        is not None
    )


def _join(before: Sequence[Candidate], parts: Sequence[Candidate]) -> str:
    codes = [candidate.code for candidate in (*before, *parts)]
    if before and before[-1].info.shape is Shape.SIGNATURE:
        body = codes[len(before)]
        joined = before[-1].code.rstrip() + "\n" + (body if body[:1].isspace() else textwrap.indent(body, "    "))
        codes[len(before) - 1 : len(before) + 1] = [joined]
    return "\n\n".join(codes)
