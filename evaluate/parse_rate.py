"""Parse rate: the share of first answers that are Python at all.

Definition: an answer scores 1 where `ast.parse` of the Python that runs here accepts it after stripping and it holds at
least one statement, else 0; the rate is the mean over problems. An empty answer and one of comments alone, which the
parser accepts, are no answers and score 0. Source: the grammar of the Python Language Reference, section 10, as CPython
implements it; the version is recorded with the scores, because what parses differs from one to the next.
"""

from __future__ import annotations

from tasks.syntax import is_valid_python


def parses_score(code: str) -> float:
    """1.0 where the code parses and is not empty, else 0.0. Never raises."""
    return float(is_valid_python(code))
