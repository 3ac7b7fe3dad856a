"""Run directory: settings, log and checkpoints of an unfinished run.

It is `.<name>.run` beside the adapter's folder in the store; the store ignores hidden folders. It is removed when the
adapter has been written.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.files import cache_dir, make_dir
from errors import TrainingError
from train.config import TrainConfig

# Settings that may differ when a run is continued: the output and the location of the data on this machine.
_IGNORED_SETTINGS = ("data_dir", "output_dir", "overwrite", "push_to_hub", "hub_model_id", "hub_private_repo", "device")


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run. `target` is the finished adapter's folder."""

    target: Path

    @property
    def folder(self) -> Path:
        """The unfinished run's folder."""
        return self.target.parent / f".{self.target.name}.run"

    @property
    def checkpoints(self) -> Path:
        """The folder of Trainer's checkpoint-N folders."""
        return self.folder / "checkpoints"

    @property
    def log(self) -> Path:
        """The log: one JSON object for each step and each evaluation."""
        return self.folder / "log.jsonl"

    @property
    def settings(self) -> Path:
        """The file with the settings that the run started with."""
        return self.folder / "settings.json"

    def last_checkpoint(self) -> Path | None:
        """Find the latest complete checkpoint. One without trainer_state.json, written last, is incomplete."""
        found = [path.parent for path in self.checkpoints.glob("checkpoint-*/trainer_state.json")]
        return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)

    def best_checkpoint(self) -> Path | None:
        """Find the complete checkpoint with the lowest validation loss so far, else the latest one."""
        last = self.last_checkpoint()
        if last is None:
            return None
        state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
        # Only the name is used: the folder may have been moved since.
        best = self.checkpoints / Path(state.get("best_model_checkpoint") or last).name
        return best if (best / "trainer_state.json").is_file() else last

    def last_step(self) -> int:
        """Return the step of the latest checkpoint, 0 without one."""
        last = self.last_checkpoint()
        return int(last.name.rsplit("-", 1)[1]) if last else 0

    @property
    def rows(self) -> Path:
        """The file with the digest of the rows that the run started with."""
        return self.folder / "rows.txt"

    def create(self, config: TrainConfig, rows_digest: str) -> None:
        """Create an empty run directory with settings and digest; remove what an earlier run left there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        make_dir(self.checkpoints)
        self.rows.write_text(rows_digest + "\n", encoding="utf-8")
        self.settings.write_text(json.dumps(_json_settings(config), indent=1) + "\n", encoding="utf-8")

    def check_settings(self, config: TrainConfig) -> None:
        """Raise TrainingError when the run on disk was started with other settings, and so cannot be continued."""
        before, now = self.saved_settings(), _json_settings(config)
        changed = [name for name in now if name not in _IGNORED_SETTINGS and before.get(name, now[name]) != now[name]]
        if changed:
            name = changed[0]
            raise TrainingError(
                f"The run of '{config.adapter_name}' was begun with {name} = {before[name]}, not {now[name]}: continue "
                "it as it was (--resume with the name alone suffices), or begin anew with --overwrite."
            )

    def check_rows(self, config: TrainConfig, rows_digest: str) -> None:
        """Raise TrainingError when the run on disk was started with other rows: it would go on in the wrong place."""
        try:
            before = self.rows.read_text(encoding="utf-8").strip()
        except OSError:  # a run of an earlier version
            return
        if before != rows_digest:
            raise TrainingError(
                f"The rows of {config.dataset_name} changed since the run of '{config.adapter_name}' began: restore "
                "them, make an adapter of its best checkpoint with --finish, or begin anew with --overwrite."
            )

    def saved_settings(self) -> dict[str, Any]:
        """Read the settings that the run started with. Raises TrainingError when there is no such run."""
        try:
            values = json.loads(self.settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"There is no unfinished run of '{self.target.name}' in {self.target.parent}: "
                "begin it without --resume."
            ) from error
        return dict(values)

    def remove(self) -> None:
        """Delete the run directory."""
        shutil.rmtree(self.folder, ignore_errors=True)


def run_directory(config: TrainConfig) -> RunDirectory:
    """Return the run directory in `output_dir`, by default in the user's own store."""
    return RunDirectory(adapter_store_dir(config.output_dir) / config.adapter_name)


def adapter_store_dir(output_dir: Path | None) -> Path:
    """Return the folder for finished adapters."""
    return output_dir or cache_dir() / "adapters"


def _json_settings(config: TrainConfig) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in asdict(config).items()
    }
