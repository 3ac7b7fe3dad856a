"""Tables.

The tables of the study's questions, ours beside the study's own numbers where it has them.

A table whose cells are values, written as Markdown for people and as CSV for programs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from common.format import format_percent, text_table
from evaluate.aggregate import metric_title, metric_values, summarize_cost
from evaluate.stats import Interval
from evaluate.study import published
from evaluate.study.cells import CollectedRuns, FinishedJob
from evaluate.study.config import DEFAULT_LORA_ALPHA, DEFAULT_LORA_RANK, KNOWN_ARCHITECTURES, StudyConfig
from evaluate.study.findings import headline_metric
from evaluate.study.plan import training_memory_bytes

CellValue = str | float | Interval | None
# Shares are kept in [0, 1] and shown in percent; numbers are shown with so many digits.
ColumnKind = Literal["text", "share", "whole", "tenths", "hundredths"]
_DECIMALS = {"whole": 0, "tenths": 1, "hundredths": 2}


@dataclass(frozen=True)
class TableColumn:
    """A column's title and what stands in it."""

    title: str
    kind: ColumnKind = "text"


@dataclass(frozen=True)
class StudyTable:
    """`name` is the CSV file's, `title` the heading; `note` says what a reader must know."""

    name: str
    title: str
    columns: Sequence[TableColumn]
    rows: Sequence[Sequence[CellValue]]
    note: str = ""

    def to_markdown(self) -> str:
        """The heading, the grid without columns that are empty throughout, and the note."""
        kept = [at for at in range(len(self.columns)) if any(row[at] is not None for row in self.rows)]
        header = [self.columns[at].title for at in kept]
        lines = [[format_cell(row[at], self.columns[at].kind) for at in kept] for row in self.rows]
        parts = [f"## {self.title}", text_table(header, lines, markdown=True), self.note]
        return "\n\n".join(part for part in parts if part)

    def to_csv(self) -> str:
        """One line a row; an interval is three columns. Scores are in percent, as in the study's own files."""
        wide = [any(isinstance(row[at], Interval) for row in self.rows) for at in range(len(self.columns))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        header: list[str] = []
        for column, is_wide in zip(self.columns, wide, strict=True):
            header += [column.title, *([f"{column.title} low", f"{column.title} high"] if is_wide else [])]
        writer.writerow(header)
        for row in self.rows:
            line: list[str] = []
            for value, column, is_wide in zip(row, self.columns, wide, strict=True):
                line += _csv_cells(value, column.kind, is_wide)
            writer.writerow(line)
        return out.getvalue()


def format_cell(value: CellValue, kind: ColumnKind) -> str:
    """As a person reads it; "-" where there is nothing."""
    if value is None or value == "":
        return "-"
    if isinstance(value, Interval):
        return format_percent(value)
    if isinstance(value, str):
        return value
    return f"{100 * value:.2f}" if kind == "share" else f"{value:,.{_DECIMALS.get(kind, 2)}f}"


def _csv_cells(value: CellValue, kind: ColumnKind, with_interval: bool) -> list[str]:
    if isinstance(value, Interval):
        return [f"{100 * each:.4f}" for each in (value.value, value.low, value.high)]
    text = (
        "" if value is None else value if isinstance(value, str) else f"{100 * value if kind == 'share' else value:.6g}"
    )
    return [text, "", ""] if with_interval else [text]


INTERVALS_NOTE = "EM and parse rate: Wilson 95 % intervals; means: bootstrap 95 % intervals. Scores in percent."
_OTHER_MODEL_NOTE = (
    "The study's numbers are another model's ({beside}), all test problems, CodeBLEU as of 2023: compare orders, not "
    "values."
)
_SAME_MODEL_NOTE = (
    "The study's numbers: arXiv 2308.10462 v3, all test problems; CodeBLEU as of 2023, by another program."
)


def build_tables(config: StudyConfig, rq: str, collected: CollectedRuns) -> list[StudyTable]:
    """All tables of a question, in the order of its page; those without rows are left out."""
    made: list[StudyTable] = []
    for data in config.question(rq).data:
        cells = [cell for cell in collected.finished.values() if cell.job.data.name == data]
        if rq == "rq4":
            made += [_tests_table(data, cells), _cost_table(rq, data, cells)]
        else:
            usual = [cell for cell in cells if not cell.job.pair]
            made += [_scores_table(data, usual, rq), _sensitivity_table(data, cells), _cost_table(rq, data, usual)]
    if rq == "rq2":
        made.append(_memory_table(collected))
    return [table for table in made if table.rows]


def _scores_table(data: str, jobs: Sequence[FinishedJob], rq: str) -> StudyTable:
    """Table 3: techniques on models; RQ1 and RQ3 have their methods in the same columns."""
    k = headline_metric(jobs[0]) if jobs else "em@1"
    columns = [
        TableColumn("model"),
        TableColumn("method"),
        TableColumn("weights"),
        TableColumn("parameters", "whole"),
        TableColumn("n", "whole"),
        TableColumn("EM@1", "share"),
        *([TableColumn(metric_title(k), "share")] if k != "em@1" else []),
        TableColumn("CodeBLEU", "share"),
        TableColumn("parses", "share"),
        TableColumn("study parameters"),
        TableColumn("study EM@1", "hundredths"),
        TableColumn("study EM@10", "hundredths"),
        TableColumn("study CodeBLEU", "hundredths"),
    ]
    metrics = dict.fromkeys(["em@1", k, "codebleu", "parses"])
    rows = [
        [
            cell.job.model.name,
            cell.job.title,
            cell.job.quantization,
            _trainable_parameters(cell),
            float(len(cell.results)),
            *(cell.interval(metric) for metric in metrics),
            *_published_values(cell),
        ]
        for cell in jobs
    ]
    heading = {"rq1": "Zero-shot and ICL", "rq2": "Table 3: tuning techniques", "rq3": "LoRA, ICL and RAG"}[rq]
    return StudyTable(f"{rq}-scores-{data}", f"{heading} on {data}", columns, rows, _published_note(jobs))


def _published_values(finished_job: FinishedJob) -> list[CellValue]:
    """Parameters, EM@1, EM@10 and CodeBLEU of the study; of ICL and RAG only the best EM@10 is stated, not whose."""
    job = finished_job.job
    row = (
        None
        if job.examples or not job.model.beside
        else published.published_score(job.model.beside, job.technique, job.data.name)
    )
    if row:
        return [row.parameters, row.em1, row.em10, row.codebleu]
    stated = None if job.examples else published.published_em10(job.model.beside, job.data.name, job.kind)
    return [None, None, stated, None]


def _published_note(jobs: Sequence[FinishedJob]) -> str:
    others = dict.fromkeys(
        cell.job.model.beside for cell in jobs if cell.job.model.beside not in ("", cell.job.model.name)
    )
    known = any(cell.job.model.beside for cell in jobs)
    theirs = _OTHER_MODEL_NOTE.format(beside=", ".join(others)) if others else _SAME_MODEL_NOTE if known else ""
    undefined = sum(result.scores.get("codebleu.dataflow") is None for result in jobs[0].results) if jobs else 0
    flow = ""
    if undefined:
        flow = (
            f"Data flow is undefined for {undefined} of {len(jobs[0].results)} references, left out of their CodeBLEU."
        )
    return " ".join(part for part in (INTERVALS_NOTE, flow, theirs) if part)


def _trainable_parameters(job: FinishedJob) -> float | None:
    """Trainable parameters: as the adapter's manifest counts them, else none are shown."""
    value = job.training_facts.get("trainable_parameters")
    return None if value is None else float(value)


def _tests_table(data: str, jobs: Sequence[FinishedJob]) -> StudyTable:
    """Table 4: the average of tests passed and Pass@k, by difficulty."""
    ks = [k for k in (1, 2, 5) if jobs and k <= jobs[0].job.data.candidates]
    metrics = ["tests", *(f"pass@{k}" for k in ks)]
    columns = [
        *(TableColumn(each) for each in ("model", "method", "weights", "difficulty")),
        TableColumn("n", "whole"),
        *(TableColumn(metric_title(metric), "share") for metric in metrics),
        *(TableColumn(f"study {metric_title(metric)}", "hundredths") for metric in metrics),
    ]
    rows: list[list[CellValue]] = []
    for cell in jobs:
        parts: dict[str, set[str] | None] = dict(cell.problems_by_difficulty())
        if len(parts) > 1:
            parts["all"] = None
        for difficulty, problems in parts.items():
            theirs = published.published_apps_scores(cell.job.technique, difficulty) if cell.is_apps_test_split else {}
            count = float(len(metric_values(cell.results_for(problems), "tests")))
            values = [cell.interval(metric, problems) for metric in metrics]
            head: list[CellValue] = [cell.job.model.name, cell.job.title, cell.job.quantization, difficulty, count]
            rows.append([*head, *values, *(theirs.get(metric) for metric in metrics)])
    note = (
        "Average tests passed: the mean over problems of the mean over samples of the share of tests passed. Pass@k: "
        "unbiased, of sampled candidates (arXiv 2107.03374). Bootstrap 95 % intervals; in percent."
    )
    if any(cell.is_apps_test_split for cell in jobs):
        note += " The study's numbers are CodeLlama-7B-Instruct's, 250 problems of each difficulty."
    elif data == "apps":
        note += " These problems come from APPS's train rows: never compare their figures with the study's."
    return StudyTable(f"rq4-tests-{data}", f"Table 4: programs that pass tests, {data}", columns, rows, note)


def _sensitivity_table(data: str, jobs: Sequence[FinishedJob]) -> StudyTable:
    """LoRA's rank and alpha, the usual pair among them."""
    tried = [cell for cell in jobs if cell.job.pair]
    techniques = {(cell.job.model, cell.job.technique) for cell in tried}
    usual = [
        cell
        for cell in jobs
        if (cell.job.model, cell.job.technique) in techniques and not cell.job.pair and not cell.job.examples
    ]
    rows: list[list[CellValue]] = [
        [
            cell.job.model.name,
            cell.job.title.partition(" r ")[0],
            *(float(number) for number in cell.job.pair or (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA)),
            _trainable_parameters(cell),
            *_training_value(cell, "num_train_epochs"),
            float(len(cell.results)),
            *(cell.interval(metric) for metric in ("em@1", headline_metric(cell), "codebleu")),
        ]
        for cell in sorted([*usual, *tried], key=lambda cell: cell.job.pair or (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA))
    ]
    columns = [
        TableColumn("model"),
        TableColumn("technique"),
        *(TableColumn(each, "whole") for each in ("rank", "alpha", "parameters", "epochs", "n")),
        TableColumn("EM@1", "share"),
        TableColumn(metric_title(headline_metric(tried[0])) if tried else "EM@k", "share"),
        TableColumn("CodeBLEU", "share"),
    ]
    note = "Beyond the study: all else as in the usual setting (rank 16, alpha 32)."
    return StudyTable(
        f"rq2-rank-alpha-{data}", f"LoRA's rank and alpha on {data}", columns, rows if tried else [], note
    )


def _cost_table(rq: str, data: str, jobs: Sequence[FinishedJob]) -> StudyTable:
    """What a solved problem costs: seconds and tokens of all answers, over the problems that were solved."""
    metric = "pass@1" if rq == "rq4" else "em@1"
    rows: list[list[CellValue]] = []
    for cell in jobs:
        cost = summarize_cost(cell.results, cell.run.methods[cell.job.method])
        answered = sum(result.error is None for result in cell.results)
        solved = sum(metric_values(cell.results, metric).values())
        each = answered / solved if solved else None
        rows.append(
            [
                cell.job.model.name,
                cell.job.title,
                cell.job.quantization,
                solved,
                cost.seconds,
                cost.prompt_tokens,
                cost.generated,
                None if each is None else cost.seconds * each,
                None if each is None else (cost.prompt_tokens + cost.generated) * each,
                *_training_value(cell, "train_seconds"),
                None if cost.peak_memory_bytes is None else cost.peak_memory_bytes / 1e9,
            ]
        )
    one = "an exact match" if metric == "em@1" else "a passed problem"
    columns = [
        *(TableColumn(each) for each in ("model", "method", "weights")),
        TableColumn("solved", "whole" if metric == "em@1" else "tenths"),
        TableColumn("s a problem", "hundredths"),
        TableColumn("tokens read", "whole"),
        TableColumn("tokens written", "whole"),
        TableColumn(f"s {one}", "tenths"),
        TableColumn(f"tokens {one}", "whole"),
        TableColumn("training s", "whole"),
        TableColumn("peak GB", "hundredths"),
    ]
    note = (
        f"Beyond the study. Solved: {'EM@1' if metric == 'em@1' else 'Pass@1 summed over problems'}. Tokens are "
        "means a problem, those written of all candidates. Seconds and the peak of memory are those of the machine "
        "that answered; training is once, on the machine that trained."
    )
    return StudyTable(f"{rq}-cost-{data}", f"What a solved problem costs on {data}", columns, rows, note)


def _training_value(job: FinishedJob, name: str) -> Iterator[float | None]:
    value = job.training_facts.get(name)
    yield None if value is None else float(value)


def memory_rows(collected: CollectedRuns) -> list[tuple[str, str, float | None, float | None, float | None]]:
    """Figure 1: model, technique, the study's GB, our estimate on a GPU, and what was measured here, in GB.

    The study's ten runs come first, by what they took, then what was trained here.
    """
    rows: list[tuple[str, str, float | None, float | None, float | None]] = []
    measured = dict(_measured_memory(collected.finished.values()))
    quantization = {"full": "none", "lora": "none", "qlora-8bit": "int8", "qlora-4bit": "nf4"}
    for (model, technique), theirs in sorted(published.published_peak_memory().items(), key=lambda item: item[1]):
        guess = training_memory_bytes(KNOWN_ARCHITECTURES[model], technique, quantization[technique], "conala") / 1e9
        rows.append((model, technique, theirs, guess, measured.pop((model, technique), None)))
    return [*rows, *((model, technique, None, None, value) for (model, technique), value in measured.items())]


def _measured_memory(jobs: Iterable[FinishedJob]) -> Iterator[tuple[tuple[str, str], float]]:
    for cell in jobs:
        peak = cell.training_facts.get("peak_memory_bytes")
        if peak and not cell.job.examples and not cell.job.pair:
            yield (cell.job.model.name, cell.job.technique), peak / 1e9


def _memory_table(collected: CollectedRuns) -> StudyTable:
    columns = [
        TableColumn("model"),
        TableColumn("technique"),
        TableColumn("study", "hundredths"),
        TableColumn("estimated here", "hundredths"),
        TableColumn("measured here", "hundredths"),
    ]
    rows: list[list[CellValue]] = [
        [model, published.TABLE3_TECHNIQUES[technique], theirs, guess, measured]
        for model, technique, theirs, guess, measured in memory_rows(collected)
    ]
    note = (
        "GB of 10^9 bytes. Study: peak GPU memory as its Figure 1 has it. Estimated: one GPU, batch 8, CoNaLa's "
        "longest rows, no recomputed activations, full fine-tuning in 32 bits. Measured: what the adapter's manifest "
        "says; on a CPU that is the whole process, Python and its libraries with it."
    )
    return StudyTable("rq2-memory", "Figure 1: peak memory of training", columns, rows, note)
