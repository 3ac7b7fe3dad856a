"""`verify`: the report on a valid folder, and the error for each kind of invalid folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapters.__main__ import main
from adapters.store import LIBRARY, Store
from adapters.verify import find_adapter, verify_adapter
from adapters.weights import digest
from errors import AdapterError
from tests import messages
from tests.adapters.folders import BASE, CONFIG, LAYERS, MANIFEST, key, tensors, write_adapter

CARD = "---\nlibrary_name: peft\nbase_model: tiny/base\n---\n# good\n"


def _verified(folder: Path) -> str:
    return verify_adapter(Store((folder.parent,)).inspect(folder.name))


def _refused(folder: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        _verified(folder)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    return message


def test_report_of_a_valid_folder(good: Path) -> None:
    stated = digest(good / "adapter_model.safetensors", "good")
    replace(MANIFEST, weights_digest=stated).write(good)
    (good / "README.md").write_text(CARD)
    output = _verified(good)
    assert f"{stated}, as the manifest states" in output
    assert "all of 4 tensors are finite" in output
    assert f"tiny/base (revision {'a' * 40}) in the manifest, adapter_config.json and card" in output
    assert "10 of 10 checks passed" in output


def test_report_lists_the_rules_of_vllm_that_do_not_hold() -> None:
    output = _verified(LIBRARY / "ia3-conala")
    assert "9 of 10 checks passed" in output
    assert "vLLM: peft_type LORA  its type is IA3 and vLLM loads only LoRA" in output


def test_folder_without_digest_and_card_is_valid(good: Path) -> None:
    output = _verified(good)
    assert "the manifest, older than this check, states no digest" in output
    assert "there is no card" in output


def test_weights_with_another_digest_than_the_manifest_are_an_error(good: Path) -> None:
    replace(MANIFEST, weights_digest="sha256:0011223344556677").write(good)
    assert "the manifest states sha256:0011223344556677: the weights are not those" in _refused(good)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_an_error(good: Path, dtype: type, value: float) -> None:
    broken = tensors(dtype=dtype)
    broken[key(LAYERS[1], "B")][3, 2] = value
    save_file(broken, good / "adapter_model.safetensors")
    assert f"tensor {key(LAYERS[1], 'B')} has values that are not finite" in _refused(good)


def test_bfloat16_weights_are_checked(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    folder = write_adapter(tmp_path / "good")
    values = {name: torch.from_numpy(tensor).bfloat16() for name, tensor in tensors().items()}
    save(values, folder / "adapter_model.safetensors")
    assert "all of 4 tensors are finite" in _verified(folder)
    values[key(LAYERS[0], "A")][0, 0] = float("inf")
    save(values, folder / "adapter_model.safetensors")
    assert "not finite" in _refused(folder)


def test_largest_finite_values_are_accepted(good: Path) -> None:
    large = tensors()
    large[key(LAYERS[0], "A")][:] = np.finfo(np.float32).max
    save_file(large, good / "adapter_model.safetensors")
    assert "are finite" in _verified(good)


def test_different_bases_in_manifest_and_config_are_an_error(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "good", {**CONFIG, "base_model_name_or_path": "other/base"})
    assert "adapter_config.json names the base other/base and the manifest tiny/base" in _refused(folder)
    folder = write_adapter(tmp_path / "old", {**CONFIG, "revision": "b" * 40})
    assert f"names the revision {'b' * 40} and the manifest {'a' * 40}" in _refused(folder)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nbase_model: other/base\n---\n", "its card names the base other/base and the manifest tiny/base"),
        ("# no front matter\n", "its card names the base none"),
        ("---\nbase_model: [\n---\n", "the top of README.md cannot be read as YAML"),
        ("---\n" + "[" * 5000 + "\n---\n", "cannot be read as YAML"),
        ("---\nbase_model: !!python/object/apply:os.getcwd []\n---\n", "cannot be read as YAML"),
        ("x" * ((1 << 20) + 1), "README.md has more than 1048576 bytes"),
    ],
)
def test_card_with_another_base_is_an_error(good: Path, card: str, expected: str) -> None:
    (good / "README.md").write_text(card)
    assert expected in _refused(good)


def test_card_that_lists_the_base_among_others_is_valid(good: Path) -> None:
    (good / "README.md").write_text("---\nbase_model: [quantized/base, tiny/base]\n---\n")
    assert "and card" in _verified(good)


def test_base_without_a_hub_id_need_not_be_in_the_card(good: Path) -> None:
    replace(MANIFEST, base_id="embedded/base", base_revision="sha256:0123456789abcdef").write(good)
    (good / "adapter_config.json").write_text(json.dumps({**CONFIG, "base_model_name_or_path": "embedded/base"}))
    (good / "README.md").write_text("---\nbase_model: someone/base\n---\n")
    assert "adapter_config.json; the card names someone/base for the Hub" in _verified(good)


def test_argument_is_a_name_or_a_folder(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store((good.parent,))
    assert find_adapter("good", store) == find_adapter(str(good), Store(())) == store.inspect("good")
    monkeypatch.chdir(good)
    assert find_adapter(".", Store(())).path == good.resolve()
    with pytest.raises(AdapterError, match=messages.NO_SUCH_FOLDER):
        find_adapter(str(tmp_path / "none"), store)


def test_whole_model_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "tuned"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    MANIFEST.write(model)
    message = messages.WHOLE_MODEL_NEEDS_BASE_OPTION.format(model=model)
    with pytest.raises(AdapterError, match=message):
        find_adapter(str(model), Store(()))
    with pytest.raises(AdapterError, match=message):
        find_adapter("tuned", Store((tmp_path,)))
    with pytest.raises(AdapterError, match=message):
        Store((tmp_path,)).open("tuned", BASE)


def test_command_prints_the_report_or_one_error(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(good.parent), "verify", "good"]) == 0
    assert "all of 4 tensors are finite" in capsys.readouterr().out
    (good / "adapter_config.json").write_text(json.dumps({**CONFIG, "r": 8}))
    assert main(["verify", str(good)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
