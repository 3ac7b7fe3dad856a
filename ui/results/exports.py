"""What the Results page saves: numbers as CSV, JSON, Markdown and PNG, and the candidates with what was scored."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from errors import PromptOrTuneError
from evaluate.export import json_report, metrics_csv
from evaluate.plots import plot_report_png
from evaluate.report import markdown_report
from evaluate.results import Run

EXPORT_KINDS = {
    "csv": "Save CSV",
    "json": "Save JSON",
    "md": "Save Markdown",
    "png": "Save PNG",
    "jsonl.gz": "Save candidates",
}
_MEDIA_TYPES = {"csv": "text/csv", "json": "application/json", "md": "text/markdown", "png": "image/png"}
_MAX_NAME_LENGTH = 80


def export_runs(runs: Sequence[tuple[str, Run]], kind: str, number: int) -> dict[str, Any]:
    """The file that js/download.js saves; PromptOrTuneError in one sentence where there is nothing to save.

    `kind` is one of KINDS, and the ending of the file's name.
    """
    if not runs:
        raise PromptOrTuneError("Choose a run first: there is nothing to save yet.")
    # Names of files alone: where they lie is this machine's business.
    command = f"python -m evaluate report {' '.join(run.path.name for _, run in runs)}"
    make: dict[str, Callable[[Sequence[Run]], str | bytes]] = {
        "csv": metrics_csv,
        "json": lambda chosen: json_report(chosen, command),
        "md": lambda chosen: markdown_report(chosen, command),
        "png": plot_report_png,
        "jsonl.gz": _candidates_jsonl_gz,
    }
    content = make[kind]([run for _, run in runs])
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    stem = "-".join(run.path.name.removesuffix(".gz").removesuffix(".jsonl") for _, run in runs)[:_MAX_NAME_LENGTH]
    return {
        "name": f"{stem}.{kind}",
        "type": _MEDIA_TYPES.get(kind, "application/gzip"),
        "base64": base64.b64encode(data).decode("ascii"),
        "number": number,
    }


def _candidates_jsonl_gz(runs: Sequence[Run]) -> bytes:
    """One line a problem and method: every candidate, its scores and what the tests said of it; packed."""
    lines = (
        json.dumps({"run": run.path.name, **asdict(result)}) + "\n"
        for run in runs
        for method in run.methods
        for result in run.results(method)
    )
    return gzip.compress("".join(lines).encode("ascii"), mtime=0)
