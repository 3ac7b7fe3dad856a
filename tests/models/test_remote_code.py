"""Remote code of base models runs only with the flag and a pinned revision."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig
from transformers import CodeGenForCausalLM, dynamic_module_utils

from adapters.store import Store
from errors import BaseModelError
from models.loader import LoadedBase, load_base
from tests.hub_standin import Hub, hub_standin
from tests.serve.own_code import make_own_code_base
from tests.serve.tiny import make_adapter, make_base
from train.merge import SmokeTestTarget, smoke_test_adapter
from train.techniques import attention_target_modules, ia3_target_modules, paper_lora_target_modules


def _silent(_: str) -> None:
    return


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that a base's code writes when it runs; transformers' copy of the code is temporary."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]
    return tmp_path / "mark"


@pytest.fixture
def own(tmp_path: Path, mark: Path) -> Path:
    return make_own_code_base(tmp_path / "own", mark)


@pytest.fixture
def hub(tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_standin() as standin:
        monkeypatch.setattr(constants, "ENDPOINT", standin.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", standin.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        standin.repositories["someone/own"] = own
        yield standin


def _load(base: str | Path, trusted: bool, quantization: str = "none") -> LoadedBase:
    return load_base(str(base), quantization, "cpu", _silent, trust_remote_code=trusted)


def _refused(base: str | Path, trusted: bool) -> str:
    with pytest.raises(BaseModelError) as caught:
        _load(base, trusted)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 13)[None]).logits


@pytest.mark.parametrize("kind", ["codegen", "codegen2-own"])
def test_remote_code_does_not_run_without_the_flag(tmp_path: Path, mark: Path, kind: str) -> None:
    """The model types are one with and one without a class in transformers."""
    base = make_own_code_base(tmp_path / "base", mark, kind)
    assert _refused(base, trusted=False) == (
        "The base 'base' needs code of its own (configuration_own.py, modeling_own.py), which is not run "
        "by default: read it, and if you trust it start with --trust-remote-code."
    )
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["codegen", "codegen2-own"])
def test_remote_code_runs_with_the_flag(tmp_path: Path, mark: Path, kind: str) -> None:
    base = make_own_code_base(tmp_path / "base", mark, kind)
    loaded = _load(base, trusted=True)
    assert set(mark.read_text().split()) == {"configuration", "model"}
    assert type(loaded.model).__module__.startswith("transformers_modules.")
    native = CodeGenForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    assert {**dict(native.named_parameters())}.keys() == {**dict(loaded.model.named_parameters())}.keys()
    assert not torch.allclose(_logits(loaded.model), _logits(native), atol=0.1)


def test_target_modules_equal_those_of_codegen(own: Path) -> None:
    identity = _load(own, trusted=True).identity
    assert attention_target_modules(identity) == ["out_proj", "qkv_proj"]
    assert paper_lora_target_modules(identity) == ["qkv_proj"]
    assert ia3_target_modules(identity) == (["fc_out", "qkv_proj"], ["fc_out"])


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapter_is_served_on_a_base_with_remote_code(tmp_path: Path, own: Path, quantization: str) -> None:
    loaded = load_base(str(own), "none", "cpu", _silent, trust_remote_code=True, training=True)
    config = LoraConfig(r=8, target_modules=attention_target_modules(loaded.identity), init_lora_weights=False)
    make_adapter(tmp_path / "lora", loaded.identity, loaded.model, config, seed=1)
    folder = Store((tmp_path,)).inspect("lora")
    location = SmokeTestTarget(str(own), quantization, trust_remote_code=True)
    assert "finite, and different from the base alone" in smoke_test_adapter(folder, location, _silent)


def test_hub_base_message_names_the_commit_to_pin(hub: Hub, mark: Path) -> None:
    pinned = f"someone/own@{hub.commit('someone/own')}"
    assert _refused("someone/own", trusted=False).endswith(f"start with --trust-remote-code --base {pinned}.")
    assert _refused(pinned, trusted=False).endswith(f"start with --trust-remote-code --base {pinned}.")
    assert not mark.exists()


@pytest.mark.parametrize("revision", ["", "@main", "@v1", "@{short}", "@{upper}"])
def test_hub_base_is_trusted_at_a_full_commit_only(hub: Hub, mark: Path, revision: str) -> None:
    commit = hub.commit("someone/own")
    base = "someone/own" + revision.format(short=commit[:12], upper=commit.upper())
    assert _refused(base, trusted=True) == (
        "--trust-remote-code runs code from 'someone/own', so it needs a pinned commit: "
        "--base someone/own@<40 hex digits>."
    )
    assert not mark.exists()
    assert hub.requests == []


def test_pinned_hub_base_is_loaded(hub: Hub, mark: Path) -> None:
    commit = hub.commit("someone/own")
    loaded = _load(f"someone/own@{commit}", trusted=True)
    assert (loaded.identity.id, loaded.identity.revision) == ("someone/own", commit)
    assert mark.exists()


def test_code_of_another_repository_is_refused(own: Path, mark: Path) -> None:
    values = json.loads((own / "config.json").read_text())
    values["auto_map"]["AutoModelForCausalLM"] = "someone/else--modeling_own.CodeGenForCausalLM"
    (own / "config.json").write_text(json.dumps(values))
    assert "takes its code from another repository ('someone/else--modeling_own" in _refused(own, trusted=True)
    assert not mark.exists()


def test_remote_code_of_a_tokenizer_does_not_run(tmp_path: Path, mark: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    (base / "tokenization_own.py").write_text(f"open({str(mark)!r}, 'w').write('tokenizer')\nOwn = None\n")
    values = json.loads((base / "tokenizer_config.json").read_text())
    values |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (base / "tokenizer_config.json").write_text(json.dumps(values))
    assert "code of its own (tokenization_own.py), which is not run by default" in _refused(base, trusted=False)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("import transformers.utils.model_parallel_utils", "ModuleNotFoundError: No module named"),
        ("raise AttributeError('is_gone')", "AttributeError: is_gone"),
        ("CodeGenModel.forward = lambda self, *_, **__: self.get_head_mask(None, 2)", "get_head_mask"),
    ],
)
def test_broken_code_gives_one_message(own: Path, error: str, expected: str) -> None:
    with (own / "modeling_own.py").open("a") as file:
        file.write(f"\n{error}\n")
    message = _refused(own, trusted=True)
    assert message.startswith("The base 'own' does not run with its own code and transformers 5.")
    assert expected in message
    assert message.endswith("look for a newer revision of it.")


def test_base_without_remote_code_loads_with_and_without_the_flag(tmp_path: Path) -> None:
    base = make_base("codegen", tmp_path / "base")
    plain, trusted = _load(base, trusted=False), _load(base, trusted=True)
    assert torch.equal(_logits(plain.model), _logits(trusted.model))
