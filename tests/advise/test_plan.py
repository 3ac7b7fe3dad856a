"""Plan of an advice: what a budget includes and leaves out, and refusal of one that is too small."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advise.folder import Fold, Folds
from advise.plan import PLANNED_SHARE, Costs, Plan, full_epochs, make_plan
from errors import PromptOrTuneError
from tasks.problem import Problem

COSTS = Costs(zero_shot=0.5, icl=0.3, rag=1.0, epoch=40.0)


def folds(count: int = 1, test: int = 100, train: int = 160) -> Folds:
    rows = [Problem(str(number), "x", "y") for number in range(max(test, train))]
    return Folds("mine", [Fold(number, rows[:train], rows[:30], rows[:test]) for number in range(count)], "note")


def test_large_budget_includes_every_step_and_gives_the_rest_to_the_search() -> None:
    plan = make_plan(folds(), COSTS, 3600)
    assert {step.id for step in plan.steps if step.included} == {
        "prompts", "search", "examples", "test", "curve", "retention",
    }  # fmt: skip
    assert plan.seconds == pytest.approx(PLANNED_SHARE * 3600, abs=1)
    assert plan.search_seconds > 1000


def test_small_budget_leaves_out_what_costs_most_and_says_how_much_more_it_takes() -> None:
    plan = make_plan(folds(), COSTS, 700 / PLANNED_SHARE)
    assert not plan.includes("examples")
    assert plan.includes("test")
    left_out = next(step for step in plan.steps if step.id == "examples")
    assert "more than the budget has" in left_out.note
    assert plan.seconds <= 701


def test_small_budget_draws_fewer_test_rows_so_that_the_other_steps_fit() -> None:
    large, small = make_plan(folds(test=200), COSTS, 3600), make_plan(folds(test=200), COSTS, 950 / PLANNED_SHARE)
    assert (large.n, small.n) == (200, 90)
    assert "90 of 200 test rows are drawn" in small.sentence
    assert "drawn" not in large.sentence
    assert (large.epochs, small.epochs) == (3, 3)
    assert small.includes("curve")


def test_smaller_budget_trains_for_fewer_epochs() -> None:
    plan = make_plan(folds(test=200), COSTS, 700 / PLANNED_SHARE)
    assert plan.epochs == 2
    assert plan.includes("curve")


def test_training_ends_early_where_it_alone_does_not_fit() -> None:
    plan = make_plan(folds(), COSTS, 280 / PLANNED_SHARE)
    assert plan.search_seconds < COSTS.epoch
    assert [step.id for step in plan.steps if step.included] == ["prompts", "search", "test"]


def test_budget_without_an_answer_is_refused_with_the_minutes_that_it_takes() -> None:
    with pytest.raises(PromptOrTuneError, match=r"2 minutes are too few for mine on this machine: give \d+ or more"):
        make_plan(folds(), COSTS, 120)


def test_cross_fitting_plans_a_training_on_all_rows() -> None:
    assert make_plan(folds(5, 20), COSTS, 7200).includes("final")
    assert not any(step.id == "final" for step in make_plan(folds(), COSTS, 7200).steps)


def test_time_that_is_spent_is_not_planned_again() -> None:
    assert make_plan(folds(), COSTS, 3600, spent=600).seconds == pytest.approx(PLANNED_SHARE * 3600 - 600, abs=1)


def test_plan_survives_json() -> None:
    plan = make_plan(folds(), COSTS, 3600)
    assert Plan.from_json(plan.to_json()) == plan


def test_first_training_that_took_less_than_planned_makes_room_for_further_steps() -> None:
    plan = make_plan(folds(), COSTS, 700 / PLANNED_SHARE)
    assert not plan.includes("examples")
    revised = plan.revised(plan.train_seconds / 8, 700 - plan.estimate("prompts") - plan.train_seconds / 8)
    assert revised.includes("examples")
    assert revised.estimate("curve") < plan.estimate("curve") / 2
    assert revised.train_seconds == plan.train_seconds / 8 * revised.epochs / plan.epochs


def test_first_training_that_took_longer_leaves_out_what_does_not_fit_any_more() -> None:
    plan = make_plan(folds(), COSTS, 3600)
    revised = plan.revised(1200, 3600 - plan.estimate("prompts") - 1200)
    assert not revised.includes("examples")
    assert "more than the budget has" in next(step.note for step in revised.steps if step.id == "examples")
    assert revised.includes("test")


def test_later_folds_keep_the_time_of_a_training() -> None:
    plan = make_plan(folds(5, 20), COSTS, 7200).revised(100, 2000)
    assert plan.search_seconds >= 100
    assert plan.seconds_after_first_training <= 2001


def test_few_rows_are_read_more_often() -> None:
    assert [full_epochs(rows) for rows in (4, 38, 160, 585)] == [12, 12, 3, 3]
    assert make_plan(folds(train=38), COSTS, 7200).epochs == 12
    assert make_plan(folds(train=100), COSTS, 7200).epochs == 5


def test_first_training_that_took_less_than_planned_makes_later_ones_longer() -> None:
    plan = make_plan(folds(5, 12, train=38), COSTS, 1500)
    assert plan.epochs < plan.full_epochs == 12
    revised = plan.revised(30, 1300)
    assert plan.epochs < revised.epochs <= 12
    assert revised.repeats_first
    assert revised.train_seconds == pytest.approx(30 * revised.epochs / plan.epochs)
    assert revised.first_fold_seconds >= revised.train_seconds
    assert revised.seconds_after_first_training <= 1301


def test_longer_training_leaves_out_none_of_the_steps_that_come_before_it() -> None:
    plan = make_plan(folds(5, 12, train=38), COSTS, 1500)
    for seconds in (400, 700, 1000, 2000):
        revised, same = plan.revised(30, seconds), replace(plan, full_epochs=plan.epochs).revised(30, seconds)
        for id in ("final", "retention", "curve"):
            assert revised.includes(id) == same.includes(id)
