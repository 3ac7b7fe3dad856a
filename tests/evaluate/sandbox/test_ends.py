"""What is left of a program when its run has ended, and programs on a machine whose processors are busy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluate.sandbox.launch import BUSY_FACTOR, ProgramClock
from evaluate.sandbox.sandbox import open_sandbox
from evaluate.sandbox.spec import Limits, Program
from tests.conftest import ROOT
from tests.evaluate.sandbox.host import processes_with

pytestmark = pytest.mark.slow

SHORT = Limits(wall_seconds=0.5, cpu_seconds=1, output_bytes=10_000)
KINDS_OF_END = {
    "print(1)": "ok",
    "1 / 0": "error",
    "import os; os._exit(3)": "error",
    "import os; os.kill(os.getpid(), 9)": "killed",
    "import time; time.sleep(60)": "timeout",
    "import os; os.kill(os.getpid(), 19)": "timeout",
    "while True: print('x' * 1000)": "output",
    "x = bytes(1 << 40)": "memory",
    "import threading, time\nfor _ in range(20): threading.Thread(target=time.sleep, args=(60,)).start()": "timeout",
}

# Runs each program several times, and prints which processes exist after each run, by name, state and parent.
LIST_LEFT_PROCESSES = """
import json, os, sys
sys.path.insert(0, {root!r})
from evaluate.sandbox.sandbox import Limits, Program, open_sandbox

def others():
    found = set()
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.add(open(f"/proc/{{number}}/stat").read().rpartition(" ")[0][:60])
        except OSError:
            pass
    return len(found)

with open_sandbox({layer!r}) as sandbox:
    before = others()
    after = []
    for code in {codes!r}:
        status = sandbox.run(Program(code, limits=Limits(wall_seconds=0.5, cpu_seconds=1, output_bytes=10_000))).status
        after.append((status, others() - before))
print(json.dumps([os.getpid(), after]))
"""


@pytest.mark.parametrize("code", KINDS_OF_END)
def test_nothing_is_left_when_a_run_has_ended(layer: str, marker: str, code: str) -> None:
    with open_sandbox(layer) as sandbox:
        for _ in range(3):
            assert sandbox.run(Program(code, limits=SHORT)).status == KINDS_OF_END[code]
            assert processes_with(marker) == []


def test_nothing_is_left_of_parallel_runs(layer: str, marker: str) -> None:
    with open_sandbox(layer) as sandbox:
        codes = [*KINDS_OF_END] * 2
        found = dict(sandbox.run_many((Program(code, limits=SHORT) for code in codes), workers=6))
        assert processes_with(marker) == []
    assert [found[at].status for at in range(len(codes))] == [KINDS_OF_END[code] for code in codes]


@pytest.mark.parametrize("seconds", [0, 0.002, 0.01, 0.02, 0.05])
def test_nothing_is_left_of_a_run_that_is_stopped(layer: str, marker: str, seconds: float) -> None:
    """Also while its sandbox still starts."""
    sandbox = open_sandbox(layer)
    timer = threading.Timer(seconds, sandbox.close)
    timer.start()
    outcome = sandbox.run(Program("import time; time.sleep(60)"))
    assert processes_with(marker) == []
    timer.join()
    assert outcome.status in {"killed", "refused"}


# The second form has a first process that never waits for an orphan.
@pytest.mark.parametrize("first", [[], ["-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"]])
def test_nothing_is_left_where_the_app_is_the_first_process(layer: str, first: list[str]) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("Only root can start a process in a process namespace, with unshare.")
    code = LIST_LEFT_PROCESSES.format(root=str(ROOT), layer=layer, codes=[*KINDS_OF_END])
    python = [sys.executable, *first, *([sys.executable] if first else []), "-c", code]
    ended = subprocess.run([unshare, "-pf", "--mount-proc", *python], capture_output=True, text=True, timeout=120)
    if "unshare failed" in ended.stderr:
        pytest.skip(f"There are no process namespaces here: {ended.stderr.strip()}.")
    pid, after = json.loads(ended.stdout)
    assert pid == (2 if first else 1)
    assert after == [[status, 0] for status in KINDS_OF_END.values()]


def test_children_of_the_owner_are_not_reaped(layer: str) -> None:
    with open_sandbox(layer) as sandbox:
        child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
        for code in ("print(1)", "import time; time.sleep(60)"):
            sandbox.run(Program(code, limits=SHORT))
        assert child.wait() == 7


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Two busy loops a core, each in a session of its own, which the kernel gives an equal share."""
    loop = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(loop, start_new_session=True) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


COMPUTE = """
import time
while time.process_time() < {seconds}: pass
print("done")
"""
COMPUTE_IN_THREADS = """
import threading, time
def work():
    while time.thread_time() < 0.2: pass
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("done")
"""


@pytest.mark.usefixtures("busy_machine")
def test_processor_time_is_judged_on_a_busy_machine(layer: str) -> None:
    limits = Limits(wall_seconds=0.9, cpu_seconds=2)
    with open_sandbox(layer) as sandbox:
        for code in (COMPUTE.format(seconds=0.5), COMPUTE_IN_THREADS):
            outcome = sandbox.run(Program(code, limits=limits))
            assert (outcome.status, outcome.stdout) == ("ok", "done\n"), outcome
        outcome = sandbox.run(Program("import time; time.sleep(60)", limits=limits))
        assert (outcome.status, outcome.limit) == ("timeout", "0.9 s of time")
        assert outcome.seconds < 3
        outcome = sandbox.run(Program("while True: pass", limits=Limits(wall_seconds=4, cpu_seconds=1)))
        assert (outcome.status, outcome.limit) == ("timeout", "1 s of processor time")


def schedstat(folder: Path, thread: str, waited: float) -> None:
    (folder / thread).mkdir(parents=True, exist_ok=True)
    (folder / thread / "schedstat").write_text(f"5000 {waited * 1e9:.0f} 3\n")


def test_the_clock_leaves_out_waiting_for_a_processor(tmp_path: Path) -> None:
    clock, limits = ProgramClock(os.getpid(), 100.0), Limits(wall_seconds=2)
    clock._threads_folder = str(tmp_path)
    schedstat(tmp_path, "1", 0.5)
    assert clock.check(101.0, limits) is None
    assert clock.seconds == pytest.approx(0.5)
    schedstat(tmp_path, "2", 0.75)
    assert clock.check(102.0, limits) is None
    assert clock.seconds == pytest.approx(0.75)
    shutil.rmtree(tmp_path / "2")  # a thread that has ended
    assert clock.check(103.0, limits) is None
    assert clock.seconds == pytest.approx(1.75)
    excess = clock.check(103.25, limits)
    assert excess is not None
    assert (excess.status, excess.limit) == ("timeout", "2 s of time")


def test_a_program_that_always_waits_ends(tmp_path: Path) -> None:
    clock, limits = ProgramClock(os.getpid(), 0.0), Limits(wall_seconds=2)
    clock._threads_folder = str(tmp_path)
    for now in range(1, 2 * BUSY_FACTOR):
        schedstat(tmp_path, "1", now)
        assert clock.check(now, limits) is None
    schedstat(tmp_path, "1", 100)
    excess = clock.check(2 * BUSY_FACTOR, limits)
    assert excess is not None
    assert (excess.status, excess.limit) == ("timeout", f"{2 * BUSY_FACTOR} s of time on a busy machine")


def test_without_scheduler_statistics_the_clock_shows_wall_time(tmp_path: Path) -> None:
    clock = ProgramClock(os.getpid(), 0.0)
    clock._threads_folder = str(tmp_path / "missing")
    assert clock.check(1.0, Limits(wall_seconds=2)) is None
    assert clock.seconds == 1.0
    assert clock.check(2.0, Limits(wall_seconds=2)) is not None


def test_time_is_measured_exactly_on_a_quiet_machine(layer: str) -> None:
    with open_sandbox(layer) as sandbox:
        began = time.monotonic()
        outcome = sandbox.run(Program("import time; time.sleep(60)", limits=Limits(wall_seconds=0.5)))
    assert outcome.status == "timeout"
    assert 0.45 < outcome.seconds <= time.monotonic() - began < 5
