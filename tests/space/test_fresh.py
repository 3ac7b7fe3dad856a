"""A built Space in a new environment with only its requirements: start, answers and training.

These are the slowest tests of the Space.
"""

from __future__ import annotations

import ast
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest
from gradio_client import Client
from packaging.requirements import Requirement

from space.build import build_space

INTENT = "map two lists `keys` and `values` into a dictionary"
METHODS = ["zero-shot", "rag-2", "lora-starter"]
START_SECONDS = 300  # the embedded base may have to be converted first


@dataclass(frozen=True)
class RunningSpace:
    """A running Space: its address, its Python, its files, its environment and its log."""

    url: str
    python: Path
    folder: Path
    environment: dict[str, str]
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def space_environment(port: int, home: Path) -> dict[str, str]:
    """Return the variables that the Hub sets for a Space with a login, without those of this environment."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "HF_"))
    }
    return inherited | {
        "SYSTEM": "spaces",
        "SPACE_ID": "someone/prompt-or-tune",
        "SPACE_AUTHOR_NAME": "someone",
        "SPACE_REPO_NAME": "prompt-or-tune",
        "SPACE_HOST": "someone-prompt-or-tune.hf.space",
        "OAUTH_CLIENT_ID": "client",
        "OAUTH_CLIENT_SECRET": "secret",
        "OAUTH_SCOPES": "openid profile contribute-repos jobs",
        "OPENID_PROVIDER_URL": "https://huggingface.co",
        "GRADIO_SERVER_PORT": str(port),
        "PROMPT_OR_TUNE_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "passive",
    }


def link_requirements(requirements: Path, venv: Path) -> None:
    """Link the listed packages, and what they need, from this environment into `venv`: pip takes a minute for them."""
    lines = [line.partition("#")[0].strip() for line in requirements.read_text().splitlines()]
    listed = [Requirement(line) for line in lines if line]
    waiting = [each for each in listed if not each.marker or each.marker.evaluate()]
    (site_packages,) = (venv / "lib").glob("python*/site-packages")
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            found = distribution(requirement.name)
            assert requirement.specifier.contains(found.version), f"{requirement} is not what is installed here"
            needed = map(Requirement, found.requires or [])
            waiting += [each for each in needed if not each.marker or each.marker.evaluate({"extra": extra})]
            for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                if not (site_packages / name).exists():
                    (site_packages / name).symlink_to(Path(str(found.locate_file(name))))


@pytest.fixture(scope="module")
def running(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSpace]:
    """Build the Space, link only its requirements, and start it as the Hub does."""
    folder = tmp_path_factory.mktemp("fresh")
    space = build_space(folder / "space").folder
    own = folder / "home"
    own.mkdir()
    for shared in ("bases", "indexes"):  # to avoid a second conversion
        (home / shared).mkdir(exist_ok=True)
        (own / shared).symlink_to(home / shared)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    link_requirements(space / "requirements.txt", folder / "venv")
    port = free_port()
    environment = space_environment(port, own)
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen([python, "app.py"], cwd=space, env=environment, stdout=output, stderr=output)
    try:
        wait_for("Ready: ", log, process)
        yield RunningSpace(f"http://127.0.0.1:{port}", python, space, environment, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder / "venv")  # several gigabytes, which pytest would not delete immediately


def wait_for(line: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + START_SECONDS
    while line not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends, log.read_text()
        time.sleep(0.2)


@pytest.mark.model
def test_space_with_only_its_requirements_answers(running: RunningSpace) -> None:
    with urllib.request.urlopen(running.url, timeout=20) as answer:
        assert "Prompt or Tune" in answer.read().decode()
    client = Client(running.url, verbose=False)
    records = client.predict(INTENT, METHODS, api_name="/compare")
    assert [record["method"] for record in records] == METHODS
    for record in records:
        assert record["error"] is None, record
        assert record["code"].strip(), record
    assert [len(record["examples"]) for record in records] == [0, 2, 0]
    # A bundled adapter on the real base generates Python for this intent.
    ast.parse(records[-1]["code"])
    assert "zip" in records[-1]["code"]
    # Gradio itself misses the package `spaces` here, which the Hub also installs; our own files must not fail.
    assert str(running.folder) not in running.log.read_text()


@pytest.mark.model
def test_training_and_jobs_start_in_the_space(running: RunningSpace) -> None:
    for command in (["-m", "jobs", "list"], ["-m", "train", "--help"]):
        done = subprocess.run(
            [running.python, *command], cwd=running.folder, env=running.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
