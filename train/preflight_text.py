"""The preflight as text for a terminal; what is learned stands in «»."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from train.findings import LengthStats
from train.preflight import Preflight, PreflightExample

_TITLE_WIDTH = 12
# Lines of one example that are shown; the count of the others is said.
_MAX_EXAMPLE_LINES = 30
# Settings that the page says in words of its own, or that mean nothing to the run.
_HEADER_SETTINGS = ("adapter_name", "dataset_name", "technique", "model_name_or_path")


def render_preflight(preflight: Preflight) -> str:
    """The whole page, without control characters that a file may have brought along."""
    sections = (_header_lines, _data_lines, _row_lines, _issue_lines, _length_lines, _plan_lines, _example_lines)
    lines = [line for section in sections for line in section(preflight)]
    return "".join(each if each.isprintable() or each in "\n\t" else f"\\x{ord(each):02x}" for each in "\n".join(lines))


def _header_lines(preflight: Preflight) -> Iterator[str]:
    yield f"Preflight of {preflight.adapter_name}: {preflight.technique} on {preflight.base_id} ({preflight.base_revision[:20]})"
    yield ""


def _data_lines(preflight: Preflight) -> Iterator[str]:
    yield from _format_entry("data", f"{preflight.source} Licence: {preflight.licence}.")
    if preflight.mapping:
        yield from _format_entry("columns", f"{preflight.mapping}, of {', '.join(preflight.columns)}")


def _row_lines(preflight: Preflight) -> Iterator[str]:
    bad = f"{preflight.rows['left out']} left out" + (f" ({preflight.empty} of them empty)" if preflight.empty else "")
    yield from _format_entry(
        "rows",
        f"{preflight.rows['read']} read, {bad}; {preflight.rows['train']} train, {preflight.rows['validation']} validate",
    )
    yield from _format_list(preflight.row_errors.examples, preflight.row_errors.count)
    for change, times in preflight.changes.items():
        yield from _format_entry("", f"{_format_count(times)} had {change}")


def _issue_lines(preflight: Preflight) -> Iterator[str]:
    for title, found, what in (
        ("repeated", preflight.duplicates, "with the intent and the code of an earlier one"),
        ("ambiguous", preflight.conflicts, "with the intent of an earlier one and other code"),
        ("no Python", preflight.unparsable, "whose code does not parse as Python"),
        ("special", preflight.special_tokens, "with the text of a special token, which the base reads as that token"),
    ):
        # What is rare is said where it happens.
        if found is preflight.special_tokens and not found.count:
            continue
        yield from _format_entry(title, f"{_format_count(found.count)} {what}")
        yield from _format_list(found.examples, found.count)
    leak = preflight.leak
    shared = (
        f": {leak.intents} the intent, {leak.codes} the code, which makes the validation loss look better than it is"
    )
    words = f"{_format_count(leak.rows, 'validation ')} shared with the training rows{shared if leak.rows else ''}"
    yield from _format_entry("leaking", words)
    yield from _format_list(leak.examples, leak.rows)


def _length_lines(preflight: Preflight) -> Iterator[str]:
    long = preflight.too_long
    both = f"{_format_count(long.train.count, 'training ')} and {_format_count(long.validation.count, 'validation ')}"
    left_out = ", left out whole: nothing is cut" if long.train.count + long.validation.count else ""
    yield from _format_entry("too long", f"{both} of more than {long.limit} tokens{left_out}")
    yield from _format_list(long.train.examples, long.train.count)
    yield from _format_list(long.validation.examples, long.validation.count)
    needed = ", ".join(f"{share} of all rows with {length}" for share, length in long.needed.items())
    yield from _format_entry("", f"--max-length would keep {needed}")
    yield from _format_entry("tokens", f"prompt: {_format_length_stats(preflight.prompt_tokens)}")
    yield from _format_entry(
        "", f"learned: {_format_length_stats(preflight.response_tokens)}; {preflight.response_tokens.total:,} in all"
    )


def _format_count(count: int, kind: str = "") -> str:
    return f"{count or 'no'} {kind}{'row' if count == 1 else 'rows'}"


def _format_length_stats(stats: LengthStats) -> str:
    return f"median {stats.median}, 95 % up to {stats.p95}, longest {stats.max}"


def _plan_lines(preflight: Preflight) -> Iterator[str]:
    settings = preflight.settings
    batch = f"{settings['per_device_train_batch_size']} x {settings['gradient_accumulation_steps']}"
    yield from _format_entry(
        "steps",
        f"{preflight.steps_per_epoch} an epoch, {preflight.steps} in all ({settings['num_train_epochs']:g} epochs, batch {batch}); "
        f"validated every {preflight.steps_between_evaluations}",
    )
    shown = [
        f"{name} {_format_setting_value(value)}"
        for name, value in settings.items()
        if _is_relevant_setting(name, value, settings)
    ]
    yield from _format_entry("settings", ", ".join(shown))
    for name, value in (preflight.estimate or {}).items():
        yield from _format_entry("", f"{name}: {value}")


def _is_relevant_setting(name: str, value: Any, settings: Mapping[str, Any]) -> bool:
    """Whether a setting says something about this run: others have their default "off", or another technique's name."""
    if name in _HEADER_SETTINGS or value is None or value is False or value == []:
        return False
    technique = str(settings["technique"])
    if name.startswith(("lora_", "use_")):
        return "lora" in technique
    if "virtual_tokens" in name:
        return technique in ("prompt-tuning", "prefix-tuning")
    return True


def _format_setting_value(value: Any) -> str:
    return (
        "+".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _example_lines(preflight: Preflight) -> Iterator[str]:
    yield ""
    yield "What is learned stands in «», the end token with it; everything else is only read."
    for number, example in enumerate(preflight.examples, start=1):
        yield f"{number}. {example.location}: {example.num_tokens} tokens, {example.num_label_tokens} of them learned"
        yield from _format_example(example)


def _format_example(example: PreflightExample) -> Iterator[str]:
    whole = "".join(f"«{piece}»" if learned else piece for piece, learned in example.spans)
    lines = whole.split("\n")
    hidden = len(lines) - _MAX_EXAMPLE_LINES
    if hidden > 0:
        # Beginning and end, as the end has the token that matters most.
        lines = [
            *lines[: _MAX_EXAMPLE_LINES // 2],
            f"... ({hidden} more lines) ...",
            *lines[-(_MAX_EXAMPLE_LINES // 2) :],
        ]
    for line in lines:
        yield f"   | {line}"


def _format_entry(title: str, words: str) -> list[str]:
    wrapped = textwrap.wrap(words, 100, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"{(title if not index else ''):<{_TITLE_WIDTH}}{line}" for index, line in enumerate(wrapped)]


def _format_list(messages: Sequence[str], count: int) -> Iterable[str]:
    for sentence in messages:
        yield f"{'':<{_TITLE_WIDTH}}- {sentence}"
    if count > len(messages):
        yield f"{'':<{_TITLE_WIDTH}}- and {count - len(messages)} more"
