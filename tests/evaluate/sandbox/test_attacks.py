"""Attacks and harmless programs on every layer, and attacks without a sandbox, where they must succeed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from evaluate.sandbox.sandbox import Sandbox, open_sandbox
from evaluate.sandbox.types import ExecutionResult, Program
from evaluate.sandbox.watchers import BUSY_FACTOR
from tests.evaluate.sandbox.attacks import ATTACKS, Attack
from tests.evaluate.sandbox.harmless import HARMLESS, HarmlessProgram
from tests.evaluate.sandbox.host import Host, gone

pytestmark = pytest.mark.slow

WORKERS = 4
UNFENCED = [attack for attack in ATTACKS if attack.unfenced]
Results = dict[str, tuple[ExecutionResult, set[str]]]


def let_loose(sandbox: Sandbox, attacks: tuple[Attack, ...], marker: str, workers: int) -> tuple[Results, bool]:
    """Run all attacks; return their results and effects."""
    with ExitStack() as cleanup:
        bystander = subprocess.Popen(["sleep", "600"])
        cleanup.callback(bystander.wait)
        cleanup.callback(bystander.kill)
        hosts = [Host(bystander) for _ in attacks]
        for host in hosts:
            cleanup.callback(host.close)
        pairs = zip(attacks, hosts, strict=True)
        programs = [Program(attack.source, host.facts(), attack.limits) for attack, host in pairs]
        outcomes = dict(sandbox.run_many(programs, workers))
        found = [(outcomes[at], host.effects(outcomes[at])) for at, host in enumerate(hosts)]
        results = {attack.name: each for attack, each in zip(attacks, found, strict=True)}
        return results, gone(marker)


@pytest.fixture(scope="module")
def battery(layer: str, marker: str) -> Iterator[tuple[Results, bool]]:
    with pytest.MonkeyPatch.context() as patch, open_sandbox(layer) as sandbox:
        patch.setenv("PROMPT_OR_TUNE_CANARY", "not to be handed on")
        yield let_loose(sandbox, ATTACKS, marker, WORKERS)


@pytest.fixture(scope="module")
def harmless(layer: str) -> dict[str, ExecutionResult]:
    with open_sandbox(layer) as sandbox:
        outcomes = dict(sandbox.run_many([Program(each.code, each.stdin) for each in HARMLESS], 2))
    return {each.name: outcomes[at] for at, each in enumerate(HARMLESS)}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_has_no_effect(attack: Attack, battery: tuple[Results, bool], layer: str) -> None:
    outcome, effects = battery[0][attack.name]
    assert effects == set(), outcome
    assert outcome.layer == layer
    assert outcome.status != "refused"
    if attack.statuses:
        assert outcome.status in attack.statuses, outcome
    assert len(outcome.stdout) + len(outcome.stderr) <= attack.limits.output_bytes
    assert outcome.seconds < BUSY_FACTOR * attack.wall_seconds + 2


def test_no_process_is_left(battery: tuple[Results, bool]) -> None:
    assert battery[1]


@pytest.mark.parametrize("program", HARMLESS, ids=lambda program: program.name)
def test_a_harmless_program_succeeds(program: HarmlessProgram, harmless: dict[str, ExecutionResult]) -> None:
    outcome = harmless[program.name]
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", program.stdout, ""), outcome


@pytest.fixture(scope="module")
def unfenced(marker: str) -> Results:
    """Run the attacks that do not harm the machine under resource limits only."""
    with open_sandbox("unsafe-rlimits", unsafe=True) as sandbox:
        others = tuple(attack for attack in UNFENCED if attack.unfenced != "left a process")
        results, _ = let_loose(sandbox, others, marker, 2)
        for attack in set(UNFENCED) - set(others):
            outcome, nothing_left = let_loose(sandbox, (attack,), marker, 1)
            results |= {attack.name: (outcome[attack.name][0], set() if nothing_left else {"left a process"})}
        return results


@pytest.mark.parametrize("attack", UNFENCED, ids=lambda attack: attack.name)
def test_the_same_attack_succeeds_without_a_sandbox(attack: Attack, unfenced: Results) -> None:
    outcome, effects = unfenced[attack.name]
    assert attack.unfenced in effects, outcome


def test_the_number_of_attacks_and_programs_is_large_enough() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 30
    assert len({program.name for program in HARMLESS}) == len(HARMLESS) >= 15
    assert len(UNFENCED) >= 15
