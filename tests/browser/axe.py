"""Asks axe-core what is wrong with a page for people who do not see it, or use no mouse."""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache
from pathlib import Path
from typing import Any

from selenium.webdriver.remote.webdriver import WebDriver

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
LEAST_RULES = 20
_RUN = """
    const [tags, done] = arguments;
    const told = (node) => node.target.join(" ") + ": " + node.failureSummary;
    axe.run(document, { runOnly: tags }).then(
      (found) => done({ rules: found.passes.length,
                        violations: found.violations.map((each) => [each.id, each.help, each.nodes.map(told)]) }),
      (fault) => done({ rules: 0, violations: [["axe", String(fault), []]] }));
"""


@lru_cache(maxsize=1)
def script() -> str:
    """The text of axe-core; it comes with a package that is otherwise not used."""
    files = importlib.metadata.files("axe-playwright-python") or []
    found = next(file for file in files if file.name == "axe.min.js")
    return Path(str(found.locate())).read_text(encoding="utf-8")


def faults(driver: WebDriver) -> list[Any]:
    """Every violation of WCAG 2.2 A and AA and of axe's best practices on the page as it is: [rule, help, places]."""
    driver.execute_script(script())
    found = driver.execute_async_script(_RUN, TAGS)
    assert found["rules"] >= LEAST_RULES or found["violations"], "axe looked at next to nothing"
    return list(found["violations"])
