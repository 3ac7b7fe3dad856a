"""Tables of the study's questions, with the published numbers beside the measured ones, as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from common.format import csv_text, format_percent, text_table
from evaluate.stats import Interval, metric_title, metric_values, summarize_cost
from evaluate.study import schema
from evaluate.study.config import DEFAULT_LORA_ALPHA, DEFAULT_LORA_RANK, KNOWN_ARCHITECTURES, StudyConfig
from evaluate.study.findings import headline_metric
from evaluate.study.jobs import CollectedRuns, FinishedJob
from evaluate.study.plan import fit_training

CellValue = str | float | Interval | None
# Shares are stored in [0, 1] and printed in percent; numbers are printed with so many decimals.
ColumnKind = Literal["text", "share", "integer", "tenths", "hundredths"]
_DECIMALS = {"integer": 0, "tenths": 1, "hundredths": 2}


@dataclass(frozen=True)
class TableColumn:
    """A column's title and the kind of its values."""

    title: str
    kind: ColumnKind = "text"


@dataclass(frozen=True)
class StudyTable:
    """A table of values. `name` is the name of its CSV file, `title` its heading, `note` the text below it."""

    name: str
    title: str
    columns: Sequence[TableColumn]
    rows: Sequence[Sequence[CellValue]]
    note: str = ""

    def to_markdown(self) -> str:
        """Return heading, table and note as Markdown; columns without any value are left out."""
        used = [index for index in range(len(self.columns)) if any(row[index] is not None for row in self.rows)]
        header = [self.columns[index].title for index in used]
        lines = [[format_cell(row[index], self.columns[index].kind) for index in used] for row in self.rows]
        parts = [f"## {self.title}", text_table(header, lines, markdown=True), self.note]
        return "\n\n".join(part for part in parts if part)

    def to_csv(self) -> str:
        """Return the table as CSV; an interval has three columns. Scores are in percent, as in the study's files."""
        wide = [any(isinstance(row[index], Interval) for row in self.rows) for index in range(len(self.columns))]
        header: list[str] = []
        for column, is_wide in zip(self.columns, wide, strict=True):
            header += [column.title, *([f"{column.title} low", f"{column.title} high"] if is_wide else [])]
        lines: list[list[str]] = []
        for row in self.rows:
            line: list[str] = []
            for value, column, is_wide in zip(row, self.columns, wide, strict=True):
                line += _csv_cells(value, column.kind, is_wide)
            lines.append(line)
        return csv_text(header, lines)


def format_cell(value: CellValue, kind: ColumnKind) -> str:
    """Return a value as text; "-" for an empty one."""
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
    """Return all tables of a question that have rows, in the order of its report."""
    tables: list[StudyTable] = []
    for data in config.question(rq).data:
        finished = [item for item in collected.finished.values() if item.job.data.name == data]
        if rq == "rq4":
            tables += [_tests_table(data, finished), _cost_table(rq, data, finished)]
        else:
            default_jobs = [item for item in finished if not item.job.pair]
            tables += [
                _scores_table(data, default_jobs, rq),
                _sensitivity_table(data, finished),
                _cost_table(rq, data, default_jobs),
            ]
    if rq == "rq2":
        tables.append(_memory_table(collected))
    return [table for table in tables if table.rows]


def _scores_table(data: str, jobs: Sequence[FinishedJob], rq: str) -> StudyTable:
    """Return Table 3: techniques by model. The methods of rq1 and rq3 have the same columns."""
    k = headline_metric(jobs[0]) if jobs else "em@1"
    columns = [
        TableColumn("model"),
        TableColumn("method"),
        TableColumn("weights"),
        TableColumn("parameters", "integer"),
        TableColumn("n", "integer"),
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
            item.job.model.name,
            item.job.title,
            item.job.quantization,
            _trainable_parameters(item),
            float(len(item.results)),
            *(item.interval(metric) for metric in metrics),
            *_published_values(item),
        ]
        for item in jobs
    ]
    heading = {"rq1": "Zero-shot and ICL", "rq2": "Table 3: tuning techniques", "rq3": "LoRA, ICL and RAG"}[rq]
    return StudyTable(f"{rq}-scores-{data}", f"{heading} on {data}", columns, rows, _published_note(jobs))


def _published_values(finished_job: FinishedJob) -> list[CellValue]:
    """Return the published parameters, EM@1, EM@10 and CodeBLEU; ICL and RAG have none for a number of examples."""
    job = finished_job.job
    row = (
        None
        if job.examples or not job.model.beside
        else schema.published_score(job.model.beside, job.technique, job.data.name)
    )
    if row:
        return [row.parameters, row.em1, row.em10, row.codebleu]
    stated = None if job.examples else schema.published_em10(job.model.beside, job.data.name, job.kind)
    return [None, None, stated, None]


def _published_note(jobs: Sequence[FinishedJob]) -> str:
    others = dict.fromkeys(
        item.job.model.beside for item in jobs if item.job.model.beside not in ("", item.job.model.name)
    )
    known = any(item.job.model.beside for item in jobs)
    theirs = _OTHER_MODEL_NOTE.format(beside=", ".join(others)) if others else _SAME_MODEL_NOTE if known else ""
    undefined = sum(result.scores.get("codebleu.dataflow") is None for result in jobs[0].results) if jobs else 0
    flow = ""
    if undefined:
        flow = (
            f"Data flow is undefined for {undefined} of {len(jobs[0].results)} references, left out of their CodeBLEU."
        )
    return " ".join(part for part in (INTERVALS_NOTE, flow, theirs) if part)


def _trainable_parameters(job: FinishedJob) -> float | None:
    """Return the trainable parameters from the adapter's manifest; None if unknown."""
    value = job.training_facts.get("trainable_parameters")
    return None if value is None else float(value)


def _tests_table(data: str, jobs: Sequence[FinishedJob]) -> StudyTable:
    """Return Table 4: the average of tests passed and Pass@k, by difficulty."""
    ks = [k for k in (1, 2, 5) if jobs and k <= jobs[0].job.data.candidates]
    metrics = ["tests", *(f"pass@{k}" for k in ks)]
    columns = [
        *(TableColumn(each) for each in ("model", "method", "weights", "difficulty")),
        TableColumn("n", "integer"),
        *(TableColumn(metric_title(metric), "share") for metric in metrics),
        *(TableColumn(f"study {metric_title(metric)}", "hundredths") for metric in metrics),
    ]
    rows: list[list[CellValue]] = []
    for item in jobs:
        parts: dict[str, set[str] | None] = dict(item.problems_by_difficulty())
        if len(parts) > 1:
            parts["all"] = None
        for difficulty, problems in parts.items():
            theirs = schema.published_apps_scores(item.job.technique, difficulty) if item.is_apps_test_split else {}
            count = float(len(metric_values(item.results_for(problems), "tests")))
            values = [item.interval(metric, problems) for metric in metrics]
            head: list[CellValue] = [item.job.model.name, item.job.title, item.job.quantization, difficulty, count]
            rows.append([*head, *values, *(theirs.get(metric) for metric in metrics)])
    note = (
        "Average tests passed: the mean over problems of the mean over samples of the share of tests passed. Pass@k: "
        "unbiased, of sampled candidates (arXiv 2107.03374). Bootstrap 95 % intervals; in percent."
    )
    if any(item.is_apps_test_split for item in jobs):
        note += " The study's numbers are CodeLlama-7B-Instruct's, 250 problems of each difficulty."
    elif data == "apps":
        note += " These problems come from APPS's train rows: never compare their figures with the study's."
    return StudyTable(f"rq4-tests-{data}", f"Table 4: programs that pass tests, {data}", columns, rows, note)


def _sensitivity_table(data: str, jobs: Sequence[FinishedJob]) -> StudyTable:
    """Return the scores by LoRA's rank and alpha, with the default pair among them."""
    tried = [item for item in jobs if item.job.pair]
    techniques = {(item.job.model, item.job.technique) for item in tried}
    default_jobs = [
        item
        for item in jobs
        if (item.job.model, item.job.technique) in techniques and not item.job.pair and not item.job.examples
    ]
    rows: list[list[CellValue]] = [
        [
            item.job.model.name,
            item.job.title.partition(" r ")[0],
            *(float(number) for number in item.job.pair or (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA)),
            _trainable_parameters(item),
            *_training_value(item, "num_train_epochs"),
            float(len(item.results)),
            *(item.interval(metric) for metric in ("em@1", headline_metric(item), "codebleu")),
        ]
        for item in sorted(
            [*default_jobs, *tried], key=lambda item: item.job.pair or (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA)
        )
    ]
    columns = [
        TableColumn("model"),
        TableColumn("technique"),
        *(TableColumn(each, "integer") for each in ("rank", "alpha", "parameters", "epochs", "n")),
        TableColumn("EM@1", "share"),
        TableColumn(metric_title(headline_metric(tried[0])) if tried else "EM@k", "share"),
        TableColumn("CodeBLEU", "share"),
    ]
    note = "Beyond the study: all else as in the default_jobs setting (rank 16, alpha 32)."
    return StudyTable(
        f"rq2-rank-alpha-{data}", f"LoRA's rank and alpha on {data}", columns, rows if tried else [], note
    )


def _cost_table(rq: str, data: str, jobs: Sequence[FinishedJob]) -> StudyTable:
    """Return the cost of a solved problem: seconds and tokens of all answers, over the solved problems."""
    metric = "pass@1" if rq == "rq4" else "em@1"
    rows: list[list[CellValue]] = []
    for item in jobs:
        cost = summarize_cost(item.results, item.run.methods[item.job.method])
        answered = sum(result.error is None for result in item.results)
        solved = sum(metric_values(item.results, metric).values())
        each = answered / solved if solved else None
        rows.append(
            [
                item.job.model.name,
                item.job.title,
                item.job.quantization,
                solved,
                cost.seconds,
                cost.prompt_tokens,
                cost.generated,
                None if each is None else cost.seconds * each,
                None if each is None else (cost.prompt_tokens + cost.generated) * each,
                *_training_value(item, "train_seconds"),
                None if cost.peak_memory_bytes is None else cost.peak_memory_bytes / 1e9,
            ]
        )
    one = "an exact match" if metric == "em@1" else "a passed problem"
    columns = [
        *(TableColumn(each) for each in ("model", "method", "weights")),
        TableColumn("solved", "integer" if metric == "em@1" else "tenths"),
        TableColumn("s a problem", "hundredths"),
        TableColumn("tokens read", "integer"),
        TableColumn("tokens written", "integer"),
        TableColumn(f"s {one}", "tenths"),
        TableColumn(f"tokens {one}", "integer"),
        TableColumn("training s", "integer"),
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
    """Return the rows of Figure 1: model, technique, and GB as published, as estimated on a GPU, and as measured here.

    The study's ten runs come first, by published memory, then the other adapters that were trained here.
    """
    rows: list[tuple[str, str, float | None, float | None, float | None]] = []
    measured = dict(_measured_memory(collected.finished.values()))
    quantization = {"full": "none", "lora": "none", "qlora-8bit": "int8", "qlora-4bit": "nf4"}
    for (model, technique), theirs in sorted(schema.published_peak_memory().items(), key=lambda item: item[1]):
        fit = fit_training(KNOWN_ARCHITECTURES[model], technique, quantization[technique], "conala", schema.GPU_BYTES)
        rows.append((model, technique, theirs, fit.memory / 1e9, measured.pop((model, technique), None)))
    return [*rows, *((model, technique, None, None, value) for (model, technique), value in measured.items())]


def _measured_memory(jobs: Iterable[FinishedJob]) -> Iterator[tuple[tuple[str, str], float]]:
    for item in jobs:
        peak = item.training_facts.get("peak_memory_bytes")
        if peak and not item.job.examples and not item.job.pair:
            yield (item.job.model.name, item.job.technique), peak / 1e9


def _memory_table(collected: CollectedRuns) -> StudyTable:
    columns = [
        TableColumn("model"),
        TableColumn("technique"),
        TableColumn("study", "hundredths"),
        TableColumn("estimated here", "hundredths"),
        TableColumn("measured here", "hundredths"),
    ]
    rows: list[list[CellValue]] = [
        [model, schema.TABLE3_TECHNIQUES[technique], theirs, guess, measured]
        for model, technique, theirs, guess, measured in memory_rows(collected)
    ]
    note = (
        "GB of 10^9 bytes. Study: peak GPU memory as its Figure 1 has it. Estimated: a GPU of 24 GB, CoNaLa's longest "
        "rows, batch 8 in the largest micro-batch that fits, full fine-tuning in 32 bits. Measured: what the adapter's "
        "manifest says; on a CPU that is the whole process, Python and its libraries with it."
    )
    return StudyTable("rq2-memory", "Figure 1: peak memory of training", columns, rows, note)
