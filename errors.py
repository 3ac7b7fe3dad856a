"""Errors that a person meets: each is one sentence that says what is wrong, where, and what to do.

Whatever starts a program (app.py, the commands of train and evaluate) catches PromptOrTuneError, prints its
sentence and exits with status 2, without a traceback. Any other exception is a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_LISTED = 100


class PromptOrTuneError(Exception):
    """Base of all errors whose text is meant for the person who runs the program."""


class UnknownNameError(PromptOrTuneError):
    """A method, data set, adapter or option that does not exist."""


class BaseModelError(PromptOrTuneError):
    """The base model cannot be found, read, converted or loaded."""


class AdapterError(PromptOrTuneError):
    """An adapter folder is broken, unsafe, or does not belong to the base that is loaded."""


class DataError(PromptOrTuneError):
    """A data set cannot be found or has a bad line."""


class PromptTooLongError(PromptOrTuneError):
    """A prompt does not fit the context of the base, or of what the backend accepts."""


class TrainingError(PromptOrTuneError):
    """Training cannot start or cannot go on."""


class DiskSpaceError(PromptOrTuneError):
    """A folder has too little room for what must be written to it."""


class BusyError(PromptOrTuneError):
    """Too much is being answered at present: nothing was begun, the same may be asked again later.

    `seconds` is about how long to wait.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


def unknown_name_error(kind: str, name: str, choices: Iterable[str]) -> UnknownNameError:
    """The error for an unknown name: the nearest known one first, then the list, of which thousands are left out."""
    known = sorted(choices)
    near = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    more = f" and {len(known) - _MAX_LISTED} more" if len(known) > _MAX_LISTED else ""
    listing = ", ".join(known[:_MAX_LISTED]) + more if known else "none"
    return UnknownNameError(f"Unknown {kind} '{name}': {hint}known are {listing}.")
