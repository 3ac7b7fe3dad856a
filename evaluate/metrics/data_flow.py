"""Data flow of CodeBLEU: where each value of a snippet comes from.

Definition: Ren et al., arXiv 2009.10297, section 3.3. The rules are those of `DFG_python` in the `codebleu` package
(0.7.0, MIT licence; Copyright (c) Microsoft Corporation, Copyright (c) 2023 Konstantin Chernyshev), written again
without its lists of names: in the package those pass through `set`, so that their order, and the score, depend on
PYTHONHASHSEED. Here the names are taken from their positions in the code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

ByteSpan = tuple[int, int]  # in bytes
FlowItem = tuple[str, str, tuple[str, ...]]  # normalised name, relation, normalised names of its parents

# One leaf of the tree, the relation, and the leaves that its value comes from; leaves are numbered in source order.
_LeafFlow = tuple[int, str, Sequence[int]]
# For each name the leaves at which it was last assigned to, by any branch.
_States = dict[str, Sequence[int]]

_COMES_FROM, _COMPUTED_FROM = "comesFrom", "computedFrom"
_ASSIGNMENTS = {"assignment", "augmented_assignment", "for_in_clause"}
_BRANCHES = {"elif_clause", "else_clause"}
_LOOP_PASSES = 2  # a value may come from the end of the body


class SyntaxNode(Protocol):
    """A node of a syntax tree; its points are byte offsets."""

    @property
    def type(self) -> str: ...
    @property
    def start_point(self) -> int: ...
    @property
    def end_point(self) -> int: ...
    @property
    def children(self) -> Sequence[SyntaxNode]: ...

    def child_by_field_name(self, name: str, /) -> SyntaxNode | None: ...


def extract_data_flow(root: SyntaxNode, leaves: Sequence[ByteSpan], data: bytes) -> Counter[FlowItem]:
    """Return the normalised data-flow items of one snippet; none for a tree with errors that the rules cannot read.

    `leaves` are the byte spans of the tree's leaves in order, and `data` is the snippet's text as UTF-8.
    """
    # Offsets count bytes: in Latin-1 every byte is one character. The package joins the lines of a token.
    texts = [data[start:end].decode("latin-1").replace("\n", "") for start, end in leaves]
    try:
        items, _ = _DataFlowRules(leaves, texts).read(root, {})
    except (LookupError, RecursionError):
        return Counter()
    related = {leaf for leaf, _, parents in items if parents} | {parent for *_, parents in items for parent in parents}
    merged: dict[int, tuple[str, set[int]]] = {}
    for leaf, relation, parents in _in_source_order(items):
        if leaf in related:
            merged[leaf] = (relation, merged.get(leaf, ("", set()))[1] | set(parents))
    names: dict[str, str] = {}
    flow: Counter[FlowItem] = Counter()
    for leaf in sorted(merged):
        relation, parent_leaves = merged[leaf]
        parent_names = [names.setdefault(texts[parent], f"var_{len(names)}") for parent in sorted(parent_leaves)]
        name = names.setdefault(texts[leaf], f"var_{len(names)}")
        flow[name, relation, tuple(dict.fromkeys(parent_names))] += 1
    return flow


class _DataFlowRules:
    """The rules, for the leaves of one tree. They raise LookupError where a tree with errors lacks what they read."""

    def __init__(self, leaves: Sequence[ByteSpan], texts: Sequence[str]) -> None:
        self._leaf_at = {span: leaf for leaf, span in enumerate(leaves)}
        self._texts = texts

    def read(self, node: SyntaxNode, states: _States) -> tuple[list[_LeafFlow], _States]:
        """Return the data flow of a node in source order, and the states after it."""
        kind = node.type
        if _is_leaf(node):
            return self._read_leaf(node, states)
        if kind == "default_parameter":
            return self._read_default(node, states)
        if kind in _ASSIGNMENTS:
            return self._read_assignment(node, states)
        if kind == "if_statement":
            return self._read_if(node, states)
        if kind == "for_statement":
            return self._read_for(node, states)
        if kind == "while_statement":
            items, states = self._read_all([*node.children] * _LOOP_PASSES, states)
            return _merge_passes(items), states
        # The `for` of a comprehension stands behind the value that uses its names.
        clauses = [child for child in node.children if child.type == "for_in_clause"]
        others = [child for child in node.children if child.type != "for_in_clause"]
        items, states = self._read_all([*clauses, *others], states)
        return _in_source_order(items), states

    def _read_all(self, nodes: Iterable[SyntaxNode], states: _States) -> tuple[list[_LeafFlow], _States]:
        items: list[_LeafFlow] = []
        for node in nodes:
            found, states = self.read(node, states)
            items += found
        return items, states

    def _read_leaf(self, node: SyntaxNode, states: _States) -> tuple[list[_LeafFlow], _States]:
        leaf = self._leaf_at[node.start_point, node.end_point]
        text = self._texts[leaf]
        if node.type == text:
            return [], states
        if text in states:
            return [(leaf, _COMES_FROM, states[text])], states
        if node.type == "identifier":
            states = states | {text: (leaf,)}
        return [(leaf, _COMES_FROM, ())], states

    def _read_default(self, node: SyntaxNode, states: _States) -> tuple[list[_LeafFlow], _States]:
        names = self._value_leaves(_field(node, "name"))
        value = node.child_by_field_name("value")
        if value is None:
            items: list[_LeafFlow] = [(leaf, _COMES_FROM, ()) for leaf in names]
        else:
            parents = self._value_leaves(value)
            items, states = self.read(value, states)
            items += [(leaf, _COMES_FROM, (parent,)) for leaf in names for parent in parents]
        return _in_source_order(items), self._assign_to(names, states)

    def _read_assignment(self, node: SyntaxNode, states: _States) -> tuple[list[_LeafFlow], _States]:
        if node.type == "for_in_clause":
            return self._assign([(_field(node, "left"), node.children[-1])], states)
        if node.child_by_field_name("right") is None:  # an annotation without a value
            return [], states
        return self._assign(_pair_sides(node), states)

    def _assign(
        self, sides: Sequence[tuple[SyntaxNode, SyntaxNode]], states: _States
    ) -> tuple[list[_LeafFlow], _States]:
        """Return the data flow of the (target, value) pairs: first all the values, then the targets."""
        items, states = self._read_all([value for _, value in sides], states)
        assigned: list[int] = []
        for target, value in sides:
            targets, parents = self._value_leaves(target), self._value_leaves(value)
            items += [(leaf, _COMPUTED_FROM, parents) for leaf in targets]
            assigned += targets
        return _in_source_order(items), self._assign_to(assigned, states)

    def _assign_to(self, leaves: Iterable[int], states: _States) -> _States:
        return states | {self._texts[leaf]: (leaf,) for leaf in leaves}

    def _read_if(self, node: SyntaxNode, states: _States) -> tuple[list[_LeafFlow], _States]:
        items: list[_LeafFlow] = []
        current, ends = states, []
        for child in node.children:
            if child.type in _BRANCHES:
                found, end = self.read(child, states)
                ends.append(end)
            else:
                found, current = self.read(child, current)
            items += found
        ends.append(current)
        if not any("else" in child.type for child in node.children):  # nothing may have run
            ends.append(states)
        joined: dict[str, set[int]] = {}
        for end in ends:
            for name, leaves in end.items():
                joined.setdefault(name, set()).update(leaves)
        return _in_source_order(items), {name: sorted(leaves) for name, leaves in joined.items()}

    def _read_for(self, node: SyntaxNode, states: _States) -> tuple[list[_LeafFlow], _States]:
        items: list[_LeafFlow] = []
        for _ in range(_LOOP_PASSES):
            found, states = self._assign(_pair_sides(node), states)
            items += found
            if node.children[-1].type == "block":
                found, states = self.read(node.children[-1], states)
                items += found
        return _merge_passes(items), states

    def _value_leaves(self, node: SyntaxNode) -> list[int]:
        """Return the leaves below a node that are more than punctuation and keywords."""
        if _is_leaf(node):
            leaf = self._leaf_at[node.start_point, node.end_point]
            return [] if node.type == self._texts[leaf] else [leaf]
        return [leaf for child in node.children for leaf in self._value_leaves(child)]


def _is_leaf(node: SyntaxNode) -> bool:
    return node.type == "string" or (not node.children and node.type != "comment")


def _field(node: SyntaxNode, name: str) -> SyntaxNode:
    child = node.child_by_field_name(name)
    if child is None:
        raise LookupError(name)
    return child


def _pair_sides(node: SyntaxNode) -> list[tuple[SyntaxNode, SyntaxNode]]:
    """Return the (target, value) pairs of an assignment; both sides are taken apart only if they have equal lengths."""
    left, right = _field(node, "left"), _field(node, "right")
    targets = [child for child in left.children if child.type != ","]
    values = [child for child in right.children if child.type != ","]
    if not targets or len(targets) != len(values):
        return [(left, right)]
    return list(zip(targets, values, strict=True))


def _in_source_order(items: Iterable[_LeafFlow]) -> list[_LeafFlow]:
    return sorted(items, key=lambda item: item[0])


def _merge_passes(items: Iterable[_LeafFlow]) -> list[_LeafFlow]:
    """Return the items of both passes through a loop with one item for each leaf and relation."""
    merged: dict[tuple[int, str], list[int]] = {}
    for leaf, relation, parents in items:
        merged.setdefault((leaf, relation), []).extend(parents)
    return _in_source_order((leaf, relation, sorted(set(parents))) for (leaf, relation), parents in merged.items())
