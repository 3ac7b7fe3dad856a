"""Results of sandboxed programs, limits, isolation of programs from each other, and choice of a layer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from errors import PromptOrTuneError, UnknownNameError
from evaluate.sandbox import isolation, spec
from evaluate.sandbox import sandbox as sandbox_module
from evaluate.sandbox.sandbox import Sandbox, SandboxUnavailableError, open_sandbox
from evaluate.sandbox.spec import Limits, Program
from tests import messages
from tests.conftest import ROOT
from tests.evaluate.sandbox.host import gone, processes_with

pytestmark = pytest.mark.slow

ENDINGS = [
    ("", "ok", ""),
    ("import sys; sys.exit(0)", "ok", ""),
    ("import os; os._exit(0)", "ok", ""),
    ("import sys; sys.exit(3)", "error", ""),
    ("import sys; sys.exit('why')", "error", ""),
    ("import sys; sys.exit(139)", "error", ""),
    ("import sys; sys.exit(97)", "error", ""),
    ("1 / 0", "error", ""),
    ("x = = 1", "error", ""),
    ("x = 1\0", "error", ""),
    ("x = '\ud800'", "error", ""),
    ("(" * 300, "error", ""),
    ("while True: pass", "timeout", "1 s of processor time"),
    ("x = [0] * (1 << 60)", "memory", "128 MB of memory"),
    ("class E(MemoryError): pass\nraise E", "memory", "128 MB of memory"),
    ("print('x' * 5000)", "output", "1.95 kB of output"),
    ("with open('a', 'w') as file: file.write('x' * 5000)", "output", "4 kB of files"),
    ("import os; os.kill(os.getpid(), 15)", "killed", "signal SIGTERM"),
    ("import ctypes; ctypes.string_at(0)", "killed", "signal SIGSEGV"),
]
SMALL = Limits(wall_seconds=20, cpu_seconds=1, memory_bytes=128 << 20, output_bytes=2000, file_bytes=4096)


@pytest.fixture(scope="module")
def sandbox(layer: str, marker: str) -> Iterator[Sandbox]:
    with open_sandbox(layer) as opened:
        yield opened


def test_status_describes_how_the_program_ended(sandbox: Sandbox) -> None:
    found = dict(sandbox.run_many([Program(code, limits=SMALL) for code, _, _ in ENDINGS], 4))
    results = [(code[:40], found[index].status, found[index].limit) for index, (code, _, _) in enumerate(ENDINGS)]
    assert results == [(code[:40], status, limit) for code, status, limit in ENDINGS]


def test_output_is_returned(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Program("import sys\nprint(input())\nprint('no', file=sys.stderr)\n1 / 0", "ü\n"))
    assert outcome.stdout == "ü\n"
    assert outcome.stderr.splitlines()[0] == "no"
    assert '  File "program.py", line 4, in <module>\n    1 / 0\n' in outcome.stderr
    assert outcome.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "sandbox" not in outcome.stderr
    assert outcome.layer == sandbox.layer
    assert 0 < outcome.seconds < 10


def test_output_before_a_limit_is_returned(sandbox: Sandbox) -> None:
    code = "import time\nprint('so far', flush=True)\ntime.sleep(60)"
    outcome = sandbox.run(Program(code, limits=Limits(wall_seconds=0.5)))
    assert (outcome.status, outcome.limit, outcome.stdout) == ("timeout", "0.5 s of time", "so far\n")


def test_output_is_truncated_at_the_limit(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Program("print('x' * 10 ** 6)", limits=Limits(output_bytes=1000)))
    assert (outcome.status, outcome.stdout) == ("output", "x" * 1000)


def test_hash_seed_is_the_same_in_every_run(sandbox: Sandbox) -> None:
    assert len({sandbox.run(Program("print(hash('x'))")).stdout for _ in range(3)}) == 1


def test_program_has_no_access_to_files_of_another(sandbox: Sandbox) -> None:
    code = "import builtins, os\nprint(os.listdir(), hasattr(builtins, 'x'))\nopen('x', 'w').close()\nbuiltins.x = 1"
    assert [sandbox.run(Program(code)).stdout for _ in range(2)] == ["[] False\n"] * 2


def test_failing_programs_do_not_affect_others(sandbox: Sandbox) -> None:
    bad = ["while True: pass", "import os; os.abort()", "while True: print('x' * 999)", "x = [0] * (1 << 60)"]
    codes = [code for index in range(4) for code in (bad[index], f"print({index})")]
    found = dict(sandbox.run_many((Program(code, limits=SMALL) for code in codes), workers=3))
    assert [found[2 * index + 1].stdout for index in range(4)] == ["0\n", "1\n", "2\n", "3\n"]
    assert [found[2 * index].status for index in range(4)] == ["timeout", "killed", "output", "memory"]


def test_closing_the_iterator_ends_running_programs(sandbox: Sandbox, marker: str) -> None:
    endless = (Program("while True: pass") for _ in iter(int, 1))
    started = time.monotonic()
    listening = sandbox.run_many([Program(""), *[next(endless) for _ in range(6)]], workers=2)
    assert next(listening)[0] == 0
    listening.close()  # type: ignore[attr-defined] # a generator is more than an iterator
    assert time.monotonic() - started < 5
    assert gone(marker)


def test_closing_the_sandbox_ends_running_programs_and_refuses_others(layer: str) -> None:
    sandbox = open_sandbox(layer)
    timer = threading.Timer(0.3, sandbox.close)
    timer.start()
    outcome = sandbox.run(Program("import time; time.sleep(60)"))
    timer.join()
    assert (outcome.status, outcome.limit) == ("killed", "stopped from outside")
    assert outcome.seconds < 5
    assert sandbox.run(Program("")).status == "refused"


def test_killing_the_owner_ends_all_processes_of_the_sandbox(layer: str, marker: str, tmp_path: Path) -> None:
    code = f"""
from evaluate.sandbox import spec
from evaluate.sandbox.sandbox import Program, open_sandbox
sandbox = open_sandbox({layer!r})
spec.BOOTSTRAP += "#{marker}"
print("opened", flush=True)
sandbox.run(Program("import time; time.sleep(60)"))
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, env=environment)
    assert owner.stdout is not None
    with owner, owner.stdout:
        assert owner.stdout.readline() == b"opened\n"
        time.sleep(0.5)
        assert processes_with(marker)
        owner.send_signal(signal.SIGKILL)
    assert gone(marker)


def test_scratch_folder_of_a_killed_owner_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{spec.SCRATCH_PREFIX}left"
    (left / "inner").mkdir(parents=True)
    (left / "inner").chmod(0o300)
    (left / "link").symlink_to(tmp_path)
    spec.remove_stale_scratch_dirs()
    assert left.exists()  # not removed yet: its owner may not have locked it so far
    monkeypatch.setattr(spec, "SCRATCH_STALE_SECONDS", 0)
    with spec.scratch_dir() as used:
        mode = tmp_path.stat().st_mode
        spec.remove_stale_scratch_dirs()
        assert list(tmp_path.iterdir()) == [Path(used)]
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.stat().st_mode == mode


def test_packages_below_an_unreadable_folder_can_be_imported(
    layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case of root with a virtual environment below a home folder of mode 0700."""
    tmp_path.chmod(0o700)
    folder = tmp_path / "site-packages" / "closed"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from closed import inner\n")
    (folder / "inner.py").write_text("value = 42\n")
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    secret.chmod(0o644)
    monkeypatch.setattr(isolation, "package_dirs", lambda: (str(folder.parent),))
    monkeypatch.setattr(isolation, "IMPORTABLE_PACKAGES", ("closed",))
    readable = (*isolation.readable_paths(), str(folder.parent))
    monkeypatch.setattr(isolation, "readable_paths", lambda: readable)
    with open_sandbox(layer) as sandbox:
        assert sandbox.run(Program("import closed\nprint(closed.inner.value)")).stdout == "42\n"
        for path in (repr(str(secret)), "os.path.dirname(closed.__file__) + '/../../secret'"):
            outcome = sandbox.run(Program(f"import closed, os\nprint(open({path}).read())"))
            assert (outcome.status, outcome.stdout) == ("error", "")


def test_only_the_listed_packages_can_be_imported(layer: str) -> None:
    text = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")
    listed = re.findall(r"`([a-z_]+)`", text.partition("## Packages")[2].partition("##")[0])
    assert set(listed) <= set(isolation.IMPORTABLE_PACKAGES)
    assert "sortedcontainers" in listed
    others = ("torch", "gradio", "pytest", "evaluate", "pip", "no_such_package")
    code = """
import importlib.util
print([name for name in input().split() if importlib.util.find_spec(name) is None])
"""
    with open_sandbox(layer) as sandbox:
        assert sandbox.run(Program(code, " ".join(listed))).stdout == "[]\n"
        assert sandbox.run(Program(code, " ".join(others))).stdout == f"{list(others)}\n"
        outcome = sandbox.run(Program("from sortedcontainers import SortedList\nprint(*SortedList([3, 1, 2]))"))
        assert outcome.stdout == "1 2 3\n", outcome
        outcome = sandbox.run(Program("import torch"))
        assert outcome.status == "error"
        assert outcome.stderr.endswith("ModuleNotFoundError: No module named 'torch'\n")
        outcome = sandbox.run(Program("from importlib.metadata import version\nprint(version('sortedcontainers'))"))
        assert outcome.stdout == f"{version('sortedcontainers')}\n", outcome


def test_scratch_folder_can_be_below_an_unreadable_folder(
    layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import tempfile\nwith tempfile.NamedTemporaryFile('w+') as file:\n    print(file.write('abc'))"
    with open_sandbox(layer) as sandbox:
        outcome = sandbox.run(Program(code))
    assert (outcome.status, outcome.stdout) == ("ok", "3\n"), outcome
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wall_seconds", "memory_bytes", "output_bytes", "processes"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limit_that_is_not_positive_raises(name: str, value: float) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.LIMIT_INVALID.format(name=name, value=value)):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_fewer_than_one_worker_raises(sandbox: Sandbox) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.TOO_FEW_WORKERS):
        sandbox.run_many([], workers=0)


def test_rlimits_layer_is_used_only_on_request() -> None:
    with pytest.raises(SandboxUnavailableError, match=messages.UNSAFE_FLAG_REQUIRED):
        open_sandbox("rlimits")
    assert open_sandbox("rlimits", unsafe=True).layer == "unsafe-rlimits"


def test_unknown_layer_raises() -> None:
    with pytest.raises(UnknownNameError, match=messages.UNKNOWN_LAYER_SUGGESTS_LANDLOCK):
        open_sandbox("landlok")


def finding(layer: str, works: bool) -> sandbox_module.ProbeResult:
    return sandbox_module.ProbeResult(layer, works, {}, "" if works else f"{layer} is missing")


def test_weaker_layer_is_used_with_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("evaluate.sandbox.sandbox.probe_layer", lambda layer: finding(layer, layer == "landlock"))
    sandbox = open_sandbox()
    assert sandbox.layer == "landlock"
    assert sandbox.unavailable_layers == ("bubblewrap does not work here: bubblewrap is missing",)
    assert "bubblewrap is missing" in caplog.text


def test_no_program_runs_without_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluate.sandbox.sandbox.probe_layer", lambda layer: finding(layer, False))
    with pytest.raises(SandboxUnavailableError, match=messages.NO_SANDBOX_LAYER):
        open_sandbox()
    with pytest.raises(SandboxUnavailableError, match=messages.LANDLOCK_UNAVAILABLE):
        open_sandbox("landlock")


def test_probe_reports_what_a_layer_does_not_prevent() -> None:
    """The probe checks the effects on the host, not the errors of its programs."""
    found = sandbox_module.probe_layer("unsafe-rlimits")
    assert not found.works
    assert not found.stops["network"]
    assert not found.stops["writing"]
    assert "connections to the network" in found.reason


def test_missing_requirements_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "_WORKING_LAYERS", {})
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert sandbox_module.probe_layer("bubblewrap").reason == "there is no bwrap program (apt install bubblewrap)"
    monkeypatch.setattr("evaluate.sandbox.isolation.landlock_abi_version", lambda: 0)
    assert "no Landlock" in sandbox_module.probe_layer("landlock").reason
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setattr("evaluate.sandbox.isolation.landlock_abi_version", lambda: 7)
    assert sandbox_module.probe_layer("landlock").reason == "there is no table of system calls for riscv64"
