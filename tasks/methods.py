"""Methods: parsing and canonical names of how an answer is made, with which examples and which adapter.

The names are a grammar, the same in the page, the API and the command line:

    zero-shot               no examples, no adapter
    icl-8                   8 examples, one random sample of the pool, the same for every problem
    rag-8                   the 8 examples whose intents are nearest to the problem's
    lora-conala             the adapter `lora-conala`, no examples
    lora-conala+rag-8       both
    lora-conala*0.5         the adapter with its update scaled by 0.5

`icl` and `rag` without a number mean 8 examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from common.format import quote_untrusted
from errors import PromptOrTuneError, unknown_name_error
from tasks.limits import MAX_NAME_CHARS, check_text

DEFAULT_SEED = 42
DEFAULT_K = 8
MAX_EXAMPLES = 32
MAX_SCALE = 4.0
MAX_DIGITS = 18


@dataclass(frozen=True)
class NoExamples:
    """No examples in the prompt."""

    k: int = 0


@dataclass(frozen=True)
class FixedExamples:
    """k random examples of the pool, drawn once with `seed`: the same for every problem (ICL)."""

    k: int
    seed: int = DEFAULT_SEED


@dataclass(frozen=True)
class NearestExamples:
    """The k examples whose intents are nearest to the problem's intent, nearest first (RAG)."""

    k: int


ExampleSelection = NoExamples | FixedExamples | NearestExamples


@dataclass(frozen=True)
class Method:
    """How an answer is made: canonical name, choice of examples, adapter and its scale."""

    name: str
    examples: ExampleSelection
    adapter: str | None = None
    scale: float = 1.0


def parse_method(name: str, adapters: Iterable[str]) -> Method:
    """Parse the name of a method, given the names of the adapters in the store.

    Raises UnknownNameError with the nearest known name, PromptOrTuneError for a number of examples out of range.
    """
    check_text(name, "The name of a method", MAX_NAME_CHARS)
    adapter_names = set(adapters)
    parts = [part.strip() for part in name.strip().split("+")]
    adapter: str | None = None
    scale = 1.0
    selection: ExampleSelection = NoExamples()
    for part in parts:
        adapter_part, star, factor = part.partition("*")
        chosen = _parse_selection(part)
        if chosen is not None:
            if selection.k:
                raise PromptOrTuneError(f"Method '{name}' chooses examples twice: keep one of icl-k and rag-k.")
            selection = chosen
        elif adapter_part in adapter_names:
            if adapter is not None:
                raise PromptOrTuneError(f"Method '{name}' names two adapters: a row can have only one.")
            adapter, scale = adapter_part, _parse_scale(factor, part) if star else 1.0
        elif part != "zero-shot" or len(parts) > 1:
            raise unknown_name_error("method", part or name, adapter_names | {"zero-shot", "icl-8", "rag-8"})
    return Method(method_name(selection, adapter, scale), selection, adapter, scale)


def method_name(selection: ExampleSelection, adapter: str | None, scale: float = 1.0) -> str:
    """Return the canonical name of a choice of examples and an adapter."""
    if adapter is not None and scale != 1:
        adapter = f"{adapter}*{scale:g}"
    if isinstance(selection, FixedExamples):
        examples = f"icl-{selection.k}" + (f"@{selection.seed}" if selection.seed != DEFAULT_SEED else "")
    elif isinstance(selection, NearestExamples):
        examples = f"rag-{selection.k}"
    else:
        examples = ""
    return "+".join(part for part in (adapter, examples) if part) or "zero-shot"


def _parse_selection(part: str) -> ExampleSelection | None:
    match = re.fullmatch(r"(icl|rag)(?:-(\d+))?(?:@(\d+))?", part)
    if match is None or (match[1] == "rag" and match[3]):
        return None
    k, seed = match[2] or str(DEFAULT_K), match[3] or str(DEFAULT_SEED)
    if len(k) > MAX_DIGITS or not 1 <= int(k) <= MAX_EXAMPLES:
        raise PromptOrTuneError(
            f"'{quote_untrusted(part)}' asks for too many or no examples: choose 1 to {MAX_EXAMPLES}."
        )
    if len(seed) > MAX_DIGITS:
        raise PromptOrTuneError(f"'{quote_untrusted(part)}' has too long a seed: give at most {MAX_DIGITS} digits.")
    return FixedExamples(int(k), int(seed)) if match[1] == "icl" else NearestExamples(int(k))


def _parse_scale(factor: str, part: str) -> float:
    """Parse the number after the star."""
    if re.fullmatch(r"\d{1,4}(\.\d{1,6})?", factor) is None or not 0 < float(factor) <= MAX_SCALE:
        raise PromptOrTuneError(f"'{part}' has no valid scale: give a number above 0, at most {MAX_SCALE:g}.")
    return float(factor)
