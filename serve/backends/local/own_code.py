"""Models published with code of their own: run only when asked to, and only code that is pinned with the weights.

transformers itself runs nothing of it without `trust_remote_code`. What it does not do: refuse a class of its own that
has the same name and computes something else, refuse code that lies in yet another repository, or say which option of
this program to give. Code that runs may do all that its user may; it is not confined.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from errors import BaseModelError
from serve.backends.local.source import Source, is_commit

# Types of models that transformers knows, published with code that computes something else: CodeGen2 says it is a
# CodeGen and arranges queries, keys and values otherwise, so that CodeGen's class would answer nonsense.
_MISNAMED_MODEL_TYPES = ("codegen",)


def auto_map_entries(folder: Path) -> list[str]:
    """What `auto_map` in the model's and the tokenizer's configuration names: file.Class, or repository--file.Class."""
    found: list[str] = []
    for name in ("config.json", "tokenizer_config.json"):
        mapped = _read_json(folder / name).get("auto_map")
        values = mapped.values() if isinstance(mapped, dict) else [mapped]
        for value in values:
            found += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    return found


def check_remote_code(source: Source, trusted: bool) -> None:
    """BaseModelError where the base's code would be needed and is not trusted, or is trusted and cannot be pinned."""
    code = auto_map_entries(source.folder)
    if not trusted:
        if code and _read_json(source.folder / "config.json").get("model_type") in _MISNAMED_MODEL_TYPES:
            raise untrusted_error(source)
        return
    elsewhere = [each for each in code if "--" in each]
    if elsewhere:
        raise BaseModelError(
            f"The base '{source.id}' takes its code from another repository ({elsewhere[0][:80]!r}), which no revision "
            "of this one pins: copy model and code into one folder and give that to --base."
        )


def untrusted_error(source: Source) -> BaseModelError:
    """The refusal of a base whose code was not asked to run."""
    files = sorted({each.rsplit("--", 1)[-1].split(".")[0] + ".py" for each in auto_map_entries(source.folder)})
    pinned = f" --base {source.id}@{source.revision}" if is_commit(source.revision) else ""
    return BaseModelError(
        f"The base '{source.id}' runs only with code of its own ({', '.join(files)[:80]}), which is not run unasked: "
        f"read it, and if you trust it start with --trust-remote-code{pinned}."
    )


def smoke_test(source: Source, model: Any) -> None:
    """One small step through a model that brought its code; BaseModelError where it was written for other libraries."""
    import torch

    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    start = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **start)
    except Exception as fault:
        raise broken_error(source, fault) from fault


def broken_error(source: Source, error: Exception) -> BaseModelError:
    """What is said of code that does not run here, whatever it raised."""
    import transformers

    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return BaseModelError(
        f"The base '{source.id}' does not run with the code that it brings and transformers {transformers.__version__} "
        f"({reason}): look for a newer revision of it."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # what is wrong with it is for whoever loads it to say
        return {}
    return values if isinstance(values, dict) else {}
