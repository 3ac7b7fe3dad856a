"""Adapters that come, change and go on a real base: what rows say, and what memory is left."""

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
from peft import PromptTuningConfig
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
from tests.serve.tiny import make_adapter, make_base, make_lora

PLAIN = STYLES["plain"]
FINGERPRINTS = {name: style.fingerprint for name, style in STYLES.items()}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG_NAME = "adapter_config.json"
DECODING = SamplingParams(max_new_tokens=10)


class Place:
    """A tiny base with a store of its own; `one` and `two` are different LoRAs, `prompt` is virtual tokens."""

    def __init__(self, root: Path) -> None:
        make_base("llama", root / "base")
        self.backend = LocalBackend(load_base(str(root / "base"), "none", "cpu", lambda _: None, dtype=torch.float32))
        self.folders = root / "store"
        for seed, name in enumerate(("one", "two")):
            make_lora(self.folders / name, self.backend.base, _bare(root / "base"), 256, ALL, seed)
        config = PromptTuningConfig(num_virtual_tokens=5)
        make_adapter(self.folders / "prompt", self.backend.base, _bare(root / "base"), config, 2)
        self.store = Store((self.folders,), fingerprints=FINGERPRINTS)

    def residents(self, count: int = 8) -> AdapterCache:
        return AdapterCache(self.backend, self.store, max_count=count)

    def says(self, name: str | None, prompt: str = "sort a list") -> str:
        return self.finished([Row(prompt, PLAIN, name)], DECODING)[0].candidates[0].text

    def finished(self, rows: list[Row], decoding: SamplingParams) -> list[RowOutput]:
        return [each for each in self.backend.generate(rows, decoding, Event()) if isinstance(each, RowOutput)]

    def says_of(self, residents: AdapterCache, name: str) -> str:
        with residents.acquire(name):
            return self.says(name)


def _bare(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def place(kept: Place) -> Place:
    """The place with its three adapters and nothing in memory, whatever the test before has left."""
    for entry in kept.folders.iterdir():
        if entry.is_symlink() or entry.is_file():
            entry.unlink()
        elif entry.name not in ("one", "two", "prompt"):
            shutil.rmtree(entry)
    for name in list(kept.backend._registry._adapters):
        kept.backend.unload_adapter(name)
    return kept


def live_bytes() -> int:
    """Memory of all tensors that Python can still reach, each piece once."""
    gc.collect()
    found = {}
    for each in gc.get_objects():
        if type(each) in (torch.Tensor, torch.nn.Parameter):
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def in_memory(place: Place) -> set[str]:
    return set(place.backend._registry._adapters)


def test_an_adapter_in_memory_takes_what_its_file_takes(place: Place) -> None:
    before = live_bytes()
    found = place.residents()
    with found.acquire("one"):
        size = (place.folders / "one" / WEIGHTS_NAME).stat().st_size
        assert found.status().bytes <= size
        assert size > 2_000_000
        assert live_bytes() - before <= 1.05 * size


def test_what_leaves_memory_leaves_it_whole(place: Place) -> None:
    before = live_bytes()
    found = place.residents(count=1)
    for name in ("one", "prompt"):
        with found.acquire(name):
            place.says(name)
            (adapter,) = place.backend._registry._adapters.values()
            gone = weakref.ref(adapter)
            del adapter
        found.acquire("two").release()
        gc.collect()
        assert gone() is None, name
    found.unload("two")
    assert live_bytes() == before


def test_the_memory_of_the_process_does_not_grow_with_the_loads(place: Place) -> None:
    found = place.residents(count=1)
    names = ("one", "two")

    def cycle(times: int) -> int:
        for number in range(times):
            found.acquire(names[number % 2]).release()
        gc.collect()
        return psutil.Process().memory_info().rss

    before = cycle(10)
    size = (place.folders / "one" / WEIGHTS_NAME).stat().st_size
    assert cycle(60) - before < 5 * size, "60 loads take as much as five adapters"


def test_a_row_in_flight_keeps_its_version_and_the_next_row_has_the_new_one(place: Place) -> None:
    folder = shutil.copytree(place.folders / "one", place.folders / "hot")
    found = place.residents()
    with found.acquire("hot"):
        old = place.says("hot")
    assert (new := place.says_of(found, "two")) != old
    batch = place.backend.open_batch("step")
    lease = found.acquire("hot")
    batch.add(0, Row("sort a list", PLAIN, "hot"), DECODING)
    batch.step()
    # Written over in place, as `cp` does: the tensors of a row in flight must be nobody's file.
    with (folder / WEIGHTS_NAME).open("r+b") as file:
        file.write((place.folders / "two" / WEIGHTS_NAME).read_bytes())
    again = found.acquire("hot")
    assert again.folder.digest != lease.folder.digest
    batch.add(1, Row("sort a list", PLAIN, "hot"), DECODING)
    said: dict[int, str] = {}
    while len(batch):
        said |= {each.index: each.candidates[0].text for each in batch.step() if isinstance(each, RowOutput)}
    assert said == {0: old, 1: new}
    lease.release()
    again.release()
    assert found.status().count == 2


def test_unloading_while_a_row_is_in_flight_lets_it_end(place: Place) -> None:
    found = place.residents()
    expected = place.says_of(found, "one")
    batch = place.backend.open_batch("step")
    with found.acquire("one"):
        batch.add(0, Row("sort a list", PLAIN, "one"), DECODING)
        batch.step()
        found.unload("one")
        assert in_memory(place) == {"one"}
    assert in_memory(place) == set()
    events = [event for _ in range(DECODING.max_new_tokens + 2) for event in batch.step()]
    assert [each.candidates[0].text for each in events if isinstance(each, RowOutput)] == [expected]


def test_loads_beside_decoding_change_nothing_that_is_said(place: Place) -> None:
    found = place.residents(count=2)
    bare, expected = place.says(None), place.says_of(found, "one")
    stop = threading.Event()

    def churn() -> int:
        loads = 0
        while not stop.is_set():
            with found.acquire(("two", "prompt")[loads % 2]):
                loads += 1
        return loads

    with found.acquire("one"), ThreadPoolExecutor(1) as threads:
        churning = threads.submit(churn)
        said = [(place.says(None), place.says("one")) for _ in range(8)]
        stop.set()
        assert churning.result(30) > 8
    assert set(said) == {(bare, expected)}


def nan(folder: Path) -> None:
    change(folder, lambda tensor: tensor.view(-1)[-1:].fill_(float("nan")))


def infinite(folder: Path) -> None:
    change(folder, lambda tensor: tensor.view(-1)[:1].fill_(float("-inf")))


def other_shape(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name][:, :-1].contiguous()}, folder / WEIGHTS_NAME)


def change(folder: Path, touch: Callable[[torch.Tensor], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS_NAME).items()}
    touch(list(tensors.values())[-1])
    save_file(tensors, folder / WEIGHTS_NAME)


def cut_short(folder: Path) -> None:
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


HOSTILE = [
    nan, infinite, other_shape, cut_short, pickle, link, linked_folder, another_base, another_prompt, gigantic_rank,
    many_settings,
]  # fmt: skip


@pytest.mark.parametrize("spoil", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_sentence_and_nothing_of_it_is_loaded(
    place: Place, spoil: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(place.folders / "one", place.folders / "bad")
    found = place.residents()
    with found.acquire("one"), found.acquire("two"):
        before, said = found.status(), place.says("two")
        spoil(folder)
        for _ in range(2):
            with pytest.raises(AdapterError, match=r"^Adapter 'bad'[^\n]{10,400}\.$"):
                found.acquire("bad")
        assert found.status() == before
        assert in_memory(place) == {"one", "two"}
        assert place.says("two") == said


def test_a_version_that_is_spoiled_leaves_the_one_that_is_worn(place: Place) -> None:
    folder = shutil.copytree(place.folders / "one", place.folders / "hot")
    found = place.residents()
    with found.acquire("hot"):
        said = place.says("hot")
        nan(folder)
        with pytest.raises(AdapterError, match="Adapter 'hot' has NaN or infinite values"):
            found.acquire("hot")
        assert place.says("hot") == said
        assert [(each.name, each.leases) for each in found.status().adapters] == [("hot", 1)]


@pytest.mark.parametrize("mode", ["greedy", "sample", "beam"])
def test_an_adapter_of_absurd_weights_harms_its_own_rows_alone(
    place: Place, mode: Literal["greedy", "sample", "beam"]
) -> None:
    """Each value is finite, their products are not: the other rows of the batch say what they say without it."""
    folder = shutil.copytree(place.folders / "one", place.folders / "absurd")
    tensors = load_file(folder / WEIGHTS_NAME)
    save_file({name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items()}, folder / WEIGHTS_NAME)
    found = place.residents()
    decoding = SamplingParams(mode, 10, 1 if mode == "greedy" else 2, temperature=1e-30, seed=3)
    with found.acquire("one"), found.acquire("absurd"):
        rows = [Row("sort a list", PLAIN, name) for name in (None, "one")]
        alone, beside = (
            {each.index: [one.text for one in each.candidates] for each in place.finished(batch, decoding)}
            for batch in (rows, [*rows, Row("sort a list", PLAIN, "absurd")])
        )
    assert len(beside) == 3
    assert {index: beside[index] for index in alone} == alone
