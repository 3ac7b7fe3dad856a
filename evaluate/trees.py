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

Span = tuple[int, int]  # in bytes
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
    return Trees(tuple(walk.subtrees), _data_flow(walk.root, walk.leaves, data))


@cache
def _language() -> Any:
    from codebleu.utils import get_tree_sitter_language

    return get_tree_sitter_language("python")


def _parser() -> Any:
    from tree_sitter import Parser

    parser = Parser()  # not shared: a parser is not safe in two threads
    parser.language = _language()
    return parser


class _Node:
    """A node of the tree as Python's own object, for `DFG_python`: it asks each node for much, and often.

    The places are bytes from the beginning. Besides, on the way down to the current one: `parts` are the shapes of its
    children, `count` how many of them are no comments, `leaves` how many leaves it holds, `sides` how many of those
    are assigned to.
    """

    __slots__ = (
        *("children", "count", "counted", "documented", "end_point", "fields", "leaves", "parts", "sides"),
        *("start_point", "type"),
    )

    def __init__(self, node: Any, kind: str, counted: bool) -> None:
        self.type = kind
        self.start_point: int = node.start_byte
        self.end_point: int = node.end_byte
        self.children: list[_Node] = []
        self.fields: dict[str, _Node] = {}
        self.counted = counted
        self.parts: list[bytes] = []
        self.count = 0
        self.documented = False
        self.leaves = 0
        self.sides = 0

    def child_by_field_name(self, name: str) -> _Node | None:
        return self.fields.get(name)


class _Walk:
    """One pass over a tree without recursion: subtrees, leaves, depth, and what the data flow would cost.

    A subtree is what tree-sitter prints of it: the kinds of its named nodes and their fields, no names or values.
    Comments and docstrings are left out.
    """

    def __init__(self, tree: Any) -> None:
        self.subtrees: list[bytes] = []
        self.leaves: list[Span] = []
        self.root: _Node
        self.depth = 0
        self._nodes = 0
        self._products = 0
        self._loops = 0
        self._stack: list[_Node] = []
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
        elif kind in _LOOPS:
            self._loops += 1
        made = _Node(node, kind, counted)
        if kind == "string":
            self.leaves.append((made.start_point, made.end_point))
        self._nodes += 1 << min(self._loops, 40)
        self._stack.append(made)

    def _leaf(self, node: Any) -> None:
        """A node without children; it is among the leaves unless it is a comment or part of a string."""
        kind: str = node.type
        missing: bool = node.is_missing
        stack = self._stack
        made = _Node(node, kind, (missing or node.is_named) and kind != "comment")
        self._nodes += 1 << min(self._loops, 40)
        self.depth = max(self.depth, len(stack) + 1)
        inside = any([each.type == "string" for each in stack[-2:]])  # noqa: C419 - a list is faster for two
        if kind == "string" or (kind != "comment" and not inside):
            self.leaves.append((made.start_point, made.end_point))
            made.leaves = 1
        self._tell(made, _childless_shape(kind, missing))

    def _leave(self, made: _Node) -> None:
        if made.type in _ASSIGNMENTS:
            self._products += (made.sides * (made.leaves - made.sides)) << min(self._loops, 40)
        if made.type in _LOOPS:
            self._loops -= 1
        made.leaves += made.type == "string"
        shape = blake2b(made.type.encode() + b"".join(made.parts), digest_size=16).digest()
        # As in the package: every node that has children, and below the root, whatever it has.
        if self._stack and made.counted and made.count:
            self.subtrees.append(shape)
        self._tell(made, shape)

    def _tell(self, made: _Node, shape: bytes) -> None:
        """Adds the node at which the cursor stands to its parent."""
        if not self._stack:
            self.subtrees.append(shape)
            self.root = made
            return
        parent = self._stack[-1]
        role: str | None = self._cursor.field_name
        parent.children.append(made)
        parent.leaves += made.leaves
        if role is not None:
            parent.fields.setdefault(role, made)
            if role in _SIDES:
                parent.sides += made.leaves
        if made.type != "comment":
            parent.count += 1
        if made.counted:
            parent.parts.append(f"{role or ''}:".encode() + shape)

    def _is_docstring(self, node: Any) -> bool:
        """A bare string that is the first of several statements of its module, class or function."""
        if node.named_child_count != 1 or node.children[0].type != "string" or not self._stack:
            return False
        body = self._stack[-1]
        owner = self._stack[-2].type if len(self._stack) > 1 else ""
        named = body.type == "module" or (body.type == "block" and owner in {"function_definition", "class_definition"})
        if not named or body.documented or body.count:
            return False
        following = node.next_named_sibling
        while following is not None and following.type == "comment":
            following = following.next_named_sibling
        body.documented = following is not None
        return body.documented


@cache
def _childless_shape(kind: str, missing: bool) -> bytes:
    return blake2b(kind.encode() + (b"!" if missing else b""), digest_size=16).digest()


def _data_flow(root: _Node, leaves: list[Span], data: bytes) -> Counter[FlowItem]:
    """The normalised data-flow items of one snippet (arXiv 2009.10297, section 3.3)."""
    from codebleu.parser import DFG_python

    # Places count bytes: as Latin-1 every byte is one character. The package joins the lines of a token.
    texts = [data[start:end].decode("latin-1").replace("\n", "") for start, end in leaves]
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
