"""The two parts of CodeBLEU that need a syntax tree: subtrees and data flow, both as plain values of one snippet.

Source: Ren et al., arXiv 2009.10297, sections 3.2 and 3.3, as the `codebleu` package (0.7.0) computes them with
tree-sitter. Its parser, its tokens and its data-flow rules (`DFG_python`) are used as they are. What the package does
around them is done here instead, because there

- the names in a data-flow item pass through `set`, so their order, and with it the score, moves with PYTHONHASHSEED;
- a string that begins a statement is cut as if it were a docstring, so `"a".join(x)` and `"b".join(x)` are the same;
- byte columns index into characters, so names behind a non-ASCII character are read wrongly;
- nesting costs without bound: every `for` doubles the work on its body, and subtrees are compared as whole texts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any

MAX_DEPTH = 250  # DFG_python and its helpers recurse once a level
MAX_WORK = 50_000_000  # estimated steps; no reference of CoNaLa, CodeAlpacaPy and MBPP takes over 1.2 million

Span = tuple[tuple[int, int], tuple[int, int]]
FlowItem = tuple[str, str, tuple[str, ...]]
_ASSIGNMENTS = {"assignment", "augmented_assignment", "for_in_clause", "for_statement", "default_parameter"}
_LOOPS = {"for_statement", "while_statement"}
_SIDES = {"left", "name"}


@dataclass(frozen=True)
class Trees:
    """Digests of all subtrees in the order of their ends, and the data flow as a multiset of normalised items.

    `bounded` is False for code that is too deep or too costly for its data flow, which is empty then.
    """

    subtrees: tuple[bytes, ...]
    flow: Counter[FlowItem]
    bounded: bool = True


def trees_of(code: str) -> Trees:
    """Subtrees and data flow of `code`, which must be encodable as UTF-8. Linear in its length but for the flow.

    Too deep is a tree of more than MAX_DEPTH levels, too costly a flow of more than MAX_WORK steps.
    """
    data = code.encode()
    tree = _parser().parse(data)
    walk = _Walk(tree)
    if walk.depth > MAX_DEPTH or walk.work > MAX_WORK:
        return Trees(tuple(walk.subtrees), Counter(), bounded=False)
    return Trees(tuple(walk.subtrees), _data_flow(tree.root_node, walk.leaves, data))


@cache
def _language() -> Any:
    from codebleu.utils import get_tree_sitter_language

    return get_tree_sitter_language("python")


def _parser() -> Any:
    from tree_sitter import Parser

    parser = Parser()  # not shared: a parser is not safe in two threads
    parser.language = _language()
    return parser


class _Frame:
    """A node on the way down to the current one. `parts` are its children's shapes, where it has any."""

    __slots__ = ("children", "counted", "documented", "kind", "leaves", "parts", "sides")

    def __init__(self, kind: str, counted: bool) -> None:
        self.kind = kind
        self.counted = counted
        self.parts: list[bytes] = []
        self.children = 0
        self.documented = False
        self.leaves = 0
        self.sides = 0


class _Walk:
    """One pass over a tree without recursion: subtrees, leaves, depth, and what the data flow would cost.

    A subtree is what tree-sitter prints of it: the kinds of its named nodes and their fields, no names or values.
    Comments and docstrings are left out.
    """

    def __init__(self, tree: Any) -> None:
        self.subtrees: list[bytes] = []
        self.leaves: list[Span] = []
        self.depth = 0
        self._nodes = 0
        self._products = 0
        self._loops = 0
        self._stack: list[_Frame] = []
        self._cursor = tree.walk()
        down, across, up = self._cursor.goto_first_child, self._cursor.goto_next_sibling, self._cursor.goto_parent
        while True:
            node = self._cursor.node
            if node.child_count:
                self._enter(node)
                down()
                continue
            self._leaf(node)
            while not across():
                if not up():
                    self.work = self._nodes * max(len(self.leaves), 1) + self._products
                    return
                self._leave(self._stack.pop())

    def _enter(self, node: Any) -> None:
        kind: str = node.type
        counted = node.is_named and kind != "comment"
        if kind == "expression_statement":
            counted = counted and not self._is_docstring(node)
        elif kind == "string":
            self.leaves.append((node.start_point, node.end_point))
        elif kind in _LOOPS:
            self._loops += 1
        self._nodes += 1 << min(self._loops, 40)
        self._stack.append(_Frame(kind, counted))

    def _leaf(self, node: Any) -> None:
        """A node without children; it is among the leaves unless it is a comment or part of a string."""
        kind: str = node.type
        missing: bool = node.is_missing
        self._nodes += 1 << min(self._loops, 40)
        shape = _childless_shape(kind, missing)
        stack = self._stack
        self.depth = max(self.depth, len(stack) + 1)
        is_leaf = kind == "string" or (kind != "comment" and all(frame.kind != "string" for frame in stack[-2:]))
        if is_leaf:
            self.leaves.append((node.start_point, node.end_point))
        if stack:
            self._tell(stack[-1], kind, (missing or node.is_named) and kind != "comment", shape, int(is_leaf))
        else:
            self.subtrees.append(shape)

    def _leave(self, frame: _Frame) -> None:
        if frame.kind in _ASSIGNMENTS:
            self._products += (frame.sides * (frame.leaves - frame.sides)) << min(self._loops, 40)
        if frame.kind in _LOOPS:
            self._loops -= 1
        shape = blake2b(frame.kind.encode() + b"".join(frame.parts), digest_size=16).digest()
        # As in the package: the root, and every node that has children.
        if not self._stack or (frame.counted and frame.children):
            self.subtrees.append(shape)
        if self._stack:
            self._tell(self._stack[-1], frame.kind, frame.counted, shape, frame.leaves + (frame.kind == "string"))

    def _tell(self, parent: _Frame, kind: str, counted: bool, shape: bytes, leaves: int) -> None:
        """Adds the node at which the cursor stands to its parent."""
        role: str | None = self._cursor.field_name
        parent.leaves += leaves
        if role in _SIDES:
            parent.sides += leaves
        if kind != "comment":
            parent.children += 1
        if counted:
            parent.parts.append(f"{role or ''}:".encode() + shape)

    def _is_docstring(self, node: Any) -> bool:
        """A bare string that is the first of several statements of its module, class or function."""
        if node.named_child_count != 1 or node.children[0].type != "string" or not self._stack:
            return False
        body = self._stack[-1]
        owner = self._stack[-2].kind if len(self._stack) > 1 else ""
        named = body.kind == "module" or (body.kind == "block" and owner in {"function_definition", "class_definition"})
        if not named or body.documented or body.children:
            return False
        following = node.next_named_sibling
        while following is not None and following.type == "comment":
            following = following.next_named_sibling
        body.documented = following is not None
        return body.documented


@cache
def _childless_shape(kind: str, missing: bool) -> bytes:
    return blake2b(kind.encode() + (b"!" if missing else b""), digest_size=16).digest()


def _data_flow(root: Any, leaves: list[Span], data: bytes) -> Counter[FlowItem]:
    """The normalised data-flow items of one snippet (arXiv 2009.10297, section 3.3)."""
    from codebleu.parser import DFG_python, index_to_code_token

    # Columns count bytes. As Latin-1 every byte is one character, so that slices by column are right.
    lines = data.decode("latin-1").split("\n")
    texts = [index_to_code_token(span, lines) for span in leaves]
    try:
        items, _ = DFG_python(root, {span: (at, texts[at]) for at, span in enumerate(leaves)}, {})
    except Exception:  # noqa: BLE001 - on trees with errors it fails in ways of its own: no data flow then
        return Counter()
    related = {item[1] for item in items if item[4]} | {parent for item in items for parent in item[4]}
    merged: dict[int, tuple[str, set[int]]] = {}
    for _, at, relation, _, parents in sorted(items, key=lambda item: item[1]):
        if at in related:
            merged[at] = (relation, merged.get(at, ("", set()))[1] | set(parents))
    # The names of the parents are read off their places in the code, each name once, because the package's own list
    # of names has the order of a set.
    names: dict[str, str] = {}
    flow: Counter[FlowItem] = Counter()
    for at in sorted(merged):
        relation, places = merged[at]
        parents = [names.setdefault(texts[place], f"var_{len(names)}") for place in sorted(places)]
        name = names.setdefault(texts[at], f"var_{len(names)}")
        flow[name, relation, tuple(dict.fromkeys(parents))] += 1
    return flow
