"""Targets of attacks on the host (sockets, files, a process), and detection of effects on them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from evaluate.sandbox.spec import ExecutionResult
from tests.conftest import ROOT

ORIGINAL = "unchanged"


class Host:
    """Targets of one attack. Any user may access them: only the sandbox prevents that."""

    def __init__(self, bystander: subprocess.Popen[bytes]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="prompt-or-tune-victim-"))
        self.folder.chmod(0o777)
        self.secret, self.claim = secrets.token_hex(16), secrets.token_hex(16)
        self.secret_file, self.victim = self.folder / "secret", self.folder / "victim"
        self.secret_file.write_text(self.secret)
        self.secret_file.chmod(0o644)
        self.victim.write_text(ORIGINAL)
        self.victim.chmod(0o666)
        self.before = self._look()
        self.bystander = bystander
        self.abstract = f"prompt-or-tune-{secrets.token_hex(8)}"
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.unix.bind("\0" + self.abstract)
        for listener in (self.tcp, self.udp, self.unix):
            listener.setblocking(False)

    def facts(self) -> str:
        """Return the input of the attack: all targets, without the content of the secret file."""
        attack_input: dict[str, Any] = {
            "parent": os.getpid(),
            "bystander": self.bystander.pid,
            "folder": str(self.folder),
            "secret": str(self.secret_file),
            "victim": str(self.victim),
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "abstract": self.abstract,
            "claim": self.claim,
            "checkout": str(ROOT),
            "tests": __file__,
        }
        return json.dumps(attack_input) + "\n"

    def effects(self, outcome: ExecutionResult) -> set[str]:
        """Return the effects of the attack on the host, and those that it claims."""
        found = set()
        if _has(self.tcp.accept):
            found.add("connected")
        if any(_has(partial(listener.recv, 1000)) for listener in (self.udp, self.unix)):
            found.add("sent")
        if self._look() != self.before or self.victim.read_text() != ORIGINAL:
            found.add("changed files")
        output = outcome.stdout + outcome.stderr
        if self.secret in output:
            found.add("read the secret")
        if self.claim in output:
            found.add("claimed")
        if self.bystander.poll() is not None:
            found.add("hurt a bystander")
        return found

    def close(self) -> None:
        for listener in (self.tcp, self.udp, self.unix):
            listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _look(self) -> dict[str, tuple[int, ...]]:
        """Return all files of the folder with their mutable attributes."""
        look: dict[str, tuple[int, ...]] = {}
        for path in sorted(self.folder.iterdir()):
            facts = path.lstat()
            look[path.name] = (
                facts.st_size,
                stat.S_IMODE(facts.st_mode),
                facts.st_uid,
                facts.st_nlink,
                facts.st_mtime_ns,
            )
        return look


def _has(receive: Any) -> bool:
    try:
        got = receive()
    except BlockingIOError:
        return False
    if isinstance(got, tuple):
        got[0].close()
    return True


def processes_with(marker: str) -> list[int]:
    """Return the ids of the processes with the marker in their command line, which forks inherit."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in line and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def gone(marker: str) -> bool:
    """Return whether all processes with the marker end within the time that the kernel needs to remove a namespace."""
    deadline = time.monotonic() + 2
    while processes_with(marker):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
