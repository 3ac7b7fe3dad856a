"""HTML of the row preview: row counts, problems, examples with their learned parts marked, and the cost of a run.

The templates escape every text of a person, a file or a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from common.format import format_bytes, format_duration
from ui.components import error_html
from ui.html import render
from ui.train.drafts import Draft

Values = Mapping[str, Any]
# Messages of one kind of problem that are visible at once; the others are folded.
MAX_OPEN_MESSAGES = 3
_MAX_EXAMPLE_LINES = 24
_MAX_LINE_LENGTH = 400
_MAX_COLUMN_LABEL = 60
_VISIBLE_CHARACTERS = {"\t": "⇥\t", "\r": "␍", " ": "·"}


@dataclass(frozen=True)
class _Problem:
    """One kind of problem: `title` counts its rows, `folded_messages` unfold under `folded_title`."""

    title: str
    description: str
    open_messages: Sequence[Markup]
    folded_title: str
    folded_messages: Sequence[Markup]


def title_html(draft: Draft, *, columns: bool = False) -> Markup:
    """Return the heading before the rows are read: name and file size, and with `columns` the column choice."""
    return _report_html(f"{draft.name}{f': {format_bytes(draft.size)}' if draft.is_file else ''}", has_columns=columns)


def column_label(column: str) -> str:
    """Return a column's name as the label of a choice: one line of at most 60 characters."""
    clean = "".join(character if character.isprintable() else "?" for character in column)
    return clean if len(clean) <= _MAX_COLUMN_LABEL else f"{clean[: _MAX_COLUMN_LABEL - 1]}…"


def progress_html(message: str) -> Markup:
    """Return one line that says what is being done."""
    return Markup('<p class="loading"><span class="dot" aria-hidden="true"></span>{}</p>').format(message)


def facts_html(draft: Draft, facts: Values) -> Markup:
    """Return what is known from the file alone: row counts and row errors."""
    heading = f"{draft.name}: {_count_noun(facts['rows'], 'row')}, {facts['usable']:,} to use"
    return _report_html(heading, has_columns=True, problems=[("left out", facts["row_errors"], "")])


def report_html(draft: Draft, facts: Values | None, preflight: Values) -> Markup:
    """Return the whole report of `preflight` (train.preflight.Preflight as a dict); `facts` has all row errors."""
    rows = preflight["rows"]
    long = preflight["too_long"]
    learned = rows["train"] - long["train"]["count"]
    held_out = rows["validation"] - long["validation"]["count"]
    counts = f"{_count_noun(rows['read'], 'row')}, {learned:,} to learn, {held_out:,} held out"
    leak = preflight["leak"]
    problems = [
        ("left out", facts["row_errors"] if facts else preflight["row_errors"], ""),
        ("too long", long["train"], f"to learn, over {long['limit']} tokens, left out whole: nothing is cut"),
        ("too long", long["validation"], f"held out, over {long['limit']} tokens, left out whole"),
        ("repeated", preflight["duplicates"], "with intent and code of an earlier row"),
        ("contradicting", preflight["conflicts"], "with the intent of an earlier row and other code"),
        ("not Python", preflight["unparsable"], "whose code does not parse"),
        ("with special tokens", preflight["special_tokens"], "a text that the base reads as a special token"),
        (
            "on both sides",
            {"count": leak["rows"], "examples": leak["examples"]},
            "held out, and to learn with the same intent or code: scores look too good",
        ),
    ]
    changes = [f"{_count_noun(count, 'row')} had {change}" for change, count in preflight["changes"].items()]
    return _report_html(
        f"{draft.name}: {counts}",
        has_columns=bool(preflight["columns"]),
        facts=_report_facts(preflight),
        problems=problems,
        changes=changes,
    )


def examples_html(preflight: Values) -> Markup:
    """Return three rows as the model gets them; what is learned is tinted and underlined."""
    examples = [
        {
            "caption": (
                f"{example['location']} · {example['num_tokens']} tokens, {example['num_label_tokens']} learned"
            ),
            "spans": [(escape_visible(text), is_label) for text, is_label in _clip_spans(example["spans"])],
        }
        for example in preflight["examples"]
    ]
    return render("train/preview_examples.html.jinja", examples=examples)


def cost_html(preflight: Values) -> Markup:
    """Return time, memory, adapter size and steps as a list of figures, or the reason why there is no estimate."""
    estimate = preflight.get("estimate") or {}
    if "memory_bytes" not in estimate:
        return Markup('<p class="muted">{}</p>').format(estimate.get("reason", ""))
    cells = []
    if estimate.get("seconds") is not None:
        seconds = estimate["seconds"] + (estimate["eval_seconds"] or 0)
        cells.append(("Time", f"about {format_duration(max(1, seconds))}", "training, validation"))
    memory, free = estimate["memory_bytes"], estimate.get("free_bytes")
    cells += [
        ("Memory", format_bytes(memory), f"{format_bytes(free)} are free now" if free else "at the peak"),
        ("Adapter", format_bytes(estimate["adapter_bytes"]), "on disk"),
        ("Steps", f"{preflight['steps']:,}", f"{preflight['steps_per_epoch']:,} an epoch"),
    ]
    warning = error_html(
        "This needs more memory than is free now, so it may be ended by the system: choose fewer rows in a batch, "
        "shorter rows, or another machine."
    )
    is_short = free is not None and memory > free
    return render("train/preview_cost.html.jinja", cells=cells, warning=warning if is_short else "")


def escape_visible(text: str) -> Markup:
    """Escape a text and make invisible characters visible: tabs, spaces at line ends, control characters."""
    lines = []
    for line in text.split("\n"):
        stripped = line.rstrip(" ")
        trailing_spaces = len(line) - len(stripped)
        lines.append(Markup().join(map(_character_html, stripped)) + _invisible_html("·") * trailing_spaces)
    return Markup("\n").join(lines)


def _character_html(character: str) -> Markup:
    if character in _VISIBLE_CHARACTERS and character != " ":
        return _invisible_html(_VISIBLE_CHARACTERS[character])
    return escape(character) if character.isprintable() else _invisible_html(f"\\u{ord(character):04x}")


def _invisible_html(text: str) -> Markup:
    return Markup('<span class="unseen">{}</span>').format(text)


def _report_html(
    heading: str,
    *,
    has_columns: bool,
    facts: str = "",
    problems: Sequence[tuple[str, Values, str]] = (),
    changes: Sequence[str] = (),
) -> Markup:
    """Render the report. A problem is its name, a DataIssue as a dict and a description."""
    found = [_make_problem(name, issue, description) for name, issue, description in problems if issue["count"]]
    found_names = {name for name, issue, _ in problems if issue["count"]}
    # Before the preflight only one kind of problem was looked for, so a list of those not found would mislead.
    not_found = dict.fromkeys(name for name, _, _ in problems if name not in found_names) if len(problems) > 1 else ()
    return render(
        "train/preview_report.html.jinja",
        heading=heading,
        has_columns=has_columns,
        facts=facts,
        problems=found,
        not_found=list(not_found),
        changes=changes,
    )


def _make_problem(name: str, issue: Values, description: str) -> _Problem:
    messages = [str(message) for message in issue["examples"]]
    open_messages, folded = messages[:MAX_OPEN_MESSAGES], messages[MAX_OPEN_MESSAGES:]
    omitted = issue["count"] - len(messages)
    if omitted:
        folded.append(f"and {omitted:,} more")
    return _Problem(
        f"{_count_noun(issue['count'], 'row')} {name}",
        description,
        [escape_visible(message) for message in open_messages],
        f"{issue['count'] - len(open_messages):,} more",
        [escape_visible(message) for message in folded],
    )


def _report_facts(preflight: Values) -> str:
    source = str(preflight["source"]).removesuffix(".")
    held_out = source.partition(", validated on ")[2] or source
    mapping = str(preflight["mapping"]).replace(" -> ", " → ")
    columns = f"{mapping}. " if mapping else ""
    return f"{columns}Held out: {held_out}. Learned tokens: {preflight['response_tokens']['total']:,} an epoch."


def _clip_spans(spans: Sequence[Sequence[Any]]) -> list[tuple[str, bool]]:
    """Return the spans of an example; a long one without its middle, as its beginning and end matter most."""
    clipped = []
    for text, is_label in spans:
        lines = str(text).split("\n")
        if len(lines) > _MAX_EXAMPLE_LINES:
            omitted = len(lines) - _MAX_EXAMPLE_LINES
            half = _MAX_EXAMPLE_LINES // 2
            lines = [*lines[:half], f"… {omitted} more lines …", *lines[-half:]]
        short = (line if len(line) <= _MAX_LINE_LENGTH else f"{line[:_MAX_LINE_LENGTH]} …" for line in lines)
        clipped.append(("\n".join(short), bool(is_label)))
    return clipped


def _count_noun(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
