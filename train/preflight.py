"""What a run would learn, from what and at which cost; of the base only the tokenizer and the configuration are loaded.

`preflight` gives the numbers, `train.preflight_text.text` the page that `python -m train ... --dry-run` prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from errors import BaseModelError
from serve.backends.local.own_code import auto_map_entries, broken_error, check_remote_code, untrusted_error
from serve.backends.local.source import Source, resolve
from serve.home import ProgressFn
from train.config import TrainConfig
from train.data import DataSplit, TrainingData, load_training_data
from train.findings import (
    DataIssue,
    Leak,
    LengthStats,
    find_conflicts,
    find_duplicates,
    find_leaks,
    find_special_tokens,
    find_unparsable,
    length_quantile,
    length_stats,
    make_issue,
)
from train.fit import count_steps
from train.marks import LabelSpan, label_spans
from train.prepare import TokenizedData, TokenizedSplit, TokenizerInfo, tokenize_data
from train.techniques import get_technique

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
        row_errors=make_issue(fault.message for fault in data.row_errors),
        empty=sum(fault.empty for fault in data.row_errors),
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
    except Exception as fault:
        if trust_remote_code and auto_map_entries(source.folder):
            raise broken_error(source, fault) from fault
        if "trust_remote_code" in str(fault):
            raise untrusted_error(source) from fault
        reason = str(fault).strip().partition("\n")[0] or type(fault).__name__
        raise BaseModelError(f"The tokenizer of base '{source.id}' cannot be loaded: {reason}") from fault
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
