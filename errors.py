"""Exception hierarchy: every message says on one line what is wrong, where, and what to do.

The programs (app.py and the commands of the packages) catch PromptOrTuneError, print its message and exit with status
2, without a traceback. Any other exception is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_LISTED = 100


class PromptOrTuneError(Exception):
    """Base of all errors whose message is for the person who runs the program."""


class UnknownNameError(PromptOrTuneError):
    """A method, data set, adapter or option that does not exist."""


class BaseModelError(PromptOrTuneError):
    """The base model cannot be found, read, converted or loaded."""


class AdapterError(PromptOrTuneError):
    """An adapter folder is broken, unsafe, or does not belong to the base that is loaded."""


class DataError(PromptOrTuneError):
    """A data set cannot be found or has an invalid row."""


class PromptTooLongError(PromptOrTuneError):
    """A prompt is longer than the base's context, or than the backend accepts."""


class TrainingError(PromptOrTuneError):
    """Training cannot start or cannot go on."""


class DiskSpaceError(PromptOrTuneError):
    """A disk has too little space for what must be written."""


class BusyError(PromptOrTuneError):
    """The engine has too many requests: nothing was started, and the request may be repeated.

    `seconds` is an estimate of how long to wait.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


def unknown_name_error(kind: str, name: str, choices: Iterable[str]) -> UnknownNameError:
    """Return the error for an unknown name, with the nearest known one and at most _MAX_LISTED of the others."""
    known = sorted(choices)
    near = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    more = f" and {len(known) - _MAX_LISTED} more" if len(known) > _MAX_LISTED else ""
    listing = ", ".join(known[:_MAX_LISTED]) + more if known else "none"
    return UnknownNameError(f"Unknown {kind} '{name}': {hint}known are {listing}.")
