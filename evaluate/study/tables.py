"""The tables of the study's questions, ours beside the study's own numbers where it has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from evaluate.cost import cost_of
from evaluate.measures import title, values_of
from evaluate.study import published
from evaluate.study.architectures import KNOWN
from evaluate.study.cells import Cell, Found
from evaluate.study.config import ALPHA, RANK, StudyConfig
from evaluate.study.estimate import training_bytes
from evaluate.study.findings import top_metric
from evaluate.study.table import Column, Table, Value

INTERVALS = "EM and parse rate: Wilson 95 % intervals; means: bootstrap 95 % intervals. Scores in percent."
_OTHER = (
    "The study's numbers are another model's ({beside}), all test problems, CodeBLEU as of 2023: compare orders, not "
    "values."
)
_SAME = "The study's numbers: arXiv 2308.10462 v3, all test problems; CodeBLEU as of 2023, by another program."


def tables(config: StudyConfig, rq: str, found: Found) -> list[Table]:
    """All tables of a question, in the order of its page; those without rows are left out."""
    made: list[Table] = []
    for data in config.question(rq).data:
        cells = [cell for cell in found.cells.values() if cell.job.data.name == data]
        if rq == "rq4":
            made += [_tests(data, cells), _cost(rq, data, cells)]
        else:
            usual = [cell for cell in cells if not cell.job.pair]
            made += [_scores(data, usual, rq), _sensitivity(data, cells), _cost(rq, data, usual)]
    if rq == "rq2":
        made.append(_memory(found))
    return [table for table in made if table.rows]


def _scores(data: str, cells: Sequence[Cell], rq: str) -> Table:
    """Table 3: techniques on models; RQ1 and RQ3 have their methods in the same columns."""
    k = top_metric(cells[0]) if cells else "em@1"
    columns = [
        Column("model"),
        Column("method"),
        Column("weights"),
        Column("parameters", "whole"),
        Column("n", "whole"),
        Column("EM@1", "share"),
        *([Column(title(k), "share")] if k != "em@1" else []),
        Column("CodeBLEU", "share"),
        Column("parses", "share"),
        Column("study parameters"),
        Column("study EM@1", "hundredths"),
        Column("study EM@10", "hundredths"),
        Column("study CodeBLEU", "hundredths"),
    ]
    metrics = dict.fromkeys(["em@1", k, "codebleu", "parses"])
    rows = [
        [
            cell.job.model.name,
            cell.job.title,
            cell.job.quantization,
            _parameters(cell),
            float(len(cell.results)),
            *(cell.interval(metric) for metric in metrics),
            *_theirs(cell),
        ]
        for cell in cells
    ]
    heading = {"rq1": "Zero-shot and ICL", "rq2": "Table 3: tuning techniques", "rq3": "LoRA, ICL and RAG"}[rq]
    return Table(f"{rq}-scores-{data}", f"{heading} on {data}", columns, rows, _note(cells))


def _theirs(cell: Cell) -> list[Value]:
    """Parameters, EM@1, EM@10 and CodeBLEU of the study; of ICL and RAG only the best EM@10 is stated, not whose."""
    job = cell.job
    row = (
        None
        if job.examples or not job.model.beside
        else published.tuned(job.model.beside, job.technique, job.data.name)
    )
    if row:
        return [row.parameters, row.em1, row.em10, row.codebleu]
    stated = None if job.examples else published.em10(job.model.beside, job.data.name, job.kind)
    return [None, None, stated, None]


def _note(cells: Sequence[Cell]) -> str:
    others = dict.fromkeys(
        cell.job.model.beside for cell in cells if cell.job.model.beside not in ("", cell.job.model.name)
    )
    known = any(cell.job.model.beside for cell in cells)
    theirs = _OTHER.format(beside=", ".join(others)) if others else _SAME if known else ""
    undefined = sum(result.scores.get("codebleu.dataflow") is None for result in cells[0].results) if cells else 0
    flow = ""
    if undefined:
        flow = (
            f"Data flow is undefined for {undefined} of {len(cells[0].results)} references, left out of their CodeBLEU."
        )
    return " ".join(part for part in (INTERVALS, flow, theirs) if part)


def _parameters(cell: Cell) -> float | None:
    """Trainable parameters: as the adapter's manifest counts them, else none are shown."""
    value = cell.training.get("trainable_parameters")
    return None if value is None else float(value)


def _tests(data: str, cells: Sequence[Cell]) -> Table:
    """Table 4: the average of tests passed and Pass@k, by difficulty."""
    ks = [k for k in (1, 2, 5) if cells and k <= cells[0].job.data.candidates]
    metrics = ["tests", *(f"pass@{k}" for k in ks)]
    columns = [
        *(Column(each) for each in ("model", "method", "weights", "difficulty")),
        Column("n", "whole"),
        *(Column(title(metric), "share") for metric in metrics),
        *(Column(f"study {title(metric)}", "hundredths") for metric in metrics),
    ]
    rows: list[list[Value]] = []
    for cell in cells:
        parts: dict[str, set[str] | None] = dict(cell.difficulties())
        if len(parts) > 1:
            parts["all"] = None
        for difficulty, problems in parts.items():
            theirs = published.apps(cell.job.technique, difficulty) if cell.is_the_studys_apps else {}
            count = float(len(values_of(cell.among(problems), "tests")))
            values = [cell.interval(metric, problems) for metric in metrics]
            head: list[Value] = [cell.job.model.name, cell.job.title, cell.job.quantization, difficulty, count]
            rows.append([*head, *values, *(theirs.get(metric) for metric in metrics)])
    note = (
        "Average tests passed: the mean over problems of the mean over samples of the share of tests passed. Pass@k: "
        "unbiased, of sampled candidates (arXiv 2107.03374). Bootstrap 95 % intervals; in percent."
    )
    if any(cell.is_the_studys_apps for cell in cells):
        note += " The study's numbers are CodeLlama-7B-Instruct's, 250 problems of each difficulty."
    elif data == "apps":
        note += " These problems come from APPS's train rows: never compare their figures with the study's."
    return Table(f"rq4-tests-{data}", f"Table 4: programs that pass tests, {data}", columns, rows, note)


def _sensitivity(data: str, cells: Sequence[Cell]) -> Table:
    """LoRA's rank and alpha, the usual pair among them."""
    tried = [cell for cell in cells if cell.job.pair]
    techniques = {(cell.job.model, cell.job.technique) for cell in tried}
    usual = [
        cell
        for cell in cells
        if (cell.job.model, cell.job.technique) in techniques and not cell.job.pair and not cell.job.examples
    ]
    rows: list[list[Value]] = [
        [
            cell.job.model.name,
            cell.job.title.partition(" r ")[0],
            *(float(number) for number in cell.job.pair or (RANK, ALPHA)),
            _parameters(cell),
            *_number(cell, "num_train_epochs"),
            float(len(cell.results)),
            *(cell.interval(metric) for metric in ("em@1", top_metric(cell), "codebleu")),
        ]
        for cell in sorted([*usual, *tried], key=lambda cell: cell.job.pair or (RANK, ALPHA))
    ]
    columns = [
        Column("model"),
        Column("technique"),
        *(Column(each, "whole") for each in ("rank", "alpha", "parameters", "epochs", "n")),
        Column("EM@1", "share"),
        Column(title(top_metric(tried[0])) if tried else "EM@k", "share"),
        Column("CodeBLEU", "share"),
    ]
    note = "Beyond the study: all else as in the usual setting (rank 16, alpha 32)."
    return Table(f"rq2-rank-alpha-{data}", f"LoRA's rank and alpha on {data}", columns, rows if tried else [], note)


def _cost(rq: str, data: str, cells: Sequence[Cell]) -> Table:
    """What a solved problem costs: seconds and tokens of all answers, over the problems that were solved."""
    metric = "pass@1" if rq == "rq4" else "em@1"
    rows: list[list[Value]] = []
    for cell in cells:
        cost = cost_of(cell.results, cell.run.methods[cell.job.method])
        answered = sum(result.error is None for result in cell.results)
        solved = sum(values_of(cell.results, metric).values())
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
                *_number(cell, "train_seconds"),
                None if cost.peak_memory_bytes is None else cost.peak_memory_bytes / 1e9,
            ]
        )
    one = "an exact match" if metric == "em@1" else "a passed problem"
    columns = [
        *(Column(each) for each in ("model", "method", "weights")),
        Column("solved", "whole" if metric == "em@1" else "tenths"),
        Column("s a problem", "hundredths"),
        Column("tokens read", "whole"),
        Column("tokens written", "whole"),
        Column(f"s {one}", "tenths"),
        Column(f"tokens {one}", "whole"),
        Column("training s", "whole"),
        Column("peak GB", "hundredths"),
    ]
    note = (
        f"Beyond the study. Solved: {'EM@1' if metric == 'em@1' else 'Pass@1 summed over problems'}. Tokens are "
        "means a problem, those written of all candidates. Seconds and the peak of memory are those of the machine "
        "that answered; training is once, on the machine that trained."
    )
    return Table(f"{rq}-cost-{data}", f"What a solved problem costs on {data}", columns, rows, note)


def _number(cell: Cell, name: str) -> Iterator[float | None]:
    value = cell.training.get(name)
    yield None if value is None else float(value)


def memory_rows(found: Found) -> list[tuple[str, str, float | None, float | None, float | None]]:
    """Figure 1: model, technique, the study's GB, our estimate on a GPU, and what was measured here, in GB.

    The study's ten runs come first, by what they took, then what was trained here.
    """
    rows: list[tuple[str, str, float | None, float | None, float | None]] = []
    measured = dict(_measured(found.cells.values()))
    quantization = {"full": "none", "lora": "none", "qlora-8bit": "int8", "qlora-4bit": "nf4"}
    for (model, technique), theirs in sorted(published.peak_memory().items(), key=lambda item: item[1]):
        guess = training_bytes(KNOWN[model], technique, quantization[technique], "conala") / 1e9
        rows.append((model, technique, theirs, guess, measured.pop((model, technique), None)))
    return [*rows, *((model, technique, None, None, value) for (model, technique), value in measured.items())]


def _measured(cells: Iterable[Cell]) -> Iterator[tuple[tuple[str, str], float]]:
    for cell in cells:
        peak = cell.training.get("peak_memory_bytes")
        if peak and not cell.job.examples and not cell.job.pair:
            yield (cell.job.model.name, cell.job.technique), peak / 1e9


def _memory(found: Found) -> Table:
    columns = [
        Column("model"),
        Column("technique"),
        Column("study", "hundredths"),
        Column("estimated here", "hundredths"),
        Column("measured here", "hundredths"),
    ]
    rows: list[list[Value]] = [
        [model, published.TUNING[technique], theirs, guess, measured]
        for model, technique, theirs, guess, measured in memory_rows(found)
    ]
    note = (
        "GB of 10^9 bytes. Study: peak GPU memory as its Figure 1 has it. Estimated: one GPU, batch 8, CoNaLa's "
        "longest rows, no recomputed activations, full fine-tuning in 32 bits. Measured: what the adapter's manifest "
        "says; on a CPU that is the whole process, Python and its libraries with it."
    )
    return Table("rq2-memory", "Figure 1: peak memory of training", columns, rows, note)
