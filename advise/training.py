"""Trainings of an advice: an adapter with given settings, the search for settings, and what the adapter forgot.

All trials of a search are compared by their validation loss per token after the same shares of their steps; one that is
not among the better half there ends. The first trials are the defaults of the techniques, so that these are always
among the candidates.
"""

from __future__ import annotations

import gc
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advise.answering import Answerer, mean_scores
from advise.folder import ProgressWriter
from advise.plan import RETENTION_ROWS, full_epochs
from common.files import ProgressFn
from errors import PromptOrTuneError
from evaluate.stats import metric_values, paired_bootstrap
from models.resources import trim_malloc
from models.source import resolve
from serve.options import ModelOptions
from tasks.datasets.registry import STARTER, load_problems
from tasks.problem import Example
from train.config import TrainConfig, run_directory
from train.data import load_training_data
from train.estimate import Estimate, try_estimate
from train.preflight import load_tokenizer_info
from train.run import TrainingStoppedError, train
from train.settings import make_config
from train.techniques import get_technique
from train.tokenize import tokenize_data
from train.trainer import read_log

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

    from train.trainer import Evaluation

EVALUATIONS = 8  # in one training
_MAX_FAILED_TRIALS = 5
# Trainings behind an engine in the same process took 1.3 to 1.4 times the estimate, which is made for new processes.
_MEMORY_FACTOR = 1.4
_RUNGS = (0.25, 0.5, 1.0)  # shares of the steps after which a trial may end
# Two prompts of each row in an epoch: one without examples, one with none, two or four. Fewer epochs take as many steps
# without examples as a training without them. On house this loses nothing in either use (docs/results/house.md).
TRAIN_EXAMPLES = "nearest:0+0,0,2,4"
MAX_LENGTH, MAX_LENGTH_WITH_EXAMPLES = 512, 1024
LORA_OF = {"nf4": "qlora-4bit", "int8": "qlora-8bit", "none": "lora"}

MAX_RANK = 32

Settings = Mapping[str, Any]
# The settings that each technique needs beside its own (advise.plan.fit_techniques).
Techniques = Mapping[str, Settings]
_NEW_TOKENS = 96


@dataclass(frozen=True)
class Trained:
    """A trained adapter. `loss` is its lowest validation loss, `seconds` the time of its training steps.

    `share` is the share of its steps that it made: below 1 it ended early, at the end of its time or, if `pruned`,
    because others were better.
    """

    name: str
    settings: dict[str, Any]
    loss: float
    seconds: float
    bytes: int
    share: float = 1.0
    pruned: bool = False

    def describe(self) -> str:
        """Return the settings as text, and how much of its steps the training made if it ended early."""
        ended = f" (ended after {100 * self.share:.0f} % of its steps)" if self.share < 1 else ""
        return describe_settings(self.settings) + ended


def techniques_of(model: ModelOptions) -> list[str]:
    """Return the techniques that are tried on this base."""
    return [LORA_OF[model.quantization], "ia3"]


def default_settings(techniques: Techniques, epochs: int) -> list[dict[str, Any]]:
    """Return the settings that are tried first, the most usual ones with so many epochs before the others."""
    tried: list[dict[str, Any]] = [
        {"technique": technique, "learning_rate": 1e-2, "num_train_epochs": epochs + 1}
        if technique == "ia3"
        else {"technique": technique, "lora_r": 16, "learning_rate": 1e-3, "num_train_epochs": epochs}
        for technique in techniques
    ]
    tried += [
        {"technique": technique, "lora_r": 32, "learning_rate": 2e-3, "num_train_epochs": epochs + 1}
        for technique in techniques
        if technique != "ia3"
    ]
    return [{**settings, **techniques[settings["technique"]]} for settings in tried]


def suggest_settings(trial: Trial, techniques: Techniques, epochs: int) -> dict[str, Any]:
    """Return the settings of a trial: technique, rank, learning rate and epochs."""
    technique = trial.suggest_categorical("technique", list(techniques))
    settings: dict[str, Any] = {"technique": technique}
    if technique == "ia3":
        settings["learning_rate"] = trial.suggest_float("ia3_learning_rate", 3e-3, 3e-2, log=True)
    else:
        settings["lora_r"] = trial.suggest_categorical("lora_r", [8, 16, MAX_RANK])
        settings["learning_rate"] = trial.suggest_float("learning_rate", 3e-4, 4e-3, log=True)
    settings["num_train_epochs"] = trial.suggest_int("num_train_epochs", epochs, 2 * epochs)
    return {**settings, **techniques[technique]}


def with_examples(settings: Settings) -> dict[str, Any]:
    """Return the settings of a training with examples in the prompts, for two thirds of the epochs."""
    epochs = max(1, round(2 * int(settings["num_train_epochs"]) / 3))
    return {**settings, "num_train_epochs": epochs, "train_examples": TRAIN_EXAMPLES}


def settings_for_share(settings: Settings, rows: int, share: float) -> dict[str, Any]:
    """Return the settings of a training on a share of so many rows: as long as a plan for the share makes it."""
    ratio = full_epochs(round(share * rows)) / full_epochs(rows)
    return {**settings, "num_train_epochs": round(ratio * int(settings["num_train_epochs"]))}


def all_settings(settings: Settings, seed: int) -> dict[str, Any]:
    """Return the settings with those that follow from them, under their names in train.config.TrainConfig."""
    values = {
        **settings,
        "eval_every": float(settings["num_train_epochs"]) / EVALUATIONS,
        "max_length": MAX_LENGTH_WITH_EXAMPLES if settings.get("train_examples") else MAX_LENGTH,
        "seed": seed,
    }
    return values | ({"lora_alpha": 2 * int(settings["lora_r"])} if "lora_r" in settings else {})


def describe_settings(settings: Settings) -> str:
    """Return settings as a short text, such as 'qlora-4bit, rank 16, learning rate 0.001, 3 epochs'."""
    parts = [str(settings["technique"])]
    if "lora_r" in settings:
        parts.append(f"rank {settings['lora_r']}")
    parts.append(f"learning rate {settings['learning_rate']:.2g}")
    epochs = int(settings["num_train_epochs"])
    parts.append(f"{epochs} epoch{'s' if epochs > 1 else ''}")
    if settings.get("train_examples"):
        parts.append("with examples")
    if settings.get("gradient_checkpointing"):
        parts.append("gradient checkpointing")
    return ", ".join(parts)


class AdapterTrainer:
    """Trains adapters on the rows of files into one folder; a training that was interrupted continues."""

    def __init__(self, model: ModelOptions, adapters: Path, progress: ProgressWriter, seed: int) -> None:
        self._model = model
        self._adapters = adapters
        self._progress = progress
        self._seed = seed

    def config(self, name: str, rows: tuple[Path, Path], settings: Settings) -> TrainConfig:
        """Return the configuration of a training with these rows (training, validation) and settings."""
        return make_config(
            {
                "adapter_name": name,
                "dataset_name": str(rows[0]),
                "validation_file": str(rows[1]),
                "model_name_or_path": self._model.base or "embedded",
                "device": self._model.device,
                "trust_remote_code": self._model.trust_remote_code,
                "output_dir": self._adapters,
                **all_settings(settings, self._seed),
            }
        )

    def estimate_seconds(self, rows: tuple[Path, Path], settings: Settings) -> tuple[float, float] | None:
        """Return estimates of the training steps and of the validations, in seconds; None where there are none."""
        found = self._estimate(rows, settings, measure_speed=True)
        if found is None or found.seconds is None:
            return None
        return found.seconds, found.eval_seconds or 0.0

    def estimate_memory(self, rows: tuple[Path, Path], settings: Settings) -> int | None:
        """Return the estimate of the peak of a training in bytes; None where there is none."""
        found = self._estimate(rows, settings, measure_speed=False)
        return None if found is None else round(_MEMORY_FACTOR * found.memory_bytes)

    def estimate_technique(self, rows: tuple[Path, Path], technique: str, more: Settings) -> int | None:
        """Return the estimate of the peak of its largest training in bytes, with further settings."""
        settings = default_settings({technique: more}, 1)[0]
        return self.estimate_memory(rows, settings | ({"lora_r": MAX_RANK} if "lora_r" in settings else {}))

    def _estimate(self, rows: tuple[Path, Path], settings: Settings, *, measure_speed: bool) -> Estimate | None:
        config = self.config("estimate", rows, settings)
        source = resolve(config.base, self._progress.message, config.trust_remote_code)
        info = load_tokenizer_info(source, config.trust_remote_code, get_technique(config.technique))
        prepared = tokenize_data(config, load_training_data(config), info)
        found = try_estimate(config, source.folder, prepared, measure_speed)
        return None if isinstance(found, str) else found

    def train(
        self,
        name: str,
        rows: tuple[Path, Path],
        settings: Settings,
        title: str,
        go_on: Callable[[Evaluation], bool] = lambda _: True,
    ) -> Trained:
        """Train and return the adapter `name`, or read it where it is trained already.

        `go_on` may end the training after a validation. Raises TrainingStoppedError, TrainingError and what the base
        raises.
        """
        config = self.config(name, rows, settings)
        if not (self._adapters / name).is_dir():
            self._train(config, title, go_on)
        folder = self._adapters / name
        log = read_log(folder / "log.jsonl")
        share = min(1.0, max(float(entry["epoch"]) for entry in log) / float(settings["num_train_epochs"]))
        return Trained(
            name,
            dict(settings),
            loss=min(float(entry["eval_loss"]) for entry in log if "eval_loss" in entry),
            seconds=max(float(entry["seconds"]) for entry in log),
            bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
            share=round(share, 3),
        )

    def _train(self, config: TrainConfig, title: str, go_on: Callable[[Evaluation], bool]) -> None:
        def after_validation(evaluation: Evaluation) -> bool:
            self._progress.point(title, evaluation.step / evaluation.steps, evaluation.loss)
            return go_on(evaluation)

        run = run_directory(config)
        self._progress.message(f"Training {title}")
        gc.collect()  # an engine that was closed before
        trim_malloc()
        train(config, self._progress.message, resume=run.last_checkpoint() is not None, go_on=after_validation)
        self._progress.end_curve(title, "done")


class AdapterSearch:
    """Searches settings for one fold. The study is stored in a file, from which an interrupted search continues."""

    def __init__(
        self,
        trainer: AdapterTrainer,
        techniques: Techniques,
        journal: Path,
        progress: ProgressWriter,
        seed: int,
        epochs: int,
    ) -> None:
        self._trainer = trainer
        self._epochs = epochs
        self._techniques = techniques
        self._journal = journal
        self._progress = progress
        self._seed = seed

    def run(self, prefix: str, title: str, rows: tuple[Path, Path], seconds: float, max_trials: int) -> list[Trained]:
        """Train trials until the next one would not fit into `seconds`, at least one, and return them.

        A trial that takes longer than `seconds` ends early, with the best weights so far. After the first trial, one
        that cannot be trained (a technique that the base does not support) is left out. Raises what the first raises.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("optuna").setLevel(logging.WARNING)
        study = self._open_study()
        deadline = time.monotonic() + seconds
        trained: list[Trained] = []
        failed = 0
        for frozen in study.get_trials(deepcopy=False):  # those that an earlier attempt finished or began
            if frozen.state in (optuna.trial.TrialState.WAITING, optuna.trial.TrialState.FAIL):
                continue
            if frozen.state == optuna.trial.TrialState.RUNNING:
                trial = optuna.trial.Trial(study, frozen._trial_id)
                trained.append(self._run_trial(study, trial, prefix, title, rows, deadline))
            else:
                trained.append(Trained(**frozen.user_attrs["trained"]))
        while len(trained) < max_trials:
            longest = max((each.seconds for each in trained if not each.pruned), default=0.0)
            if trained and time.monotonic() + longest * _RUNGS[0] * 1.5 > deadline:
                break
            self._enqueue_default(study)
            trial = study.ask()
            try:
                trained.append(self._run_trial(study, trial, prefix, title, rows, deadline))
            except TrainingStoppedError:
                raise
            except PromptOrTuneError as error:
                failed += 1
                if not trained or failed > _MAX_FAILED_TRIALS:
                    raise
                self._progress.message(f"Left out: {error}")
        return trained

    def _open_study(self) -> Study:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        storage = optuna.storages.JournalStorage(JournalFileBackend(str(self._journal)))
        return optuna.create_study(
            study_name="adapters",
            storage=storage,
            sampler=optuna.samplers.TPESampler(seed=self._seed),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
            load_if_exists=True,
        )

    def _enqueue_default(self, study: Study) -> None:
        """Make the first of the default settings that was not tried yet the next trial."""
        count = len(study.get_trials(deepcopy=False))
        for settings in default_settings(self._techniques, self._epochs):
            rate = "ia3_learning_rate" if settings["technique"] == "ia3" else "learning_rate"
            named = {name: settings[name] for name in ("technique", "lora_r", "num_train_epochs") if name in settings}
            study.enqueue_trial(named | {rate: settings["learning_rate"]}, skip_if_exists=True)
            if len(study.get_trials(deepcopy=False)) > count:
                return

    def _run_trial(
        self, study: Study, trial: Trial, prefix: str, title: str, rows: tuple[Path, Path], deadline: float
    ) -> Trained:
        import optuna

        settings = suggest_settings(trial, self._techniques, self._epochs)
        name, label = f"{prefix}-{trial.number + 1}", f"{title}{describe_settings(settings)}"
        reported = len(trial.storage.get_trial(trial._trial_id).intermediate_values)
        pruned = False

        def go_on(evaluation: Evaluation) -> bool:
            nonlocal pruned, reported
            share = evaluation.step / evaluation.steps
            rung = sum(share >= limit - 1e-9 for limit in _RUNGS)
            if rung > reported:
                reported = rung
                trial.report(evaluation.loss, rung)
                pruned = share < 1 and trial.should_prune()
            return not pruned and time.monotonic() < deadline

        try:
            result = self._trainer.train(name, rows, settings, label, go_on)
        except TrainingStoppedError:  # the trial stays as running, and continues from its checkpoint
            raise
        except PromptOrTuneError:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        result = replace(result, pruned=pruned)
        trial.set_user_attr("trained", asdict(result))
        if pruned:
            self._progress.end_curve(label, "stopped early")
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, result.loss)
        return result


def best_trials(trained: Sequence[Trained], count: int) -> list[Trained]:
    """Return the trials with the lowest validation losses, those that ran to their end first."""
    return sorted(trained, key=lambda each: (each.pruned, each.loss))[:count]


def measure_retention(answerer: Answerer, config: TrainConfig, adapter: Path, report: ProgressFn) -> dict[str, Any]:
    """Ask the base and the adapter RETENTION_ROWS test rows of starter, and compute the perplexity of its rows.

    The share of tests passed tells more than Pass@1 for so few rows. Returns the field `retention` of an advice.
    """
    from train.model import measure_perplexity

    rows = load_problems(STARTER, "test")
    rows = [
        rows[at] for at in sorted(random.Random(config.seed).sample(range(len(rows)), min(RETENTION_ROWS, len(rows))))
    ]
    with answerer.open():
        run = answerer.answer("retention", next(iter(answerer.pools)), rows, ["zero-shot", adapter.name], _NEW_TOKENS)
    tests = all("tests" in result.scores for result in run.results(adapter.name))
    metric, title = ("tests", "tests passed") if tests else ("codebleu", "CodeBLEU")
    before, after = (mean_scores(run, name, metric)[0] for name in ("zero-shot", adapter.name))
    difference = paired_bootstrap(
        metric_values(run.results(adapter.name), metric), metric_values(run.results("zero-shot"), metric), config.seed
    )
    general = [
        Example(problem.id, problem.intent, problem.reference or "") for problem in load_problems(STARTER, "validation")
    ]
    perplexity = measure_perplexity(config, adapter, general, report)
    bounds = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    change = f"{100 * before:.1f} to {100 * after:.1f} % of {title} on {len(rows)} rows of {STARTER}"
    perplexities = f"perplexity of {perplexity.rows} rows {perplexity.base:.1f} to {perplexity.adapter:.1f}"
    return {
        "sentence": f"On general Python: {change} ({100 * difference.value:+.1f} points {bounds}); {perplexities}.",
        "metric": title,
        "n": len(rows),
        "before": before,
        "after": after,
        "perplexity_rows": perplexity.rows,
        "perplexity_before": perplexity.base,
        "perplexity_after": perplexity.adapter,
    }
