"""Chats of one question and one answer, as OpenAI's and ShareGPT's formats have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.datasets.jsonl import json_type
from tasks.datasets.tables import CellError

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}


@dataclass(frozen=True)
class ChatPair:
    """What each side said, "" where it said nothing, and whether there was a system turn."""

    user: str
    assistant: str
    system: bool


def split_chat(value: Any, location: str, column: str) -> ChatPair:
    """The chat in a cell.

    CellError for what is none, and for several turns of a side: learning the last one alone would lose what it
    answers to.
    """
    if not isinstance(value, list):
        raise CellError(f"{location}: column '{column}' must be a list of messages, it is {json_type(value)}.", column)
    said: dict[str, list[str]] = {"user": [], "assistant": [], "system": []}
    for message in value:
        role, text = _parse_message(message, location, column)
        said[role].append(text)
    for role in ("user", "assistant"):
        if len(said[role]) > 1:
            raise CellError(
                f"{location}: column '{column}' has {len(said[role])} {role} turns: one question and one answer are "
                "learned, so give each turn a row of its own.",
                column,
            )
    return ChatPair("".join(said["user"]), "".join(said["assistant"]), bool(said["system"]))


def _parse_message(message: Any, location: str, column: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise CellError(
            f"{location}: column '{column}' must be a list of messages, it has {json_type(message)} in it.", column
        )
    role = message.get("role", message.get("from"))
    text = message.get("content", message.get("value"))
    if isinstance(text, list):  # parts, as of models that also read images
        text = "\n".join(str(part.get("text")) for part in text if isinstance(part, dict) and part.get("text"))
    if not isinstance(role, str) or _ROLES.get(role.casefold()) is None:
        raise CellError(
            f"{location}: column '{column}' has a message of role {role!r}: only user and assistant are learned.",
            column,
        )
    if text is not None and not isinstance(text, str):
        raise CellError(
            f"{location}: column '{column}' has a message whose content is {json_type(text)}, not text.", column
        )
    return _ROLES[role.casefold()], text or ""
