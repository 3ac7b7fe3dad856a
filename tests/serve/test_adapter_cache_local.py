"""AdapterCache with LocalBackend: outputs and memory while adapters are loaded, replaced and unloaded."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, Literal

import psutil
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters.manifest import Manifest
from adapters.store import Store
from adapters.weights import WEIGHTS_NAME
from errors import AdapterError
from models.loader import load_base
from serve.backends.local.backend import LocalBackend
from serve.engine.adapter_cache import AdapterCache
from serve.types import Row, RowOutput, SamplingParams
from tasks.prompt import STYLES
from tests import messages
from tests.serve.tiny import make_adapter, make_base, make_lora

pytestmark = pytest.mark.slow

PLAIN = STYLES["plain"]
FINGERPRINTS = {name: style.fingerprint for name, style in STYLES.items()}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG_NAME = "adapter_config.json"
DECODING = SamplingParams(max_new_tokens=10)


class Setup:
    """A tiny base with a store of two LoRAs, `one` and `two`, and the prompt-tuning adapter `prompt`."""

    def __init__(self, root: Path) -> None:
        make_base("llama", root / "base")
        self.backend = LocalBackend(load_base(str(root / "base"), "none", "cpu", lambda _: None, dtype=torch.float32))
        self.folders = root / "store"
        for seed, name in enumerate(("one", "two")):
            make_lora(self.folders / name, self.backend.base, _bare(root / "base"), 256, ALL, seed)
        config = PromptTuningConfig(num_virtual_tokens=5)
        make_adapter(self.folders / "prompt", self.backend.base, _bare(root / "base"), config, 2)
        self.store = Store((self.folders,), fingerprints=FINGERPRINTS)

    def make_cache(self, count: int = 8) -> AdapterCache:
        return AdapterCache(self.backend, self.store, max_count=count)

    def generate(self, name: str | None, prompt: str = "sort a list") -> str:
        return self.row_outputs([Row(prompt, PLAIN, name)], DECODING)[0].candidates[0].text

    def row_outputs(self, rows: list[Row], sampling_params: SamplingParams) -> list[RowOutput]:
        return [
            event for event in self.backend.generate(rows, sampling_params, Event()) if isinstance(event, RowOutput)
        ]

    def generate_with(self, cache: AdapterCache, name: str) -> str:
        with cache.acquire(name):
            return self.generate(name)


def _bare(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def module_local(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp("local"))


@pytest.fixture
def local(module_local: Setup) -> Setup:
    """Return the set-up with its three adapters, none of them in memory."""
    for entry in module_local.folders.iterdir():
        if entry.is_symlink() or entry.is_file():
            entry.unlink()
        elif entry.name not in ("one", "two", "prompt"):
            shutil.rmtree(entry)
    for name in list(module_local.backend._registry._adapters):
        module_local.backend.unload_adapter(name)
    return module_local


def live_bytes() -> int:
    """Return the bytes of all reachable tensors, counting shared storages once."""
    gc.collect()
    storages = {}
    for candidate in gc.get_objects():
        if type(candidate) in (torch.Tensor, torch.nn.Parameter):
            storage = candidate.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def in_memory(local: Setup) -> set[str]:
    return set(local.backend._registry._adapters)


def test_loaded_adapter_uses_as_much_memory_as_its_file(local: Setup) -> None:
    before = live_bytes()
    cache = local.make_cache()
    with cache.acquire("one"):
        size = (local.folders / "one" / WEIGHTS_NAME).stat().st_size
        assert cache.status().bytes <= size
        assert size > 2_000_000
        assert live_bytes() - before <= 1.05 * size


def test_evicted_adapter_is_freed(local: Setup) -> None:
    before = live_bytes()
    cache = local.make_cache(count=1)
    for name in ("one", "prompt"):
        with cache.acquire(name):
            local.generate(name)
            (adapter,) = local.backend._registry._adapters.values()
            reference = weakref.ref(adapter)
            del adapter
        cache.acquire("two").release()
        gc.collect()
        assert reference() is None, name
    cache.unload("two")
    assert live_bytes() == before


def test_process_memory_does_not_grow_with_the_number_of_loads(local: Setup) -> None:
    cache = local.make_cache(count=1)
    names = ("one", "two")

    def cycle(times: int) -> int:
        for number in range(times):
            cache.acquire(names[number % 2]).release()
        gc.collect()
        return psutil.Process().memory_info().rss

    before = cycle(10)
    size = (local.folders / "one" / WEIGHTS_NAME).stat().st_size
    assert cycle(60) - before < 5 * size, "60 loads take as much as five adapters"


def test_running_row_uses_the_old_version_and_the_next_row_the_new_one(local: Setup) -> None:
    folder = shutil.copytree(local.folders / "one", local.folders / "hot")
    cache = local.make_cache()
    with cache.acquire("hot"):
        old = local.generate("hot")
    assert (new := local.generate_with(cache, "two")) != old
    batch = local.backend.open_batch("step")
    lease = cache.acquire("hot")
    batch.add(0, Row("sort a list", PLAIN, "hot"), DECODING)
    batch.step()
    # Overwrite the file in place, as `cp` does: the tensors of a running row must not be mapped from it.
    with (folder / WEIGHTS_NAME).open("r+b") as file:
        file.write((local.folders / "two" / WEIGHTS_NAME).read_bytes())
    again = cache.acquire("hot")
    assert again.folder.digest != lease.folder.digest
    batch.add(1, Row("sort a list", PLAIN, "hot"), DECODING)
    outputs: dict[int, str] = {}
    while len(batch):
        for event in batch.step():
            if isinstance(event, RowOutput):
                outputs[event.index] = event.candidates[0].text
    assert outputs == {0: old, 1: new}
    lease.release()
    again.release()
    assert cache.status().count == 2


def test_running_row_ends_normally_after_its_adapter_is_unloaded(local: Setup) -> None:
    cache = local.make_cache()
    expected = local.generate_with(cache, "one")
    batch = local.backend.open_batch("step")
    with cache.acquire("one"):
        batch.add(0, Row("sort a list", PLAIN, "one"), DECODING)
        batch.step()
        cache.unload("one")
        assert in_memory(local) == {"one"}
    assert in_memory(local) == set()
    events = [event for _ in range(DECODING.max_new_tokens + 2) for event in batch.step()]
    assert [event.candidates[0].text for event in events if isinstance(event, RowOutput)] == [expected]


def test_loads_during_decoding_do_not_change_outputs(local: Setup) -> None:
    cache = local.make_cache(count=2)
    bare, expected = local.generate(None), local.generate_with(cache, "one")
    stop = threading.Event()

    def churn() -> int:
        loads = 0
        while not stop.is_set():
            with cache.acquire(("two", "prompt")[loads % 2]):
                loads += 1
        return loads

    with cache.acquire("one"), ThreadPoolExecutor(1) as threads:
        churning = threads.submit(churn)
        outputs = [(local.generate(None), local.generate("one")) for _ in range(8)]
        stop.set()
        assert churning.result(30) > 8
    assert set(outputs) == {(bare, expected)}


def nan(folder: Path) -> None:
    change(folder, lambda tensor: tensor.view(-1)[-1:].fill_(float("nan")))


def infinite(folder: Path) -> None:
    change(folder, lambda tensor: tensor.view(-1)[:1].fill_(float("-inf")))


def other_shape(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name][:, :-1].contiguous()}, folder / WEIGHTS_NAME)


def change(folder: Path, modify: Callable[[torch.Tensor], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS_NAME).items()}
    modify(list(tensors.values())[-1])
    save_file(tensors, folder / WEIGHTS_NAME)


def truncated(folder: Path) -> None:
    os.truncate(folder / WEIGHTS_NAME, (folder / WEIGHTS_NAME).stat().st_size // 2)


def pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def link(folder: Path) -> None:
    (folder / WEIGHTS_NAME).rename(folder.with_name("weights"))
    (folder / WEIGHTS_NAME).symlink_to(folder.with_name("weights"))


def linked_folder(folder: Path) -> None:
    moved = folder.rename(folder.with_name(".elsewhere"))
    folder.symlink_to(moved, target_is_directory=True)


def another_base(folder: Path) -> None:
    replace(Manifest.read(folder), base_id="other/base").write(folder)


def another_prompt(folder: Path) -> None:
    replace(Manifest.read(folder), prompt_fingerprint="00ff").write(folder)


def gigantic_rank(folder: Path) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, "r": 1 << 40}))


def many_settings(folder: Path) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, **{f"s{number}": None for number in range(10_000)}}))


DAMAGE_FUNCTIONS = [
    nan, infinite, other_shape, truncated, pickle, link, linked_folder, another_base, another_prompt, gigantic_rank,
    many_settings,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE_FUNCTIONS)
def test_damaged_folder_is_refused_and_not_loaded(local: Setup, damage: Callable[[Path], None]) -> None:
    folder = shutil.copytree(local.folders / "one", local.folders / "bad")
    cache = local.make_cache()
    with cache.acquire("one"), cache.acquire("two"):
        before, outputs = cache.status(), local.generate("two")
        damage(folder)
        for _ in range(2):
            with pytest.raises(AdapterError, match=messages.ONE_LINE_ABOUT_ADAPTER_BAD):
                cache.acquire("bad")
        assert cache.status() == before
        assert in_memory(local) == {"one", "two"}
        assert local.generate("two") == outputs


def test_damaged_new_version_does_not_affect_the_loaded_one(local: Setup) -> None:
    folder = shutil.copytree(local.folders / "one", local.folders / "hot")
    cache = local.make_cache()
    with cache.acquire("hot"):
        outputs = local.generate("hot")
        nan(folder)
        with pytest.raises(AdapterError, match=messages.ADAPTER_HOT_NOT_FINITE):
            cache.acquire("hot")
        assert local.generate("hot") == outputs
        assert [(adapter.name, adapter.leases) for adapter in cache.status().adapters] == [("hot", 1)]


@pytest.mark.parametrize("mode", ["greedy", "sample", "beam"])
def test_adapter_with_huge_weights_affects_only_its_own_rows(
    local: Setup, mode: Literal["greedy", "sample", "beam"]
) -> None:
    """Each weight is finite but products overflow; the other rows of the batch must not change."""
    folder = shutil.copytree(local.folders / "one", local.folders / "huge")
    tensors = load_file(folder / WEIGHTS_NAME)
    save_file({name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items()}, folder / WEIGHTS_NAME)
    cache = local.make_cache()
    sampling_params = SamplingParams(mode, 10, 1 if mode == "greedy" else 2, temperature=1e-30, seed=3)
    with cache.acquire("one"), cache.acquire("huge"):
        rows = [Row("sort a list", PLAIN, name) for name in (None, "one")]
        alone, with_huge = (
            {row.index: [one.text for one in row.candidates] for row in local.row_outputs(batch, sampling_params)}
            for batch in (rows, [*rows, Row("sort a list", PLAIN, "huge")])
        )
    assert len(with_huge) == 3
    assert {index: with_huge[index] for index in alone} == alone


def ratios(backend: LocalBackend) -> dict[str, torch.Tensor]:
    deltas: Any = backend._registry["dora"].layers
    return {name: delta.ratio for name, delta in deltas.items()}


# DoRA reads the weights of the running layers. One base has its own forward with hooks, the other the fused forward.
@pytest.mark.parametrize(("kind", "quantization", "targets"), [
    ("codegen", "nf4", ["qkv_proj"]),
    ("qwen2", "int8", ["q_proj", "v_proj"]),
])  # fmt: skip
def test_loads_of_dora_and_decoding_do_not_affect_each_other(
    tmp_path: Path, kind: str, quantization: str, targets: list[str]
) -> None:
    make_base(kind, tmp_path / "base")
    backend = LocalBackend(load_base(str(tmp_path / "base"), quantization, "cpu", lambda _: None))
    store = Store((tmp_path / "store",), fingerprints={name: style.fingerprint for name, style in STYLES.items()})
    for name in ("lora", "dora"):
        bare = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        config = LoraConfig(r=4, use_dora=name == "dora", target_modules=targets, init_lora_weights=False)
        make_adapter(tmp_path / "store" / name, backend.base, bare, config, seed=0)
        backend.load_adapter(store.open(name, backend.base))
    folder = store.open("dora", backend.base)

    def generate() -> list[RowOutput]:
        rows = [Row("sort a list", PLAIN, name) for name in (None, "lora")]
        events = backend.generate(rows, SamplingParams(max_new_tokens=12), Event())
        outputs = [event for event in events if isinstance(event, RowOutput)]
        return sorted(outputs, key=lambda event: event.index)

    expected = [event.candidates for event in generate()]
    backend.load_adapter(folder)
    norms = ratios(backend)
    stop = threading.Event()

    def churn() -> int:
        num_changed = 0
        while not stop.is_set():
            backend.load_adapter(folder)
            num_changed += any(not torch.equal(norms[name], ratio) for name, ratio in ratios(backend).items())
        return num_changed

    with ThreadPoolExecutor(1) as threads:
        churning = threads.submit(churn)
        try:
            answers = [[event.candidates for event in generate()] for _ in range(12)]
        finally:
            stop.set()
        assert churning.result(30) == 0
    assert all(answer == expected for answer in answers)
