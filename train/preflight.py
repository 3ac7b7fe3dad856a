"""What a run would learn, from what and at which cost; of the base only the tokenizer and the configuration are loaded.

`preflight` gives the numbers, `train.preflight_text.text` the page that `python -m train ... --dry-run` prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from errors import BaseModelError
from serve.backends.local.own_code import broken, check_own_code, references, untrusted
from serve.backends.local.source import Source, resolve
from serve.home import Report
from train.config import TrainConfig
from train.data import Part, TrainingData, load_training_data
from train.findings import (
    Finding,
    Leak,
    Spread,
    conflicts,
    duplicates,
    finding,
    leaks,
    quantile,
    special,
    spread,
    unparsable,
)
from train.fit import steps
from train.marks import Piece, marked
from train.prepare import Prepared, Reader, Selection, prepare
from train.techniques import technique_named

# Shares of the rows for which the needed max_length is told.
SHARES = (0.95, 0.99, 1.0)
EXAMPLES = 3


@dataclass(frozen=True)
class ShownExample:
    """A training sample as the model gets it, in parts that are learned or not."""

    place: str
    pieces: tuple[Piece, ...]
    tokens: int
    learned_tokens: int


@dataclass(frozen=True)
class TooLong:
    """Rows left out for their length, and the max_length that would keep 95, 99 and 100 % of all rows."""

    limit: int
    train: Finding
    validation: Finding
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
    faults: Finding
    empty: int
    duplicates: Finding
    conflicts: Finding
    unparsable: Finding
    special: Finding
    leak: Leak
    too_long: TooLong
    prompt_tokens: Spread
    response_tokens: Spread
    examples: tuple[ShownExample, ...]
    steps_per_epoch: int
    steps: int
    steps_between_evaluations: int
    settings: dict[str, Any]
    estimate: dict[str, Any] | None = field(default=None)

    def values(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


# What estimates memory, time and size of a run: from its settings, the base's folder and the rows that it learns.
Estimator = Callable[[TrainConfig, Source, Prepared], dict[str, Any]]


def preflight(config: TrainConfig, report: Report, estimator: Estimator | None = None) -> Preflight:
    """Reads the data and the base's tokenizer, and refuses what could not train.

    Raises TrainingError, DataError or BaseModelError in one sentence, as the run itself would.
    """
    technique = technique_named(config.technique)
    technique.check(config)
    data = load_training_data(config)
    source = resolve(config.base, report, config.trust_remote_code)
    reader = open_reader(source, config.trust_remote_code)
    report(f"Encoding {len(data.train)} training and {len(data.validation)} validation rows ...")
    prepared = prepare(config, data, reader)
    learned, held_out = data.learned, data.held_out or data.learned
    per_epoch, between = steps(config, len(prepared.train.kept))
    return Preflight(
        adapter_name=config.adapter_name,
        technique=technique.title,
        base_id=source.id,
        base_revision=source.revision,
        source=data.source_note,
        licence=data.licence,
        columns=learned.columns,
        mapping=learned.mapping,
        rows=_rows(data),
        changes=_changes(data),
        faults=finding(fault.sentence for fault in data.faults),
        empty=sum(fault.empty for fault in data.faults),
        duplicates=duplicates(data.train, learned.place),
        conflicts=conflicts(data.train, learned.place),
        unparsable=unparsable(data.train, learned.place),
        special=special(data.train, learned.place, reader.tokenizer.all_special_tokens),
        leak=leaks(data.train, data.validation, learned, held_out),
        too_long=_too_long(prepared, learned, held_out),
        prompt_tokens=spread([len(sample.prompt) for sample in prepared.train.encoded]),
        response_tokens=spread([len(sample.response) for sample in prepared.train.encoded]),
        examples=_examples(prepared, reader, learned),
        steps_per_epoch=per_epoch,
        steps=math.ceil(per_epoch * config.num_train_epochs),
        steps_between_evaluations=between,
        settings=config.public(),
        estimate=estimator(config, source, prepared) if estimator else None,
    )


def open_reader(source: Source, trust_remote_code: bool) -> Reader:
    """The base's tokenizer and configuration, without its weights; BaseModelError in one sentence."""
    from transformers import AutoConfig, AutoTokenizer

    check_own_code(source, trust_remote_code)
    try:
        base = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except Exception as fault:
        if trust_remote_code and references(source.folder):
            raise broken(source, fault) from fault
        if "trust_remote_code" in str(fault):
            raise untrusted(source) from fault
        reason = str(fault).strip().partition("\n")[0] or type(fault).__name__
        raise BaseModelError(f"The tokenizer of base '{source.id}' cannot be loaded: {reason}") from fault
    context = getattr(base, "max_position_embeddings", None) or getattr(base, "n_positions", None) or 2048
    return Reader(source.id, tokenizer, bool(base.is_encoder_decoder), int(context))


def _rows(data: TrainingData) -> dict[str, int]:
    parts = [data.learned, *([data.held_out] if data.held_out else [])]
    return {
        "read": sum(part.rows for part in parts),
        "left out": sum(len(part.faults) for part in parts),
        "train": len(data.train),
        "validation": len(data.validation),
    }


def _changes(data: TrainingData) -> dict[str, int]:
    changes = dict(data.learned.changes)
    for change, times in (data.held_out.changes if data.held_out else {}).items():
        changes[change] = changes.get(change, 0) + times
    return changes


def _too_long(prepared: Prepared, learned: Part, held_out: Part) -> TooLong:
    def found(selection: Selection, part: Part) -> Finding:
        return finding(
            f"{part.place(selection.examples[index])}: {selection.lengths[index]} tokens"
            for index in selection.left_out
        )

    lengths = [*prepared.train.lengths, *prepared.validation.lengths]
    return TooLong(
        prepared.train.limit,
        found(prepared.train, learned),
        found(prepared.validation, held_out),
        {f"{100 * share:g} %": quantile(lengths, share) for share in SHARES},
    )


def _examples(prepared: Prepared, reader: Reader, learned: Part) -> tuple[ShownExample, ...]:
    """The first of the rows, one in the middle and the last."""
    train = prepared.train
    last = len(train.kept) - 1
    chosen = dict.fromkeys(round(last * step / (EXAMPLES - 1)) for step in range(EXAMPLES))
    return tuple(
        ShownExample(
            learned.place(train.examples[train.kept[index]]),
            tuple(marked(prepared.encoder, reader.tokenizer, train.encoded[index])),
            len(train.encoded[index].prompt) + len(train.encoded[index].response),
            len(train.encoded[index].response),
        )
        for index in chosen
    )
