"""Every page against axe-core: WCAG 2.2 A and AA and its best practices, in both themes, on a desktop and a phone.

Beside what axe finds: the keyboard reaches everything in the order of the page, and shows where it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser.axe import faults
from tests.browser.fake_app import REFERENCE, make_engine, serve
from tests.browser.page import ComparePage, until
from tests.ui.runs import write_run
from ui.results.runs import RunLibrary

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("sandbox")]

LOOKS = [("light", 1440), ("dark", 1440), ("light", 390), ("dark", 390)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "first.jsonl", failing=True)
    engine = make_engine()
    engine.delay = 0.0
    with serve(lambda report: engine, shelf=RunLibrary([("runs", folder)])) as address:
        yield address


@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_compare_before_and_after_a_run(driver: WebDriver, url: str, theme: str, width: int) -> None:
    page = ComparePage(driver, url).open(theme=theme, width=width, height=900)
    assert page.find("#welcome").is_displayed()
    assert faults(driver) == []
    driver.execute_script("document.querySelector('#options button').click()")
    until(lambda: page.find("#reference textarea").is_displayed())
    page.write("#reference textarea", REFERENCE)
    page.intent("map two lists into a dictionary")
    driver.execute_script("document.querySelector('#add-method').click()")
    until(lambda: page.find("#method-add").is_displayed())
    page.run()
    page.finish()
    page.fold(0, "Difference")
    until(lambda: page.all(".diff .line"))
    page.fold(1, "Exact prompt")
    assert faults(driver) == []


@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_results_with_an_open_problem(driver: WebDriver, url: str, theme: str, width: int) -> None:
    page = opened(driver, url, "results", theme, width)
    until(lambda: "Comparisons" in page.text("#summary"))
    page.all("#problems li button")[1].click()
    until(lambda: page.all("#answers .card"))
    assert faults(driver) == []


@pytest.mark.parametrize("name", ["arena", "train", "adapters"])
@pytest.mark.parametrize(("theme", "width"), [LOOKS[0], LOOKS[3]])
def test_a_page_as_it_comes_up(driver: WebDriver, url: str, name: str, theme: str, width: int) -> None:
    page = opened(driver, url, name, theme, width)
    assert faults(driver) == []
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(f"{name}-{theme}-{width}")


def opened(driver: WebDriver, url: str, name: str, theme: str, width: int) -> ComparePage:
    page = ComparePage(driver, url)
    page.resize(width, 900)
    driver.get(f"{url}?tab={name}&__theme={theme}")
    until(lambda: page.find(f"#tab-{name}-button").get_attribute("aria-selected") == "true", 40)
    until(lambda: [head for head in page.all("h1") if head.is_displayed()], describe=f"{name} has no heading")
    until(lambda: page.find(".model.ready"))
    return page


def test_the_keyboard_goes_through_compare_in_order_and_is_seen(driver: WebDriver, url: str) -> None:
    page = ComparePage(driver, url).open()
    driver.execute_script("document.querySelector('#skip').focus()")
    passed: list[str] = []
    for _ in range(40):
        name, seen = driver.execute_script(FOCUS)
        passed.append(name)
        assert seen, f"nothing shows that '{name}' has the focus, after {passed}"
        if name == "run":
            break
        driver.switch_to.active_element.send_keys(Keys.TAB)
    wanted = ["skip", "tab-compare-button", "run-example", "intent", "run"]
    assert [name for name in passed if name in wanted] == wanted
    page.find("#skip").send_keys(Keys.ENTER)
    assert driver.switch_to.active_element.get_attribute("role") == "tabpanel"
    assert driver.find_elements("css selector", "a, button, input, textarea")[0].get_attribute("id") == "skip"
    assert driver.execute_script("return document.documentElement.lang") == "en"


# The id of what has the focus or of the nearest thing around it that has one, and whether an outline, a shadow or a
# border tells it from how it looks otherwise.
FOCUS = """
    const node = document.activeElement;
    const look = () => {
      const parts = [node, node.parentElement, node.closest(".block") || node].map((part) => getComputedStyle(part));
      const marks = ({ outlineStyle, outlineWidth, boxShadow, borderColor }) =>
        [outlineStyle, outlineWidth, boxShadow, borderColor].join();
      return parts.map(marks).join();
    };
    const focused = look();
    node.blur();
    const plain = look();
    node.focus({ focusVisible: true });
    const own = node.closest("[id]:not([id*='input'])");
    return [own ? own.id : node.tagName, focused !== plain];
"""
