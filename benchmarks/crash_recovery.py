r"""Test of crash recovery: runs a training job once undisturbed, then again while its processes are killed at random.

    python -m benchmarks.crash_recovery
    python -m benchmarks.crash_recovery --app "python app.py --port 7999"

At random times one process is killed with SIGKILL: the job's, its worker, a process that adds votes, or the app if
--app is given. Processes that the app or a user would restart are restarted. If a job ends before all kills are done,
the same job is submitted again. At the end all jobs, uploaded files, confirmed votes and complete checkpoints must
exist, and the adapters must have the bytes and the scores of the undisturbed run.

Works in a temporary folder, which shares converted bases with PROMPT_OR_TUNE_HOME and is removed at the end. Prints one
JSON line; exits with 1 if anything is lost or different.
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

from common.files import cache_dir as usual_home
from errors import PromptOrTuneError
from evaluate.arena.votes import VOTES_FILE, Base, Player, Side, Vote, VoteStore
from jobs.api import JobService
from jobs.job import Job, ServingOptions
from tasks.datasets.registry import load_examples
from tasks.problem import Problem

PROJECT_ROOT = Path(__file__).resolve().parents[1]
UNDISTURBED_ADAPTER, KILLED_ADAPTER, QUEUED_ADAPTER = "lora-undisturbed", "lora-killed", "lora-queued"
WEIGHTS_NAME = "adapter_model.safetensors"
_POLL_SECONDS = 0.25
# Limit for one job, to end a test that makes no progress.
_TIMEOUT_SECONDS = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _options(arguments)
    if options.vote:
        return _vote_forever(options.vote)
    with tempfile.TemporaryDirectory(prefix="kills-", dir=options.scratch) as scratch:
        home = Path(scratch) / "home"
        _share_converted_bases(home)
        try:
            result = CrashTest(home, options).run()
        except PromptOrTuneError as error:
            print(f"benchmarks.crash_recovery: {error}", file=sys.stderr)
            return 2
    print(json.dumps(result))
    return 0 if result["same_bytes"] and result["same_scores"] and not result["lost"] else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.crash_recovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=60, help="rows of the uploaded file")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--gap", type=float, help="mean seconds between two kills; by default from the undisturbed run")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--quantization", default="nf4", choices=["nf4", "int8", "none"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--app", help="command that serves the app, which is then killed and restarted too")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--scratch", type=Path, help="parent of the temporary folder")
    parser.add_argument("--vote", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


class CrashTest:
    """Runs the jobs with and without kills and collects what is lost."""

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
        """Run all jobs and return the contents of the JSON line."""
        start = time.monotonic()
        undisturbed = self._wait_until_ended(self._submit(UNDISTURBED_ADAPTER))
        undisturbed_seconds = time.monotonic() - start
        _print_progress(f"The undisturbed run took {undisturbed_seconds:.0f} s.")
        mean_interval = self._options.gap or max(8.0, undisturbed_seconds / 8)
        killed: list[Job] = []
        queued: list[Job] = []
        with _restarted_processes(self._other_commands(), self._home) as others:
            while not killed or sum(self._killed.values()) < self._options.kills:
                killed.append(self._submit(f"{KILLED_ADAPTER}-{len(killed) + 1}"))
                following = self._submit(f"{QUEUED_ADAPTER}-{len(killed)}", max_train_samples=16, num_train_epochs=1.0)
                self._kill_until_ended(killed[-1], others, mean_interval)
                self._wait_until_ended(killed[-1])
                queued.append(self._wait_until_ended(following))
        _end_worker(self._home)
        self._check_nothing_lost([undisturbed, *killed, *queued])
        same_bytes = len({self._weights_digest(job) for job in (undisturbed, *killed)}) == 1
        scores = [self._scores(job) for job in (undisturbed, *killed)]
        return {
            "kills": sum(self._killed.values()),
            "killed": dict(sorted(self._killed.items())),
            "jobs": len(killed) + len(queued) + 1,
            "resumed_by_hand": self._resumed,
            "votes": self._confirmed_votes,
            "lost": self._lost,
            "same_bytes": same_bytes,
            "same_scores": all(score == scores[0] for score in scores),
            "calm_seconds": round(undisturbed_seconds, 1),
            "seconds": round(time.monotonic() - start, 1),
            "seed": self._options.seed,
        }

    def _submit(self, name: str, **more: Any) -> Job:
        options = self._options
        config = {"adapter_name": name, "num_train_epochs": options.epochs, "max_eval_samples": 8, "eval_every": 0.25}
        serving = ServingOptions(base=options.base, quantization=options.quantization, device=options.device)
        return self._service.submit({**config, **more}, serving, data=self._file, data_name=self._file.name)

    def _kill_until_ended(self, job: Job, others: Mapping[str, RestartedProcess], mean_interval: float) -> None:
        """Kill processes at random times until the job has ended or the number of kills is reached."""
        next_kill = time.monotonic() + self._random.uniform(0.5, 2 * mean_interval)
        while sum(self._killed.values()) < self._options.kills and not self._resume_if_failed(job).is_ended:
            time.sleep(_POLL_SECONDS)
            for other in others.values():
                other.restart_if_ended()
            if time.monotonic() >= next_kill:
                self._kill_one(others)
                next_kill = time.monotonic() + self._random.uniform(0.5, 2 * mean_interval)

    def _kill_one(self, others: Mapping[str, RestartedProcess]) -> None:
        candidates: dict[str, Callable[[], psutil.Process | None]] = {
            "job": lambda: find_process(self._home, "run"),
            "worker": lambda: find_process(self._home, "work"),
            **{name: other.process for name, other in others.items()},
        }
        name = self._random.choice(sorted(candidates))
        process = candidates[name]()
        if process is None:
            return
        with suppress(psutil.NoSuchProcess):
            process.kill()
            self._killed[name] += 1
            _print_progress(f"Kill {sum(self._killed.values())}: {name}, process {process.pid}.")
        self._check_checkpoints()

    def _check_checkpoints(self) -> None:
        """Record, right after a kill, the checkpoints that have been lost since the last call."""
        for job in self._service.list_jobs():
            step = _checkpoint_step(self._home, job)
            is_behind = job.state != "done" and step < self._steps.get(job.id, 0)
            if is_behind and self._service.adapter_folder(job.id) is None:
                self._lost.append(f"checkpoint {self._steps[job.id]} of {job.adapter}")
            self._steps[job.id] = max(step, self._steps.get(job.id, 0))

    def _resume_if_failed(self, job: Job) -> Job:
        """Return the job's current state after starting a missing worker, as the app's pages do each second.

        Resumes a job that failed because it made no progress, as a user would.
        """
        self._service.ensure_worker()
        current = self._service.get_job(job.id)
        if current.state == "failed" and "without getting any further" in current.message:
            self._resumed += 1
            current = self._service.resume(job.id)
        return current

    def _wait_until_ended(self, job: Job) -> Job:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not (current := self._resume_if_failed(job)).is_ended:
            if time.monotonic() > deadline:
                raise PromptOrTuneError(f"The job '{job.adapter}' has not ended within an hour: it is {current.state}.")
            time.sleep(_POLL_SECONDS)
        _print_progress(f"{current.adapter}: {current.state} after {current.attempts} attempts. {current.message}")
        return current

    def _check_nothing_lost(self, jobs: Sequence[Job]) -> None:
        """Record each job that is missing or not done, each upload that has changed, and each missing vote."""
        stored = {job.id: job for job in self._service.list_jobs()}
        for job in jobs:
            if job.id not in stored or stored[job.id].state != "done":
                self._lost.append(f"job {job.adapter}: {stored[job.id].message if job.id in stored else 'gone'}")
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
        return [asdict(comparison) for comparison in verdict.compared] if verdict else []

    def _other_commands(self) -> dict[str, list[str]]:
        """Return the commands of the other programs to kill, by name."""
        voter = [sys.executable, "-m", "benchmarks.crash_recovery", "--vote", str(self._home)]
        return {"voter": voter, **({"app": shlex.split(self._options.app)} if self._options.app else {})}


class RestartedProcess:
    """A program that `restart_if_ended` starts again after it has ended."""

    def __init__(self, command: Sequence[str], home: Path) -> None:
        self._command = list(command)
        self._home = home
        self._running: subprocess.Popen[bytes] | None = None
        self.restart_if_ended()

    def restart_if_ended(self) -> None:
        if self._running is None or self._running.poll() is not None:
            environment = {**os.environ, "PROMPT_OR_TUNE_HOME": str(self._home)}
            self._running = subprocess.Popen(
                self._command,
                cwd=PROJECT_ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
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
    processes = {name: RestartedProcess(command, home) for name, command in commands.items()}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.kill()


def find_process(home: Path, command_name: str) -> psutil.Process | None:
    """Return the worker ("work") or the job's process ("run") of this home; None if it is not running."""
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
    states = (home / "adapters" / f".{job.adapter}.run" / "checkpoints").glob("checkpoint-*/trainer_state.json")
    return max((int(path.parent.name.rsplit("-", 1)[1]) for path in states), default=0)


def _upload(path: Path, rows: int) -> Path:
    """Write the first `rows` rows of starter's training split to `path`, in the format of an upload."""
    examples = load_examples("starter")[:rows]
    lines = [json.dumps({"intent": example.intent, "code": example.code}) + "\n" for example in examples]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _share_converted_bases(home: Path) -> None:
    """Create `home` with links to the converted bases and the indexes of the user's cache."""
    for name in ("bases", "indexes"):
        (usual_home() / name).mkdir(parents=True, exist_ok=True)
        home.mkdir(exist_ok=True)
        (home / name).symlink_to(usual_home() / name)


def _vote_forever(home: Path) -> int:
    """Add two votes per second until killed, and append the id of each to confirmed.txt once it is stored."""
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
    # Exit normally on SIGTERM, so that the processes started here are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
