"""Layout of the Compare page on a fake engine: themes, a phone, long answers, escaped texts."""

from __future__ import annotations

import time

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser.fake_app import DEFAULTS, EVIL
from tests.browser.page import ComparePage, until

pytestmark = pytest.mark.browser


def test_first_visit_shows_the_introduction_and_loads_nothing_from_other_hosts(page: ComparePage) -> None:
    assert page.text(".product") == "Prompt or Tune"
    assert page.text(".model-text") == "SmolLM2-135M-Instruct · NF4 · CPU"
    until(lambda: page.chips() == DEFAULTS)
    assert len(page.all("#suggestions button")) == 3
    page.screenshot("compare-first-visit")
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    fetched = page.driver.execute_script(script)
    assert [address for address in fetched if not address.startswith(page.url)] == [], (
        "the page loads something from another host"
    )
    assert page.console_errors() == []


def test_texts_are_escaped(page: ComparePage) -> None:
    page.add_adapter("lora-evil")
    page.intent(EVIL)
    page.reference(EVIL)
    page.run()
    page.finish()
    assert page.cards()[4]["code"] == EVIL
    for title in ("Exact prompt", "Raw output", "Difference"):
        page.open_details(4, title)
    time.sleep(0.5)
    page.history()[0].click()
    time.sleep(0.5)
    assert page.driver.title == "Prompt or Tune · Compare"
    assert page.all("#comparison script, #comparison img, #history img, #history script") == []


def test_long_answer_scrolls_inside_its_column(page: ComparePage) -> None:
    page.add_adapter("lora-long")
    page.intent("write five hundred lines")
    page.run()
    page.finish()
    code = page.all(".card-code pre")[4]
    height, scroll, width, inside = page.driver.execute_script(
        "const p = arguments[0]; return [p.clientHeight, p.scrollHeight, p.clientWidth, p.scrollWidth]", code
    )
    assert height <= 440 < scroll
    assert inside == width, "long lines are wrapped"
    assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert len({card["below"] for card in page.cards()}) == 1
    page.screenshot("compare-long-answer")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_phone_layout_of_compare_has_no_horizontal_scroll(driver: WebDriver, url: str, theme: str) -> None:
    page = ComparePage(driver, url).open(theme=theme, width=390, height=844)
    suggestion = page.find("#suggestions button")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", suggestion)  # Run covers the lower edge
    suggestion.click()
    until(page.intent_text)
    page.run()
    page.finish()
    width, bottom = driver.execute_script(
        "const run = document.querySelector('#run').getBoundingClientRect();"
        "return [document.documentElement.scrollWidth, run.bottom]"
    )
    assert width <= 390
    assert 700 < bottom <= 844, "Run is fixed at the lower edge"
    card = driver.execute_script("return document.querySelector('.card').getBoundingClientRect().width")
    assert 300 < card < 380
    page.screenshot(f"compare-phone-{theme}")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(driver: WebDriver, url: str, theme: str) -> None:
    page = ComparePage(driver, url).open(theme=theme)
    page.find("#suggestions button").click()
    until(page.intent_text)
    page.unfold_options()
    page.run()
    page.finish()
    page.open_details(0, "Difference")
    until(lambda: page.all(".diff .line"))
    page.screenshot(f"compare-done-{theme}")
    assert [pair for pair in driver.execute_script(CONTRAST) if pair["ratio"] < 4.5] == []


# WCAG 2.1, 1.4.3: returns the visible texts with too little contrast to the nearest opaque background.
CONTRAST = """
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92
  : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (node) => {
  for (let up = node; up; up = up.parentElement) {
    const colour = parse(getComputedStyle(up).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return parse(getComputedStyle(document.body).backgroundColor);
};
const found = new Map();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  const hidden = !node.checkVisibility() || node.closest(".sr-only, .visually-hidden, script, style");
  if (hidden || !walker.currentNode.textContent.trim()) continue;
  const [fore, back] = [parse(getComputedStyle(node).color), ground(node)];
  const [a, b] = [light(fore), light(back)].sort((x, y) => y - x);
  const ratio = Math.round((a + 0.05) / (b + 0.05) * 100) / 100;
  const key = fore + "|" + back;
  const text = node.textContent.trim().slice(0, 40);
  if (!found.has(key)) found.set(key, { ratio, fore, back, text, of: node.className });
}
return Array.from(found.values());
"""
