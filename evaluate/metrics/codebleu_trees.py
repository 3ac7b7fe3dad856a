"""Syntax-tree and data-flow parts of CodeBLEU, as plain values of one snippet.

Source: Ren et al., arXiv 2009.10297, sections 3.2 and 3.3, as the `codebleu` package (0.7.0) computes them with
tree-sitter. They are implemented here, because in the package

- the names in a data-flow item pass through `set`, so that their order, and the score, depend on PYTHONHASHSEED
  (data_flow.py);
- a string that begins a statement is cut like a docstring, so that `"a".join(x)` and `"b".join(x)` are the same;
- byte columns index into characters, so that names after a non-ASCII character are wrong;
- nesting costs without bound: every `for` doubles the work on its body, and subtrees are compared as texts.

The package needs a release of tree-sitter that has no wheels for Python 3.13 and newer, nor its grammar for ARM.
requirements.txt pins newer releases there. Both grammars read valid Python the same way, except for escapes in strings
and for operators of two words; `_TreeWalker` reads those as the older grammar does, so that scores do not depend on the
machine. Code with syntax errors may have another tree. No score of the stored runs differs
(tests/evaluate/metrics/test_stored_scores.py).
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any

from evaluate.metrics.data_flow import ByteSpan, FlowItem, extract_data_flow

MAX_TREE_DEPTH = 250  # the data-flow rules recurse once per level
MAX_DATAFLOW_STEPS = 50_000_000  # estimated; the references of CoNaLa, CodeAlpacaPy and MBPP take at most 1.2 million

_ASSIGNMENTS = {"assignment", "augmented_assignment", "for_in_clause", "for_statement", "default_parameter"}
_LOOPS = {"for_statement", "while_statement"}
_TWO_WORD_OPERATORS = {
    "not in",
    "is not",
}  # two leaves of this type in older grammars, a node of two words in newer ones
_SHORT_OCTAL_ESCAPE = re.compile(rb"\\\d{1,2}")
_TARGET_FIELDS = {"left", "name"}
# The data-flow rules read these child by child: in them, and on the sides of an assignment, tokens such as commas
# count.
_FLOW_NODE_TYPES = {*_ASSIGNMENTS, *_LOOPS, "if_statement"}
_ASSIGNMENT_FIELDS = {"left", "right", "name", "value"}


@dataclass(frozen=True)
class TreeFeatures:
    """Digests of all subtrees in postorder, and the data flow as a multiset of normalised items.

    `bounded` is False for code that is too deep or too costly; its data flow is then empty.
    """

    subtrees: tuple[bytes, ...]
    flow: Counter[FlowItem]
    bounded: bool = True


def tree_features(code: str) -> TreeFeatures:
    """Compute subtrees and data flow of `code`, which must be encodable as UTF-8.

    Linear in its length except for the data flow, which is skipped for trees of more than MAX_TREE_DEPTH levels or more
    than MAX_DATAFLOW_STEPS estimated steps.
    """
    data = code.encode()
    tree = _parser().parse(data)
    walk = _TreeWalker(tree, data)
    if walk.depth > MAX_TREE_DEPTH or walk.work > MAX_DATAFLOW_STEPS:
        return TreeFeatures(tuple(walk.subtrees), Counter(), bounded=False)
    return TreeFeatures(tuple(walk.subtrees), extract_data_flow(walk.root, walk.leaves, data))


@cache
def _language() -> Any:
    import tree_sitter_python
    from tree_sitter import Language

    return Language(tree_sitter_python.language())


class _ThreadParsers(threading.local):
    """One parser per thread, because a parser is not thread-safe."""

    def __init__(self) -> None:
        from tree_sitter import Parser

        self.parser = Parser()
        self.parser.language = _language()


@cache
def _thread_parsers() -> _ThreadParsers:
    return _ThreadParsers()


def _parser() -> Any:
    return _thread_parsers().parser


class _Leaf:
    """A node without children as a Python object, because the data-flow rules read the attributes of nodes often.

    Its points are byte offsets. `is_own_type` marks tokens whose type is their text, such as `(` and `in`, which play
    no part in the data flow.
    """

    __slots__ = ("end_point", "is_own_type", "start_point", "type")
    children = ()

    def __init__(self, kind: str, start: int, end: int, is_own_type: bool) -> None:
        self.type = kind
        self.start_point = start
        self.end_point = end
        self.is_own_type = is_own_type

    def child_by_field_name(self, _: str) -> None:
        return None


class _Node:
    """A node with children, also for the data-flow rules.

    During the walk `child_shapes` has the digests of its children, `num_children` the number of children without
    comments, `leaves` its number of leaves, and `assignment_sides` how many of those are assigned to.
    """

    __slots__ = (
        "assignment_sides",
        "child_shapes",
        "children",
        "counted",
        "end_point",
        "fields",
        "has_docstring",
        "leaves",
        "num_children",
        "start_point",
        "type",
    )
    is_own_type = False

    def __init__(self, node: Any, kind: str, counted: bool) -> None:
        self.type = kind
        self.start_point: int = node.start_byte
        self.end_point: int = node.end_byte
        self.children: list[_Node | _Leaf] = []
        self.fields: dict[str, _Node | _Leaf] = {}
        self.counted = counted
        self.child_shapes: list[bytes] = []
        self.num_children = 0
        self.has_docstring = False
        self.leaves = 0
        self.assignment_sides = 0

    def child_by_field_name(self, name: str) -> _Node | _Leaf | None:
        return self.fields.get(name)


class _TreeWalker:
    """One pass over a tree without recursion: subtrees, leaves, depth, and the estimated cost of the data flow.

    A subtree is represented as tree-sitter prints it: types of named nodes and their fields, without names, values,
    comments and docstrings.
    """

    def __init__(self, tree: Any, data: bytes) -> None:
        self.subtrees: list[bytes] = []
        self.leaves: list[ByteSpan] = []
        self.root: _Node | _Leaf
        self.depth = 0
        self._data = data
        self._nodes = 0
        self._loop_products = 0
        self._loops = 0
        self._weight = 1  # every loop doubles the cost of its body
        self._stack: list[_Node] = []
        self._cursor = tree.walk()
        down, across, up = self._cursor.goto_first_child, self._cursor.goto_next_sibling, self._cursor.goto_parent
        while True:
            node = self._cursor.node
            kind: str = node.type
            if not node.child_count or (kind == "string_content" and all(map(self._is_newer_escape, node.children))):
                if not self._stack or self._stack[-1].type != "string_content" or not self._is_newer_escape(node):
                    self._visit_leaf(node, kind)
            elif kind in _TWO_WORD_OPERATORS:
                for word in node.children:
                    self._visit_leaf(word, kind)
            else:
                self._enter_node(node, kind)
                down()
                continue
            while not across():
                if not up():
                    self.work = self._nodes * max(len(self.leaves), 1) + self._loop_products
                    return
                self._leave_node(self._stack.pop())

    def _loop(self, more: int) -> None:
        self._loops += more
        self._weight = 1 << min(self._loops, 40)

    def _enter_node(self, node: Any, kind: str) -> None:
        counted = node.is_named and kind != "comment"
        if kind == "expression_statement":
            counted = counted and not self._is_docstring(node)
        elif kind in _LOOPS:
            self._loop(1)
        made = _Node(node, kind, counted)
        if kind == "string":
            self.leaves.append((made.start_point, made.end_point))
        self._nodes += self._weight
        self._stack.append(made)

    def _is_newer_escape(self, node: Any) -> bool:
        """Return whether a part of a string's text is a node in newer grammars only.

        They have nodes for escapes of one and two digits, and for the backslash of an invalid escape.
        """
        return not node.is_named or (
            node.type == "escape_sequence"
            and _SHORT_OCTAL_ESCAPE.fullmatch(self._data, node.start_byte, node.end_byte) is not None
        )

    def _visit_leaf(self, node: Any, kind: str) -> None:
        """Visit a node without children; it is a leaf unless it is a comment or part of a string."""
        start: int = node.start_byte
        end: int = node.end_byte
        missing: bool = start == end and node.is_missing  # a node inserted by the parser has no length
        named: bool = node.is_named
        stack = self._stack
        made = _Leaf(kind, start, end, not named and self._data[start:end] == kind.encode())
        self._nodes += self._weight
        if len(stack) >= self.depth:
            self.depth = len(stack) + 1
        leaves = 0
        inside = stack and (stack[-1].type == "string" or (len(stack) > 1 and stack[-2].type == "string"))
        if kind == "string" or (kind != "comment" and not inside):
            self.leaves.append((start, end))
            leaves = 1
        if not stack:
            self.root = made
            self.subtrees.append(_childless_shape(kind, missing))
        elif made.is_own_type:  # such a token has no relevant field name
            parent = stack[-1]
            parent.children.append(made)
            parent.leaves += leaves
            parent.num_children += 1
        else:
            shape = _childless_shape(kind, missing) if (missing or named) and kind != "comment" else None
            self._add_to_parent(made, self._cursor.field_name, leaves, shape)

    def _leave_node(self, made: _Node) -> None:
        if made.type in _ASSIGNMENTS:
            self._loop_products += (made.assignment_sides * (made.leaves - made.assignment_sides)) * self._weight
        if made.type in _LOOPS:
            self._loop(-1)
        shape = blake2b(made.type.encode() + b"".join(made.child_shapes), digest_size=16).digest()
        # As in the package: the root, and every node that has children.
        if not self._stack:
            self.subtrees.append(shape)
            self.root = made
            return
        if made.counted and made.num_children:
            self.subtrees.append(shape)
        role: str | None = self._cursor.field_name
        if made.type not in _FLOW_NODE_TYPES and role not in _ASSIGNMENT_FIELDS:
            made.children = [child for child in made.children if not child.is_own_type] or made.children
        self._add_to_parent(made, role, made.leaves + (made.type == "string"), shape if made.counted else None)

    def _add_to_parent(self, made: _Node | _Leaf, role: str | None, leaves: int, shape: bytes | None) -> None:
        """Add a node to its parent, with its `shape` unless that is None."""
        parent = self._stack[-1]
        parent.children.append(made)
        parent.leaves += leaves
        if role is not None:
            parent.fields.setdefault(role, made)
            if role in _TARGET_FIELDS:
                parent.assignment_sides += leaves
        if made.type != "comment":
            parent.num_children += 1
        if shape is not None:
            parent.child_shapes.append(f"{role or ''}:".encode() + shape)

    def _is_docstring(self, node: Any) -> bool:
        """Return whether a node is a string that is the first of several statements of a module, class or function."""
        if node.named_child_count != 1 or node.children[0].type != "string" or not self._stack:
            return False
        body = self._stack[-1]
        owner = self._stack[-2].type if len(self._stack) > 1 else ""
        named = body.type == "module" or (body.type == "block" and owner in {"function_definition", "class_definition"})
        if not named or body.has_docstring or body.num_children:
            return False
        following = node.next_named_sibling
        while following is not None and following.type == "comment":
            following = following.next_named_sibling
        body.has_docstring = following is not None
        return body.has_docstring


@cache
def _childless_shape(kind: str, missing: bool) -> bytes:
    return blake2b(kind.encode() + (b"!" if missing else b""), digest_size=16).digest()
