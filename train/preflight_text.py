"""The preflight as text for a terminal; what is learned stands in «»."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from train.findings import Spread
from train.preflight import Preflight, ShownExample

_WIDTH = 12
# Lines of one example that are shown; the count of the others is said.
_LINES = 30
# Settings that the page says in words of its own, or that mean nothing to the run.
_SAID = ("adapter_name", "dataset_name", "technique", "model_name_or_path")


def text(preflight: Preflight) -> str:
    """The whole page, without control characters that a file may have brought along."""
    sections = (_head, _data, _rows, _findings, _lengths, _plan, _examples)
    lines = [line for section in sections for line in section(preflight)]
    return "".join(each if each.isprintable() or each in "\n\t" else f"\\x{ord(each):02x}" for each in "\n".join(lines))


def _head(p: Preflight) -> Iterator[str]:
    yield f"Preflight of {p.adapter_name}: {p.technique} on {p.base_id} ({p.base_revision[:20]})"
    yield ""


def _data(p: Preflight) -> Iterator[str]:
    yield from _entry("data", f"{p.source} Licence: {p.licence}.")
    if p.mapping:
        yield from _entry("columns", f"{p.mapping}, of {', '.join(p.columns)}")


def _rows(p: Preflight) -> Iterator[str]:
    bad = f"{p.rows['left out']} left out" + (f" ({p.empty} of them empty)" if p.empty else "")
    yield from _entry("rows", f"{p.rows['read']} read, {bad}; {p.rows['train']} train, {p.rows['validation']} validate")
    yield from _listed(p.faults.shown, p.faults.count)
    for change, times in p.changes.items():
        yield from _entry("", f"{_number(times)} had {change}")


def _findings(p: Preflight) -> Iterator[str]:
    for title, found, what in (
        ("repeated", p.duplicates, "with the intent and the code of an earlier one"),
        ("ambiguous", p.conflicts, "with the intent of an earlier one and other code"),
        ("no Python", p.unparsable, "whose code does not parse as Python"),
        ("special", p.special, "with the text of a special token, which the base reads as that token"),
    ):
        # What is rare is said where it happens.
        if found is p.special and not found.count:
            continue
        yield from _entry(title, f"{_number(found.count)} {what}")
        yield from _listed(found.shown, found.count)
    leak = p.leak
    shared = (
        f": {leak.intents} the intent, {leak.codes} the code, which makes the validation loss look better than it is"
    )
    words = f"{_number(leak.rows, 'validation ')} shared with the training rows{shared if leak.rows else ''}"
    yield from _entry("leaking", words)
    yield from _listed(leak.shown, leak.rows)


def _lengths(p: Preflight) -> Iterator[str]:
    long = p.too_long
    both = f"{_number(long.train.count, 'training ')} and {_number(long.validation.count, 'validation ')}"
    left_out = ", left out whole: nothing is cut" if long.train.count + long.validation.count else ""
    yield from _entry("too long", f"{both} of more than {long.limit} tokens{left_out}")
    yield from _listed(long.train.shown, long.train.count)
    yield from _listed(long.validation.shown, long.validation.count)
    needed = ", ".join(f"{share} of all rows with {length}" for share, length in long.needed.items())
    yield from _entry("", f"--max-length would keep {needed}")
    yield from _entry("tokens", f"prompt: {_spread(p.prompt_tokens)}")
    yield from _entry("", f"learned: {_spread(p.response_tokens)}; {p.response_tokens.total:,} in all")


def _number(count: int, kind: str = "") -> str:
    return f"{count or 'no'} {kind}{'row' if count == 1 else 'rows'}"


def _spread(spread: Spread) -> str:
    return f"median {spread.median}, 95 % up to {spread.most}, longest {spread.longest}"


def _plan(p: Preflight) -> Iterator[str]:
    settings = p.settings
    batch = f"{settings['per_device_train_batch_size']} x {settings['gradient_accumulation_steps']}"
    yield from _entry(
        "steps",
        f"{p.steps_per_epoch} an epoch, {p.steps} in all ({settings['num_train_epochs']:g} epochs, batch {batch}); "
        f"validated every {p.steps_between_evaluations}",
    )
    shown = [f"{name} {_value(value)}" for name, value in settings.items() if _matters(name, value, settings)]
    yield from _entry("settings", ", ".join(shown))
    for name, value in (p.estimate or {}).items():
        yield from _entry("", f"{name}: {value}")


def _matters(name: str, value: Any, settings: Mapping[str, Any]) -> bool:
    """Whether a setting says something about this run: others have their default "off", or another technique's name."""
    if name in _SAID or value is None or value is False or value == []:
        return False
    technique = str(settings["technique"])
    if name.startswith(("lora_", "use_")):
        return "lora" in technique
    if "virtual_tokens" in name:
        return technique in ("prompt-tuning", "prefix-tuning")
    return True


def _value(value: Any) -> str:
    return (
        "+".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _examples(p: Preflight) -> Iterator[str]:
    yield ""
    yield "What is learned stands in «», the end token with it; everything else is only read."
    for number, example in enumerate(p.examples, start=1):
        yield f"{number}. {example.place}: {example.tokens} tokens, {example.learned_tokens} of them learned"
        yield from _marked(example)


def _marked(example: ShownExample) -> Iterator[str]:
    whole = "".join(f"«{piece}»" if learned else piece for piece, learned in example.pieces)
    lines = whole.split("\n")
    hidden = len(lines) - _LINES
    if hidden > 0:
        # Beginning and end, as the end has the token that matters most.
        lines = [*lines[: _LINES // 2], f"... ({hidden} more lines) ...", *lines[-(_LINES // 2) :]]
    for line in lines:
        yield f"   | {line}"


def _entry(title: str, words: str) -> list[str]:
    wrapped = textwrap.wrap(words, 100, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"{(title if not index else ''):<{_WIDTH}}{line}" for index, line in enumerate(wrapped)]


def _listed(sentences: Sequence[str], count: int) -> Iterable[str]:
    for sentence in sentences:
        yield f"{'':<{_WIDTH}}- {sentence}"
    if count > len(sentences):
        yield f"{'':<{_WIDTH}}- and {count - len(sentences)} more"
