"""Make the pictures of docs/screenshots anew, from the real program with the embedded base.

python -m tests.browser.take_screenshots OUTPUT_FOLDER
python -m tests.browser.take_screenshots OUTPUT_FOLDER --only compare,arena --data-dir ~/data

It starts app.py with a home of its own, which shares the converted base of the user's cache, and drives a headless
Chromium. The data folder must have CoNaLa. A local stand-in takes the place of the Hugging Face Hub, so that the forms
look as they do on a machine that is logged in. All pictures take about half an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import base64
import csv
import difflib
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from common.files import cache_dir
from evaluate.arena.votes import VOTES_FILE, Base, Player, Side, Vote, VoteStore, Winner
from evaluate.results import Result, Run, read_run
from jobs.api import JobService
from tasks.datasets.registry import BUNDLED, HOUSE, STARTER, load_examples, load_problems
from tasks.problem import Problem
from tests.browser.conftest import browser, running_app
from tests.browser.page import ComparePage, until
from tests.browser.test_train_real import end_workers
from tests.conftest import ROOT
from tests.hub.state import Account
from tests.hub_standin import hub_standin
from ui.components import method_label

DESKTOP, PHONE = 1440, 390
MARGIN = 12  # less than the gap between two cards
CARD_HEIGHT = 1270
ANSWER_SECONDS, TRAINING_SECONDS, ADVICE_SECONDS = 240, 900, 1800

COMPARED_PROBLEM = "convert binary string '01010101111' to integer"
ADAPTER = "qlora-4bit-conala"
MAX_NEW_TOKENS = 64  # as in the study: the references of CoNaLa are short

STUDY_RUN = ROOT / "docs" / "results" / "study" / "conala.jsonl.gz"
# The methods that take part, which are some of those that take part by default.
VOTED_METHODS = ("zero-shot", "icl-8", "rag-8", "ia3-conala", "lora-conala", "prefix-tuning-conala")
NUM_VOTES, NUM_PEOPLE = 240, 8
# CodeBLEU below which an answer is bad, and difference below which two answers are equally good.
BAD_SCORE, TIE_DIFFERENCE = 0.15, 0.05
MAX_DRAWS = 25

SHARED_ADAPTER = "ia3-conala"
ADDED_NAME = "ia3-team"
EPOCHS, HELD_OUT = 3, 0.25

# Rows with errors for the report: no code, nothing to do, a comma without quotes.
ROWS_WITH_ERRORS = (
    '"Return the last word of a text: `last_word(text)`.",\n',
    ',"def first(items):\n    return items[0]"\n',
    "Join names with commas: `join_names(names)`.,def join_names(names):,return names\n",
)


class Camera:
    """Saves pictures of a page as PNG files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, page: ComparePage, name: str, start: str = "", end: str = "", *, height: int | None = None) -> None:
        """Save the page from the element `start` to the element `end`, at most `height` pixels.

        Without `start` the picture begins at the top of the page, without `end` it ends at the bottom. With a `start`
        it is as wide as that element, except on a phone.
        """
        script = """
            const [start, end, margin] = arguments;
            const box = (css) => css ? document.querySelector(css).getBoundingClientRect() : null;
            const first = box(start), last = box(end);
            const whole = !first || innerWidth < 600;
            const left = whole ? 0 : Math.max(0, first.left - margin);
            const right = whole ? innerWidth : Math.min(innerWidth, first.right + margin);
            const top = first ? Math.max(0, first.top + scrollY - margin) : 0;
            const bottom = last ? last.bottom + scrollY + margin : document.documentElement.scrollHeight;
            return { x: left, y: top, width: right - left, height: bottom - top };
        """
        driver = page.driver
        driver.execute_script("document.activeElement?.blur(); scrollTo(0, 0)")
        time.sleep(0.5)
        clip = driver.execute_script(script, start, end, MARGIN)
        clip["height"] = min(clip["height"], height or clip["height"])
        width = driver.execute_script("return innerWidth")
        if width < 600:
            # The buttons at the lower edge of a phone then lie at the lower edge of the picture.
            page.resize(width, int(clip["height"]))
            time.sleep(0.3)  # the page takes on the new width
        driver.execute_script("scrollTo(0, arguments[0])", clip["y"])
        shot = {"captureBeyondViewport": True, "format": "png", "clip": {**clip, "scale": 1}}
        image = Image.open(io.BytesIO(base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])))
        path = self._folder / f"{name}.png"
        image.convert("RGB").save(path, optimize=True)
        page.resize(width, 1000)
        say(f"{path.name}: {image.width} x {image.height}, {path.stat().st_size // 1000} kB")


@dataclass(frozen=True)
class Session:
    """The running program, the browser and what the pictures are made of."""

    driver: WebDriver
    url: str
    home: Path
    data_dir: Path
    work: Path
    camera: Camera

    def open(self, tab: str, theme: str = "light", width: int = DESKTOP) -> ComparePage:
        """Load the page with this tab and wait until the model is ready."""
        page = ComparePage(self.driver, self.url)
        page.resize(width, 1000)
        self.driver.get(f"{self.url}?tab={tab}&__theme={theme}")
        until(lambda: page.find(f"#tab-{tab}-button").get_attribute("aria-selected") == "true", 60)
        until(lambda: page.all(".model.ready"), 240, "the model did not become ready")
        time.sleep(1)
        return page


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def is_visible(page: ComparePage, css: str) -> bool:
    return any(element.is_displayed() for element in page.all(css))


def click(page: ComparePage, css: str) -> None:
    """Click the element as soon as it is visible, also where a fixed bar covers it."""
    until(lambda: is_visible(page, css), 60, f"{css} is not visible")
    page.driver.execute_script("arguments[0].click()", next(item for item in page.all(css) if item.is_displayed()))


# Compare


def take_compare(session: Session) -> None:
    page = ComparePage(session.driver, session.url).open()
    until(lambda: len(page.chips()) == 4, 60, "no adapter among the methods")
    page.choose("#data-set", "conala")
    page.search("#problem", COMPARED_PROBLEM[:40])
    until(lambda: page.intent_text() == COMPARED_PROBLEM, describe="the problem did not fill the question")
    page.remove_chip(page.chips()[-1])
    page.add_adapter(ADAPTER)
    page.unfold_options()
    page.write("#max-new-tokens input[type=number]", str(MAX_NEW_TOKENS))
    click(page, "#options button")
    page.run()
    page.finish(ANSWER_SECONDS)
    page.find("#comparison .about summary").click()
    session.camera.save(page, "compare", end="#comparison .cards")
    # The browser has stored the run: the phone shows it again.
    page.open(theme="dark", width=PHONE, height=844, first=False)
    until(lambda: len(page.cards()) == 4, 60, "the run is not shown again")
    time.sleep(1)
    session.camera.save(page, "compare-phone-dark", end="#comparison .cards", height=1500)


# Arena


def take_arena(session: Session) -> None:
    VoteStore(session.home / VOTES_FILE).path.unlink(missing_ok=True)
    add_votes(VoteStore(session.home / VOTES_FILE))
    references = {
        problem.intent: problem.reference or ""
        for problem in load_problems("conala", "test", data_dir=session.data_dir)
    }
    page = session.open("arena")
    until(lambda: "8 methods" in page.text("#arena-fold"), 60, "the methods are not listed")
    leave_out_methods(page)
    page.choose("#arena-problems", "conala")
    better = draw_match(page, references)
    session.camera.save(page, "arena-blind", end="#arena-more")
    phone = session.open("arena", width=PHONE)
    until(lambda: is_visible(phone, "#arena-left"), 60, "the open match did not come back")
    session.camera.save(phone, "arena-phone", end="#arena", height=1200)
    page = session.open("arena")
    click(page, f"#arena-{better}")
    until(lambda: is_visible(page, "#arena-outcome p"), 60, "the vote did nothing")
    until(lambda: f"{NUM_VOTES + 1} votes" in page.text("#arena-ratings"), 60, "the ratings did not change")
    session.camera.save(page, "arena-voted", end="#arena-more")
    session.camera.save(page, "arena-ratings", "#arena-ratings-head", "#arena-exports")


def leave_out_methods(page: ComparePage) -> None:
    """Leave out the methods without votes."""
    voted = [method_label(name) for name in VOTED_METHODS]
    click(page, "#arena-fold button")
    until(lambda: is_visible(page, "#arena-methods .token"))
    while others := [token for token in page.all("#arena-methods .token") if token.text.strip(" ×\n") not in voted]:
        count = len(page.all("#arena-methods .token"))
        others[0].find_element(By.CSS_SELECTOR, ".token-remove").click()
        until(lambda count=count: len(page.all("#arena-methods .token")) == count - 1)  # type: ignore[misc]
    until(lambda: f"{len(VOTED_METHODS)} methods" in page.text("#arena-fold"), 20)
    click(page, "#arena-fold button")


def match_id(page: ComparePage) -> str:
    return page.find("#arena-comparison .cards").get_attribute("data-run") or ""


def click_next(page: ComparePage, before: str) -> bool:
    """Ask for the next match; return whether it is another one than `before` after two seconds."""
    if is_visible(page, "#arena-next") and match_id(page) == before:
        click(page, "#arena-next")
        time.sleep(2)
    return match_id(page) != before


def draw_match(page: ComparePage, references: dict[str, str]) -> str:
    """Draw matches until one has two short answers of which one is clearly nearer to the reference; return its side."""
    near = [0.0, 0.0]
    for _ in range(MAX_DRAWS):
        before = match_id(page)
        # Gradio ignores a click while the event before it has not ended.
        until(lambda before=before: click_next(page, before), ANSWER_SECONDS, "no match came")  # type: ignore[misc]
        until(lambda: is_visible(page, "#arena-left"), ANSWER_SECONDS, "the match was not answered")
        question = page.text("#arena-comparison .question")
        codes = [card.text for card in page.all("#arena-comparison .card-code")]
        near = [difflib.SequenceMatcher(None, code, references.get(question, "")).ratio() for code in codes]
        if abs(near[0] - near[1]) > 0.15 and max(near) > 0.6 and all(len(code) < 400 for code in codes):
            return "left" if near[0] > near[1] else "right"
    say("No match with one clearly better answer was drawn: the last one is shown.")
    return "left" if near[0] > near[1] else "right"


def add_votes(store: VoteStore) -> None:
    """Add votes on answers of the study: for the answer with the higher score, by several people."""
    run = read_run(STUDY_RUN)
    base = Base(*(run.settings[name] for name in ("base_id", "base_revision", "quantization")))
    answers = {method: {result.problem: result for result in run.results(method)} for method in VOTED_METHODS}
    rng = random.Random(1)
    voted: set[tuple[str, str, frozenset[str]]] = set()
    while len(voted) < NUM_VOTES:
        left, right = rng.sample(VOTED_METHODS, 2)
        record = rng.choice(run.problems)
        person = f"cookie-{rng.randrange(NUM_PEOPLE):016x}"
        key = (person, record["id"], frozenset((left, right)))
        if key in voted:
            continue
        voted.add(key)
        sides = [answers[method][record["id"]] for method in (left, right)]
        store.add(
            Vote(
                f"{rng.getrandbits(128):032x}",
                "2026-11-22T12:00:00+00:00",
                person,
                base,
                "conala",
                Problem(record["id"], record["intent"], record["reference"]),
                make_side(run, sides[0]),
                make_side(run, sides[1]),
                choose_winner(*sides),
                seconds=20.0,
                settings={"decoding": run.settings["decoding"]},
            )
        )


def make_side(run: Run, result: Result) -> Side:
    best = result.candidates[0]
    player = Player(result.method, run.methods[result.method]["adapter_digest"] or "")
    return Side(player, best["text"], best["code"], {"tokens": result.tokens, "scores": dict(result.scores)})


def choose_winner(left: Result, right: Result) -> Winner:
    scores = [float(result.scores["codebleu"] or 0) for result in (left, right)]
    if max(scores) < BAD_SCORE:
        return "both bad"
    if abs(scores[0] - scores[1]) < TIE_DIFFERENCE:
        return "tie"
    return "left" if scores[0] > scores[1] else "right"


# Results


def take_results(session: Session) -> None:
    page = session.open("results")
    until(lambda: "Comparisons" in page.text("#summary"), 120, "the tables are not shown")
    session.camera.save(page, "results", height=1250)


# Adapters


def take_adapters(session: Session) -> None:
    shutil.rmtree(session.home / "adapters" / ADDED_NAME, ignore_errors=True)
    page = open_adapters(session)
    session.camera.save(page, "adapters-list", end=".adapter-cards > :nth-child(6)")
    packed = session.work / f"{SHARED_ADAPTER}.zip"
    command = [sys.executable, "-m", "adapters", "pack", SHARED_ADAPTER, str(packed)]
    packed.unlink(missing_ok=True)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    upload_zip(page, packed, ADDED_NAME)
    until(lambda: card(page, ADDED_NAME), 30, "the adapter was not added")
    session.camera.save(page, "adapters-added", end=".adapter-cards > :first-child")

    page = open_adapters(session)
    card(page, ADDED_NAME).find_element(By.CSS_SELECTOR, "summary").click()
    until(lambda: card(page, ADDED_NAME).find_elements(By.CSS_SELECTOR, "pre.text"), 20)
    press(page, ADDED_NAME, "Delete")
    chosen = f'.adapter[data-name="{ADDED_NAME}"]'
    session.camera.save(page, "adapters-details", chosen, chosen, height=CARD_HEIGHT)

    with_pickle = Path(shutil.copy(packed, session.work / "adapter-with-pickle.zip"))
    with zipfile.ZipFile(with_pickle, "a") as archive:
        archive.writestr(f"{SHARED_ADAPTER}/training_args.bin", b"\x80\x04.")
    page = open_adapters(session)
    upload_zip(page, with_pickle)
    session.camera.save(page, "adapters-refused", end="#adapters-add")

    page = open_adapters(session, width=PHONE)
    session.camera.save(page, "adapters-phone", height=1400)


def open_adapters(session: Session, width: int = DESKTOP) -> ComparePage:
    page = session.open("adapters", width=width)
    until(lambda: "Usable here" in page.text("#adapters-list"), 60, "the adapters are not listed")
    return page


def card(page: ComparePage, name: str) -> WebElement:
    return page.find(f'.adapter[data-name="{name}"]')


def press(page: ComparePage, name: str, label: str) -> None:
    buttons = card(page, name).find_elements(By.CSS_SELECTOR, ".actions button")
    page.driver.execute_script(
        "arguments[0].click()", next(button for button in buttons if button.text.startswith(label))
    )


def upload_zip(page: ComparePage, path: Path, name: str = "") -> None:
    click(page, "#adapters-add button")
    until(lambda: is_visible(page, "#adapters-spec input"))
    if name:
        page.write("#adapters-name input", name)
    page.find("#adapters-zip input[type=file]").send_keys(str(path))
    until(
        lambda: (
            page.all(".checks li")
            and not page.all(".checks .running")
            and not page.text("#adapters-add-note").startswith("Checking")
        ),
        30,
        "the checks did not end",
    )


# Train


def take_train(session: Session) -> None:
    page = session.open("train")
    until(lambda: "No training yet" in page.text("#train-jobs"), 40)
    session.camera.save(page, "train-empty", end="#train-begin")
    page.find("#train-file input[type=file]").send_keys(str(write_rows(session.work / "snippets.csv")))
    wait_for_report(page, "snippets.csv")
    session.camera.save(page, "train-report", end="#train-examples")

    click(page, "#train-example")
    wait_for_report(page, "example-60.csv")
    page = session.open("train", theme="dark", width=PHONE)
    wait_for_report(page, "example-60.csv")
    session.camera.save(page, "train-phone-dark", "#train-report", height=1500)

    page = session.open("train")
    wait_for_report(page, "example-60.csv")
    set_field(page, "num-train-epochs", str(EPOCHS))
    click(page, "#train-more button")
    set_field(page, "validation-split", str(HELD_OUT))
    click(page, "#train-more button")
    click(page, "#train-location input[value=hub]")
    until(lambda: "at most" in page.text("#train-location-note"), 60, "the prices are not shown")
    click(page, "#train-commands button")
    until(lambda: page.find("#train-command-hub textarea").get_property("value"), 60, "no command is shown")
    time.sleep(2)
    session.camera.save(page, "train-remote", "#train-target", "#train-target")
    click(page, "#train-commands button")
    click(page, "#train-location input[value=here]")
    time.sleep(2)
    take_job(session, page)


def take_job(session: Session, page: ComparePage) -> None:
    """Start the job of the filled form, and take it while it trains and when it is done."""
    service = JobService(session.home)
    click(page, "#train-start")
    until(lambda: page.all("#train-job-head h3"), 60, "no job is shown")
    (job,) = service.list_jobs()
    until(lambda: service.progress(job.id).steps > 0, TRAINING_SECONDS, "the training did not begin")
    until(lambda: service.progress(job.id).step * 2 >= service.progress(job.id).steps, TRAINING_SECONDS)
    time.sleep(1.5)
    session.camera.save(page, "train-running", "#train-jobs-title", "#train-job-curve")
    until(lambda: service.get_job(job.id).is_ended, TRAINING_SECONDS, "the job did not end")
    until(lambda: page.text("#train-job-verdict"), 30, "the verdict is not shown")
    time.sleep(1)
    session.camera.save(page, "train-verdict", "#train-jobs-title", "#train-job-curve")
    click(page, "#train-publish button")
    until(lambda: is_visible(page, "#train-publish-repo textarea, #train-publish-repo input"), 20)
    page.write("#train-publish-repo textarea, #train-publish-repo input", f"you/{job.adapter}")
    session.camera.save(page, "train-publish", "#train-publish", "#train-publish")


def write_rows(path: Path) -> Path:
    """Write the example rows of the page as a CSV file, with three rows that cannot be read among them."""
    rows = [(example.intent, example.code) for example in load_examples(STARTER)[:60]]
    parts = [rows[:6], rows[6:20], rows[20:40], rows[40:]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("intent", "snippet"))
    for part, wrong in zip(parts, (*ROWS_WITH_ERRORS, ""), strict=True):
        writer.writerows(part)
        text.write(wrong)
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def wait_for_report(page: ComparePage, name: str) -> None:
    def is_complete() -> bool:
        report, cost, busy = (page.text(css) for css in ("#train-report", "#train-cost", "#train-busy"))
        return report.startswith(name) and bool(cost) and not busy

    until(is_complete, 180, f"no report on {name}")
    time.sleep(1)


def set_field(page: ComparePage, name: str, text: str) -> None:
    css = f"#train-{name} input, #train-{name} textarea"
    until(lambda: is_visible(page, css), 20)
    page.write(css, text)
    until(lambda: page.find(css).get_property("value") == text and not page.text("#train-busy"), 30)
    time.sleep(1.5)


# Advise


def take_advise(session: Session) -> None:
    """Ask for advice on house with the usual budget, unless the home has one that is done."""
    service = JobService(session.home)
    page = session.open("advise")
    if not any(job.kind == "advise" and job.state == "done" for job in service.list_jobs()):
        click(page, "#advise-start")
        until(service.list_jobs, 60, "the advice was not queued")
        until(lambda: len(service.advice(service.list_jobs()[0].id).read_progress().curves) > 1, ADVICE_SECONDS)
        time.sleep(2)
        session.camera.save(page, "advise-running", "#advise-head", "#advise-jobs", height=1500)
        until(lambda: service.list_jobs()[0].is_ended, ADVICE_SECONDS, "the advice did not end")
    until(lambda: is_visible(page, ".advice-sentence"), 60, "the report is not on the page")
    session.camera.save(page, "advise-report", "#advise-job", "#advise-job .advice-curve, #advise-job .advice-table")
    page = session.open("advise", "dark", PHONE)
    until(lambda: is_visible(page, ".advice-sentence"), 60, "the report is not on the page")
    session.camera.save(page, "advise-phone-dark", height=1500)


# Data


def take_data(session: Session) -> None:
    """Add the test rows of house as a file of one's own, and ask those that are held out."""
    path = shutil.copy(BUNDLED[HOUSE] / "test.jsonl", session.work / "team rows.jsonl")
    page = session.open("data")
    page.find("#data-file input[type=file]").send_keys(str(path))
    until(lambda: page.find("#data-name input, #data-name textarea").get_property("value") == "team-rows", 30)
    click(page, "#data-add")
    until(lambda: "test rows of team rows.jsonl" in page.text("#data-added"), 300)
    session.camera.save(page, "data-added", "#data-title", "#data-sets")
    click(page, "#data-run")
    until(lambda: "Done:" in page.text("#data-run-status"), TRAINING_SECONDS)
    until(lambda: page.all("#data-problems li button"), 60)
    click(page, "#data-problems li button")
    until(lambda: page.all("#data-answers .card"), 30)
    session.camera.save(page, "data-answers", "#data-run-title", height=1500)


# The program


SECTIONS: dict[str, Callable[[Session], None]] = {
    "compare": take_compare,
    "advise": take_advise,
    "data": take_data,
    "arena": take_arena,
    "results": take_results,
    "adapters": take_adapters,
    "train": take_train,
}


@contextmanager
def logged_in_app(home: Path, data_dir: Path, hub_url: str, token: str) -> Iterator[str]:
    """Run app.py with this home, logged in on the Hub at `hub_url`; yield its address."""
    cache = cache_dir()
    if (cache / "bases").is_dir():
        (home / "bases").symlink_to(cache / "bases")
    if (cache / "indexes").is_dir():
        shutil.copytree(cache / "indexes", home / "indexes")
    try:
        with running_app(home, data_dir, home / "app.log", HF_ENDPOINT=hub_url, HF_TOKEN=token) as address:
            yield address
    finally:
        end_workers(home)


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the pictures of the chosen sections."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.take_screenshots", description=main.__doc__)
    parser.add_argument("output", type=Path, help="the folder for the pictures")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas (%(default)s)")
    data_dir = os.environ.get("PROMPT_OR_TUNE_TEST_DATA") or str(ROOT.parent / "shared" / "data")
    parser.add_argument("--data-dir", type=Path, default=Path(data_dir), help="the folder with CoNaLa (%(default)s)")
    options: Any = parser.parse_args(arguments)
    names = options.only.split(",")
    if unknown := sorted(set(names) - set(SECTIONS)):
        parser.error(f"no section {unknown[0]!r}: choose among {', '.join(SECTIONS)}")
    if not options.data_dir.is_dir():
        parser.error(f"there is no data in {options.data_dir}: name its folder with --data-dir")
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # tests/conftest.py sets them for tests side by side
        os.environ.pop(name, None)
    token = "hf_" + "0" * 30
    with tempfile.TemporaryDirectory() as folder, hub_standin() as hub:
        hub.accounts[token] = Account("you")
        home, work = Path(folder, "home"), Path(folder, "work")
        home.mkdir()
        work.mkdir()
        with (
            logged_in_app(home, options.data_dir, hub.url, token) as url,
            browser(Path(folder, "chromium")) as driver,
        ):
            session = Session(driver, url, home, options.data_dir, work, Camera(options.output))
            # Else a picture would have the width of the page without its scroll bar, and be cut at the right.
            driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
            # A tab that is opened while the model is loading lists only what is known by then.
            ComparePage(driver, url).open()
            for name in names:
                SECTIONS[name](session)


if __name__ == "__main__":
    main()
