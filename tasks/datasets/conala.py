"""CoNaLa and CodeAlpacaPy: readers of data sets with an intent and its code in each row.

They have an intent (column nl) and its code (column cmd) a row, in three files, without tests.
CoNaLa is DocPrompting's split (Zhou et al., arXiv 2207.05987), from the JSON Lines files of its repository.
CodeAlpacaPy is the Python part of CodeAlpaca in the study (arXiv 2308.10462), from the Hub's Parquet copy of
`antolin/codealpaca-filtered`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from tasks.datasets import hub
from tasks.datasets.base import DatasetRow, DatasetSource, read_rows
from tasks.datasets.hub import HubFile
from tasks.problem import Problem

CONALA_REPO, CONALA_REVISION = "neulab/docprompting-conala", "48df7abf0f64f9279b4ee04386272eb9dc89ef89"
CODEALPACAPY_REPO, CODEALPACAPY_REVISION = "antolin/codealpaca-filtered", "2e2e5f16ccd5ab5891d6962cdff5453a62e8920b"

_CONALA_FILES = {
    split: HubFile(CONALA_REPO, CONALA_REVISION, f"conala-{stem}.jsonl", "json")
    for split, stem in (("train", "train"), ("validation", "dev"), ("test", "test"))
}
_CODEALPACAPY_FILES = {
    split: HubFile(CODEALPACAPY_REPO, CODEALPACAPY_REVISION, f"default/{stem}/0000.parquet", "parquet")
    for split, stem in (("train", "train"), ("validation", "valid"), ("test", "test"))
}


def read_pairs(name: str, title: str, folder: Path, split: str) -> list[Problem]:
    """Read the problems of `<folder>/<split>.jsonl`."""
    expected = f"{title}'s {split} split, one JSON object a line with the columns nl and cmd"
    return _make_problems(name, split, read_rows(folder / f"{split}.jsonl", expected))


def fetch_pairs(name: str, title: str, files: dict[str, HubFile], split: str) -> list[Problem]:
    """Load the problems of a split from the Hub."""
    return _make_problems(name, split, hub.load_rows(files[split], title))


def _make_problems(name: str, split: str, rows: Iterable[DatasetRow]) -> list[Problem]:
    seen: Counter[str] = Counter()
    problems = []
    for number, row in enumerate(rows):
        id = row.row_id(f"{name}-{split}-{number:04d}")
        seen[id] += 1
        if seen[id] > 1:  # CoNaLa repeats 21 rows; results are stored by id, so each row needs its own
            id = f"{id}#{seen[id]}"
        problems.append(Problem(id, row.text("nl", "instruction"), row.text("cmd", "output")))
    return problems


def _make_source(name: str, title: str, files: dict[str, HubFile]) -> DatasetSource:
    return DatasetSource(
        name=name,
        title=title,
        patterns=("train.jsonl", "validation.jsonl", "test.jsonl"),
        layout=f"{name}/train.jsonl, validation.jsonl and test.jsonl (columns nl and cmd), or these three files",
        read=partial(read_pairs, name, title),
        fetch=partial(fetch_pairs, name, title, files),
    )


CONALA = _make_source("conala", "CoNaLa", _CONALA_FILES)
CODEALPACAPY = _make_source("codealpacapy", "CodeAlpacaPy", _CODEALPACAPY_FILES)
