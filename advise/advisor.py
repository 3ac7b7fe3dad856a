"""Advisor: runs one advice step by step within its budget, and continues an interrupted one.

In each fold: examples of prompts and settings of adapters are chosen on validation rows, then the best method of each
family is asked the test rows, which no choice has seen. Then, if there is time, come the learning curve, what the
adapter forgot, and after cross-fitting the training on all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from adapters.install import copy_adapter
from advise.answering import ICL_METHODS, RAG_METHODS, Answerer, choose_prompts, mean_scores
from advise.folder import ADAPTER_STEP, AdviceFolder, AdviseOptions, Fold, Folds, ProgressWriter, make_folds
from advise.plan import (
    CHECKPOINTING,
    CURVE_SHARES,
    MIN_TRAIN_SECONDS,
    PLANNED_SHARE,
    Costs,
    MemoryLimit,
    Plan,
    fit_techniques,
    make_plan,
    memory_limit,
)
from advise.report import render_page
from advise.result import FAMILY_LABELS, FoldAnswers, build_result, chosen_family, learning_curve
from advise.training import (
    AdapterSearch,
    AdapterTrainer,
    Techniques,
    Trained,
    best_trials,
    default_settings,
    describe_settings,
    measure_retention,
    settings_for_share,
    techniques_of,
    with_examples,
)
from common.files import ProgressFn
from common.format import format_bytes, format_duration, utc_timestamp
from errors import DataError
from evaluate.results import read_run
from evaluate.sandbox.sandbox import Sandbox, SandboxUnavailableError, open_sandbox
from models.resources import free_memory
from serve.options import ModelOptions
from tasks.datasets.registry import dataset_digest
from tasks.problem import Example, Problem

MAX_TRIALS = 12
_PROBE_ROWS = 4
# Answers one after another in small batches take longer than in the batches of a run.
_PROBE_FACTOR = 0.7
_ESTIMATE_FACTOR = 1.25  # estimates of training time were 6 to 27 % too short (train/estimate.py)


def run_advice(
    options: AdviseOptions, model: ModelOptions, folder: AdviceFolder, home: Path, report: ProgressFn
) -> dict[str, Any]:
    """Run the advice in `folder`, from where an earlier attempt ended, and return its result (result.json).

    The adapter to keep is written into `adapters/` of `home`. Interrupted, it writes what it has as result.json with
    `finished` false. Raises PromptOrTuneError, TrainingStoppedError when a training was stopped, KeyboardInterrupt.
    """
    with ExitStack() as stack:
        advisor = _Advisor(options, model, folder, home, report, stack)
        try:
            advisor.run()
        except BaseException:
            advisor.write_result(finished=False)
            raise
        return advisor.write_result(finished=True)


class _Advisor:
    """One attempt at one advice."""

    def __init__(
        self,
        options: AdviseOptions,
        model: ModelOptions,
        folder: AdviceFolder,
        home: Path,
        report: ProgressFn,
        stack: ExitStack,
    ) -> None:
        from models.embedder import Embedder

        self._options, self._model, self._folder, self._home = options, model, folder, home
        self._progress = ProgressWriter(folder, report, 60 * options.minutes)
        stack.callback(self._progress.flush)
        self._started = folder.once("started", utc_timestamp)
        embedder = Embedder(model.embedder)
        self._folds = make_folds(options.data, model.data_dir, options.seed, lambda: embedder.embed)
        self._check_rows()
        self._sandbox = self._open_sandbox(stack)
        self._metric = "pass@1" if self._sandbox is not None else "em@1"
        self._pools = self._make_pools(self._folds)
        self._answerer = Answerer(
            model,
            folder.subfolder("adapters"),
            folder.subfolder("runs"),
            self._pools,
            self._sandbox,
            self._progress.message,
            options.seed,
        )
        stack.callback(self._answerer.close)
        self._trainer = AdapterTrainer(model, folder.subfolder("adapters"), self._progress, options.seed)

    def run(self) -> None:
        """Run all steps that are not done yet."""
        plan = self._make_plan()
        limited = self._folds.limited(plan.validation_limit, plan.test_limit, self._options.seed)
        self._folds = replace(limited, note=plan.sentence)
        self._progress.plan(plan.steps, plan.seconds)
        for fold in self._folds:
            plan = self._choose(fold, plan)
            self._answer_test_rows(fold, plan)
        self.write_result(finished=False)
        self._add_adapter(plan)
        self._optional(plan, "retention", self._measure_retention)
        self._optional(plan, "curve", self._measure_curve)

    def write_result(self, *, finished: bool) -> dict[str, Any]:
        """Write result.json and report.html from what is done, and return the result."""
        answers = [found for fold in self._folds if (found := self._fold_answers(fold)) is not None]
        result = build_result(
            self._options,
            self._model,
            self._folds,
            self._metric,
            answers,
            finished=finished,
            started=self._started,
            seconds=self._progress.seconds,
            steps={
                name: self._folder.once(name, dict)
                for name in (ADAPTER_STEP, "retention", "curve")
                if self._is_done(name)
            },
        )
        self._folder.write_result(result, render_page(result))
        return result

    def _is_done(self, key: str) -> bool:
        return self._folder.is_done(key)

    def _check_rows(self) -> None:
        """Raise DataError if the rows are other ones than when the advice began."""
        rows = [row for fold in self._folds for row in (*fold.train, *fold.validation, *fold.test)]
        digest = dataset_digest(rows)
        if self._folder.once("rows", lambda: digest) != digest:
            raise DataError(f"The rows of {self._options.data} were replaced since this advice began: begin a new one.")

    # The plan

    def _make_plan(self) -> Plan:
        def compute() -> dict[str, Any]:
            memory = self._folder.once("memory", self._fit_techniques)
            costs = self._measure_costs()
            budget = 60 * self._options.minutes
            plan = make_plan(self._folds, costs, budget, self._progress.seconds, self._options.seed)
            plan = replace(plan, memory=memory["text"])
            self._folder.write_plan(plan.to_json())
            return plan.to_json()

        return Plan.from_json(self._folder.once("plan", compute))

    def _fit_techniques(self) -> dict[str, Any]:
        """Return which techniques fit into the memory (advise.plan.fit_techniques), and the limit."""
        rows = self._folds.folds[0].write_rows(self._folder.subfolder("rows"))
        limit = memory_limit(self._options.memory_gb, free_memory(self._model.device))
        found = fit_techniques(techniques_of(self._model), partial(self._trainer.estimate_technique, rows), limit)
        return found | {"limit": asdict(limit)}

    @property
    def _techniques(self) -> Techniques:
        found: Techniques = self._folder.once("memory", self._fit_techniques)["settings"]
        return found

    def _measure_costs(self) -> Costs:
        """Measure a few answers, and estimate the training by the speed of two layers."""
        self._progress.message("Measuring the speed of this machine")
        fold = self._folds.folds[0]
        methods = ("zero-shot", ICL_METHODS[0], RAG_METHODS[0])
        rows = fold.validation[:_PROBE_ROWS]
        with self._answerer.open():
            run = self._answerer.answer("probe", _pool(fold), rows, methods, self._new_tokens())
        seconds = [
            _PROBE_FACTOR * sum(result.seconds for result in run.results(method)) / len(rows) for method in methods
        ]
        settings = default_settings(self._techniques, 1)[0]
        rows_of_fold = fold.write_rows(self._folder.subfolder("rows"))
        zero_shot, icl, rag = seconds
        found = self._trainer.estimate_seconds(rows_of_fold, settings)
        if found is None:  # a base that cannot be traced: a row takes longer to be answered than to be learned
            return Costs(zero_shot, icl, rag, len(fold.train) * zero_shot)
        epoch, validations = (_ESTIMATE_FACTOR * each for each in found)
        return Costs(zero_shot, icl, rag, epoch, validations)

    def _open_sandbox(self, stack: ExitStack) -> Sandbox | None:
        if not self._folds.has_tests:
            return None
        try:
            return stack.enter_context(open_sandbox())
        except SandboxUnavailableError as error:
            self._progress.message(f"Tests cannot run here, so answers are compared with the code of the row: {error}")
            return None

    def _make_pools(self, folds: Folds) -> dict[str, Sequence[Example]]:
        pools: dict[str, Sequence[Example]] = {_pool(fold): _examples(fold.train) for fold in folds}
        for share in CURVE_SHARES:
            pools |= {_pool(fold, share): _examples(fold.share_of_train(share, self._options.seed)) for fold in folds}
        return pools

    def _new_tokens(self) -> int:
        rows = [problem for fold in self._folds for problem in fold.train]
        return int(self._folder.once("max_new_tokens", lambda: self._answerer.max_new_tokens(rows)))

    # Choices on validation rows

    def _choose(self, fold: Fold, plan: Plan) -> Plan:
        """Make the choices of a fold. Returns the plan, which the first training of all has revised."""
        where = f"fold {fold.number + 1} of {len(self._folds)}, " if len(self._folds) > 1 else ""
        key = f"fold-{fold.number}"
        self._progress.step("prompts", "running", f"{where}{len(fold.validation)} validation rows")
        prompts = self._folder.once(f"{key}-prompts", lambda: self._choose_prompts(fold))
        self._progress.step("prompts", "done", f"{where}best: {prompts['icl']}, {prompts['rag']}")
        self._progress.step("search", "running", f"{where}{len(fold.train)} training rows")
        plan = self._revise(fold, plan, where)
        trials = self._folder.once(f"{key}-trials", lambda: self._search(fold, plan, where))
        self._progress.step("search", "done", f"{where}{len(trials)} trials")
        if plan.includes("examples"):
            self._folder.once(f"{key}-examples", lambda: self._train_with_examples(fold, plan, trials, where))
        self._folder.once(f"{key}-choice", lambda: self._choose_adapters(fold, prompts, trials))
        return plan

    def _revise(self, fold: Fold, plan: Plan, where: str) -> Plan:
        """Train once in the first fold, and revise the plan by the time that this took."""

        def train() -> dict[str, Any]:
            started = self._progress.seconds
            self._search(fold, plan, where, max_trials=1)
            spare = (1 - PLANNED_SHARE) * 60 * self._options.minutes
            revised = plan.revised(self._progress.seconds - started, self._progress.left_seconds - spare)
            self._folder.write_plan(revised.to_json())
            self._progress.revise(revised.steps, self._progress.seconds + revised.seconds_after_first_training)
            return revised.to_json()

        return Plan.from_json(self._folder.once("revised-plan", train))

    def _choose_prompts(self, fold: Fold) -> dict[str, Any]:
        with self._answerer.open():
            (icl, rag), scores = choose_prompts(
                self._answerer,
                f"fold-{fold.number}-validation",
                _pool(fold),
                fold.validation,
                (ICL_METHODS, RAG_METHODS),
                self._metric,
                self._new_tokens(),
            )
        return {"icl": icl, "rag": rag, "scores": scores}

    def _search(self, fold: Fold, plan: Plan, where: str, max_trials: int = 0) -> list[dict[str, Any]]:
        rows = fold.write_rows(self._folder.subfolder("rows"))
        journal = self._folder.path / f"fold-{fold.number}-trials.log"
        seed = self._options.seed
        search = AdapterSearch(self._trainer, self._techniques, journal, self._progress, seed, plan.epochs)
        seconds = self._search_seconds(fold, plan)
        trained = search.run(f"fold-{fold.number}-trial", where, rows, seconds, max_trials or MAX_TRIALS)
        return [asdict(each) for each in trained]

    def _search_seconds(self, fold: Fold, plan: Plan) -> float:
        """Return the planned time for the trainings of a fold, or less where earlier steps took more than planned."""
        is_trained = fold.number == 0 and self._is_done("revised-plan")
        ahead = [other for other in self._folds if other.number >= fold.number]
        share = len(ahead) / len(self._folds)
        left = (self._progress.left_seconds - share * plan.estimate("test")) / len(ahead)
        if is_trained:
            return max(0.0, min(plan.first_fold_seconds, left))
        return max(MIN_TRAIN_SECONDS, min(plan.search_seconds, left))

    def _train_with_examples(
        self, fold: Fold, plan: Plan, trials: Sequence[Mapping[str, Any]], where: str
    ) -> dict[str, Any] | None:
        """Train with examples in the prompts, if the time is still there; None if not."""
        reserved = plan.estimate("test")
        if self._progress.left_seconds < reserved + plan.estimate("examples") / len(self._folds) / 2:
            self._progress.step("examples", "left out", "no time was left for it")
            return None
        (best,) = best_trials([Trained(**trial) for trial in trials], 1)
        rows = fold.write_rows(self._folder.subfolder("rows"))
        limit = MemoryLimit(**self._folder.once("memory", self._fit_techniques)["limit"])
        settings = with_examples(best.settings)
        if not limit.allows(size := self._trainer.estimate_memory(rows, settings)):
            settings |= CHECKPOINTING
            if not limit.allows(size := self._trainer.estimate_memory(rows, settings)):
                self._progress.step("examples", "left out", f"takes about {format_bytes(size or 0)}, and {limit.text}")
                return None
        self._progress.step("examples", "running", f"{where}{describe_settings(settings)}")
        trained = self._trainer.train(
            f"fold-{fold.number}-examples",
            rows,
            settings,
            f"{where}{describe_settings(settings)}",
            lambda _: self._progress.left_seconds > reserved,
        )
        self._progress.step("examples", "done", f"{where}{format_duration(trained.seconds)} of training")
        return asdict(trained)

    def _choose_adapters(
        self, fold: Fold, prompts: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Ask the best trainings the validation rows, and return the best method of each family."""
        names = [trial.name for trial in best_trials([Trained(**trial) for trial in trials], 2)]
        with_examples = self._trained_with_examples(fold)
        rag = prompts["rag"]
        adapters = [*names, *([with_examples["name"]] if with_examples else [])]
        methods = [*adapters, *(f"{name}+{rag}" for name in (names[0], *adapters[len(names) :]))]
        self._progress.step("search", "running", "asking the validation rows")
        with self._answerer.open():
            run = self._answerer.answer(
                f"fold-{fold.number}-adapters", _pool(fold), fold.validation, methods, self._new_tokens()
            )
        scores = {method: mean_scores(run, method, self._metric) for method in methods}
        best = max(adapters, key=scores.__getitem__)
        settings = {
            trial["name"]: trial["settings"] for trial in (*trials, *([with_examples] if with_examples else []))
        }
        detail = f"{len(trials)} trials, the best: {describe_settings(settings[best])}"
        self._progress.step("search", "done", detail)
        return {
            "finalists": {
                "zero-shot": "zero-shot",
                "icl": prompts["icl"],
                "rag": rag,
                "adapter": best,
                "adapter with examples": max(methods[len(adapters) :], key=scores.__getitem__),
            },
            "scores": {**prompts["scores"], **scores},
        }

    def _trained_with_examples(self, fold: Fold) -> dict[str, Any] | None:
        key = f"fold-{fold.number}-examples"
        return self._folder.once(key, lambda: None) if self._is_done(key) else None

    # Test rows

    def _answer_test_rows(self, fold: Fold, plan: Plan) -> None:
        def ask() -> bool:
            finalists = self._folder.once(f"fold-{fold.number}-choice", dict)["finalists"]
            with self._answerer.open():
                self._answerer.answer(
                    f"fold-{fold.number}-test", _pool(fold), fold.test, list(finalists.values()), self._new_tokens()
                )
            return True

        where = f"fold {fold.number + 1} of {len(self._folds)}, " if len(self._folds) > 1 else ""
        self._progress.step("test", "running", f"{where}{len(fold.test)} rows")
        self._folder.once(f"fold-{fold.number}-test", ask)
        self._progress.step("test", "done", f"{plan.n} rows")

    def _fold_answers(self, fold: Fold) -> FoldAnswers | None:
        """Return what was chosen in a fold and its answers to the test rows; None before the choice."""
        key = f"fold-{fold.number}-choice"
        if not self._is_done(key):
            return None
        choice = self._folder.once(key, dict)
        path = self._folder.path / "runs" / f"fold-{fold.number}-test.jsonl"
        trials = [Trained(**trial) for trial in self._folder.once(f"fold-{fold.number}-trials", list)]
        if extra := self._trained_with_examples(fold):
            trials.append(Trained(**extra))
        run = read_run(path) if self._is_done(f"fold-{fold.number}-test") else None
        return FoldAnswers(fold, choice["finalists"], choice["scores"], trials, run)

    # After the test rows

    def _optional(self, plan: Plan, id: str, measure: Any) -> None:
        if self._is_done(id) or not plan.includes(id):
            return
        if self._progress.left_seconds < plan.estimate(id) / 2:
            self._progress.step(id, "left out", "no time was left for it")
            return
        self._progress.step(id, "running")
        values = self._folder.once(id, measure)
        self._progress.step(id, "done", str(values["sentence"]))

    def _best_family(self, families: Sequence[str]) -> str:
        answers = [found for fold in self._folds if (found := self._fold_answers(fold)) is not None]
        return chosen_family(self._options, self._metric, answers, families)

    def _add_adapter(self, plan: Plan) -> None:
        """Copy the adapter of the best family with one to the user's adapters, after cross-fitting a new one."""
        self._folder.once(ADAPTER_STEP, lambda: self._install_adapter(plan))

    def _install_adapter(self, plan: Plan) -> dict[str, Any]:
        family = self._best_family(("adapter", "adapter with examples"))
        found = [self._fold_answers(fold) for fold in self._folds]
        used = [fold.trial_of(family) for fold in found if fold is not None]
        name, trained = used[0].name, used[0]
        if len(self._folds) > 1:
            if not plan.includes("final") or self._progress.left_seconds < plan.estimate("final") / 2:
                return {"family": family, "adapter": None, "settings": used[0].settings}
            self._progress.step("final", "running")
            common = Counter(describe_settings(trial.settings) for trial in used).most_common(1)[0][0]
            trained = next(trial for trial in used if describe_settings(trial.settings) == common)
            trained = self._train_on_all_rows(trained, plan)
            name = trained.name
            self._progress.step("final", "done", describe_settings(trained.settings))
        target = self._home / "adapters" / self._options.adapter
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_adapter(self._folder.path / "adapters" / name, target)
        return {"family": family, "adapter": self._options.adapter, "trained": name, "settings": trained.settings}

    def _train_on_all_rows(self, trial: Trained, plan: Plan) -> Trained:
        first = self._folds.folds[0]
        whole = Fold(len(self._folds), (*first.train, *first.test), first.validation, ())
        rows = whole.write_rows(self._folder.subfolder("rows"))
        title = f"all rows, {describe_settings(trial.settings)}"
        end = self._progress.seconds + 2 * plan.estimate("final")
        return self._trainer.train("all-rows", rows, trial.settings, title, lambda _: self._progress.seconds < end)

    def _measure_retention(self) -> dict[str, Any]:
        family = self._best_family(("adapter", "adapter with examples"))
        fold = self._folds.folds[0]
        answers = self._fold_answers(fold)
        assert answers is not None  # noqa: S101 - all folds have answered
        trial = answers.trial_of(family)
        rows = fold.write_rows(self._folder.subfolder("rows"))
        config = self._trainer.config(trial.name, rows, trial.settings)
        return measure_retention(
            self._answerer, config, self._folder.path / "adapters" / trial.name, self._progress.message
        )

    def _measure_curve(self) -> dict[str, Any]:
        family = self._best_family(("rag", "adapter", "adapter with examples"))
        answers = [found for fold in self._folds if (found := self._fold_answers(fold)) is not None]
        return learning_curve(
            answers,
            family,
            FAMILY_LABELS[family],
            self._metric,
            CURVE_SHARES,
            self._options.seed,
            self._answer_with_share,
        )

    def _answer_with_share(self, answers: FoldAnswers, family: str, share: float) -> Mapping[str, float]:
        """Answer the test rows with a share of the training rows; return the scores of the rows."""
        fold, method = answers.fold, answers.finalists[family]
        if family != "rag":
            trial = answers.trial_of(family)
            rows = fold.write_rows(self._folder.subfolder("rows"), share, self._options.seed)
            name = f"fold-{fold.number}-share-{round(100 * share)}"
            settings = settings_for_share(trial.settings, len(fold.train), share)
            title = f"{len(_lines(rows[0]))} rows, {describe_settings(settings)}"
            self._trainer.train(name, rows, settings, title)
            method = method.replace(trial.name, name, 1)
        with self._answerer.open():
            run = self._answerer.answer(
                f"fold-{fold.number}-share-{round(100 * share)}",
                _pool(fold, share),
                fold.test,
                [method],
                self._new_tokens(),
            )
        from evaluate.stats import metric_values

        return metric_values(run.results(method), self._metric)


def _pool(fold: Fold, share: float = 1.0) -> str:
    return f"fold-{fold.number}" + (f"-{round(100 * share)}" if share < 1 else "")


def _examples(problems: Sequence[Problem]) -> list[Example]:
    return [Example(problem.id, problem.intent, problem.reference or "") for problem in problems]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
