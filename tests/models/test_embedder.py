"""Embedder and FAISS index, with the real embedding model."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from errors import PromptOrTuneError
from models.embedder import Embedder, FaissIndex
from tasks.methods import IndexRetriever
from tasks.problem import Example
from tests import messages

EXAMPLES = [
    Example("sort", "sort a list of numbers from high to low", "x.sort(reverse=True)"),
    Example("file", "read all lines of a text file", "open(p).readlines()"),
    Example("date", "parse a date such as 2024-05-01", "date.fromisoformat(s)"),
    Example("json", "load a dictionary from a JSON string", "json.loads(s)"),
]

pytestmark = pytest.mark.model


def make_retriever(embedder: Embedder, digest: str) -> IndexRetriever:
    return IndexRetriever(EXAMPLES, FaissIndex(embedder, [example.intent for example in EXAMPLES], digest))


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT_OR_TUNE_HOME", str(tmp_path))


def test_nearest_intent_is_first(embedder: Embedder) -> None:
    retriever = make_retriever(embedder, "d1")
    assert retriever.nearest("order the values descending", 1)[0].id == "sort"
    assert retriever.nearest("get the content of notes.txt line by line", 1)[0].id == "file"
    assert len(retriever.nearest("anything", 9)) == len(EXAMPLES)


def test_examples_are_ordered_by_cosine_similarity(embedder: Embedder) -> None:
    intent = "turn text into a datetime"
    vectors = embedder.embed([example.intent for example in EXAMPLES])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosine = vectors @ embedder.embed([intent])[0]
    expected = [EXAMPLES[index].id for index in np.argsort(-cosine)]
    assert [example.id for example in make_retriever(embedder, "d1").nearest(intent, 4)] == expected


def test_index_without_a_digest_is_not_stored(embedder: Embedder, tmp_path: Path) -> None:
    index = FaissIndex(embedder, [example.intent for example in EXAMPLES], None)
    assert EXAMPLES[index.search("order the values descending", 1)[0]].id == "sort"
    assert not (tmp_path / "indexes").exists()


def test_index_leaves_the_number_of_threads(embedder: Embedder) -> None:
    """faiss and torch share one OpenMP: a training after a retrieval ran on a single core."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        index = FaissIndex(embedder, [example.intent for example in EXAMPLES], None)
        index.search("order the values descending", 1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_index_is_built_once_per_model_and_data(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    make_retriever(embedder, "d1")
    embedded: list[int] = []
    real = embedder.embed

    def counting(texts: Sequence[str]) -> object:
        embedded.append(len(texts))
        return real(texts)

    monkeypatch.setattr(embedder, "embed", counting)
    make_retriever(embedder, "d1")
    assert embedded == []
    make_retriever(embedder, "d2")
    assert embedded == [4]


def test_damaged_index_is_rebuilt(embedder: Embedder, tmp_path: Path) -> None:
    make_retriever(embedder, "d1")
    path = next(tmp_path.rglob("index.faiss"))
    path.write_bytes(path.read_bytes()[:40])
    assert make_retriever(embedder, "d1").nearest("sort numbers", 1)[0].id == "sort"


def test_missing_package_gives_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(PromptOrTuneError, match=messages.INSTALL_REQUIREMENTS):
        Embedder().embed(["x"])
