"""One-time conversion of a GGUF file to a folder of safetensors, tokenizer included."""

from __future__ import annotations

from pathlib import Path

from errors import BaseModelError, PromptOrTuneError
from serve.home import ProgressFn, atomic_dir, check_disk_space, make_dir

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
    except (ValueError, KeyError, RuntimeError, OSError, NotImplementedError) as fault:
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise BaseModelError(f"The GGUF file {path} cannot be converted: {reason}") from fault
