"""Jinja2 templates of the pages, with autoescape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def render(template: str, **values: Any) -> Markup:
    """Render `template` (a path relative to ui/) with `values`; text is escaped, Markup is inserted as it is."""
    return Markup(_ENVIRONMENT.get_template(template).render(**values))  # noqa: S704 - the template escapes
