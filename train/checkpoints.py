"""Where an unfinished run lives on disk: its settings, log and checkpoints, beside the folder it will fill.

`.<name>.run` in the store's folder; the store leaves hidden folders out. It goes when the adapter is written.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.paths import cache_dir, make_dir
from errors import TrainingError
from train.config import TrainConfig

# What may differ when a run is continued: where it goes, and where its data lies on this machine.
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
        """Where Trainer puts its checkpoint-N folders."""
        return self.folder / "checkpoints"

    @property
    def log(self) -> Path:
        """One JSON object a step and evaluation."""
        return self.folder / "log.jsonl"

    @property
    def settings(self) -> Path:
        """What the run was begun with."""
        return self.folder / "settings.json"

    def last_checkpoint(self) -> Path | None:
        """The latest whole checkpoint; Trainer writes trainer_state.json last, so one without it was cut short."""
        found = [path.parent for path in self.checkpoints.glob("checkpoint-*/trainer_state.json")]
        return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)

    def best_checkpoint(self) -> Path | None:
        """The whole checkpoint with the lowest validation loss so far, else the latest one."""
        last = self.last_checkpoint()
        if last is None:
            return None
        state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
        # Only the name counts: the folder may have been moved since.
        best = self.checkpoints / Path(state.get("best_model_checkpoint") or last).name
        return best if (best / "trainer_state.json").is_file() else last

    def last_step(self) -> int:
        """The step of the latest checkpoint; 0 without one."""
        last = self.last_checkpoint()
        return int(last.name.rsplit("-", 1)[1]) if last else 0

    def create(self, config: TrainConfig) -> None:
        """A fresh run's folder with its settings in it; what an earlier run left there is removed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        make_dir(self.checkpoints)
        self.settings.write_text(json.dumps(_json_settings(config), indent=1) + "\n", encoding="utf-8")

    def check_settings(self, config: TrainConfig) -> None:
        """TrainingError when the run on disk was begun with other settings: its losses could not go on."""
        before, now = self.saved_settings(), _json_settings(config)
        changed = [name for name in now if name not in _IGNORED_SETTINGS and before.get(name, now[name]) != now[name]]
        if changed:
            name = changed[0]
            raise TrainingError(
                f"The run of '{config.adapter_name}' was begun with {name} = {before[name]}, not {now[name]}: continue "
                "it as it was (--resume with the name alone suffices), or begin anew with --overwrite."
            )

    def saved_settings(self) -> dict[str, Any]:
        """The settings that the run was begun with; TrainingError where there is no such run."""
        try:
            values = json.loads(self.settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"There is no unfinished run of '{self.target.name}' in {self.target.parent}: "
                "begin it without --resume."
            ) from error
        return dict(values)

    def remove(self) -> None:
        """The run is finished, or nothing of it is worth keeping."""
        shutil.rmtree(self.folder, ignore_errors=True)


def run_directory(config: TrainConfig) -> RunDirectory:
    """The run's place: in `output_dir`, by default the user's own store."""
    return RunDirectory(adapter_store_dir(config.output_dir) / config.adapter_name)


def adapter_store_dir(output_dir: Path | None) -> Path:
    """Where finished adapters go."""
    return output_dir or cache_dir() / "adapters"


def _json_settings(config: TrainConfig) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in asdict(config).items()
    }
