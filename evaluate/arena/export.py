"""Votes as files for other programs: JSONL with everything, CSV with nested values as JSON text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from evaluate.arena.votes import VoteStore
from evaluate.export import to_csv


def votes_to_jsonl(votes: VoteStore) -> str:
    """One line a vote, oldest first; '' where there is none."""
    return "".join(json.dumps(record) + "\n" for record in votes.export())


def votes_to_csv(votes: VoteStore) -> str:
    """One row a vote, oldest first; texts of people and models cannot become formulas of a spreadsheet."""
    return to_csv({name: _flatten(value) for name, value in record.items()} for record in votes.export())


EXPORTERS: dict[str, Callable[[VoteStore], str]] = {"jsonl": votes_to_jsonl, "csv": votes_to_csv}


def _flatten(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
