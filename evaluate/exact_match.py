"""Exact match: the answer is the reference, letter by letter.

Definition: EM@k is 1 when the reference is among the first k candidates, both stripped of white space at their ends
(arXiv 2308.10462, section 4; the paper uses k from 1 to 10). Equality of syntax trees is a second figure with a label
of its own (`em_tree`): it forgives quotes, blanks and brackets without meaning, and is never mixed with the first.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from errors import PromptOrTuneError
from tasks.syntax import syntax_tree


def exact_match(reference: str, candidate: str) -> bool:
    """Whether both are equal after stripping both ends."""
    return reference.strip() == candidate.strip()


def syntax_tree_match(reference: str, candidate: str) -> bool:
    """Whether both parse, are not empty, and have equal syntax trees. Never raises."""
    left, right = syntax_tree(reference), syntax_tree(candidate)
    if left is None or right is None or not left.body:
        return False
    try:
        return ast.dump(left) == ast.dump(right)
    except RecursionError:  # a chain of operators too long for ast.dump
        return False


def exact_match_at_k(
    reference: str,
    candidates: Sequence[str],
    k: int,
    num_candidates: int | None = None,
    is_match: Callable[[str, str], bool] = exact_match,
) -> bool:
    """EM@k: whether the reference is among the first k candidates.

    `asked` is the number of candidates that the model was asked for, by default the number that is here. Candidates
    with the same code were merged, so the list may be shorter than that. A k below 1 or above `asked` has no meaning
    and raises PromptOrTuneError. `same` is `same_tree` for the second figure.
    """
    num_candidates = len(candidates) if num_candidates is None else num_candidates
    if not 1 <= k <= num_candidates:
        raise PromptOrTuneError(
            f"EM@{k} is undefined for {num_candidates} candidates: choose k from 1 to the number asked for."
        )
    if len(candidates) > num_candidates:
        raise PromptOrTuneError(
            f"EM@{k} is undefined: {num_candidates} candidates were asked for and {len(candidates)} are here."
        )
    place = first_match_rank(reference, candidates, is_match)
    return place is not None and place <= k


def first_match_rank(
    reference: str, candidates: Sequence[str], is_match: Callable[[str, str], bool] = exact_match
) -> int | None:
    """The place of the first candidate that matches, from 1, or None: EM@k is 1 from that k on."""
    return next((place for place, candidate in enumerate(candidates, start=1) if is_match(reference, candidate)), None)
