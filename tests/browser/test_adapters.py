"""Adapters page in Chromium: a real engine with the bundled adapters, on a scripted backend."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from adapters.archive import pack
from adapters.store import LIBRARY
from serve.engine.llm_engine import EngineLoader, LLMEngine, ProgressFn
from tests.adapters.zipped import entry, files_of, make_zip
from tests.browser.page import ComparePage, until
from tests.hub.client import use_hub
from tests.hub_standin import hub_standin
from tests.ui.adapters.sample_home import SMALL, copy_adapter, fill_home, make_engine
from ui.access.guard import VisitorRegistry
from ui.access.policy import AccessPolicy
from ui.app import build_pages, launch
from ui.context import Context

pytestmark = pytest.mark.browser


@dataclass
class App:
    """Address of the pages, and the folder of installed adapters."""

    url: str
    root: Path


@contextmanager
def serving(home: Path, build: Callable[[ProgressFn], LLMEngine], policy: AccessPolicy | None = None) -> Iterator[App]:
    source = EngineLoader(build).start()
    pages = build_pages(source, context=Context(source, home=home, visitors=VisitorRegistry(policy)))
    _, url, _ = launch(pages, port=None, prevent_thread_lock=True)
    yield App(url, home / "adapters")
    pages.close()
    source.engine().close()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    home = fill_home(tmp_path_factory.mktemp("home"))
    with serving(home, lambda report: make_engine(home)) as served:
        yield served


@pytest.fixture
def page(driver: WebDriver, app: App) -> ComparePage:
    return open_adapters(driver, app)


def open_adapters(driver: WebDriver, app: App, theme: str = "light", width: int = 1440) -> ComparePage:
    page = ComparePage(driver, app.url)
    page.resize(width, 900)
    driver.get(f"{app.url}?tab=adapters&__theme={theme}")
    until(lambda: page.all(".adapter"), 40, "the adapters were not displayed")
    return page


def names(page: ComparePage) -> list[str]:
    return page.texts(".adapter h2")


def card(page: ComparePage, name: str) -> WebElement:
    return page.find(f'.adapter[data-name="{name}"]')


def press(page: ComparePage, name: str, label: str) -> None:
    """Click a button of a card as soon as it is enabled."""
    until(lambda: page.driver.execute_script("arguments[0].click(); return true", button(page, name, label)))


def button(page: ComparePage, name: str, label: str) -> WebElement:
    buttons = card(page, name).find_elements(By.CSS_SELECTOR, ".actions button:not(:disabled)")
    return next(button for button in buttons if button.text.startswith(label))


def labels(page: ComparePage, name: str) -> list[str]:
    return [item.text for item in card(page, name).find_elements(By.CSS_SELECTOR, ".actions button")]


def unfold_add(page: ComparePage) -> None:
    page.find("#adapters-add button").click()
    until(lambda: page.find("#adapters-spec input").is_displayed())


def upload_zip(page: ComparePage, path: Path) -> None:
    """Upload a zip and wait until the checks have ended."""
    unfold_add(page)
    until(lambda: page.all("#adapters-zip input[type=file]"))[0].send_keys(str(path))
    until(lambda: checks_ended(page), 30, "the checks did not end")


def checks_ended(page: ComparePage) -> bool:
    """Return whether the checks have ended and their result is shown."""
    note = page.text("#adapters-add-note")
    return bool(page.all(".checks li")) and not page.all(".checks .running") and not note.startswith("Checking")


def marks(page: ComparePage) -> list[str]:
    return [str(item.get_attribute("class")) for item in page.all(".checks li")]


def test_all_adapters_are_listed(page: ComparePage) -> None:
    until(lambda: page.driver.title == "Prompt or Tune · Adapters")
    assert page.text("#adapters-list .result-count") == "14 adapters"
    text = card(page, "lora-conala").text
    for part in ("LoRA", "Usable here", "Not in memory", "conala, 2,135 rows", "3.72 MB", "cc-by-sa-4.0", "0.041"):
        assert part in text
    assert "0.027 to 0.061" in text
    assert "Comes with Prompt or Tune" in text
    assert "was trained for tiny/base" in card(page, "other-base").text
    assert not card(page, "other-base").find_element(By.CSS_SELECTOR, ".actions .main").is_enabled()
    assert labels(page, "lora-conala") == ["Open in Compare", "Load", "Download zip"]
    assert labels(page, "prompt-mine")[-1] == "Delete"
    assert "--base" in page.text(".models code")
    assert page.console_errors() == []
    page.screenshot("adapters-list")


def test_list_is_searched_and_filtered(page: ComparePage) -> None:
    page.write("#adapters-words input", "qlora conala")
    until(lambda: names(page) == ["qlora-4bit-conala"])
    assert page.text("#adapters-list .result-count") == "1 of 14 adapters"
    page.write("#adapters-words input", "nothing like it")
    until(lambda: names(page) == [])
    assert page.text("#adapters-list .result-count").startswith("None of 14 adapters matches")
    page.write("#adapters-words input", "")
    page.choose("#adapters-show", "Not usable here")
    until(lambda: sorted(names(page)) == ["broken", "other-base"])


def test_html_in_cards_is_escaped(page: ComparePage) -> None:
    card(page, "evil").find_element(By.CSS_SELECTOR, "summary").click()
    until(lambda: "onerror" in card(page, "evil").find_element(By.CSS_SELECTOR, "pre.text").text)
    assert page.all("#adapters-list img, #adapters-list script") == []
    assert page.driver.title == "Prompt or Tune · Adapters"
    card(page, "lora-conala").find_element(By.CSS_SELECTOR, "summary").click()
    until(lambda: "A LoRA adapter that answers intents" in card(page, "lora-conala").text)
    tables = card(page, "lora-conala").find_elements(By.CSS_SELECTOR, ".details-body table")
    captions = [item.find_element(By.CSS_SELECTOR, "caption").text for item in tables]
    assert captions[1:] == [f"conala test, base {base}, beam, 10 candidates" for base in ("NF4", "unquantized")]
    assert "parses" in tables[1].text
    assert page.console_errors() == []
    page.screenshot("adapters-unfolded")


def test_adapter_is_loaded_and_unloaded(page: ComparePage) -> None:
    press(page, "ia3-conala", "Load")
    until(lambda: "In memory, 387 kB" in card(page, "ia3-conala").text)
    assert page.text("#adapters-note") == "'ia3-conala' is in memory."
    press(page, "ia3-conala", "Unload")
    until(lambda: "Not in memory" in card(page, "ia3-conala").text)


def test_zip_is_checked_installed_and_used_in_compare(page: ComparePage, app: App, tmp_path: Path) -> None:
    upload_zip(page, pack(copy_adapter(SMALL, tmp_path / "from-mail"), tmp_path / "mail.zip"))
    assert page.text("#adapters-add-note") == "'from-mail' is added: it is a method in Compare now."
    assert marks(page) == ["passed"] * 8
    until(lambda: names(page)[:1] == ["from-mail"])
    assert "just added" in card(page, "from-mail").text
    assert "From the zip mail.zip" in card(page, "from-mail").text
    page.screenshot("adapters-added")
    press(page, "from-mail", "Open in Compare")
    until(lambda: page.driver.title == "Prompt or Tune · Compare")
    assert page.chips()[-1] == "from-mail"
    page.intent("count 3")
    page.run()
    page.finish()
    answered = {item["name"]: item["code"] for item in page.cards()}
    assert answered["from-mail"].strip() == "1 2 3"


@pytest.mark.parametrize(
    ("name", "content", "mode", "message"),
    [
        ("../../evil.txt", b"owned", stat.S_IFREG | 0o644, "which would lie outside its folder"),
        ("good/README.md", b"/etc/passwd", stat.S_IFLNK | 0o777, "is a symbolic link"),
        ("good/training_args.bin", b"\x80\x04.", stat.S_IFREG | 0o644, "a pickle, which can run code"),
    ],
    ids=["outside", "link", "pickle"],
)
def test_hostile_zip_is_rejected_and_leaves_no_files(
    page: ComparePage, app: App, tmp_path: Path, name: str, content: bytes, mode: int, message: str
) -> None:
    before = sorted(app.root.parent.rglob("*"))
    folder = copy_adapter(SMALL, tmp_path / "good")
    files = [item for item in files_of(folder) if not item[0].filename.endswith("README.md")]
    upload_zip(page, make_zip(tmp_path / "hostile.zip", [*files, (entry(name, mode), content)]))
    assert message in page.text("#adapters-add-note .error-message")
    assert marks(page).count("failed") == 1
    assert marks(page)[0] == "passed"
    assert marks(page)[-1] == "pending"
    assert sorted(app.root.parent.rglob("*")) == before
    assert not (tmp_path.parent / "evil.txt").exists()
    page.screenshot(f"adapters-refused-{name.rpartition('.')[2]}")


def test_adapter_is_installed_from_the_hub(
    page: ComparePage, app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_standin() as hub:
        use_hub(hub, monkeypatch, tmp_path / "client")
        commit = hub.add("someone/Pulled", copy_adapter(SMALL, tmp_path / "pulled"))
        unfold_add(page)
        page.write("#adapters-spec input", "someone/nothing")
        page.find("#adapters-pull").click()
        until(lambda: "no repository 'someone/nothing'" in page.text("#adapters-add-note"))
        assert marks(page) == ["passed", "failed", "pending", "pending", "pending"]
        page.write("#adapters-spec input", "someone/Pulled")
        page.find("#adapters-pull").click()
        until(lambda: "'pulled' is added" in page.text("#adapters-add-note"))
    until(lambda: names(page)[:1] == ["pulled"])
    assert marks(page) == ["passed"] * 5
    assert f"From the Hub: someone/Pulled@{commit[:8]}" in card(page, "pulled").text
    assert (app.root / "pulled" / "manifest.json").is_file()


def test_download_saves_the_packed_adapter(page: ComparePage, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    press(page, SMALL, "Download zip")
    until((folder / f"{SMALL}.zip").is_file, describe="nothing was saved")
    assert (folder / f"{SMALL}.zip").read_bytes() == pack(LIBRARY / SMALL, tmp_path / "own.zip").read_bytes()


def test_delete_asks_for_confirmation(page: ComparePage, app: App) -> None:
    copy_adapter(SMALL, app.root / "unwanted")
    page.find("#adapters-refresh").click()
    until(lambda: "unwanted" in names(page))
    press(page, "unwanted", "Delete")
    assert page.driver.switch_to.active_element.text == "Keep it"
    page.screenshot("adapters-asked")
    page.driver.switch_to.active_element.click()
    assert labels(page, "unwanted")[-1] == "Delete"
    assert (app.root / "unwanted").is_dir()
    press(page, "unwanted", "Delete")
    press(page, "unwanted", "Delete unwanted")
    until(lambda: "unwanted" not in names(page))
    assert page.text("#adapters-note") == "'unwanted' is deleted."
    assert not (app.root / "unwanted").exists()


def test_phone_has_no_horizontal_scroll(driver: WebDriver, app: App) -> None:
    page = open_adapters(driver, app, "dark", 390)
    unfold_add(page)
    card(page, "prompt-mine").find_element(By.CSS_SELECTOR, "summary").click()
    until(lambda: card(page, "prompt-mine").find_elements(By.CSS_SELECTOR, "pre.text"))
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    page.screenshot("adapters-phone")


def test_visitor_without_rights_cannot_change_adapters(driver: WebDriver, tmp_path: Path) -> None:
    home = fill_home(tmp_path / "home")
    policy = AccessPolicy(training="owner", owners=frozenset({"ada"}))
    with serving(home, lambda report: make_engine(home), policy) as app:
        page = open_adapters(driver, app)
        assert "Only ada may train and change adapters here" in page.text("#adapters-denied")
        assert not any(item.is_displayed() for item in page.all("#adapters-add"))
        assert labels(page, "prompt-mine") == ["Open in Compare"], "it is the owner's"
        assert labels(page, SMALL) == ["Open in Compare", "Download zip"]
        assert not page.find(".models").is_displayed(), "paths of folders are visible to the owner only"
        refused = send(app.url, {"do": "delete", "name": "prompt-mine", "from": 0})
        assert "Only ada may train" in refused
        assert (app.root / "prompt-mine").is_dir()


def send(url: str, event: dict[str, object]) -> str:
    """Send the event of a card's button without a browser; return all messages of the response."""
    config = httpx.get(f"{url}config").json()
    listed = next(item["id"] for item in config["components"] if item["props"].get("elem_id") == "adapters-list")
    act = next(item["id"] for item in config["dependencies"] if [listed, "select"] in item["targets"])
    body = {
        "data": ["", "all", []],
        "event_data": event,
        "fn_index": act,
        "session_hash": "program",
        "trigger_id": listed,
    }
    httpx.post(f"{url}gradio_api/queue/join", json=body).raise_for_status()
    with httpx.stream("GET", f"{url}gradio_api/queue/data", params={"session_hash": "program"}, timeout=30) as lines:
        return "\n".join(
            line for line in lines.iter_lines() if "process_completed" in line or "process_generating" in line
        )


def test_list_is_displayed_while_the_model_is_loading(driver: WebDriver, tmp_path: Path) -> None:
    ready = threading.Event()

    def build(report: ProgressFn) -> LLMEngine:
        ready.wait(60)
        return make_engine(tmp_path)

    with serving(tmp_path, build) as app:
        page = open_adapters(driver, app)
        assert "Known when the model is ready" in card(page, "lora-conala").text
        assert labels(page, "lora-conala") == ["Open in Compare", "Download zip"]
        assert not card(page, "lora-conala").find_element(By.CSS_SELECTOR, ".actions .main").is_enabled()
        page.screenshot("adapters-loading")
        ready.set()
        until(lambda: "Usable here" in card(page, "lora-conala").text)
