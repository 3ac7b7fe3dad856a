"""The Compare page as a test drives it: what a person would do, and what they would see."""

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


def until(what: Callable[[], T], seconds: float = 20, describe: str = "") -> T:
    """The first true value of `what`; AssertionError when there is none in time. A page that repaints is no error."""
    deadline = time.monotonic() + seconds
    value: Any = None
    while time.monotonic() < deadline:
        try:
            value = what()
        except WebDriverException as error:
            value = None
            describe = describe or str(error.msg)
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"Nothing of this happened in {seconds} s: {describe or what}")


class ComparePage:
    """Selenium behind words."""

    def __init__(self, driver: WebDriver, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(
        self, *, theme: str = "light", width: int = 1440, height: int = 1000, ready: bool = True, first: bool = True
    ) -> ComparePage:
        """Loads the page anew, in a window of this size; waits until it is there, and the model too if `ready`.

        `first`: as somebody whose browser has never been here.
        """
        self.resize(width, height)
        if first:
            self.forget()
        self.driver.get(f"{self.url}?__theme={theme}")
        until(lambda: self.find("#run").is_displayed(), 60, "the page did not come up")
        if ready:
            until(lambda: self.find(".model.ready"), 240, "the model did not become ready")
        return self

    def forget(self) -> None:
        """Empties what the browser keeps of the page."""
        if self.driver.current_url.startswith(self.url):
            self.driver.execute_script("localStorage.clear()")
        else:
            stored = {"origin": self.url.rstrip("/"), "storageTypes": "local_storage"}
            self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", stored)

    def resize(self, width: int, height: int) -> None:
        """A desktop's or, below 600 pixels, a phone's window."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        time.sleep(0.3)

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return self.find(css).text

    def write(self, css: str, text: str) -> None:
        """Replaces a field's text as pasting does: at once, with the events that a page listens to."""
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
        """Picks the first choice of a dropdown that begins with `label`."""
        self.find(f"{css} input").click()

        def wanted() -> WebElement | None:
            entries = self.all("ul[role=listbox] li")
            return next((entry for entry in entries if entry.text.strip(" ✓\n").startswith(label)), None)

        option = until(wanted, describe=f"{css} has no choice '{label}'")
        assert option is not None
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'nearest'})", option)
        option.click()
        time.sleep(0.4)

    def search(self, css: str, words: str) -> None:
        """Types into a dropdown, as a person who has just clicked into it, and takes the first choice left."""
        field = self.find(f"{css} input")
        field.click()
        time.sleep(0.3)
        field.send_keys(words)
        until(lambda: all(words in entry.text for entry in self.all("ul[role=listbox] li")))
        self.find("ul[role=listbox] li").click()

    def unfold_options(self) -> None:
        """Opens the reference and the options; their fields are drawn when they are first seen."""
        if not self.all("#reference textarea") or not self.find("#reference textarea").is_displayed():
            self.find("#options button").click()
            until(lambda: self.find("#reference textarea").is_displayed())

    def reference(self, code: str) -> None:
        self.unfold_options()
        self.write("#reference textarea", code)

    def chips(self) -> list[str]:
        return [chip.text.removesuffix("×").strip() for chip in self.all("#chips li")]

    def remove_chip(self, label: str) -> None:
        # The chips are painted anew when the model is ready: a click may meet one that is gone by then.
        until(lambda: label not in self.chips() or self.find(f"#chips button[aria-label='Remove {label}']").click())

    def open_method_form(self) -> None:
        self.find("#add-method").click()
        until(lambda: self.find("#method-add").is_displayed())

    def add_adapter(self, label: str) -> None:
        """Adds an adapter through the form."""
        self.open_method_form()
        self.choose("#method-kind", "Adapter")
        until(lambda: self.find("#method-adapter input").is_displayed())
        self.choose("#method-adapter", label)
        count = len(self.chips())
        self.find("#method-add").click()
        until(lambda: len(self.chips()) == count + 1, describe=f"{label} did not become a chip")
        self.find("#add-method").click()

    def run(self) -> None:
        """Presses Run and waits until it has begun (or is over already), or a sentence says why not."""

        def said() -> tuple[str, str | None]:
            return self.text("#status"), self.find(".cards").get_attribute("data-run")

        before = said()
        self.find("#run").click()
        until(lambda: self.running() or self.text("#intent-note") or said() != before, describe="Run did nothing")

    def watch_columns(self) -> None:
        """From now on notes how many columns grow at a time; asking again and again could miss a short run."""
        script = """
            const cards = document.querySelector("#comparison .cards");
            window.mostGrowing = 0;
            const count = () => {
              const growing = cards.querySelectorAll("[data-state=streaming]").length;
              window.mostGrowing = Math.max(window.mostGrowing, growing);
            };
            new MutationObserver(count).observe(cards, { subtree: true, childList: true, attributes: true });
        """
        self.driver.execute_script(script)

    def most_growing(self) -> int:
        """The most columns that grew at a time since `watch_columns`."""
        return int(self.driver.execute_script("return window.mostGrowing"))

    def stop(self) -> None:
        self.find("#stop").click()

    def running(self) -> bool:
        return any(button.is_displayed() for button in self.all("#stop"))

    def finish(self, seconds: float = 60) -> None:
        until(lambda: not self.running() and self.find("#run").is_displayed(), seconds, "the run did not end")

    def cards(self) -> list[dict[str, Any]]:
        """Name, state, whether it is best, code and numbers of every column, read in one step."""
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

    def fold(self, place: int, title: str) -> WebElement:
        """Opens the fold of that title in a column and returns it."""
        card = self.all(".card")[place]
        for fold in card.find_elements(By.CSS_SELECTOR, "details"):
            summary = fold.find_element(By.CSS_SELECTOR, "summary")
            if summary.text.startswith(title):
                if fold.get_attribute("open") is None:
                    self.driver.execute_script("arguments[0].click()", summary)
                return fold
        raise AssertionError(f"Column {place} has no fold '{title}'.")

    def history(self) -> list[WebElement]:
        return self.all("#history li button")

    def screenshot(self, name: str) -> None:
        """The whole page, into the folder that PROMPT_OR_TUNE_SCREENSHOTS names, if it names one."""
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

    def complaints(self) -> list[str]:
        """What the browser's console holds of errors."""
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]
