"""`python -m space build`: the files that a Space needs and no others."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import pytest

from errors import PromptOrTuneError
from space import build as building
from space.__main__ import main
from space.build import (
    MAX_BYTES,
    PACKAGES,
    ROOT,
    SPACE_FILES,
    THUMBNAIL,
    build_space,
    front_matter,
    is_project_file,
    space_files,
)
from tests import messages

TOP = {"app.py", "errors.py", "LICENSE", "README.md", "requirements.txt", "packages.txt", "docs", "space", *PACKAGES}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> building.BuiltSpace:
    return build_space(tmp_path_factory.mktemp("space") / "built")


def digest(folder: Path) -> str:
    state = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        state.update(f"{path.relative_to(folder)} {path.stat().st_mode & 0o777:o}\n".encode() + path.read_bytes())
    return state.hexdigest()


def test_space_contains_only_the_program(built: building.BuiltSpace) -> None:
    assert {path.name for path in built.folder.iterdir()} == TOP
    names = {path.relative_to(built.folder).as_posix() for path in built.folder.rglob("*") if path.is_file()}
    assert names == set(built.files)
    for name in (
        "serve/engine/llm_engine.py",
        "ui/style.css",
        "ui/js/page.js",
        "tasks/starter/train.jsonl",
        "tasks/house/kit.py",
        "tasks/house/test.jsonl",
        "jobs/job.py",
    ):
        assert name in names, name
    assert not [name for name in names if "__pycache__" in name or "/." in name or name.endswith(".pyc")]
    assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", ".ci")]
    assert {name for name in names if name.startswith("space/")} == set(SPACE_FILES)


def test_every_module_of_the_packages_is_included(built: building.BuiltSpace) -> None:
    modules = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert modules == {name for name in built.files if name.endswith(".py")} - {"app.py", "errors.py", *SPACE_FILES}


def test_every_own_module_that_is_imported_is_included(built: building.BuiltSpace) -> None:
    own = {path.name.removesuffix(".py") for path in ROOT.iterdir() if (path / "__init__.py").is_file()} | {"errors"}
    for name in (name for name in built.files if name.endswith(".py")):
        for node in ast.walk(ast.parse((built.folder / name).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module or node.module.split(".")[0] not in own:
                continue
            path = node.module.replace(".", "/")
            assert {f"{path}.py", f"{path}/__init__.py"} & set(built.files), f"{name} imports {node.module}"


def test_only_run_files_of_the_docs_are_included(built: building.BuiltSpace) -> None:
    docs = [name for name in built.files if name.startswith("docs/")]
    assert docs
    assert all(name.startswith("docs/results/") and name.endswith((".jsonl", ".jsonl.gz")) for name in docs)
    assert "docs/results/study/conala.jsonl.gz" in docs
    assert "docs/results/study/conala.scores.jsonl.gz" in docs


def test_all_bundled_adapters_are_included(built: building.BuiltSpace) -> None:
    names = sorted(path.name for path in (ROOT / "adapters" / "library").iterdir() if path.is_dir())
    assert names
    for name in names:
        for file in ("adapter_config.json", "adapter_model.safetensors", "manifest.json"):
            assert f"adapters/library/{name}/{file}" in built.files


def test_space_is_smaller_than_forty_megabytes(built: building.BuiltSpace) -> None:
    size = sum(path.stat().st_size for path in built.folder.rglob("*") if path.is_file())
    assert size == built.size <= MAX_BYTES == 40_000_000


def test_packages_txt_lists_the_debian_packages(built: building.BuiltSpace) -> None:
    assert (built.folder / "packages.txt").read_text() == "bubblewrap\n"


def test_build_is_reproducible(built: building.BuiltSpace, tmp_path: Path) -> None:
    again = build_space(tmp_path / "again")
    assert again.files == built.files
    assert digest(again.folder) == digest(built.folder)


def test_published_card_contains_the_address_of_its_thumbnail() -> None:
    found = space_files("someone/arena")
    card = found["README.md"]
    assert isinstance(card, bytes)
    address = f"https://huggingface.co/spaces/someone/arena/resolve/main/{THUMBNAIL}"
    assert front_matter(card.decode())["thumbnail"] == address
    picture = found[THUMBNAIL]
    assert isinstance(picture, Path)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_folder_that_is_not_empty_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["build", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"space: The folder {tmp_path} is not empty: name another one, or add --overwrite.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_overwriting_refuses_a_folder_that_is_not_a_space(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("mine")
    (tmp_path / "holiday.jpg").write_text("mine")
    with pytest.raises(PromptOrTuneError, match=messages.NOT_A_SPACE_FOLDER):
        build_space(tmp_path, overwrite=True)
    assert (tmp_path / "app.py").read_text() == "mine"


def test_overwriting_replaces_all_files_except_the_git_folder(tmp_path: Path, built: building.BuiltSpace) -> None:
    target = tmp_path / "space"
    (target / "ui").mkdir(parents=True)
    (target / "ui" / "gone.py").write_text("of an earlier version")
    (target / ".git").mkdir()
    (target / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    assert main(["build", str(target), "--overwrite"]) == 0
    assert not (target / "ui" / "gone.py").exists()
    assert (target / ".git" / "HEAD").is_file()
    assert {path.name for path in target.iterdir()} == TOP | {".git"}


def test_file_with_the_name_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PromptOrTuneError, match=messages.PATH_IS_FILE):
        build_space(tmp_path / "file")


def test_space_that_is_too_large_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "MAX_BYTES", 1_000_000)
    with pytest.raises(PromptOrTuneError, match=messages.SPACE_TOO_LARGE):
        build_space(tmp_path / "space")
    assert not (tmp_path / "space").exists()


@pytest.mark.parametrize(
    ("path", "expected"),
    [("serve/engine/llm_engine.py", True), ("space/settings.py", True),
     ("docs/results/a.jsonl", True), ("README.md", True), (".gitattributes", False),
     ("docs/mine.md", False), ("notes.txt", False)],
)  # fmt: skip
def test_files_of_the_program_are_recognised(path: str, expected: bool) -> None:
    assert is_project_file(path) is expected


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["paint"], 2)])
def test_usage_is_printed_without_a_command(
    arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    assert "python -m space publish user/prompt-or-tune" in capsys.readouterr().out
