"""`python app.py`: options and their errors, an unreachable Hub, a full disk, and a start that ends with Ctrl-C."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import app
from common.command import ProgressPrinter, check_port_free
from errors import PromptOrTuneError
from tests import messages

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(*arguments: str) -> list[str]:
    return [sys.executable, "app.py", "--port", str(free_port()), *arguments]


def start(*arguments: str, seconds: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the app until it ends by itself; fail after so many seconds."""
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=seconds
    )


def message_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return the message of a failed start, the only line on stderr."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("prompt-or-tune: ")
    assert lines[0].endswith(".")
    return lines[0].removeprefix("prompt-or-tune: ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--quantization", "nf5"], "Unknown quantization 'nf5': did you mean 'nf4'? known are int8, nf4, none."),
        (["--device", "cudda"], "Unknown device 'cudda': did you mean 'cuda'? known are auto, cpu, cuda."),
        (["--data-dir", "no/such"], "There is no data folder no/such: check the path given to --data-dir."),
        (["--runs-dir", "no/such"], "There is no runs folder no/such: check the path given to --runs-dir."),
        (
            ["--base", "./no-such"],
            "There is no base ./no-such: no such folder or file; check the path given to --base.",
        ),
        (["--base", "no.gguf"], "There is no base no.gguf: no such folder or file; check the path given to --base."),
        (["--base", "embeded"], "Unknown base 'embeded': did you mean 'embedded'? known are embedded."),
        (["--port", "80x"], "'80x' is no port: give a number from 1 to 65535."),
        (["--port", "70000"], "'70000' is no port: give a number from 1 to 65535."),
        (["--bass", "x"], "Unrecognized arguments: --bass x; `python app.py --help` lists all options."),
    ],
)
def test_invalid_option_is_refused_before_anything_is_loaded(
    arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "serve", lambda _: pytest.fail("the options were not checked"))
    assert app.main(arguments) == 2
    assert capsys.readouterr().err == f"prompt-or-tune: {expected}\n"


def test_error_of_a_port_in_use_suggests_another_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        expected = (
            f"Port {port} is in use: stop the other program or choose another with --port N (`make demo PORT=N`)."
        )
        assert message_of(start("--port", str(port))) == expected


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.ADDRESS_NOT_LOCAL):
        check_port_free("192.0.2.1", free_port())


def test_space_listens_on_all_addresses_and_reads_its_base_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPACE_ID", "someone/prompt-or-tune")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7000")
    options = app.parse_options([])
    assert (options.host, options.port, options.model.base) == ("0.0.0.0", 7000, "embedded")
    monkeypatch.setenv("PROMPT_OR_TUNE_BASE", "owner/other@main")
    assert app.parse_options([]).model.base == "owner/other@main"


def test_default_address_is_loopback_outside_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPACE_ID", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "PROMPT_OR_TUNE_BASE"):
        monkeypatch.delenv(name, raising=False)
    options = app.parse_options([])
    assert (options.host, options.port, options.model.base) == ("127.0.0.1", 7860, "embedded")


def test_progress_prints_fewer_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressPrinter()
    for percent in range(100):
        progress(f"Converting {percent} %")
    progress("Loading")
    assert capsys.readouterr().out.splitlines() == ["Converting 0 %", "Loading"]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """Mount a file system of one megabyte; None if this user cannot mount it."""
    disk = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="module")
def failed_starts(
    small_disk: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, subprocess.CompletedProcess[str] | None]:
    """Start the app without a Hub that answers ("hub") and with a full disk ("disk"), both at once; wait for both.

    Most of the time of both is waiting: for the Hub, and for open pages to display the error.
    """
    with socket.socket() as silent, ThreadPoolExecutor() as pool:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        }
        hub = pool.submit(start, "--base", "owner/no-such", seconds=40, **environment)
        disk = small_disk and pool.submit(start, "--base", "embedded", PROMPT_OR_TUNE_HOME=str(small_disk))
        return {"hub": hub.result(), "disk": disk.result() if disk else None}


def test_unresponsive_hub_times_out_with_one_message(
    failed_starts: dict[str, subprocess.CompletedProcess[str]],
) -> None:
    assert "The Hub could not be reached for 'owner/no-such'" in message_of(failed_starts["hub"])


@pytest.mark.model
def test_full_disk_gives_one_message_with_the_folder(
    failed_starts: dict[str, subprocess.CompletedProcess[str]], small_disk: Path | None
) -> None:
    if small_disk is None:
        pytest.skip("This user may not mount a file system.")
    message = message_of(failed_starts["disk"])
    assert re.search(rf"{re.escape(str(small_disk))}.* MB free and .* PROMPT_OR_TUNE_HOME", message)


@pytest.fixture
def _default_sigint_handler() -> Iterator[None]:
    """Restore the default handler of SIGINT, which a shell ignores in background programs and their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.model
@pytest.mark.usefixtures("_default_sigint_handler")
def test_page_is_served_before_the_model_is_ready_and_ctrl_c_exits_cleanly(home: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        command("--port", str(port)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PROMPT_OR_TUNE_HOME": str(home)},
    )
    try:
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if f"http://127.0.0.1:{port}" in line:
                break
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=20) as answer:
            assert answer.status == 200
        for line in process.stdout:
            output.append(line)
            if line.startswith("Ready"):
                break
        assert output[-1] == f"Ready: http://127.0.0.1:{port}\n", output
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130
        assert errors.strip() == "Stopped."
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_reports_a_python_that_is_too_old(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "requirements-embedded.txt"):
        (tmp_path / name).touch()
    done = subprocess.run(["make", "demo", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("Prompt or Tune needs Python 3.11 or newer, and 'false' is not")
    assert not (tmp_path / ".venv").exists()
