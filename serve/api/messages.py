"""A chat's messages as an intent: what the last user message asks, and what was said before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve.api.errors import invalid, unsupported
from serve.api.fields import clean_text, missing

MAX_MESSAGES = 200
_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Conversation:
    """The intent of the last user message, below what a system message says, and earlier (question, answer) turns."""

    intent: str
    turns: tuple[tuple[str, str], ...] = ()


def read_messages(value: Any) -> Conversation:
    """The field `messages`; ApiError 400 that names the message."""
    if value is None or value == []:
        raise missing("messages")
    if not isinstance(value, list) or len(value) > MAX_MESSAGES:
        raise invalid(f"'messages' must be a list of at most {MAX_MESSAGES} messages.", "messages")
    said = [_read(message, f"messages[{place}]") for place, message in enumerate(value)]
    system = [text for role, text in said if role in _SYSTEM and text.strip()]
    spoken = [(role, text) for role, text in said if role not in _SYSTEM]
    if not spoken or spoken[-1][0] != "user":
        raise invalid("The last of 'messages' must be the user's: it says what the Python should do.", "messages")
    if not spoken[-1][1].strip():
        raise missing(f"messages[{len(value) - 1}].content")
    return Conversation("\n\n".join([*system, spoken[-1][1]]), _turns(spoken[:-1]))


def _turns(spoken: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Pairs of what a user asked and an assistant answered."""
    if len(spoken) % 2 or any(role != ("assistant" if place % 2 else "user") for place, (role, _) in enumerate(spoken)):
        raise invalid("In 'messages' user and assistant must take turns, the user first and last.", "messages")
    return tuple((spoken[place][1], spoken[place + 1][1]) for place in range(0, len(spoken), 2))


def _read(message: Any, where: str) -> tuple[str, str]:
    """Role and text of one message."""
    if not isinstance(message, dict):
        raise invalid(f"'{where}' must be an object with 'role' and 'content'.", where)
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise unsupported(where, f"Tools are not served: leave '{where}' out.")
    if role not in (*_SYSTEM, "user", "assistant"):
        raise invalid(f"'{where}.role' must be system, developer, user or assistant.", f"{where}.role")
    return role, _text(message.get("content"), f"{where}.content")


def _text(content: Any, where: str) -> str:
    """A message's content, given as a text or as a list of parts."""
    if content is None:
        raise missing(where)
    if not isinstance(content, list):
        return clean_text(content, where)
    texts = []
    for place, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise unsupported(
                f"{where}[{place}]", f"'{where}[{place}]' is no text: images, audio and files are not served."
            )
        texts.append(clean_text(part.get("text"), f"{where}[{place}].text"))
    return "".join(texts)
