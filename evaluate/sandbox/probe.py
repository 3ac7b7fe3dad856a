"""Probe of the sandbox layers: attacks each layer on this machine to find out what it stops."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from evaluate.sandbox import isolation
from evaluate.sandbox.launch import run_in_layer
from evaluate.sandbox.spec import SANDBOX_LAYERS, UNSAFE_LAYER
from evaluate.sandbox.types import MEBIBYTE, ExecutionResult, Limits, Program

PROBE_SECRET = "a secret of the host"  # noqa: S105 - used by the probe only

# The attacks of the probe and their descriptions.
ATTACK_LABELS = {
    "network": "connections to the network",
    "reading": "reading other files",
    "writing": "writing other files",
    "processes": "starting processes",
    "programs": "starting programs",
    "signals": "signals to other processes",
}
LIMIT_LABELS = {"time": "sleeping past the limit", "memory": "taking too much memory", "output": "printing too much"}

ATTACK_PROGRAM = """
import json, os, socket, sys
port, parent, secret, target = json.loads(sys.stdin.readline())

def network():
    socket.create_connection(("127.0.0.1", port), 1).close()

def reading():
    assert open(secret).read()

def writing():
    open(target, "w").write("written")

def processes():
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)

def programs():
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)

def signals():
    assert parent != os.getpid()  # in its own namespace of processes it may have the same number
    os.kill(parent, 0)

done = []
for attack in (network, reading, writing, processes, programs, signals):
    try:
        attack()
        done.append(attack.__name__)
    except BaseException:
        pass
open("own.txt", "w").write("own")
assert open("own.txt").read() == "own"
print(json.dumps(done))
"""

PROBE_LIMITS = Limits(wall_seconds=20, cpu_seconds=10, memory_bytes=128 * MEBIBYTE, output_bytes=100_000)
LIMIT_PROGRAMS = {
    "time": (Program("import time\ntime.sleep(30)", limits=replace(PROBE_LIMITS, wall_seconds=0.5)), "timeout"),
    "memory": (Program("x = []\nwhile True:\n    x.append(bytes(1 << 20))", limits=PROBE_LIMITS), "memory"),
    "output": (Program("while True:\n    print('x' * 1000)", limits=PROBE_LIMITS), "output"),
}


_WORKING_LAYERS: dict[str, ProbeResult] = {}


@dataclass(frozen=True)
class ProbeResult:
    """The attacks that a layer stops, and in `reason` why it does not work on this machine."""

    layer: str
    works: bool
    stops: dict[str, bool]
    reason: str = ""


def probe_layer(layer: str) -> ProbeResult:
    """Attack a layer, in about 50 ms. A positive result is cached for this process."""
    if layer not in _WORKING_LAYERS:
        found = _run_attacks(layer)
        if not found.works:
            return found
        _WORKING_LAYERS[layer] = found
    return _WORKING_LAYERS[layer]


def _run_attacks(layer: str) -> ProbeResult:
    if reason := _missing_requirement(layer):
        return ProbeResult(layer, False, {}, reason)
    with _attack_targets() as (listener, secret, target):
        stdin = json.dumps([listener.getsockname()[1], os.getpid(), str(secret), str(target)])
        limits = Limits(wall_seconds=20, cpu_seconds=10)
        result = run_in_layer(layer, Program(ATTACK_PROGRAM, stdin + "\n", limits), threading.Event())
        if result.status != "ok":
            return ProbeResult(layer, False, {}, _failure_reason(layer, result))
        succeeded = set(json.loads(result.stdout))
        # The program's own report is not enough: check the effects too.
        if _was_connected(listener):
            succeeded.add("network")
        if target.read_text(encoding="utf-8"):
            succeeded.add("writing")
    stops = {attack: attack not in succeeded for attack in ATTACK_LABELS}
    leaks = [ATTACK_LABELS[attack] for attack, stopped in stops.items() if not stopped]
    return ProbeResult(layer, not leaks, stops, f"it does not stop {', '.join(leaks)}" if leaks else "")


def probe_layer_with_limits(layer: str) -> ProbeResult:
    """Probe a layer's attacks and its limits, in a few seconds."""
    found = probe_layer(layer)
    if not found.stops:
        return found
    limits = {
        name: run_in_layer(layer, program, threading.Event()).status == status
        for name, (program, status) in LIMIT_PROGRAMS.items()
    }
    missed = [LIMIT_LABELS[name] for name, stopped in limits.items() if not stopped]
    reason = "; ".join(filter(None, [found.reason, f"it does not limit {', '.join(missed)}" if missed else ""]))
    return replace(found, works=found.works and not missed, stops=found.stops | limits, reason=reason)


def probe_all_layers() -> list[ProbeResult]:
    """Probe every layer with its limits, the unsafe one last."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(probe_layer_with_limits, (*SANDBOX_LAYERS, UNSAFE_LAYER)))


def probe_table(results: list[ProbeResult]) -> str:
    """Return the results as a text table with one row per attack and one column per layer."""
    attacks = ATTACK_LABELS | LIMIT_LABELS
    width = max(map(len, attacks.values()))
    columns = [max(len(result.layer), 14) for result in results]

    def line(first: str, cells: list[str]) -> str:
        return "  ".join(
            [first.ljust(width), *(cell.ljust(size) for cell, size in zip(cells, columns, strict=True))]
        ).rstrip()

    rows = [line("", [result.layer for result in results])]
    rows.append(line("works here", ["yes" if result.works else "no" for result in results]))
    for name, words in attacks.items():
        cells = ["-" if name not in r.stops else "stopped" if r.stops[name] else "LEAKS" for r in results]
        rows.append(line(words, cells))
    rows += ["", *(f"{result.layer}: {result.reason}." for result in results if result.reason)]
    return "\n".join(rows).rstrip()


def _missing_requirement(layer: str) -> str:
    """Return what the layer needs and this machine lacks; '' if it can be tried."""
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, and this is {platform.system()}"
    if layer == "bubblewrap" and isolation.find_bwrap() is None:
        return "there is no bwrap program (apt install bubblewrap)"
    if layer == "landlock" and isolation.landlock_abi_version() == 0:
        return "this kernel has no Landlock (Linux 5.13 or newer, with landlock among its security modules)"
    if layer != UNSAFE_LAYER and platform.machine() not in {"x86_64", "aarch64"}:
        return f"there is no table of system calls for {platform.machine()}"
    return ""


def _failure_reason(layer: str, result: ExecutionResult) -> str:
    reason = (result.stderr.strip().splitlines() or [result.limit or result.status])[-1].rstrip(".")
    if layer == "bubblewrap" and "namespace" in reason.lower():
        reason += " (a container needs permission for user namespaces)"
    return reason.removeprefix("The program was not started: ")


@contextlib.contextmanager
def _attack_targets() -> Iterator[tuple[socket.socket, Path, Path]]:
    """Create targets that only a sandbox protects: a listener, a readable file with a secret, and a writable file."""
    folder = Path(tempfile.mkdtemp(prefix="prompt-or-tune-probe-"))
    try:
        folder.chmod(0o755)
        secret, target = folder / "secret", folder / "target"
        secret.write_text(PROBE_SECRET, encoding="utf-8")
        secret.chmod(0o644)
        target.touch()
        target.chmod(0o666)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield listener, secret, target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _was_connected(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True
