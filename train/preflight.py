"""Preflight report of a training run: data, data issues, lengths, steps, examples and cost, before anything is trained.

`run_preflight` computes it; of the base it loads only the tokenizer and the configuration. `render_preflight` formats
it for a terminal, as `python -m train ... --dry-run` prints it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from common.files import ProgressFn
from errors import BaseModelError
from models.loader import auto_map_entries, broken_error, check_remote_code, context_length, untrusted_error
from models.source import Source, check_kind, resolve
from train.config import TrainConfig
from train.data import (
    DataIssue,
    DataSplit,
    Leak,
    LengthStats,
    TrainingData,
    find_conflicts,
    find_duplicates,
    find_leaks,
    find_special_tokens,
    find_unparsable,
    length_quantile,
    length_stats,
    load_training_data,
    make_issue,
)
from train.model import count_steps
from train.techniques import Technique, get_technique
from train.tokenize import LabelSpan, TokenizedData, TokenizedSplit, TokenizerInfo, label_spans, tokenize_data

# Shares of the rows for which the report states the max_length they need.
LENGTH_QUANTILES = (0.95, 0.99, 1.0)
NUM_EXAMPLES = 3


@dataclass(frozen=True)
class PreflightExample:
    """A training sample as the model gets it, in spans that are part of the loss or not."""

    location: str
    spans: tuple[LabelSpan, ...]
    num_tokens: int
    num_label_tokens: int


@dataclass(frozen=True)
class TooLong:
    """Rows left out because of their length, and the max_length that would keep 95, 99 and 100 % of all rows."""

    limit: int
    train: DataIssue
    validation: DataIssue
    needed: dict[str, int]


@dataclass(frozen=True)
class Preflight:
    """The report on a run before it starts; `to_dict()` returns it for JSON.

    `rows` counts the rows read, left out because of errors, for training and for validation (the last two include rows
    that are too long); `estimate` is the result of the caller's `estimate_fn`, None without one.
    """

    adapter_name: str
    technique: str
    base_id: str
    base_revision: str
    source: str
    licence: str
    columns: tuple[str, ...]
    mapping: str
    rows: dict[str, int]
    changes: dict[str, int]
    row_errors: DataIssue
    empty: int
    duplicates: DataIssue
    conflicts: DataIssue
    unparsable: DataIssue
    special_tokens: DataIssue
    leak: Leak
    too_long: TooLong
    prompt_tokens: LengthStats
    response_tokens: LengthStats
    examples: tuple[PreflightExample, ...]
    steps_per_epoch: int
    steps: int
    steps_between_evaluations: int
    settings: dict[str, Any]
    estimate: dict[str, Any] | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as values for JSON, under their names."""
        return asdict(self)


# Estimates memory, time and size of a run from its settings, the base's folder and the tokenized rows.
EstimateFn = Callable[[TrainConfig, Source, TokenizedData], dict[str, Any]]


def run_preflight(config: TrainConfig, report: ProgressFn, estimate_fn: EstimateFn | None = None) -> Preflight:
    """Read the data and the base's tokenizer, and check that the run could start.

    Raises TrainingError, DataError or BaseModelError with a one-sentence message, as the run itself would.
    """
    technique = get_technique(config.technique)
    technique.validate(config)
    data = load_training_data(config)
    source = resolve(config.base, report, config.trust_remote_code)
    tokenizer_info = load_tokenizer_info(source, config.trust_remote_code, technique)
    report(f"Encoding {len(data.train)} training and {len(data.validation)} validation rows ...")
    prepared = tokenize_data(config, data, tokenizer_info)
    train_split, validation_split = data.train_split, data.validation_split or data.train_split
    per_epoch, between = count_steps(config, len(prepared.train.selected_indices))
    return Preflight(
        adapter_name=config.adapter_name,
        technique=technique.title,
        base_id=source.id,
        base_revision=source.revision,
        source=data.source_note,
        licence=data.licence,
        columns=train_split.columns,
        mapping=train_split.column_mapping,
        rows=_row_counts(data),
        changes=_count_changes(data),
        row_errors=make_issue(error.message for error in data.row_errors),
        empty=sum(error.empty for error in data.row_errors),
        duplicates=find_duplicates(data.train, train_split.locate),
        conflicts=find_conflicts(data.train, train_split.locate),
        unparsable=find_unparsable(data.train, train_split.locate),
        special_tokens=find_special_tokens(data.train, train_split.locate, tokenizer_info.tokenizer.all_special_tokens),
        leak=find_leaks(data.train, data.validation, train_split, validation_split),
        too_long=_too_long_rows(prepared, train_split, validation_split),
        prompt_tokens=length_stats([len(sample.prompt_ids) for sample in prepared.train.samples]),
        response_tokens=length_stats([len(sample.response_ids) for sample in prepared.train.samples]),
        examples=_example_spans(prepared, tokenizer_info, train_split),
        steps_per_epoch=per_epoch,
        steps=math.ceil(per_epoch * config.num_train_epochs),
        steps_between_evaluations=between,
        settings=config.to_public_dict(),
        estimate=estimate_fn(config, source, prepared) if estimate_fn else None,
    )


def load_tokenizer_info(source: Source, trust_remote_code: bool, technique: Technique) -> TokenizerInfo:
    """Load the base's tokenizer and configuration, without its weights.

    Raises BaseModelError, or TrainingError for a base that could not be served with an adapter of the technique.
    """
    from transformers import AutoConfig, AutoTokenizer

    check_remote_code(source, trust_remote_code)
    try:
        base = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        if trust_remote_code and auto_map_entries(source.folder):
            raise broken_error(source, error) from error
        if "trust_remote_code" in str(error):
            raise untrusted_error(source) from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BaseModelError(f"The tokenizer of base '{source.id}' cannot be loaded: {reason}") from error
    check_kind(source, base)
    technique.check_base(base)
    return TokenizerInfo(source.id, tokenizer, bool(base.is_encoder_decoder), context_length(base))


def _row_counts(data: TrainingData) -> dict[str, int]:
    splits = [data.train_split, *([data.validation_split] if data.validation_split else [])]
    return {
        "read": sum(split.num_rows for split in splits),
        "left out": sum(len(split.row_errors) for split in splits),
        "train": len(data.train),
        "validation": len(data.validation),
    }


def _count_changes(data: TrainingData) -> dict[str, int]:
    changes = dict(data.train_split.changes)
    for change, times in (data.validation_split.changes if data.validation_split else {}).items():
        changes[change] = changes.get(change, 0) + times
    return changes


def _too_long_rows(prepared: TokenizedData, train_split: DataSplit, validation_split: DataSplit) -> TooLong:
    def dropped_rows(tokenized: TokenizedSplit, split: DataSplit) -> DataIssue:
        return make_issue(
            f"{split.locate(tokenized.examples[index])}: {tokenized.lengths[index]} tokens"
            for index in tokenized.dropped_indices
        )

    lengths = [*prepared.train.lengths, *prepared.validation.lengths]
    return TooLong(
        prepared.train.max_length,
        dropped_rows(prepared.train, train_split),
        dropped_rows(prepared.validation, validation_split),
        {f"{100 * share:g} %": length_quantile(lengths, share) for share in LENGTH_QUANTILES},
    )


def _example_spans(
    prepared: TokenizedData, tokenizer_info: TokenizerInfo, train_split: DataSplit
) -> tuple[PreflightExample, ...]:
    """Return the first row, one in the middle and the last."""
    train = prepared.train
    last = len(train.selected_indices) - 1
    chosen = dict.fromkeys(round(last * step / (NUM_EXAMPLES - 1)) for step in range(NUM_EXAMPLES))
    return tuple(
        PreflightExample(
            train_split.locate(train.examples[train.selected_indices[index]]),
            tuple(label_spans(prepared.example_tokenizer, tokenizer_info.tokenizer, train.samples[index])),
            len(train.samples[index].prompt_ids) + len(train.samples[index].response_ids),
            len(train.samples[index].response_ids),
        )
        for index in chosen
    )


_TITLE_WIDTH = 12
# The most lines printed of one example; the number of further lines is printed instead of them.
_MAX_EXAMPLE_LINES = 30
# Settings that the report states elsewhere.
_HEADER_SETTINGS = ("adapter_name", "dataset_name", "technique", "model_name_or_path")


def render_preflight(preflight: Preflight) -> str:
    """Format the report for a terminal; control characters from files are escaped."""
    sections = (_header_lines, _data_lines, _row_lines, _issue_lines, _length_lines, _plan_lines, _example_lines)
    lines = [line for section in sections for line in section(preflight)]
    text = "\n".join(lines)
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


def _header_lines(preflight: Preflight) -> Iterator[str]:
    base = f"{preflight.base_id} ({preflight.base_revision[:20]})"
    yield f"Preflight of {preflight.adapter_name}: {preflight.technique} on {base}"
    yield ""


def _data_lines(preflight: Preflight) -> Iterator[str]:
    yield from _format_entry("data", f"{preflight.source} Licence: {preflight.licence}.")
    if preflight.mapping:
        yield from _format_entry("columns", f"{preflight.mapping}, of {', '.join(preflight.columns)}")


def _row_lines(preflight: Preflight) -> Iterator[str]:
    rows = preflight.rows
    left_out = f"{rows['left out']} left out" + (f" ({preflight.empty} of them empty)" if preflight.empty else "")
    yield from _format_entry(
        "rows", f"{rows['read']} read, {left_out}; {rows['train']} train, {rows['validation']} validate"
    )
    yield from _format_list(preflight.row_errors.examples, preflight.row_errors.count)
    for change, times in preflight.changes.items():
        yield from _format_entry("", f"{_format_count(times)} had {change}")


def _issue_lines(preflight: Preflight) -> Iterator[str]:
    for title, issue, description in (
        ("repeated", preflight.duplicates, "with the intent and the code of an earlier one"),
        ("ambiguous", preflight.conflicts, "with the intent of an earlier one and other code"),
        ("no Python", preflight.unparsable, "whose code does not parse as Python"),
        ("special", preflight.special_tokens, "with the text of a special token, which the base reads as that token"),
    ):
        # Special tokens are rare: without any, the report does not mention them.
        if issue is preflight.special_tokens and not issue.count:
            continue
        yield from _format_entry(title, f"{_format_count(issue.count)} {description}")
        yield from _format_list(issue.examples, issue.count)
    leak = preflight.leak
    shared = (
        f": {leak.intents} the intent, {leak.codes} the code, which makes the validation loss look better than it is"
    )
    text = f"{_format_count(leak.rows, 'validation ')} shared with the training rows{shared if leak.rows else ''}"
    yield from _format_entry("leaking", text)
    yield from _format_list(leak.examples, leak.rows)


def _length_lines(preflight: Preflight) -> Iterator[str]:
    too_long = preflight.too_long
    train, validation = too_long.train, too_long.validation
    both = f"{_format_count(train.count, 'training ')} and {_format_count(validation.count, 'validation ')}"
    left_out = ", left out whole: nothing is cut" if train.count + validation.count else ""
    yield from _format_entry("too long", f"{both} of more than {too_long.limit} tokens{left_out}")
    yield from _format_list(train.examples, train.count)
    yield from _format_list(validation.examples, validation.count)
    needed = ", ".join(f"{share} of all rows with {length}" for share, length in too_long.needed.items())
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
        f"{preflight.steps_per_epoch} an epoch, {preflight.steps} in all ({settings['num_train_epochs']:g} epochs, "
        f"batch {batch}); validated every {preflight.steps_between_evaluations}",
    )
    listed = [
        f"{name} {_format_setting_value(value)}"
        for name, value in settings.items()
        if _is_relevant_setting(name, value, settings)
    ]
    yield from _format_entry("settings", ", ".join(listed))
    for name, value in (preflight.estimate or {}).items():
        yield from _format_entry("", f"{name}: {value}")


def _is_relevant_setting(name: str, value: Any, settings: Mapping[str, Any]) -> bool:
    """Return whether a setting applies to this run: it is not off, and does not belong to another technique."""
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
    yield "The loss covers what is between «», with the end token; everything else is only read."
    for number, example in enumerate(preflight.examples, start=1):
        yield f"{number}. {example.location}: {example.num_tokens} tokens, {example.num_label_tokens} of them learned"
        yield from _format_example(example)


def _format_example(example: PreflightExample) -> Iterator[str]:
    text = "".join(f"«{span}»" if is_label else span for span, is_label in example.spans)
    lines = text.split("\n")
    hidden = len(lines) - _MAX_EXAMPLE_LINES
    if hidden > 0:
        # Beginning and end, because the end has the end token.
        lines = [
            *lines[: _MAX_EXAMPLE_LINES // 2],
            f"... ({hidden} more lines) ...",
            *lines[-(_MAX_EXAMPLE_LINES // 2) :],
        ]
    for line in lines:
        yield f"   | {line}"


def _format_entry(title: str, text: str) -> list[str]:
    wrapped = textwrap.wrap(text, 100, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"{(title if not index else ''):<{_TITLE_WIDTH}}{line}" for index, line in enumerate(wrapped)]


def _format_list(messages: Sequence[str], count: int) -> Iterable[str]:
    for message in messages:
        yield f"{'':<{_TITLE_WIDTH}}- {message}"
    if count > len(messages):
        yield f"{'':<{_TITLE_WIDTH}}- and {count - len(messages)} more"
