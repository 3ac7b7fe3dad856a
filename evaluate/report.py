"""What a person reads of one or several runs: tables on the terminal, or a Markdown file with its provenance."""

from __future__ import annotations

from collections.abc import Sequence

from errors import PromptOrTuneError
from evaluate.results import Run
from evaluate.score_run import has_tests, require_scored
from evaluate.table import (
    compare_methods,
    compare_runs,
    method_rows,
    render_comparisons,
    render_methods,
    table_footnote,
)

MethodPairs = Sequence[tuple[str, str]]


def text_report(runs: Sequence[Run], markdown: bool = False, pairs: MethodPairs | None = None) -> str:
    """The table and comparisons of each run, then the methods that several runs share against one another.

    `pairs` are the methods to compare, in place of the usual ones (see evaluate.table.comparisons).
    """
    blocks = [_run_section(run, markdown, pairs) for run in runs]
    if len(runs) > 1:
        try:
            shared = compare_runs(runs)
        except PromptOrTuneError as refusal:
            blocks.append(str(refusal))
        else:
            table = render_comparisons(shared, markdown)
            blocks.append(f"Across files:\n\n{table}" if shared else "The files share no method.")
    return "\n\n".join(blocks)


def markdown_report(runs: Sequence[Run], command: str, pairs: MethodPairs | None = None) -> str:
    """The report as a file of its own, with the commands that gave the answers and the one that makes it."""
    title = ", ".join(dict.fromkeys(str(run.settings["data"]) for run in runs))
    tables = text_report(runs, markdown=True, pairs=pairs)
    made = [str(run.provenance["command"]) for run in runs if run.provenance.get("command")]
    commands = "\n".join(dict.fromkeys([*made, command]))
    return f"# Methods on {title}\n\n{tables}\n\nMade by:\n\n```sh\n{commands}\n```\n"


def _run_section(run: Run, markdown: bool, pairs: MethodPairs | None) -> str:
    try:
        require_scored([run])
    except PromptOrTuneError as refusal:
        return str(refusal)
    rows = method_rows(run)
    if not rows:
        return f"{run.path} holds no results yet."
    parts = [_provenance(run, markdown), render_methods(rows, markdown), table_footnote(rows)]
    missing = [f"{name} {len(run.results(name))}" for name in run.methods if len(run.results(name)) < len(run.problems)]
    if missing:
        parts.append(f"Not finished, of {len(run.problems)} problems: {', '.join(missing)}.")
        return "\n\n".join(parts)
    failed = [result for name in run.methods for result in run.results(name) if result.error]
    if failed:
        first = f"{failed[0].method}, problem {failed[0].problem}: {failed[0].error}"
        parts.append(f"{len(failed)} failed, scored 0 and counted. The first: {first}")
    compared = compare_methods(run, pairs)
    if compared:
        parts.append(render_comparisons(compared, markdown))
        parts.append("Paired over the same problems; bootstrap 95 % intervals; * is a corrected p below 0.05.")
    return "\n\n".join(parts)


def _scoring_lines(run: Run) -> list[str]:
    """How tests were run, or that they were not."""
    tests = run.scored_with.get("tests")
    if not has_tests(run.problems):
        return []
    if tests is None:
        return [f"Tests: have not run; `python -m evaluate score {run.path}` runs them"]
    limits = tests["limits"]
    memory = f"{limits['memory_bytes'] / 2**20:.0f} MB"
    checks = [check for name in run.methods for result in run.results(name) for each in result.checks for check in each]
    unprotected = sum(not check["protected"] for check in checks)
    refused = sum(check["status"] == "refused" for check in checks)
    notes = [
        f"{len(checks)} ran",
        *([f"{unprotected} with the expected value inside of the sandbox"] if unprotected else []),
        *([f"{refused} could not be run and count as failed"] if refused else []),
    ]
    return [
        f"Tests: sandbox layer {tests['layer']}, {limits['wall_seconds']:g} s and {memory} each; {', '.join(notes)}"
    ]


def _provenance(run: Run, markdown: bool) -> str:
    settings, decoding = run.settings, run.settings["decoding"]
    kind = (
        f"{decoding['mode']}, {decoding['candidates']} candidates" if decoding["candidates"] > 1 else decoding["mode"]
    )
    styles: dict[str, list[str]] = {}
    for name, method in run.methods.items():
        styles.setdefault(f"{method.get('style', 'unknown')} {method.get('fingerprint', '')}".strip(), []).append(name)
    adapters = {value["adapter"]: value["adapter_digest"] for value in run.methods.values() if value.get("adapter")}
    versions = ", ".join(f"{name} {number}" for name, number in run.provenance.get("versions", {}).items())
    facts = [
        f"Base: {settings['base_id']} at {settings['base_revision']}, {settings['quantization']}, {settings['device']}",
        f"Data: {settings['data']} {settings['split']}, n = {settings['n']}, {settings['data_digest']}",
        f"Decoding: {kind}, at most {decoding['max_new_tokens']} new tokens; batch {settings['batch']}",
        f"Seed: {settings['seed']}",
        *(f"Prompt style: {style}: {', '.join(names)}" for style, names in styles.items()),
        *(f"Adapter: {name} {digest}" for name, digest in adapters.items()),
        *_scoring_lines(run),
        f"Versions: {versions}",
        f"Started: {run.provenance.get('started', 'unknown')}",
    ]
    return "\n".join(f"- {fact}" if markdown else fact for fact in facts)
