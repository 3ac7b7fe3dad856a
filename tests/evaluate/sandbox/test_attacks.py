"""Attacks and harmless programs on every layer; without a sandbox the attacks must succeed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from evaluate.sandbox.launch import BUSY_FACTOR
from evaluate.sandbox.sandbox import Sandbox, open_sandbox
from evaluate.sandbox.spec import ExecutionResult, Program
from tests.evaluate.sandbox.attacks import ATTACKS, Attack
from tests.evaluate.sandbox.harmless import HARMLESS, HarmlessProgram
from tests.evaluate.sandbox.host import Host, gone

pytestmark = pytest.mark.slow

WORKERS = 4
RUN_UNSANDBOXED = [attack for attack in ATTACKS if attack.unsandboxed_effect]
Results = dict[str, tuple[ExecutionResult, set[str]]]


def run_attacks(sandbox: Sandbox, attacks: tuple[Attack, ...], marker: str, workers: int) -> tuple[Results, bool]:
    """Run all attacks; return their results and effects, and whether all processes have ended."""
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
        found = [(outcomes[index], host.effects(outcomes[index])) for index, host in enumerate(hosts)]
        results = {attack.name: each for attack, each in zip(attacks, found, strict=True)}
        return results, gone(marker)


@pytest.fixture(scope="module")
def attack_results(layer: str, marker: str) -> Iterator[tuple[Results, bool]]:
    with pytest.MonkeyPatch.context() as patch, open_sandbox(layer) as sandbox:
        patch.setenv("PROMPT_OR_TUNE_CANARY", "not passed on")
        yield run_attacks(sandbox, ATTACKS, marker, WORKERS)


@pytest.fixture(scope="module")
def harmless_results(layer: str) -> dict[str, ExecutionResult]:
    with open_sandbox(layer) as sandbox:
        outcomes = dict(sandbox.run_many([Program(each.code, each.stdin) for each in HARMLESS], 2))
    return {each.name: outcomes[index] for index, each in enumerate(HARMLESS)}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_has_no_effect_in_the_sandbox(attack: Attack, attack_results: tuple[Results, bool], layer: str) -> None:
    outcome, effects = attack_results[0][attack.name]
    assert effects == set(), outcome
    assert outcome.layer == layer
    assert outcome.status != "refused"
    if attack.statuses:
        assert outcome.status in attack.statuses, outcome
    assert len(outcome.stdout) + len(outcome.stderr) <= attack.limits.output_bytes
    assert outcome.seconds < BUSY_FACTOR * attack.wall_seconds + 2


def test_all_processes_of_attacks_have_ended(attack_results: tuple[Results, bool]) -> None:
    assert attack_results[1]


@pytest.mark.parametrize("program", HARMLESS, ids=lambda program: program.name)
def test_harmless_program_succeeds(program: HarmlessProgram, harmless_results: dict[str, ExecutionResult]) -> None:
    outcome = harmless_results[program.name]
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", program.stdout, ""), outcome


@pytest.fixture(scope="module")
def unsandboxed_results(marker: str) -> Results:
    """Run the attacks that do not harm the machine under resource limits only."""
    with open_sandbox("unsafe-rlimits", unsafe=True) as sandbox:
        others = tuple(attack for attack in RUN_UNSANDBOXED if attack.unsandboxed_effect != "left a process")
        results, _ = run_attacks(sandbox, others, marker, 2)
        for attack in set(RUN_UNSANDBOXED) - set(others):
            outcome, all_ended = run_attacks(sandbox, (attack,), marker, 1)
            results |= {attack.name: (outcome[attack.name][0], set() if all_ended else {"left a process"})}
        return results


@pytest.mark.parametrize("attack", RUN_UNSANDBOXED, ids=lambda attack: attack.name)
def test_attack_succeeds_without_a_sandbox(attack: Attack, unsandboxed_results: Results) -> None:
    outcome, effects = unsandboxed_results[attack.name]
    assert attack.unsandboxed_effect in effects, outcome


def test_attacks_and_programs_have_unique_names_and_minimum_numbers() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 30
    assert len({program.name for program in HARMLESS}) == len(HARMLESS) >= 15
    assert len(RUN_UNSANDBOXED) >= 15
