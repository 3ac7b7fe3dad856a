"""Exception hierarchy: every message says on one line what is wrong, where, and what to do.

The programs (app.py and the commands of the packages) catch PromptOrTuneError, print its message and exit with status
2, without a traceback. Any other exception is a bug.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_MAX_LISTED = 100
_MAX_QUOTED = 200  # characters of a name, which are also compared with each known one


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


class PromptError(PromptOrTuneError):
    """A prompt that no try can answer. Unlike every other error, it counts as an answer of the method, scored 0."""


class PromptTooLongError(PromptError):
    """A prompt is longer than the base's context, or than the backend accepts."""


class EngineError(PromptOrTuneError):
    """The engine, its server or the network failed: the same request may succeed when it is sent again."""


class SandboxError(PromptOrTuneError):
    """The sandbox could not run a program, whatever the program does: the same program may run later."""


class SandboxClosedError(SandboxError):
    """The sandbox was closed, as on Ctrl-C: no program runs in it any more."""


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


# How OpenAI, vLLM, SGLang, llama.cpp, llama-cpp-python, LoRAX and LM Studio word a prompt that is too long.
_CONTEXT_EXCEEDED = re.compile(
    r"context[ _](length|size|window)|context (is |was )?(too long|exceeded)"
    r"|maximum (model|input|sequence|prompt) length|`?inputs`? (tokens|must have less)"
    r"|(prompt|inputs?`?|request) (is |are |was )?too (long|large)",
    re.IGNORECASE,
)
_PROMPT_ERROR = re.compile(r"The prompt has \d+ tokens and \d+ fit|The (intent|prompt) is empty")
_STATUS_OF_PROMPT = re.compile(r"answered with status (200|400|413|422)\b")


def says_context_exceeded(message: str) -> bool:
    """Return whether a server's message about a refused request says that its prompt is too long."""
    return _CONTEXT_EXCEEDED.search(message) is not None


def is_prompt_error(message: str) -> bool:
    """Return whether the text is that of a PromptError, in this version or an earlier one.

    Runs of earlier versions hold the texts of errors only, among them those of engines and servers that failed.
    """
    refused = _STATUS_OF_PROMPT.search(message)
    return _PROMPT_ERROR.search(message) is not None or (
        refused is not None and says_context_exceeded(message[refused.end() :])
    )


def unknown_name_error(kind: str, name: str, choices: Iterable[str]) -> UnknownNameError:
    """Return the error for an unknown name, with the nearest known one and at most _MAX_LISTED of the others."""
    known = sorted(choices)
    name = name if len(name) <= _MAX_QUOTED else f"{name[: _MAX_QUOTED - 1]}…"
    near = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    more = f" and {len(known) - _MAX_LISTED} more" if len(known) > _MAX_LISTED else ""
    listing = ", ".join(known[:_MAX_LISTED]) + more if known else "none"
    return UnknownNameError(f"Unknown {kind} '{name}': {hint}known are {listing}.")
