"""Accessibility of every page: axe-core (WCAG 2.2 A and AA), both themes, desktop and phone, and keyboard focus."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser.axe import violations
from tests.browser.fake_app import REFERENCE, make_engine, serve
from tests.browser.page import ComparePage, until
from tests.ui.runs import write_run
from ui.results.runs import RunLibrary

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("sandbox")]

VARIANTS = [("light", 1440), ("dark", 1440), ("light", 390), ("dark", 390)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "first.jsonl", failing=True)
    engine = make_engine()
    engine.delay = 0.0
    with serve(lambda report: engine, run_library=RunLibrary([("runs", folder)])) as address:
        yield address


@pytest.mark.parametrize(("theme", "width"), VARIANTS)
def test_compare_page_has_no_violations_before_and_after_a_run(
    driver: WebDriver, url: str, theme: str, width: int
) -> None:
    page = ComparePage(driver, url).open(theme=theme, width=width, height=900)
    assert page.find("#welcome").is_displayed()
    assert violations(driver) == []
    driver.execute_script("document.querySelector('#options button').click()")
    until(lambda: page.find("#reference textarea").is_displayed())
    page.write("#reference textarea", REFERENCE)
    page.intent("map two lists into a dictionary")
    driver.execute_script("document.querySelector('#add-method').click()")
    until(lambda: page.find("#method-add").is_displayed())
    page.run()
    page.finish()
    page.open_details(0, "Difference")
    until(lambda: page.all(".diff .line"))
    page.open_details(1, "Exact prompt")
    assert violations(driver) == []


@pytest.mark.parametrize(("theme", "width"), VARIANTS)
def test_results_page_with_an_open_problem_has_no_violations(
    driver: WebDriver, url: str, theme: str, width: int
) -> None:
    page = open_tab(driver, url, "results", theme, width)
    until(lambda: "Comparisons" in page.text("#summary"))
    page.all("#problems li button")[1].click()
    until(lambda: page.all("#answers .card"))
    assert violations(driver) == []


@pytest.mark.parametrize("name", ["advise", "arena", "train", "data", "adapters"])
@pytest.mark.parametrize(("theme", "width"), [VARIANTS[0], VARIANTS[3]])
def test_other_pages_have_no_violations(driver: WebDriver, url: str, name: str, theme: str, width: int) -> None:
    page = open_tab(driver, url, name, theme, width)
    assert violations(driver) == []
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(f"{name}-{theme}-{width}")


def open_tab(driver: WebDriver, url: str, name: str, theme: str, width: int) -> ComparePage:
    page = ComparePage(driver, url)
    page.resize(width, 900)
    driver.get(f"{url}?tab={name}&__theme={theme}")
    until(lambda: page.find(f"#tab-{name}-button").get_attribute("aria-selected") == "true", 40)
    until(lambda: [head for head in page.all("h1") if head.is_displayed()], describe=f"{name} has no heading")
    until(lambda: page.find(".model.ready"))
    return page


def test_keyboard_focus_order_and_visibility_on_compare(driver: WebDriver, url: str) -> None:
    page = ComparePage(driver, url).open()
    driver.execute_script("document.querySelector('#skip').focus()")
    visited: list[str] = []
    for _ in range(40):
        name, visible = driver.execute_script(FOCUS)
        visited.append(name)
        assert visible, f"the focus of '{name}' is not visible, after {visited}"
        if name == "run":
            break
        driver.switch_to.active_element.send_keys(Keys.TAB)
    expected = ["skip", "tab-compare-button", "run-example", "intent", "run"]
    assert [name for name in visited if name in expected] == expected
    page.find("#skip").send_keys(Keys.ENTER)
    assert driver.switch_to.active_element.get_attribute("role") == "tabpanel"
    assert driver.find_elements("css selector", "a, button, input, textarea")[0].get_attribute("id") == "skip"
    assert driver.execute_script("return document.documentElement.lang") == "en"


# Returns the id of the focused element or of its nearest parent with an id, and whether its outline, shadow or border
# differs from that without focus.
FOCUS = """
    const node = document.activeElement;
    const style = () => {
      const parts = [node, node.parentElement, node.closest(".block") || node].map((part) => getComputedStyle(part));
      const marks = ({ outlineStyle, outlineWidth, boxShadow, borderColor }) =>
        [outlineStyle, outlineWidth, boxShadow, borderColor].join();
      return parts.map(marks).join();
    };
    const focused = style();
    node.blur();
    const plain = style();
    node.focus({ focusVisible: true });
    const own = node.closest("[id]:not([id*='input'])");
    return [own ? own.id : node.tagName, focused !== plain];
"""
