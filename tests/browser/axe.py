"""Accessibility check of a page with axe-core."""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache
from pathlib import Path
from typing import Any

from selenium.webdriver.remote.webdriver import WebDriver

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
MIN_RULES = 20
_RUN = """
    const [tags, done] = arguments;
    const describe = (node) => node.target.join(" ") + ": " + node.failureSummary;
    axe.run(document, { runOnly: tags }).then(
      (result) => done({ rules: result.passes.length, violations: result.violations.map(
        (violation) => [violation.id, violation.help, violation.nodes.map(describe)]) }),
      (error) => done({ rules: 0, violations: [["axe", String(error), []]] }));
"""


@lru_cache(maxsize=1)
def script() -> str:
    """Return the source of axe-core, from a package of which only this file is used."""
    files = importlib.metadata.files("axe-playwright-python") or []
    file = next(file for file in files if file.name == "axe.min.js")
    return Path(str(file.locate())).read_text(encoding="utf-8")


def violations(driver: WebDriver) -> list[Any]:
    """Return all violations of WCAG 2.2 A and AA and of axe's best practices: [rule, help, elements]."""
    driver.execute_script(script())
    result = driver.execute_async_script(_RUN, TAGS)
    assert result["rules"] >= MIN_RULES or result["violations"], "axe checked too few rules"
    return list(result["violations"])
