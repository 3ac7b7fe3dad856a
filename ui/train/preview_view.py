"""What a look at rows found, as HTML: counts, problems, examples with what is learned marked, what it would take.

Every text of a person, a file or a model is escaped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ui.train.drafts import Draft

Values = Mapping[str, Any]
# Sentences that stand open; the others of a kind are folded.
MAX_OPEN_MESSAGES = 3
_MAX_EXAMPLE_LINES = 24
_VISIBLE_CHARACTERS = {"\t": "⇥\t", "\r": "␍", " ": "·"}


def title_html(draft: Draft, *, columns: bool = False) -> str:
    """While nothing is known yet but what the rows are called, and perhaps their columns."""
    return _heading(f"{draft.name}{f': {format_size(draft.size)}' if draft.is_file else ''}", columns=columns)


def column_label(column: str) -> str:
    """A column's name as a choice: on one line, and not too long."""
    clean = "".join(each if each.isprintable() else "?" for each in column)
    return clean if len(clean) <= 60 else f"{clean[:59]}…"


def progress_html(message: str) -> str:
    """One line of what is being done."""
    return f'<p class="loading"><span class="dot" aria-hidden="true"></span>{escape(message)}</p>'


def error_html(text: str) -> str:
    """One sentence that says what is wrong."""
    return f'<p class="error-message">{escape(text)}</p>'


def facts_html(draft: Draft, facts: Values) -> str:
    """What reading the file alone tells: rows and faults."""
    rows, sound = facts["rows"], facts["sound"]
    head = _heading(f"{draft.name}: {_count_noun(rows, 'row')}, {sound:,} to use", columns=True)
    return head + _problems_html([("left out", facts["faults"], "")])


def report_html(draft: Draft, facts: Values | None, preflight: Values) -> str:
    """The whole report; `found` is a Preflight's values, `facts` what reading the file told (all its faults)."""
    rows = preflight["rows"]
    long = preflight["too_long"]
    learned = rows["train"] - long["train"]["count"]
    held_out = rows["validation"] - long["validation"]["count"]
    counts = f"{_count_noun(rows['read'], 'row')}, {learned:,} to learn, {held_out:,} held out"
    head = _heading(f"{draft.name}: {counts}", columns=bool(preflight["columns"]))
    head += f'<p class="muted">{escape(_report_facts(preflight))}</p>'
    groups = [
        ("left out", facts["faults"] if facts else preflight["faults"], ""),
        ("too long", long["train"], f"to learn, over {long['limit']} tokens, left out whole: nothing is cut"),
        ("too long", long["validation"], f"held out, over {long['limit']} tokens, left out whole"),
        ("repeated", preflight["duplicates"], "with intent and code of an earlier row"),
        ("contradicting", preflight["conflicts"], "with the intent of an earlier row and other code"),
        ("not Python", preflight["unparsable"], "whose code does not parse"),
        ("with special tokens", preflight["special"], "a text that the base reads as a mark of its own"),
        (
            "on both sides",
            _leak_problem(preflight["leak"]),
            "held out, and to learn with the same intent or code: scores look too good",
        ),
    ]
    changes = "".join(
        f'<li class="muted">{_count_noun(times, "row")} had {escape(change)}</li>'
        for change, times in preflight["changes"].items()
    )
    return head + _problems_html(groups) + (f'<ul class="changes">{changes}</ul>' if changes else "")


def examples_html(preflight: Values) -> str:
    """Three rows as the model gets them; what is learned is tinted and underlined."""
    shown = "".join(_example_html(each) for each in preflight["examples"])
    return (
        "<h3>As the model reads them</h3>"
        '<p class="muted">It learns what is <mark>tinted and underlined</mark>; the rest it only reads.</p>'
        f'<div class="example-rows" role="list">{shown}</div>'
    )


def cost_html(preflight: Values) -> str:
    """Time, memory, size and steps, as numbers to take in at a glance."""
    guess = preflight.get("estimate") or {}
    if "memory_bytes" not in guess:
        return f'<p class="muted">{escape(str(guess.get("reason", "")))}</p>'
    cells = []
    if guess.get("seconds") is not None:
        cells.append(
            ("Time", format_duration(guess["seconds"] + (guess["evaluation_seconds"] or 0)), "training, validation")
        )
    free = guess.get("free_bytes")
    cells += [
        ("Memory", format_size(guess["memory_bytes"]), f"{format_size(free)} are free now" if free else "at the peak"),
        ("Adapter", format_size(guess["adapter_bytes"]), "on disk"),
        ("Steps", f"{preflight['steps']:,}", f"{preflight['steps_per_epoch']:,} an epoch"),
    ]
    short = free is not None and guess["memory_bytes"] > free
    warning = error_html(
        "This needs more memory than is free now, so it may be ended by the system: choose fewer rows in a batch, "
        "shorter rows, or another machine."
    )
    listed = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<span>{escape(hint)}</span></dd></div>" for name, value, hint in cells
    )
    return f'<dl class="cost">{listed}</dl>{warning if short else ""}'


def format_size(count: float) -> str:
    """'3.6 GB', '3.7 MB', '12 kB', in units of 1000."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit * 0.95:
            return f"{count / unit:.1f} {name}"
    return f"{max(1, round(count / 1e3))} kB"


def format_duration(seconds: float) -> str:
    """'about 14 min'; below two minutes in seconds, above two hours in hours."""
    if seconds < 120:
        return f"about {max(1, round(seconds))} s"
    if seconds < 7200:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def escape_visible(text: str) -> str:
    """The text escaped, with what an eye would miss: tabs, spaces at the ends of lines, control characters."""
    lines = []
    for line in text.split("\n"):
        bare = line.rstrip(" ")
        marks = "".join(_character(each) for each in bare) + _invisible_html("·") * (len(line) - len(bare))
        lines.append(marks)
    return "\n".join(lines)


def _character(each: str) -> str:
    if each in _VISIBLE_CHARACTERS and each != " ":
        return _invisible_html(_VISIBLE_CHARACTERS[each])
    return escape(each) if each.isprintable() else _invisible_html(f"\\u{ord(each):04x}")


def _heading(text: str, *, columns: bool) -> str:
    # train.css shows the choice of columns beside a heading of this class: parts of the page that come and go by
    # Gradio's `visible` get lost where two changes follow each other at once (gradio 6.31).
    return f'<h3 class="{"mapped" if columns else "plain"}">{escape(text)}</h3>'


def _invisible_html(mark: str) -> str:
    return f'<span class="unseen">{mark}</span>'


def _report_facts(preflight: Values) -> str:
    source = str(preflight["source"]).removesuffix(".")
    held_out = source.partition(", validated on ")[2] or source
    mapping = str(preflight["mapping"]).replace(" -> ", " → ")
    columns = f"{mapping}. " if mapping else ""
    return f"{columns}Held out: {held_out}. Learned tokens: {preflight['response_tokens']['total']:,} an epoch."


def _leak_problem(leak: Values) -> Values:
    return {"count": leak["rows"], "shown": leak["shown"]}


def _problems_html(groups: Sequence[tuple[str, Values, str]]) -> str:
    """One entry a kind of problem, and one line for the kinds that there are none of."""
    if len(groups) == 1 and not groups[0][1]["count"]:
        return ""
    there = [_problem_item(name, found, words) for name, found, words in groups if found["count"]]
    none = list(dict.fromkeys(name for name, found, _ in groups if not found["count"]))
    none = [name for name in none if not any(name == each and found["count"] for each, found, _ in groups)]
    sound = f'<p class="muted sound">Looked for and not found: {escape(", ".join(none))}.</p>' if none else ""
    return (f'<ul class="problems-list">{"".join(there)}</ul>' if there else "") + sound


def _problem_item(name: str, found: Values, description: str) -> str:
    shown = [str(each) for each in found["shown"]]
    first, rest = shown[:MAX_OPEN_MESSAGES], shown[MAX_OPEN_MESSAGES:]
    more = found["count"] - len(shown)
    hidden = [*rest, *([f"and {more:,} more"] if more else [])]
    fold = (
        f"<details><summary>{found['count'] - len(first):,} more</summary><ol>{_list_items(hidden)}</ol></details>"
        if hidden
        else ""
    )
    said = f" {escape(description)}" if description else ""
    return (
        f"<li><p><strong>{_count_noun(found['count'], 'row')} {escape(name)}</strong>"
        f"{',' if said else ''}{said}</p><ol>{_list_items(first)}</ol>{fold}</li>"
    )


def _list_items(messages: Sequence[str]) -> str:
    return "".join(f"<li>{escape_visible(each)}</li>" for each in messages)


def _example_html(example: Values) -> str:
    about = f"{example['place']} · {example['tokens']} tokens, {example['learned_tokens']} learned"
    parts = []
    for text, learned in _clip_pieces(example["pieces"]):
        spoken = '<span class="visually-hidden">learned: </span>' if learned else ""
        parts.append(f"<mark>{spoken}{escape_visible(text)}</mark>" if learned else escape_visible(text))
    return (
        f'<figure role="listitem"><figcaption>{escape(about)}</figcaption>'
        f'<pre tabindex="0">{"".join(parts)}</pre></figure>'
    )


def _clip_pieces(pieces: Sequence[Sequence[Any]]) -> list[tuple[str, bool]]:
    """The pieces, the middle of a long one left out: beginning and end say most."""
    clipped = []
    for text, learned in pieces:
        lines = str(text).split("\n")
        if len(lines) > _MAX_EXAMPLE_LINES:
            hidden = len(lines) - _MAX_EXAMPLE_LINES
            half = _MAX_EXAMPLE_LINES // 2
            lines = [*lines[:half], f"… {hidden} more lines …", *lines[-half:]]
        clipped.append(("\n".join(line if len(line) <= 400 else f"{line[:400]} …" for line in lines), bool(learned)))
    return clipped


def _count_noun(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
