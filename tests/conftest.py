"""Fixtures of all tests: data folder, user cache and sandbox; environment variables that silence libraries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from evaluate.sandbox.sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[1]

# Files that take a minute or more begin first, so that the processes of pytest-xdist end at about the same time.
LONGEST_FILES = (
    "tests/browser/test_train_real.py",
    "tests/advise/test_advisor.py",
    "tests/space/test_fresh.py",
    "tests/browser/test_train_form.py",
    "tests/jobs/test_worker.py",
)

# Set before any library reads them.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a test process for each core is faster than threads of two
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files: the longest, then those with slow tests (model, browser, slow), then the others."""

    def rank(item: pytest.Item) -> int:
        file = item.path.relative_to(ROOT).as_posix()
        return LONGEST_FILES.index(file) if file in LONGEST_FILES else len(LONGEST_FILES) + (file not in slow_files)

    slow_marks = ("model", "browser", "slow")
    slow_files = {
        item.path.relative_to(ROOT).as_posix() for item in items if any(map(item.get_closest_marker, slow_marks))
    }
    items.sort(key=rank)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder with CoNaLa, CodeAlpacaPy, MBPP and APPS, by default next to the checkout."""
    folder = Path(os.environ.get("PROMPT_OR_TUNE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"There is no test data in {folder}: name its folder with PROMPT_OR_TUNE_TEST_DATA.")
    return folder


@pytest.fixture(scope="session")
def home() -> Path:
    """Return the user's cache, so that the embedded base is not converted again in every run of the tests.

    Without PROMPT_OR_TUNE_HOME this is the default folder. Tests that write adapters use a temporary home instead.
    """
    folder = Path(os.environ.get("PROMPT_OR_TUNE_HOME") or "~/.cache/prompt-or-tune").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PROMPT_OR_TUNE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """Open a sandbox with the best available layer. Without one, skip the test, or fail it if CI is set."""
    from evaluate.sandbox.sandbox import SandboxUnavailableError, open_sandbox

    try:
        opened = open_sandbox()
    except SandboxUnavailableError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    with opened:
        yield opened
