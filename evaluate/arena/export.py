"""Votes as files for other programs: JSONL with everything, CSV with nested values as JSON text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from evaluate.arena.votes import Votes
from evaluate.export import csv_text


def jsonl_votes(votes: Votes) -> str:
    """One line a vote, oldest first; '' where there is none."""
    return "".join(json.dumps(record) + "\n" for record in votes.export())


def csv_votes(votes: Votes) -> str:
    """One row a vote, oldest first; texts of people and models cannot become formulas of a spreadsheet."""
    return csv_text({name: _flat(value) for name, value in record.items()} for record in votes.export())


EXPORTS: dict[str, Callable[[Votes], str]] = {"jsonl": jsonl_votes, "csv": csv_votes}


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
