"""Allowed imports between packages, and modules that must not import heavy libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OWN_MODULES = {"app", *(path.parent.name for path in ROOT.glob("*/__init__.py"))}
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "sentence_transformers", "faiss"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def imported_by(module: str) -> set[str]:
    """Return the top-level names that the file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_import_contracts_are_satisfied() -> None:
    done = run(str(Path(sys.executable).with_name("lint-imports")), "--no-logo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_import_linter_checks_every_package() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - set(settings["root_packages"]) <= {"benchmarks", "space", "tests"}


def test_errors_imports_no_own_module() -> None:
    assert not imported_by("errors.py") & OWN_MODULES


def test_app_imports_no_model_library_and_no_gradio() -> None:
    assert not imported_by("app.py") & (HEAVY | {"gradio"})


@pytest.mark.parametrize(
    "modules",
    [
        "app",
        "tasks.prompt, tasks.datasets.registry",
        "adapters.store",
        "evaluate",
        "evaluate.arena",
        "jobs.job",
        "serve.engine.llm_engine",
        "serve.engine.build",
        "train",
    ],
)
def test_importing_a_package_loads_no_model_library(modules: str) -> None:
    done = run(sys.executable, "-c", f"import {modules}, sys; print(*sorted(sys.modules))")
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & HEAVY


def test_importing_the_pages_loads_no_model_library() -> None:
    done = run(sys.executable, "-c", "import ui.app, sys; print(*sorted(sys.modules))")
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & HEAVY


def test_importing_the_pages_writes_no_stubs_of_gradio() -> None:
    script = "import ui.app, gradio.component_meta as meta; print(meta.create_or_modify_pyi.__module__)"
    done = run(sys.executable, "-c", script)
    assert (done.returncode, done.stdout.strip()) == (0, "ui"), done.stderr


def test_program_configures_its_libraries_before_it_imports_them() -> None:
    done = run(sys.executable, "-c", "import app, sys; print(*sorted(sys.modules))")
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {*HEAVY, "gradio", "huggingface_hub", "tqdm"}
