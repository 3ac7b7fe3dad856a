"""Chats of one question and one answer, as OpenAI's and ShareGPT's formats have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.datasets.jsonl import kind
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
class Chat:
    """What each side said, "" where it said nothing, and whether there was a system turn."""

    user: str
    assistant: str
    system: bool


def split(value: Any, where: str, column: str) -> Chat:
    """The chat in a cell.

    CellError for what is none, and for several turns of a side: learning the last one alone would lose what it
    answers to.
    """
    if not isinstance(value, list):
        raise CellError(f"{where}: column '{column}' must be a list of messages, it is {kind(value)}.", column)
    said: dict[str, list[str]] = {"user": [], "assistant": [], "system": []}
    for message in value:
        role, text = _message(message, where, column)
        said[role].append(text)
    for role in ("user", "assistant"):
        if len(said[role]) > 1:
            raise CellError(
                f"{where}: column '{column}' has {len(said[role])} {role} turns: one question and one answer are "
                "learned, so give each turn a row of its own.",
                column,
            )
    return Chat("".join(said["user"]), "".join(said["assistant"]), bool(said["system"]))


def _message(message: Any, where: str, column: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise CellError(f"{where}: column '{column}' must be a list of messages, it has {kind(message)} in it.", column)
    role = message.get("role", message.get("from"))
    text = message.get("content", message.get("value"))
    if isinstance(text, list):  # parts, as of models that also read images
        text = "\n".join(str(part.get("text")) for part in text if isinstance(part, dict) and part.get("text"))
    if not isinstance(role, str) or _ROLES.get(role.casefold()) is None:
        raise CellError(
            f"{where}: column '{column}' has a message of role {role!r}: only user and assistant are learned.", column
        )
    if text is not None and not isinstance(text, str):
        raise CellError(f"{where}: column '{column}' has a message whose content is {kind(text)}, not text.", column)
    return _ROLES[role.casefold()], text or ""
