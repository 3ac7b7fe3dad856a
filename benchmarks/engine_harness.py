"""What every question of `python -m benchmarks.engine` measures on: one engine, its backend, prompts, equal work.

What all questions of `python -m benchmarks.engine` do with a clock: sides in turn, medians, ratios.

Adapter folders for the benchmark: copies of one with other weights, and ones of random weights for any base.

A base of Llama's shape with random weights, for devices on which a larger model is wanted than one at hand.

Its tokenizer, and with it the size of its vocabulary, is the embedded base's: what a step costs does not depend on
the weights' values, and the prompts stay the same.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

from adapters.checks import CONFIG_NAME
from adapters.manifest import Manifest
from adapters.peft_config import is_feedforward
from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME, digest
from common.paths import ProgressFn, atomic_dir, cache_dir, check_disk_space, make_dir
from errors import AdapterError, BaseModelError, PromptOrTuneError
from models.identity import BaseIdentity
from models.source import EMBEDDED, resolve
from serve.engine.build import build_engine
from serve.engine.config import EngineConfig
from serve.engine.llm_engine import LLMEngine
from serve.options import ModelOptions
from serve.types import PartialOutput, Request, Row, RowOutput, SamplingParams
from tasks.datasets.registry import load_problems
from tasks.methods import parse_method
from tasks.problem import Problem
from tasks.prompt import STYLES
from train.techniques import attention_target_modules, ia3_target_modules

RANK = 16
VIRTUAL_TOKENS = 20
Shape = tuple[int, ...]
# PEFT's config, and the shape of each tensor.
AdapterFiles = tuple[dict[str, Any], dict[str, Shape]]


def copy_adapters(source: AdapterFolder, root: Path, number: int) -> list[str]:
    """`number` adapters like `of` under `root`, each with weights of its own; their names."""
    from safetensors.torch import load_file, save_file

    check_disk_space(root, int(1.1 * number * (source.path / WEIGHTS_NAME).stat().st_size))
    tensors = load_file(source.path / WEIGHTS_NAME)
    names = [f"copy-{index:04}" for index in range(number)]
    for index, name in enumerate(names):
        folder = root / name
        folder.mkdir()
        shutil.copy(source.path / CONFIG_NAME, folder)
        # Other bytes each, of the size of trained ones.
        weaker = {key: tensor * (1 - 0.2 * index / number) for key, tensor in tensors.items()}
        save_file(weaker, folder / WEIGHTS_NAME)
        weights = digest(folder / WEIGHTS_NAME, name)
        replace(source.manifest, name=name, weights_digest=weights).write(folder)
    return names


def make_adapter(folder: Path, technique: str, base: BaseIdentity) -> None:
    """An adapter of small random weights: "lora" (rank 16, attention), "ia3" or "prompt-tuning" (20 virtual tokens)."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def random(shape: Shape) -> Any:
        return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)

    config, shapes = _MAKERS[technique](base)
    config |= {"base_model_name_or_path": base.id, "task_type": "CAUSAL_LM", "inference_mode": True}
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
    around = 1 if technique == "ia3" else 0
    save_file({key: around + random(shape) for key, shape in shapes.items()}, folder / WEIGHTS_NAME)
    Manifest(
        name=folder.name,
        technique=technique,
        base_id=base.id,
        base_revision=base.revision,
        trained_quantization=base.quantization,
        prompt_style="plain",
        prompt_fingerprint=STYLES["plain"].fingerprint,
        dataset="",
        dataset_digest="",
        seed=0,
        licence="",
        weights_digest=digest(folder / WEIGHTS_NAME, folder.name),
    ).write(folder)


def _make_lora(base: BaseIdentity) -> AdapterFiles:
    targets = attention_target_modules(base)
    shapes: dict[str, Shape] = {}
    for key, (features_out, features_in) in _target_shapes(base, targets):
        shapes[f"{key}.lora_A.weight"] = (RANK, features_in)
        shapes[f"{key}.lora_B.weight"] = (features_out, RANK)
    config = {"peft_type": "LORA", "target_modules": targets, "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
    return config, shapes


def _make_ia3(base: BaseIdentity) -> AdapterFiles:
    targets, inwards = ia3_target_modules(base)
    config: dict[str, Any] = {"peft_type": "IA3", "target_modules": targets, "feedforward_modules": inwards}
    shapes: dict[str, Shape] = {
        f"{key}.ia3_l": (1, features_in) if is_feedforward(key, config) else (features_out, 1)
        for key, (features_out, features_in) in _target_shapes(base, targets)
    }
    return config, shapes


def _make_prompt_tuning(base: BaseIdentity) -> AdapterFiles:
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": VIRTUAL_TOKENS,
        "num_transformer_submodules": 1,
        "num_layers": base.num_layers,
        "num_attention_heads": base.num_key_value_heads,
        "token_dim": base.hidden_size,
    }
    return config, {"prompt_embeddings": (VIRTUAL_TOKENS, base.hidden_size)}


def _target_shapes(base: BaseIdentity, targets: Sequence[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """PEFT's name, and (out, in) features, of every layer of the base that `targets` mean."""
    for module, features in base.shapes.items():
        if module.endswith(tuple(f".{target}" for target in targets)):
            yield f"base_model.model.{module}", features


_MAKERS: dict[str, Callable[[BaseIdentity], AdapterFiles]] = {
    "lora": _make_lora,
    "ia3": _make_ia3,
    "prompt-tuning": _make_prompt_tuning,
}


# Does its work once and says how many seconds that took.
TimedFn = Callable[[], float]
SideTimes = Mapping[str, Sequence[float]]


def make_timed(call: Callable[[], object], setup: Callable[[], object] = lambda: None) -> TimedFn:
    """A side that times `call` by the wall clock; `before` makes ready and does not count."""

    def side() -> float:
        setup()
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    return side


def time_interleaved(title: str, sides: Mapping[str, TimedFn], runs: int) -> dict[str, list[float]]:
    """Seconds of every side in `runs` rounds, after one that warms up and is not kept.

    In a round every side has one turn, so that a drift of the machine meets all alike; every second round goes
    backwards, so that no side always follows the same other one.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            seconds = sides[name]()
            if number:
                times[name].append(seconds)
        print_progress(f"{title}: round {number} of {runs} done")
    return times


def time_ratios(times: SideTimes, ours: str, theirs: str) -> dict[str, Any]:
    """`ratio`: the median of one side's seconds divided by the other's; and the ratio of each round."""
    pairs = [a / b for a, b in zip(times[ours], times[theirs], strict=True)]
    return {
        "ratio": round_significant(statistics.median(times[ours]) / statistics.median(times[theirs])),
        "pair_ratios": [round_significant(pair) for pair in pairs],
    }


def medians(times: SideTimes) -> dict[str, float]:
    """The median seconds of every side."""
    return {name: round_significant(statistics.median(values)) for name, values in times.items()}


def round_significant(value: float, number: int = 4) -> float:
    """`value` to that many significant digits."""
    return float(f"{value:.{number}g}")


class Stopwatch:
    """Notes when the events of a batch come, for what the sum of their seconds does not show."""

    def __init__(self, events: Iterable[PartialOutput | RowOutput]) -> None:
        self.begin = time.perf_counter()
        self.events = [(time.perf_counter() - self.begin, event) for event in events]

    def first_token_seconds(self) -> float:
        """Seconds until the first row spoke."""
        return self.events[0][0]

    def step_seconds(self) -> float:
        """Seconds of one step while every row is in flight: from when the last row began until the first one ended.

        Raises PromptOrTuneError where the rows were never in flight together.
        """
        rows = {event.index for _, event in self.events}
        output: dict[int, int] = {}
        began: tuple[float, dict[int, int]] | None = None
        for seconds, event in self.events:
            if isinstance(event, RowOutput):
                if began is None or event.candidates[0].tokens <= began[1][event.index]:
                    break
                return (seconds - began[0]) / (event.candidates[0].tokens - began[1][event.index])
            output[event.index] = event.tokens
            if began is None and output.keys() == rows:
                began = seconds, dict(output)
        raise PromptOrTuneError("The rows were not in flight together: ask for more tokens with --new-tokens.")


def print_progress(line: str) -> None:
    """A line of progress; standard output is for the result alone."""
    print(line, file=sys.stderr, flush=True)


INTENT = "`count_words(path)`: count how often each word occurs in a text file and return a dictionary"
# Another intent, for what a prefix cache may know before: its prompts share the examples of ICL and nothing else.
PREVIOUS_INTENT = "remove the duplicates of a list `names` and keep its order"
# Adapter -> technique. Where the library's were trained for another base, ones of random weights take their place:
# what a step costs does not depend on the values.
ADAPTER_TYPES = {"qlora-4bit-conala": "lora", "ia3-conala": "ia3", "prompt-tuning-conala": "prompt-tuning"}
LORA_ADAPTER = "qlora-4bit-conala"
# Adapters that the engine holds in memory.
MAX_LOADED_ADAPTERS = 64


@dataclass(frozen=True)
class BenchSettings:
    """What the command line says, as far as it concerns all questions."""

    base: str = "embedded"
    quantization: str = "nf4"
    device: str = "auto"
    runs: int = 5
    new_tokens: int = 64
    threads: int = 2


@dataclass(frozen=True)
class Bench:
    """An engine with its backend, and a folder of adapters that lasts as long as the benchmark."""

    settings: BenchSettings
    engine: LLMEngine
    backend: Any
    folder: Path

    def method_rows(self, methods: Sequence[str], intent: str = INTENT) -> list[Row]:
        """A row per method, for one intent; PromptOrTuneError where one cannot be answered."""
        return self._rows([Request(Problem("bench", intent), self._parse_method(method)) for method in methods])

    def problem_rows(self, number: int) -> list[Row]:
        """That many rows of zero-shot, each for another problem of the starter set."""
        problems = load_problems("starter", "test", None, None)
        chosen = [problems[index % len(problems)] for index in range(number)]
        return self._rows([Request(problem, self._parse_method("zero-shot")) for problem in chosen])

    def _parse_method(self, name: str) -> Any:
        return parse_method(name, self.engine.adapters())

    def _rows(self, requests: list[Request]) -> list[Row]:
        answers = self.engine.answer(requests, SamplingParams(max_new_tokens=1))
        for answer in answers:
            if answer.error:
                raise PromptOrTuneError(answer.error)
        return [Row(answer.prompt, answer.style, answer.request.method.adapter) for answer in answers]

    def prompt_token_ids(self, rows: Sequence[Row]) -> list[list[int]]:
        """The token ids that the base reads for each row's prompt."""
        return [self.backend._encode(row) for row in rows]

    @contextmanager
    def temporary_adapters(self, number: int) -> Iterator[list[str]]:
        """That many LoRA adapters of their own in the store, for the length of the block; their names."""
        like = self.engine.store.open(LORA_ADAPTER, self.engine.base)
        made = copy_adapters(like, self.folder, number)
        try:
            yield made
        finally:
            for name in made:
                shutil.rmtree(self.folder / name)

    @contextmanager
    def preload_adapters(self, names: Sequence[str]) -> Iterator[None]:
        """Holds adapters in memory for the length of the block, so that no measured answer waits for one."""
        adapter_cache = self.engine.adapter_cache
        with ExitStack() as held:
            for name in names:
                held.enter_context(adapter_cache.acquire(name))
            yield
        for name in names:
            adapter_cache.unload(name)

    def time_batch(self, rows: Sequence[Row], new_tokens: int | None = None) -> Stopwatch:
        """One batch of greedy rows to its end; AssertionError unless each said exactly `new_tokens` tokens."""
        wanted = new_tokens or self.settings.new_tokens
        with without_eos(self.backend):
            watch = Stopwatch(self.backend.generate(rows, SamplingParams(max_new_tokens=wanted), Event()))
        output = [event.candidates[0].tokens for _, event in watch.events if isinstance(event, RowOutput)]
        if output != [wanted] * len(rows):
            raise AssertionError(f"unequal work: {output}")
        return watch

    def clear_prefix_cache(self) -> None:
        """Empties the prefix cache."""
        self.backend.prefix_cache.clear()

    def warm_prefix_cache(self, rows: Sequence[Row]) -> None:
        """Leaves in the prefix cache what `rows`, an earlier request, left there, and nothing else."""
        self.clear_prefix_cache()
        self.time_batch(rows, 1)


@contextmanager
def without_eos(backend: Any) -> Iterator[None]:
    """Turn off the rules that end an answer early, so that all sides generate the same number of tokens."""
    detokenizer = backend._detokenizer
    eos_token_ids = detokenizer.eos_token_ids
    detokenizer.eos_token_ids, detokenizer.ends_answer = frozenset(), lambda *_: False
    try:
        yield
    finally:
        detokenizer.eos_token_ids = eos_token_ids
        del detokenizer.ends_answer


@contextmanager
def open_bench(settings: BenchSettings) -> Iterator[Bench]:
    """Loads the base, sees to it that every technique has an adapter for it, and closes the engine in the end."""
    with TemporaryDirectory(prefix="benchmark-", dir=make_dir(cache_dir())) as folder:
        root = Path(folder)
        # As many adapters as the questions say, whatever their size.
        limits = EngineConfig(max_loaded_adapters=MAX_LOADED_ADAPTERS, max_loaded_adapter_bytes=16 << 30)
        engine = build_engine(
            ModelOptions(settings.base, settings.quantization, settings.device),
            print_progress,
            adapter_dirs=(root,),
            engine_config=limits,
        )
        try:
            for name, technique in ADAPTER_TYPES.items():
                try:
                    engine.store.open(name, engine.base)
                except AdapterError:
                    make_adapter(root / name, technique, engine.base)
                engine.adapter_cache.pin(name)
            yield Bench(settings, engine, engine._backend, root)
        finally:
            engine.close()


# Hidden size, feed-forward size, layers, heads: Llama-2-7B's (arXiv 2307.09288), and one for tests.
MODEL_SIZES = {"7b": (4096, 11008, 32, 32), "tiny": (128, 256, 2, 4)}
CONTEXT_LENGTH = 4096


def make_random_llama(size: str, device: str, report: ProgressFn) -> Path:
    """The folder of that base in the user's cache, made when it is not there; 14 GB for "7b"."""
    folder = cache_dir() / "bases" / f"random-llama-{size}"
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve(EMBEDDED, report).folder)
    hidden, inner, layers, heads = MODEL_SIZES[size]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
    )
    weights = _num_parameters(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_disk_space(folder.parent, int(2.1 * weights))
    report(f"Making a Llama of {weights / 1e9:.2f} billion random weights, once ...")
    location = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    try:
        torch.manual_seed(0)
        with torch.device(location):
            model: Any = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
        with atomic_dir(folder) as building:
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)
    except torch.cuda.OutOfMemoryError as error:
        raise BaseModelError(
            f"A Llama of {weights / 1e9:.0f} billion weights does not fit the GPU's memory: use a larger one."
        ) from error
    return folder


def _num_parameters(config: Any) -> int:
    """How many weights such a model has."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return int(LlamaForCausalLM(config).num_parameters())
