r"""Does a training job survive kills? The same job is run undisturbed, and then killed again and again.

    python -m benchmarks.crash_recovery
    python -m benchmarks.crash_recovery --app "python app.py --port 7999"

At random moments one of the processes is killed with SIGKILL, by its id: the job's own, the worker that began it, a
program that votes, and the app where there is one. Whatever a person or the app would start again is started again. At
the end nothing may be missing: no job, no uploaded file, no checkpoint (the training never falls back behind one that
was whole), no vote that was confirmed; and the adapter has the bytes and the scores of the undisturbed one. A job that
is through before all kills are done is followed by another one of the same.

It works in a folder of its own, which shares converted bases with PROMPT_OR_TUNE_HOME and is removed at the end. Prints
one JSON line; the exit status is 1 where anything was lost or differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from common.paths import cache_dir as usual_home
from errors import PromptOrTuneError
from evaluate.arena.votes import VOTES_FILE, Base, Player, Side, Vote, VoteStore
from jobs.api import JobService
from jobs.job import Job, ServingOptions
from tasks.datasets.registry import load_examples
from tasks.problem import Problem

PROJECT_ROOT = Path(__file__).resolve().parents[1]
UNDISTURBED_ADAPTER, KILLED_ADAPTER, QUEUED_ADAPTER = "lora-calm", "lora-storm", "lora-behind"
WEIGHTS_NAME = "adapter_model.safetensors"
_POLL_SECONDS = 0.25
# A person looks after an ended job at times; that is no part of what is measured.
_TIMEOUT_SECONDS = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    options = _options(arguments)
    if options.vote:
        return _vote_forever(options.vote)
    with tempfile.TemporaryDirectory(prefix="kills-", dir=options.scratch) as scratch:
        home = Path(scratch) / "home"
        _share_converted_bases(home)
        try:
            found = Chaos(home, options).run()
        except PromptOrTuneError as error:
            print(f"kills: {error}", file=sys.stderr)
            return 2
    print(json.dumps(found))
    return 0 if found["same_bytes"] and found["same_scores"] and not found["lost"] else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.crash_recovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=60, help="rows of the uploaded file")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--gap", type=float, help="seconds between two kills on average; by default from the calm run")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--quantization", default="nf4", choices=["nf4", "int8", "none"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--app", help="a command that serves the app; it is killed and started again as well")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--scratch", type=Path, help="where the home of the jobs is made")
    parser.add_argument("--vote", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


class Chaos:
    """Both runs, and what was seen of them."""

    def __init__(self, home: Path, options: argparse.Namespace) -> None:
        self._home = home
        self._options = options
        self._service = JobService(home)
        self._random = random.Random(options.seed)
        self._killed: Counter[str] = Counter()
        self._lost: list[str] = []
        self._steps: dict[str, int] = {}
        self._confirmed_votes = 0
        self._resumed = 0
        self._file = _upload(home.parent / "my pairs.jsonl", options.rows)
        self._digest = _sha256(self._file)

    def run(self) -> dict[str, Any]:
        """What the JSON line says."""
        began = time.monotonic()
        calm = self._wait_until_ended(self._submit(UNDISTURBED_ADAPTER))
        calm_seconds = time.monotonic() - began
        _print_progress(f"The undisturbed run took {calm_seconds:.0f} s.")
        gap = self._options.gap or max(8.0, calm_seconds / 8)
        storms: list[Job] = []
        waited: list[Job] = []
        with _restarted_processes(self._other_commands(), self._home) as others:
            while not storms or sum(self._killed.values()) < self._options.kills:
                storms.append(self._submit(f"{KILLED_ADAPTER}-{len(storms) + 1}"))
                behind = self._submit(f"{QUEUED_ADAPTER}-{len(storms)}", max_train_samples=16, num_train_epochs=1.0)
                self._kill_until_ended(storms[-1], others, gap)
                self._wait_until_ended(storms[-1])
                waited.append(self._wait_until_ended(behind))
        _end_worker(self._home)
        self._check_nothing_lost([calm, *storms, *waited])
        same_bytes = len({self._weights_digest(job) for job in (calm, *storms)}) == 1
        scores = [self._scores(job) for job in (calm, *storms)]
        return {
            "kills": sum(self._killed.values()),
            "killed": dict(sorted(self._killed.items())),
            "jobs": len(storms) + len(waited) + 1,
            "resumed_by_hand": self._resumed,
            "votes": self._confirmed_votes,
            "lost": self._lost,
            "same_bytes": same_bytes,
            "same_scores": all(each == scores[0] for each in scores),
            "calm_seconds": round(calm_seconds, 1),
            "seconds": round(time.monotonic() - began, 1),
            "seed": self._options.seed,
        }

    def _submit(self, name: str, **more: Any) -> Job:
        options = self._options
        config = {"adapter_name": name, "num_train_epochs": options.epochs, "max_eval_samples": 8, "eval_every": 0.25}
        serving = ServingOptions(base=options.base, quantization=options.quantization, device=options.device)
        return self._service.submit({**config, **more}, serving, data=self._file, data_name=self._file.name)

    def _kill_until_ended(self, job: Job, others: Mapping[str, RestartedProcess], mean_interval: float) -> None:
        """Kills at random moments until the job is over or there were enough kills."""
        strike = time.monotonic() + self._random.uniform(0.5, 2 * mean_interval)
        while sum(self._killed.values()) < self._options.kills and not self._resume_if_failed(job).is_ended:
            time.sleep(_POLL_SECONDS)
            for other in others.values():
                other.restart_if_ended()
            if time.monotonic() >= strike:
                self._kill_one(others)
                strike = time.monotonic() + self._random.uniform(0.5, 2 * mean_interval)

    def _kill_one(self, others: Mapping[str, RestartedProcess]) -> None:
        victims: dict[str, Callable[[], psutil.Process | None]] = {
            "job": lambda: find_process(self._home, "run"),
            "worker": lambda: find_process(self._home, "work"),
            **{name: other.process for name, other in others.items()},
        }
        name = self._random.choice(sorted(victims))
        process = victims[name]()
        if process is None:
            return
        with suppress(psutil.NoSuchProcess):
            process.kill()
            self._killed[name] += 1
            _print_progress(f"Kill {sum(self._killed.values())}: {name}, process {process.pid}.")
        self._check_checkpoints()

    def _check_checkpoints(self) -> None:
        """Right after a kill: everything that was there is there."""
        for job in self._service.list_jobs():
            step = _checkpoint_step(self._home, job)
            fell_back = job.state != "done" and step < self._steps.get(job.id, 0)
            if fell_back and self._service.adapter_folder(job.id) is None:
                self._lost.append(f"checkpoint {self._steps[job.id]} of {job.adapter}")
            self._steps[job.id] = max(step, self._steps.get(job.id, 0))

    def _resume_if_failed(self, job: Job) -> Job:
        """What the app's pages do each second, and what a person does with a job that gave up."""
        self._service.ensure_worker()
        now = self._service.get_job(job.id)
        if now.state == "failed" and "without getting any further" in now.message:
            self._resumed += 1
            now = self._service.resume(job.id)
        return now

    def _wait_until_ended(self, job: Job) -> Job:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not (now := self._resume_if_failed(job)).is_ended:
            if time.monotonic() > deadline:
                raise PromptOrTuneError(f"The job '{job.adapter}' has not ended for an hour: it is {now.state}.")
            time.sleep(_POLL_SECONDS)
        _print_progress(f"{now.adapter}: {now.state} after {now.attempts} attempts. {now.message}")
        return now

    def _check_nothing_lost(self, jobs: Sequence[Job]) -> None:
        """At the end: every job is there and done, its upload as it was sent, every confirmed vote in the file."""
        known = {job.id: job for job in self._service.list_jobs()}
        for job in jobs:
            if job.id not in known or known[job.id].state != "done":
                self._lost.append(f"job {job.adapter}: {known[job.id].message if job.id in known else 'gone'}")
            elif _sha256(Path(job.config["dataset_name"])) != self._digest:
                self._lost.append(f"upload of {job.adapter}")
        self._confirmed_votes = _count_confirmed_votes(self._home)
        missing = self._confirmed_votes - VoteStore(self._home / VOTES_FILE).count()
        if missing > 0:
            self._lost.append(f"{missing} votes")

    def _weights_digest(self, job: Job) -> str:
        return _sha256(self._home / "adapters" / job.adapter / WEIGHTS_NAME)

    def _scores(self, job: Job) -> list[dict[str, Any]]:
        verdict = self._service.verdict(job.id)
        return [asdict(each) for each in verdict.compared] if verdict else []

    def _other_commands(self) -> dict[str, list[str]]:
        """The commands of programs that are killed besides, by name."""
        voter = [sys.executable, "-m", "benchmarks.crash_recovery", "--vote", str(self._home)]
        return {"voter": voter, **({"app": shlex.split(self._options.app)} if self._options.app else {})}


class RestartedProcess:
    """A program that is started again whenever it has ended."""

    def __init__(self, command: Sequence[str], home: Path) -> None:
        self._command = list(command)
        self._home = home
        self._running: subprocess.Popen[bytes] | None = None
        self.restart_if_ended()

    def restart_if_ended(self) -> None:
        if self._running is None or self._running.poll() is not None:
            environment = {**os.environ, "PROMPT_OR_TUNE_HOME": str(self._home)}
            quiet = subprocess.DEVNULL
            self._running = subprocess.Popen(
                self._command, cwd=PROJECT_ROOT, env=environment, stdout=quiet, stderr=quiet
            )

    def process(self) -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._running.pid) if self._running else None
        return None

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait()


@contextmanager
def _restarted_processes(commands: Mapping[str, Sequence[str]], home: Path) -> Iterator[dict[str, RestartedProcess]]:
    saved = {name: RestartedProcess(command, home) for name, command in commands.items()}
    try:
        yield saved
    finally:
        for each in saved.values():
            each.kill()


def find_process(home: Path, command_name: str) -> psutil.Process | None:
    """The worker ("work") or the job's process ("run") of this home."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if command[1:4] == ["-m", "jobs", command_name] and process.environ().get("PROMPT_OR_TUNE_HOME") == str(
                home
            ):
                return process
    return None


def _end_worker(home: Path) -> None:
    worker = find_process(home, "work")
    if worker is not None:
        worker.terminate()
        worker.wait(60)


def _checkpoint_step(home: Path, job: Job) -> int:
    found = (home / "adapters" / f".{job.adapter}.run" / "checkpoints").glob("checkpoint-*/trainer_state.json")
    return max((int(path.parent.name.rsplit("-", 1)[1]) for path in found), default=0)


def _upload(path: Path, rows: int) -> Path:
    """The first rows of starter's training split, as a person's own file."""
    examples = load_examples("starter")[:rows]
    lines = [json.dumps({"intent": example.intent, "code": example.code}) + "\n" for example in examples]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _share_converted_bases(home: Path) -> None:
    """A home of its own, with the converted bases and the indexes of the usual one."""
    for name in ("bases", "indexes"):
        (usual_home() / name).mkdir(parents=True, exist_ok=True)
        home.mkdir(exist_ok=True)
        (home / name).symlink_to(usual_home() / name)


def _vote_forever(home: Path) -> int:
    """Votes twice a second, and notes each vote once it is confirmed; until it is killed."""
    votes, confirmed = VoteStore(home / VOTES_FILE), home / "confirmed.txt"
    left, right = (Side(Player(name), name, name) for name in ("zero-shot", "rag-8"))
    base = Base("base", "1", "nf4")
    while True:
        id = f"{time.time_ns()}"
        votes.add(Vote(id, "", id, base, "starter", Problem(id, id), left, right, "left", 1.0))
        with confirmed.open("a", encoding="utf-8") as file:
            file.write(id + "\n")
        time.sleep(0.5)


def _count_confirmed_votes(home: Path) -> int:
    with suppress(FileNotFoundError):
        return len((home / "confirmed.txt").read_text(encoding="utf-8").splitlines())
    return 0


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Ended from outside, it takes what it started along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
