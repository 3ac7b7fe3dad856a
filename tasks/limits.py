"""Limits of what one request may contain, checked before anything is computed from it."""

from __future__ import annotations

from errors import PromptOrTuneError

MAX_INTENT_CHARS = 20_000
MAX_REFERENCE_CHARS = 20_000
MAX_NAME_CHARS = 200  # of a method, a pool, an adapter


def check_text(value: object, what: str, limit: int) -> str:
    """Return `value`, which must be a text of at most `limit` characters; raises PromptOrTuneError otherwise.

    `what` begins the message, such as "The question".
    """
    if not isinstance(value, str):
        raise PromptOrTuneError(f"{what} must be text: write it in words.")
    if len(value) > limit:
        raise PromptOrTuneError(f"{what} has {len(value):,} characters: write at most {limit:,}.")
    return value
