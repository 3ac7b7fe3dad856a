"""Report of an advice as HTML: a fragment for the page, and a page of its own, both from the same template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.format import format_bytes, format_clock, format_p_value

_FOLDER = Path(__file__).parent
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
)
MAX_ANSWERS = 300
_CURVE_WIDTH, _CURVE_HEIGHT = 420.0, 150.0
_CURVE_MARGIN = 34.0


def render_body(result: Mapping[str, Any]) -> Markup:
    """Return the report as a fragment, whose classes begin with `advice-` (report.css)."""
    return Markup(_template("report.html.jinja").render(**_values(result)))  # noqa: S704 - the template escapes


def render_page(result: Mapping[str, Any]) -> str:
    """Return the report as an HTML page without links to other files."""
    css = Markup((_FOLDER / "report.css").read_text(encoding="utf-8"))  # noqa: S704 - a file of this program
    return _template("page.html.jinja").render(body=render_body(result), css=css, name=result["data"]["name"])


def _template(name: str) -> Any:
    return _ENVIRONMENT.get_template(name)


def _values(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "result": result,
        "families": [_family_row(family, result) for family in result["families"]],
        "comparisons": [_comparison_row(pair) for pair in result["comparisons"]],
        "curve": _curve(result["curve"]),
        "search": [
            {**row, "validation": _percent(row["validation"]), "several": result["data"]["folds"] > 1}
            for row in result["search"]
        ],
        "answers": result["answers"][:MAX_ANSWERS],
        "left_out": max(0, len(result["answers"]) - MAX_ANSWERS),
        "kinds": _kinds(result["answers"]),
        "provenance": _provenance_lines(result["provenance"]),
    }


def _family_row(family: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "label": family["label"],
        "method": family["method"],
        "note": family["note"],
        "chosen": family["family"] == result["recommendation"]["family"],
        "score": _percent(family["value"]),
        "interval": f"{100 * family['low']:.1f} to {100 * family['high']:.1f}" if family["value"] is not None else "",
        "left": f"{100 * (family['low'] or 0):.2f}%",
        "width": f"{100 * ((family['high'] or 0) - (family['low'] or 0)):.2f}%",
        "at": f"{100 * (family['value'] or 0):.2f}%",
        "measured": family["value"] is not None,
        "codebleu": _percent(family["codebleu"]),
        "validation": _percent(family["validation"]),
        "prompt_tokens": f"{family['prompt_tokens']:.0f}" if family["prompt_tokens"] is not None else "",
        "seconds": f"{family['seconds']:.2f}" if family["seconds"] is not None else "",
        "memory": format_bytes(family["memory_bytes"]) if family["memory_bytes"] else "",
        "training": format_clock(family["train_seconds"]) if family["train_seconds"] else "none",
        "size": format_bytes(family["adapter_bytes"]) if family["adapter_bytes"] else "none",
    }


def _comparison_row(pair: Mapping[str, Any]) -> dict[str, Any]:
    a, b, difference = pair["a"], pair["b"], float(pair["difference"])
    if difference < 0:
        a, b, difference = b, a, -difference
    is_significant = float(pair["corrected"]) < 0.05
    return {
        "text": f"{a} beats {b}" if is_significant else f"{a} and {b}: no difference shown",
        "difference": f"{100 * difference:+.1f}",
        "p": format_p_value(float(pair["p"])),
        "corrected": format_p_value(float(pair["corrected"])),
        "significant": is_significant,
    }


def _curve(curve: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the learning curve with coordinates in a box of _CURVE_WIDTH by _CURVE_HEIGHT."""
    if curve is None:
        return None
    points = curve["points"]
    largest = max(int(point["rows"]) for point in points)
    top = max(0.05, *(float(point["high"]) for point in points))

    def x(rows: float) -> float:
        return round(_CURVE_MARGIN + (_CURVE_WIDTH - 2 * _CURVE_MARGIN) * rows / largest, 1)

    def y(value: float) -> float:
        return round(_CURVE_HEIGHT - 24 - (_CURVE_HEIGHT - 44) * value / top, 1)

    marks = [
        {
            "x": x(point["rows"]),
            "y": y(point["value"]),
            "low": y(point["low"]),
            "high": y(point["high"]),
            "rows": point["rows"],
            "percent": f"{100 * point['value']:.0f}",
        }
        for point in points
    ]
    return {
        "label": curve["label"],
        "sentence": curve["sentence"],
        "trained": curve.get("trained", False),
        "width": _CURVE_WIDTH,
        "height": _CURVE_HEIGHT,
        "marks": marks,
        "line": " ".join(f"{mark['x']},{mark['y']}" for mark in marks),
        "base": y(0.0),
        "left": _CURVE_MARGIN,
    }


def _kinds(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each label how many answers are of each kind, the most frequent first."""
    counts: dict[str, dict[str, int]] = {}
    for row in answers:
        for answer in row["answers"]:
            kinds = counts.setdefault(answer["label"], {})
            kinds[answer["kind"]] = kinds.get(answer["kind"], 0) + 1
    return [
        {"label": label, "kinds": sorted(kinds.items(), key=lambda item: (-item[1], item[0]))}
        for label, kinds in counts.items()
    ]


def _provenance_lines(provenance: Mapping[str, Any]) -> list[str]:
    lines = []
    if provenance.get("base_id"):
        lines.append(
            f"Base: {provenance['base_id']} at {str(provenance['base_revision'])[:24]}, {provenance['quantization']}, "
            f"{provenance['device']}"
        )
        decoding = provenance["decoding"]
        lines.append(f"Decoding: {decoding['mode']}, at most {decoding['max_new_tokens']} new tokens")
        lines.append(f"Test rows: {', '.join(provenance['data_digests'])}")
        prompts = {f"{prompt['style']} {prompt['fingerprint']}" for prompt in provenance["prompts"].values()}
        lines.append(f"Prompts: {', '.join(sorted(prompts))}")
        versions = provenance.get("versions") or {}
        lines.append("Versions: " + ", ".join(f"{name} {value}" for name, value in versions.items()))
    lines.append(
        f"Seed: {provenance['seed']}; began {provenance['started']}, {format_clock(provenance['seconds'])} in all"
    )
    return lines


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
