"""Draft of a training job per visitor (file or data set, columns, settings), and its preview as HTML.

A draft is stored in `<home>/uploads/<visitor>/`: draft.json, and an uploaded file in a folder named by its digest. A
job copies the file, so a new upload may replace it.

HTML of the row preview: row counts, problems, examples with their learned parts marked, and the cost of a run. The
templates escape every text of a person, a file or a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from markupsafe import Markup, escape

from common.files import check_disk_space, make_dir, make_private_dir
from common.format import format_bytes, format_duration
from errors import DataError, DiskSpaceError, PromptOrTuneError
from jobs.job import safe_file_name
from tasks.datasets.hub import is_hub_id
from tasks.datasets.own import is_own_dataset
from tasks.datasets.registry import DATASETS, TRAINING_DATASETS, require_training
from tasks.datasets.tables import FORMATS
from ui.access.bodies import ADDRESS_SHARE
from ui.access.quota import check_upload_size
from ui.components import error_html, render

_DRAFT_FILE = "draft.json"
_BLOCK_BYTES = 1 << 20
# Older drafts are deleted.
_MAX_AGE_DAYS = 30
MAX_DRAFTS = 5_000  # a draft of a few bytes takes a folder, too
_EVERYBODY_FULL = "ask the owner of this app to make room, or train with `python -m train` on a machine of your own."
_VISITOR_ID = re.compile(r"[a-z]+-[0-9a-f]{16}")
Values = Mapping[str, Any]
# Messages of one kind of problem that are visible at once; the others are folded.
MAX_OPEN_MESSAGES = 3
_MAX_EXAMPLE_LINES = 24
_MAX_LINE_LENGTH = 400
_MAX_COLUMN_LABEL = 60
_VISIBLE_CHARACTERS = {"\t": "⇥\t", "\r": "␍", " ": "·"}


@dataclass(frozen=True)
class Draft:
    """Rows, columns and settings of a draft.

    `name` is a safe file name (with `digest` and `size` in bytes) or a data set's name. `columns` are the (intent,
    code) columns that the visitor chose; None means the `recognised` ones, which are set by the preview. `address` is a
    hash of the address that the rows came from, '' with a login.
    """

    name: str
    digest: str = ""
    size: int = 0
    columns: tuple[str, str] | None = None
    recognised: tuple[str, str] | None = None
    technique: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    address: str = ""

    @property
    def is_file(self) -> bool:
        """Whether the rows are an uploaded file."""
        return bool(self.digest)


class DraftStore:
    """All visitors' drafts on disk, of at most `total_bytes` (0: any size). Thread-safe.

    Those of one address have a part of the total, as cookies can be made up. Files are replaced atomically; one upload
    is copied at a time, so that two do not pass the total together.
    """

    def __init__(self, home: Path, total_bytes: int = 0) -> None:
        self._root = home / "uploads"
        self._total_bytes = total_bytes
        self._upload_lock = threading.Lock()

    def get(self, visitor: str) -> Draft | None:
        """Return the visitor's draft; None if there is none, or it is broken, or its file is gone."""
        try:
            values = json.loads((self._folder(visitor) / _DRAFT_FILE).read_text(encoding="utf-8"))
            if not (isinstance(values["name"], str) and isinstance(values.get("settings", {}), dict)):
                return None
            names = [field.name for field in fields(Draft) if field.name in values]
            draft = Draft(**{name: _list_to_tuple(values[name]) for name in names})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return None if draft.is_file and not self.path(visitor, draft).is_file() else draft

    def path(self, visitor: str, draft: Draft) -> Path:
        """Return the path of a draft's uploaded file."""
        return self._folder(visitor) / draft.digest / draft.name

    def save_upload(self, visitor: str, upload: Path, limit: int, address: str = "") -> Draft:
        """Copy an uploaded file of at most `limit` bytes (0: any size); it replaces the visitor's draft.

        `address` is that of a visitor without a login, '' with one.

        Raises PromptOrTuneError if it is too large, DiskSpaceError if it cannot be written.
        """
        size = upload.stat().st_size
        check_upload_size(size, limit, f"'{upload.name}'")
        with self._upload_lock:
            return self._save_upload(visitor, upload, size, address)

    def _save_upload(self, visitor: str, upload: Path, size: int, address: str) -> Draft:
        self._check_total(visitor, size, address)
        folder = self._make_folder(visitor)
        check_disk_space(folder, size)
        draft = Draft(safe_file_name(upload.name), _file_digest(upload), size, address=address)
        target = self.path(visitor, draft)
        part = make_dir(target.parent) / f".{draft.name}.part"
        try:
            shutil.copyfile(upload, part)
            part.chmod(0o600)
            part.replace(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DiskSpaceError(
                f"'{draft.name}' could not be saved ({error.strerror or error}): free some disk space, or ask the "
                "owner of this app to."
            ) from error
        self.save(visitor, draft)
        _delete_others(folder, draft.digest)
        return draft

    def select_dataset(self, visitor: str, name: str, address: str = "", *, own: bool = False) -> Draft:
        """Save a draft of a data set that has a name. Raises DataError as `check_dataset_name` does."""
        draft = Draft(check_dataset_name(name, own=own), address=address)
        self.save(visitor, draft)
        return draft

    def save(self, visitor: str, draft: Draft) -> None:
        """Write the draft. Raises DiskSpaceError if it cannot be written."""
        if not self._folder(visitor).is_dir():
            self._check_total(visitor, 0, draft.address)
        folder = self._make_folder(visitor)
        part = folder / f".{_DRAFT_FILE}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            part.write_text(json.dumps(asdict(draft)), encoding="utf-8")
            part.chmod(0o600)
            part.replace(folder / _DRAFT_FILE)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DiskSpaceError(f"Your settings could not be saved ({error.strerror or error}).") from error

    def delete(self, visitor: str) -> None:
        """Delete the visitor's draft and file."""
        shutil.rmtree(self._folder(visitor), ignore_errors=True)

    def _folder(self, visitor: str) -> Path:
        if not _VISITOR_ID.fullmatch(visitor):
            raise PromptOrTuneError("This visitor is not known: load the page again.")
        return self._root / visitor

    def _make_folder(self, visitor: str) -> Path:
        make_private_dir(self._root)
        return make_dir(self._folder(visitor))

    def _check_total(self, visitor: str, size: int, address: str = "") -> None:
        """Delete outdated drafts; raise PromptOrTuneError where the others and `size` more bytes exceed a total."""
        own = self._folder(visitor)
        others = [folder for folder in self._root.iterdir() if folder != own] if self._root.is_dir() else []
        for folder in others:
            if _age_seconds(folder / _DRAFT_FILE) > _MAX_AGE_DAYS * 24 * 3600:
                shutil.rmtree(folder, ignore_errors=True)
        others = [folder for folder in others if folder.is_dir()]
        if len(others) >= MAX_DRAFTS:
            raise PromptOrTuneError(f"{MAX_DRAFTS:,} people have rows here, which is the limit: {_EVERYBODY_FULL}")
        if 0 < self._total_bytes < size + sum(map(_folder_bytes, others)):
            raise PromptOrTuneError(
                f"The rows of all people here may take {format_bytes(self._total_bytes)}, and this file does not fit: "
                f"{_EVERYBODY_FULL}"
            )
        neighbours = list(filter(_is_of(address), others)) if address else []
        if address and len(neighbours) >= MAX_DRAFTS // ADDRESS_SHARE:
            raise PromptOrTuneError(
                f"{len(neighbours):,} people at your address have rows here, which is the limit for one address: "
                f"{_EVERYBODY_FULL}"
            )
        share = self._total_bytes // ADDRESS_SHARE
        if address and 0 < share < size + sum(map(_folder_bytes, neighbours)):
            raise PromptOrTuneError(
                f"The rows of all people at your address may take {format_bytes(share)}, and this file does not fit: "
                "take rows away that you do not need, or train with `python -m train` on a machine of your own."
            )


def check_dataset_name(name: str, *, own: bool = False) -> str:
    """Return the name of a built-in data set, of one of the Hub, or with `own` of one of the owner of the app.

    Raises DataError for any other name, above all for a path of this machine.
    """
    name = name.strip()
    if name in DATASETS or (own and is_own_dataset(name)):
        require_training(name)
        return name
    repository = re.split("[@:]", name, maxsplit=1)[0]
    is_path = repository.startswith((".", "/", "~")) or "/." in repository or Path(repository).exists()
    if not is_hub_id(name) or is_path or PurePosixPath(name).suffix.casefold() in FORMATS:
        raise DataError(
            f"'{name[:80]}' is not a data set: write user/name (or user/name@revision) as on the Hugging Face Hub, or "
            f"one of {', '.join(TRAINING_DATASETS)}; or upload a file of your own."
        )
    return name


def _delete_others(folder: Path, digest: str) -> None:
    """Delete the visitor's earlier files."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != digest:
            shutil.rmtree(path, ignore_errors=True)


def _is_of(address: str) -> Callable[[Path], bool]:
    """Return a function that says whether the draft in a folder came from this address."""

    def is_of(folder: Path) -> bool:
        try:
            return bool(json.loads((folder / _DRAFT_FILE).read_text(encoding="utf-8")).get("address") == address)
        except (OSError, ValueError, AttributeError):
            return False

    return is_of


def _folder_bytes(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError:  # deleted at this moment
        return 0


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _file_digest(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()[:16]


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


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
