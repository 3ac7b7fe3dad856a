"""The data flow of one snippet, as values that can be compared: which name gets its value from which.

Source: Ren et al., arXiv 2009.10297, section 3.3. The rules are the `codebleu` package's own (`DFG_python`, 0.7.0);
what is made of their items is done here, as evaluate/trees.py explains.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

ByteSpan = tuple[int, int]  # in bytes
FlowItem = tuple[str, str, tuple[str, ...]]


def extract_data_flow(root: Any, leaves: list[ByteSpan], data: bytes) -> Counter[FlowItem]:
    """The normalised data-flow items of one snippet (arXiv 2009.10297, section 3.3)."""
    # Places count bytes: as Latin-1 every byte is one character. The package joins the lines of a token.
    texts = [data[start:end].decode("latin-1").replace("\n", "") for start, end in leaves]
    try:
        items, _ = _package_dataflow_rules()(root, {span: (at, texts[at]) for at, span in enumerate(leaves)}, {})
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


@cache
def _package_dataflow_rules() -> Any:
    from codebleu.parser import DFG_python

    return DFG_python
