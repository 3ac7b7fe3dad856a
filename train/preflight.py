"""Dry-run report.

What a run would learn, from what and at which cost; of the base only the tokenizer and the configuration are loaded.

`preflight` gives the numbers, `train.preflight.text` the page that `python -m train ... --dry-run` prints.

The preflight as text for a terminal; what is learned stands in «».
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from common.paths import ProgressFn
from errors import BaseModelError
from models.loader import auto_map_entries, broken_error, check_remote_code, untrusted_error
from models.source import Source, resolve
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
from train.techniques import get_technique
from train.tokenize import LabelSpan, TokenizedData, TokenizedSplit, TokenizerInfo, label_spans, tokenize_data

# Shares of the rows for which the needed max_length is told.
LENGTH_QUANTILES = (0.95, 0.99, 1.0)
NUM_EXAMPLES = 3


@dataclass(frozen=True)
class PreflightExample:
    """A training sample as the model gets it, in parts that are learned or not."""

    location: str
    spans: tuple[LabelSpan, ...]
    num_tokens: int
    num_label_tokens: int


@dataclass(frozen=True)
class TooLong:
    """Rows left out for their length, and the max_length that would keep 95, 99 and 100 % of all rows."""

    limit: int
    train: DataIssue
    validation: DataIssue
    needed: dict[str, int]


@dataclass(frozen=True)
class Preflight:
    """Everything that is known before a run. `values()` is ready for JSON.

    `rows` counts what was read, left out as faulty, trained and validated on (what is too long is still in the last
    two); `estimate` is what the caller's estimator says, None without one.
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
        """As JSON has it."""
        return asdict(self)


# What estimates memory, time and size of a run: from its settings, the base's folder and the rows that it learns.
EstimateFn = Callable[[TrainConfig, Source, TokenizedData], dict[str, Any]]


def run_preflight(config: TrainConfig, report: ProgressFn, estimate_fn: EstimateFn | None = None) -> Preflight:
    """Reads the data and the base's tokenizer, and refuses what could not train.

    Raises TrainingError, DataError or BaseModelError in one sentence, as the run itself would.
    """
    technique = get_technique(config.technique)
    technique.validate(config)
    data = load_training_data(config)
    source = resolve(config.base, report, config.trust_remote_code)
    reader = load_tokenizer_info(source, config.trust_remote_code)
    report(f"Encoding {len(data.train)} training and {len(data.validation)} validation rows ...")
    prepared = tokenize_data(config, data, reader)
    learned, held_out = data.train_split, data.validation_split or data.train_split
    per_epoch, between = count_steps(config, len(prepared.train.selected_indices))
    return Preflight(
        adapter_name=config.adapter_name,
        technique=technique.title,
        base_id=source.id,
        base_revision=source.revision,
        source=data.source_note,
        licence=data.licence,
        columns=learned.columns,
        mapping=learned.column_mapping,
        rows=_row_counts(data),
        changes=_count_changes(data),
        row_errors=make_issue(error.message for error in data.row_errors),
        empty=sum(error.empty for error in data.row_errors),
        duplicates=find_duplicates(data.train, learned.locate),
        conflicts=find_conflicts(data.train, learned.locate),
        unparsable=find_unparsable(data.train, learned.locate),
        special_tokens=find_special_tokens(data.train, learned.locate, reader.tokenizer.all_special_tokens),
        leak=find_leaks(data.train, data.validation, learned, held_out),
        too_long=_too_long_rows(prepared, learned, held_out),
        prompt_tokens=length_stats([len(sample.prompt_ids) for sample in prepared.train.samples]),
        response_tokens=length_stats([len(sample.response_ids) for sample in prepared.train.samples]),
        examples=_example_spans(prepared, reader, learned),
        steps_per_epoch=per_epoch,
        steps=math.ceil(per_epoch * config.num_train_epochs),
        steps_between_evaluations=between,
        settings=config.to_public_dict(),
        estimate=estimate_fn(config, source, prepared) if estimate_fn else None,
    )


def load_tokenizer_info(source: Source, trust_remote_code: bool) -> TokenizerInfo:
    """The base's tokenizer and configuration, without its weights; BaseModelError in one sentence."""
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
    context = getattr(base, "max_position_embeddings", None) or getattr(base, "n_positions", None) or 2048
    return TokenizerInfo(source.id, tokenizer, bool(base.is_encoder_decoder), int(context))


def _row_counts(data: TrainingData) -> dict[str, int]:
    parts = [data.train_split, *([data.validation_split] if data.validation_split else [])]
    return {
        "read": sum(part.num_rows for part in parts),
        "left out": sum(len(part.row_errors) for part in parts),
        "train": len(data.train),
        "validation": len(data.validation),
    }


def _count_changes(data: TrainingData) -> dict[str, int]:
    changes = dict(data.train_split.changes)
    for change, times in (data.validation_split.changes if data.validation_split else {}).items():
        changes[change] = changes.get(change, 0) + times
    return changes


def _too_long_rows(prepared: TokenizedData, train_split: DataSplit, validation_split: DataSplit) -> TooLong:
    def found(selection: TokenizedSplit, part: DataSplit) -> DataIssue:
        return make_issue(
            f"{part.locate(selection.examples[index])}: {selection.lengths[index]} tokens"
            for index in selection.dropped_indices
        )

    lengths = [*prepared.train.lengths, *prepared.validation.lengths]
    return TooLong(
        prepared.train.max_length,
        found(prepared.train, train_split),
        found(prepared.validation, validation_split),
        {f"{100 * share:g} %": length_quantile(lengths, share) for share in LENGTH_QUANTILES},
    )


def _example_spans(
    prepared: TokenizedData, tokenizer_info: TokenizerInfo, train_split: DataSplit
) -> tuple[PreflightExample, ...]:
    """The first of the rows, one in the middle and the last."""
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
