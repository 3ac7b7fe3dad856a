"""Page object of the Compare page for the browser tests: its actions and its content."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")
SCREENSHOTS = "PROMPT_OR_TUNE_SCREENSHOTS"
# The text of an element as it is displayed. Gradio leaves the seconds of an ended event in the page, transparent.
READ_TEXT = """
    const readText = (element) => {
      if (!element.checkVisibility()) return "";
      const ended = Array.from(element.querySelectorAll("[data-testid=status-tracker]"));
      const transparent = ended.filter((tracker) => getComputedStyle(tracker).opacity === "0");
      transparent.forEach((tracker) => { tracker.style.display = "none"; });
      const text = (element.innerText ?? element.textContent).trim();
      transparent.forEach((tracker) => { tracker.style.display = ""; });
      return text;
    };
"""


def until(what: Callable[[], T], seconds: float = 20, describe: str = "") -> T:
    """Wait until `what` returns a true value, and return it; raise AssertionError after `seconds`.

    Errors of elements that are being rendered are ignored.
    """
    began = time.monotonic()
    value: Any = None
    while (waited := time.monotonic() - began) < seconds:
        try:
            value = what()
        except WebDriverException as error:
            value = None
            describe = describe or str(error.msg)
        if value:
            return value
        time.sleep(0.05 if waited < 2 else 0.2)  # each look costs the browser time that a long wait is for
    raise AssertionError(f"Not true within {seconds} s: {describe or what}")


class ComparePage:
    """The Compare page in a browser."""

    def __init__(self, driver: WebDriver, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(
        self, *, theme: str = "light", width: int = 1440, height: int = 1000, ready: bool = True, first: bool = True
    ) -> ComparePage:
        """Load the page in a window of this size and wait until it is visible and, if `ready`, the model is ready.

        If `first`, clear the storage of the browser before, and wait until the fields are stored in it again.
        """
        self.resize(width, height)
        if first:
            self.clear_storage()
        self.driver.get(f"{self.url}?__theme={theme}")
        until(lambda: self.find("#run").is_displayed(), 60, "the page was not displayed")
        if ready:
            until(lambda: self.find(".model.ready"), 240, "the model did not become ready")
        if first:
            stored = "return localStorage.getItem('prompt-or-tune.fields')"
            until(lambda: self.driver.execute_script(stored), describe="the page did not restore its fields")
        return self

    def clear_storage(self) -> None:
        """Clear the storage of the browser."""
        if self.driver.current_url.startswith(self.url):
            self.driver.execute_script("localStorage.clear()")
        else:
            stored = {"origin": self.url.rstrip("/"), "storageTypes": "local_storage"}
            self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", stored)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window for the next page; a width below 600 pixels emulates a phone."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return texts[0] if (texts := self.texts(css)) else self.find(css).text

    def texts(self, css: str) -> list[str]:
        """Return the texts of all elements, '' for those that are not rendered."""
        script = READ_TEXT + "return Array.from(document.querySelectorAll(arguments[0]), readText);"
        return list(self.driver.execute_script(script, css))

    def write(self, css: str, text: str) -> None:
        """Replace the text of a field in one step, with the events of typing."""
        script = """
            const [field, text] = arguments;
            const proto = field.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
            field.focus();
            Object.getOwnPropertyDescriptor(proto.prototype, "value").set.call(field, text);
            for (const name of ["input", "change"]) field.dispatchEvent(new Event(name, { bubbles: true }));
        """
        self.driver.execute_script(script, self.find(css), text)
        time.sleep(0.2)

    def intent(self, text: str) -> None:
        self.write("#intent textarea", text)

    def intent_text(self) -> str:
        return str(self.find("#intent textarea").get_property("value"))

    def choose(self, css: str, label: str) -> None:
        """Choose the first entry of a dropdown that begins with `label`."""
        self.find(f"{css} input").click()

        def find_entry() -> WebElement | None:
            entries = self.all("ul[role=listbox] li")
            return next((entry for entry in entries if entry.text.strip(" ✓\n").startswith(label)), None)

        option = until(find_entry, describe=f"{css} has no choice '{label}'")
        assert option is not None
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'nearest'})", option)
        option.click()
        time.sleep(0.4)

    def search(self, css: str, words: str) -> None:
        """Type into a dropdown after a click on it, and choose the first remaining entry."""
        field = self.find(f"{css} input")
        field.click()
        time.sleep(0.3)
        field.send_keys(words)
        until(lambda: all(words in text for text in self.texts("ul[role=listbox] li")))
        self.find("ul[role=listbox] li").click()

    def unfold_options(self) -> None:
        """Open the reference and the options, whose fields Gradio renders only then."""
        if not self.all("#reference textarea") or not self.find("#reference textarea").is_displayed():
            self.find("#options button").click()
            until(lambda: self.find("#reference textarea").is_displayed())

    def reference(self, code: str) -> None:
        self.unfold_options()
        self.write("#reference textarea", code)

    def chips(self) -> list[str]:
        return [text.removesuffix("×").strip() for text in self.texts("#chips li")]

    def remove_chip(self, label: str) -> None:
        # Repeat the click: the chips are rendered again when the model is ready.
        until(lambda: label not in self.chips() or self.find(f"#chips button[aria-label='Remove {label}']").click())

    def open_method_form(self) -> None:
        self.find("#add-method").click()
        until(lambda: self.find("#method-add").is_displayed())

    def add_adapter(self, label: str) -> None:
        """Add an adapter with the form."""
        self.open_method_form()
        self.choose("#method-kind", "Adapter")
        until(lambda: self.find("#method-adapter input").is_displayed())
        self.choose("#method-adapter", label)
        count = len(self.chips())
        self.find("#method-add").click()
        until(lambda: len(self.chips()) == count + 1, describe=f"{label} did not become a chip")
        self.find("#add-method").click()

    def run(self) -> None:
        """Press Run and wait until the run has started or ended, or has been refused with a message."""

        def state() -> tuple[str, str | None]:
            return self.text("#status"), self.find(".cards").get_attribute("data-run")

        before = state()
        self.find("#run").click()
        until(lambda: self.running() or self.text("#intent-note") or state() != before, describe="Run did nothing")

    def watch_columns(self) -> None:
        """Record from now on how many columns stream at a time; polling could miss a short run."""
        script = """
            const cards = document.querySelector("#comparison .cards");
            window.maxStreaming = 0;
            const count = () => {
              const streaming = cards.querySelectorAll("[data-state=streaming]").length;
              window.maxStreaming = Math.max(window.maxStreaming, streaming);
            };
            new MutationObserver(count).observe(cards, { subtree: true, childList: true, attributes: true });
        """
        self.driver.execute_script(script)

    def max_streaming(self) -> int:
        """Return the largest number of columns that streamed at a time since `watch_columns`."""
        return int(self.driver.execute_script("return window.maxStreaming"))

    def stop(self) -> None:
        self.find("#stop").click()

    def running(self) -> bool:
        return any(button.is_displayed() for button in self.all("#stop"))

    def finish(self, seconds: float = 60) -> None:
        until(lambda: not self.running() and self.find("#run").is_displayed(), seconds, "the run did not end")

    def cards(self) -> list[dict[str, Any]]:
        """Return name, state, badge, code and numbers of every column, all read at the same time."""
        script = """
            return Array.from(document.querySelectorAll(".card")).map((card) => ({
              name: card.querySelector("h3").textContent,
              state: card.dataset.state,
              best: card.classList.contains("best"),
              badge: card.querySelector(".badge")?.textContent || "",
              code: card.querySelector(".card-code").textContent,
              numbers: Object.fromEntries(Array.from(card.querySelectorAll(".numbers > div")).map(
                (cell) => [cell.querySelector("dt").textContent, cell.querySelector("dd").textContent])),
              top: Math.round(card.querySelector(".card-code").getBoundingClientRect().top),
              below: Math.round(card.querySelector(".card-numbers").getBoundingClientRect().top),
            }));
        """
        return list(self.driver.execute_script(script))

    def open_details(self, index: int, title: str) -> WebElement:
        """Open the details with that title in a column and return them."""
        card = self.all(".card")[index]
        for details in card.find_elements(By.CSS_SELECTOR, "details"):
            summary = details.find_element(By.CSS_SELECTOR, "summary")
            if summary.text.startswith(title):
                if details.get_attribute("open") is None:
                    self.driver.execute_script("arguments[0].click()", summary)
                return details
        raise AssertionError(f"Column {index} has no details '{title}'.")

    def history(self) -> list[WebElement]:
        return self.all("#history li button")

    def screenshot(self, name: str) -> None:
        """Save a screenshot of the whole page in the folder PROMPT_OR_TUNE_SCREENSHOTS, if it is set."""
        folder = os.environ.get(SCREENSHOTS)
        if not folder:
            return
        script = "return [innerWidth, document.documentElement.scrollHeight]"
        width, height = self.driver.execute_script(script)
        clip = {"x": 0, "y": 0, "scale": 1, "width": width, "height": height}
        shot = {"captureBeyondViewport": True, "format": "png", "clip": clip}
        image = self.driver.execute_cdp_cmd("Page.captureScreenshot", shot)
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(image["data"]))

    def console_errors(self) -> list[str]:
        """Return the new errors in the browser's console."""
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]
