"""A chat's messages as an intent: what the last user message asks, and what was said before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve.api.errors import invalid_request, unsupported_parameter
from serve.api.fields import check_text, missing_field

MAX_MESSAGES = 200
_SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True)
class Conversation:
    """The intent of the last user message, below what a system message says, and earlier (question, answer) turns."""

    intent: str
    turns: tuple[tuple[str, str], ...] = ()


def parse_messages(value: Any) -> Conversation:
    """The field `messages`; ApiError 400 that names the message."""
    if value is None or value == []:
        raise missing_field("messages")
    if not isinstance(value, list) or len(value) > MAX_MESSAGES:
        raise invalid_request(f"'messages' must be a list of at most {MAX_MESSAGES} messages.", "messages")
    said = [_parse_message(message, f"messages[{place}]") for place, message in enumerate(value)]
    system = [text for role, text in said if role in _SYSTEM_ROLES and text.strip()]
    spoken = [(role, text) for role, text in said if role not in _SYSTEM_ROLES]
    if not spoken or spoken[-1][0] != "user":
        raise invalid_request(
            "The last of 'messages' must be the user's: it says what the Python should do.", "messages"
        )
    if not spoken[-1][1].strip():
        raise missing_field(f"messages[{len(value) - 1}].content")
    return Conversation("\n\n".join([*system, spoken[-1][1]]), _pair_turns(spoken[:-1]))


def _pair_turns(messages: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Pairs of what a user asked and an assistant answered."""
    if len(messages) % 2 or any(
        role != ("assistant" if place % 2 else "user") for place, (role, _) in enumerate(messages)
    ):
        raise invalid_request("In 'messages' user and assistant must take turns, the user first and last.", "messages")
    return tuple((messages[place][1], messages[place + 1][1]) for place in range(0, len(messages), 2))


def _parse_message(message: Any, location: str) -> tuple[str, str]:
    """Role and text of one message."""
    if not isinstance(message, dict):
        raise invalid_request(f"'{location}' must be an object with 'role' and 'content'.", location)
    role = message.get("role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise unsupported_parameter(location, f"Tools are not served: leave '{location}' out.")
    if role not in (*_SYSTEM_ROLES, "user", "assistant"):
        raise invalid_request(f"'{location}.role' must be system, developer, user or assistant.", f"{location}.role")
    return role, _parse_content(message.get("content"), f"{location}.content")


def _parse_content(content: Any, location: str) -> str:
    """A message's content, given as a text or as a list of parts."""
    if content is None:
        raise missing_field(location)
    if not isinstance(content, list):
        return check_text(content, location)
    texts = []
    for place, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise unsupported_parameter(
                f"{location}[{place}]", f"'{location}[{place}]' is no text: images, audio and files are not served."
            )
        texts.append(check_text(part.get("text"), f"{location}[{place}].text"))
    return "".join(texts)
