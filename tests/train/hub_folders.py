"""A tiny base and adapters for it, as `python -m train` leaves them, to be published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from transformers import AutoModelForCausalLM

from adapters.manifest import Manifest
from adapters.weights import digest
from models.identity import BaseIdentity
from models.loader import load_base
from tasks.prompt import STYLES
from tests.hub.state import Hub
from tests.serve.tiny import make_adapter as save_adapter
from train.model_card import write_model_card

# What of a finished run is published.
ADAPTER_FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.yaml",
    "log.jsonl",
    "loss.png",
    "manifest.json",
}


def shown(hub: Hub, repo: str) -> set[str]:
    """What anybody can see of the repository, beside the file with which every repository begins."""
    return set(hub.history[repo][-1].files) - {".gitattributes"} if repo in hub.history else set()


def identity_of(base: str) -> BaseIdentity:
    """What the base is, by its folder or Hub id."""
    return load_base(base, "none", "cpu", lambda _: None, dtype=torch.float32).identity


def make_adapter(
    folder: Path, base_folder: Path, identity: BaseIdentity, seed: int = 1, config: PeftConfig | None = None
) -> Path:
    """A folder with all the files of a finished run: a LoRA, or what `config` makes."""
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


def make_whole_model(folder: Path) -> Path:
    """Turns a base's folder into what full fine-tuning leaves."""
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
