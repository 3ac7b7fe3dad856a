"""Helpers of the publishing tests: adapter folders on a tiny base, as `python -m train` writes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from transformers import AutoModelForCausalLM

from adapters.manifest import Manifest
from adapters.weights import digest
from models.loader import load_base
from models.source import BaseIdentity
from tasks.prompt import STYLES
from tests.hub.state import Hub
from tests.serve.tiny import make_adapter as save_adapter
from train.model_card import write_model_card

# Files of a finished run that are published.
ADAPTER_FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.yaml",
    "log.jsonl",
    "loss.png",
    "manifest.json",
}


def published_files(hub: Hub, repo: str) -> set[str]:
    """Return the files of the repository, without .gitattributes, which every repository has."""
    return set(hub.history[repo][-1].files) - {".gitattributes"} if repo in hub.history else set()


def identity_of(base: str) -> BaseIdentity:
    """Load the base by its folder or Hub id and return its identity."""
    return load_base(base, "none", "cpu", lambda _: None, dtype=torch.float32).identity


def make_adapter(
    folder: Path, base_folder: Path, identity: BaseIdentity, seed: int = 1, config: PeftConfig | None = None
) -> Path:
    """Make a folder with all files of a finished run: a LoRA, or an adapter of `config`."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    config = config or LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    save_adapter(folder, identity, model, config, seed)
    log = tuple({"step": step, "epoch": step / 4, "eval_loss": 2.0 / step} for step in (1, 2, 3, 4))
    weights = digest(folder / "adapter_model.safetensors", folder.name)
    manifest = replace(Manifest.read(folder), log=log, weights_digest=weights)
    manifest.write(folder)
    (folder / "config.yaml").write_text("technique: lora\n")
    (folder / "log.jsonl").write_text('{"step": 1, "eval_loss": 2.0}\n')
    (folder / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    write_model_card(manifest, folder)
    return folder


def make_full_model(folder: Path) -> Path:
    """Turn a base's folder into that of a fully fine-tuned model."""
    style = STYLES["plain"]
    manifest = Manifest(
        name=folder.name,
        technique="full",
        base_id="someone/tiny",
        base_revision="a" * 40,
        trained_quantization="none",
        prompt_style=style.name,
        prompt_fingerprint=style.fingerprint,
        dataset="starter",
        dataset_digest="sha256:0",
        seed=1,
        licence="apache-2.0",
        weights_digest=digest(folder / "model.safetensors", folder.name),
    )
    manifest.write(folder)
    write_model_card(manifest, folder)
    return folder
