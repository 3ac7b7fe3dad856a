"""Harness of the engine benchmarks: engine set-up, interleaved timing, and synthetic adapters and bases.

- `Bench` and `open_bench` provide one engine with its backend, prompts, adapters, and equal numbers of tokens.
- `time_interleaved`, `time_ratios` and `medians` time several sides in alternation and compare them.
- `copy_adapters` and `make_adapter` write adapter folders, `make_random_llama` writes a base in Llama's architecture.

Synthetic adapters and bases have random weights: the cost of a step does not depend on the values. The random base has
the embedded base's tokenizer and vocabulary, so that the prompts have the same tokens.
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

from adapters.manifest import CONFIG_NAME, Manifest
from adapters.peft_config import is_feedforward
from adapters.store import AdapterFolder
from adapters.weights import WEIGHTS_NAME, digest
from common.files import ProgressFn, atomic_dir, cache_dir, check_disk_space, make_dir
from errors import AdapterError, BaseModelError, PromptOrTuneError
from models.source import EMBEDDED, BaseIdentity, resolve
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
# PEFT's configuration and the shape of each tensor.
AdapterFiles = tuple[dict[str, Any], dict[str, Shape]]


def copy_adapters(source: AdapterFolder, root: Path, number: int) -> list[str]:
    """Copy the adapter `source` `number` times into `root`, with different weights each, and return the names."""
    from safetensors.torch import load_file, save_file

    check_disk_space(root, int(1.1 * number * (source.path / WEIGHTS_NAME).stat().st_size))
    tensors = load_file(source.path / WEIGHTS_NAME)
    names = [f"copy-{index:04}" for index in range(number)]
    for index, name in enumerate(names):
        folder = root / name
        folder.mkdir()
        shutil.copy(source.path / CONFIG_NAME, folder)
        # Different bytes in each copy, with values of a trained adapter's magnitude.
        scaled = {key: tensor * (1 - 0.2 * index / number) for key, tensor in tensors.items()}
        save_file(scaled, folder / WEIGHTS_NAME)
        weights = digest(folder / WEIGHTS_NAME, name)
        replace(source.manifest, name=name, weights_digest=weights).write(folder)
    return names


def make_adapter(folder: Path, technique: str, base: BaseIdentity) -> None:
    """Write an adapter of small random weights for `base` to `folder`.

    `technique` is "lora" (rank 16 on the attention), "ia3" or "prompt-tuning" (20 virtual tokens).
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def random(shape: Shape) -> Any:
        return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)

    config, shapes = _MAKERS[technique](base)
    config |= {"base_model_name_or_path": base.id, "task_type": "CAUSAL_LM", "inference_mode": True}
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
    mean = 1 if technique == "ia3" else 0
    save_file({key: mean + random(shape) for key, shape in shapes.items()}, folder / WEIGHTS_NAME)
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
    targets, feedforward = ia3_target_modules(base)
    config: dict[str, Any] = {"peft_type": "IA3", "target_modules": targets, "feedforward_modules": feedforward}
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
    """Yield PEFT's name and the (out, in) features of every layer of the base whose name ends in one of `targets`."""
    for module, features in base.shapes.items():
        if module.endswith(tuple(f".{target}" for target in targets)):
            yield f"base_model.model.{module}", features


_MAKERS: dict[str, Callable[[BaseIdentity], AdapterFiles]] = {
    "lora": _make_lora,
    "ia3": _make_ia3,
    "prompt-tuning": _make_prompt_tuning,
}


# Does its work once and returns the seconds that it took.
TimedFn = Callable[[], float]
SideTimes = Mapping[str, Sequence[float]]


def make_timed(call: Callable[[], object], setup: Callable[[], object] = lambda: None) -> TimedFn:
    """Return a function that runs `setup`, then `call`, and returns the seconds of wall-clock time of `call` alone."""

    def side() -> float:
        setup()
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    return side


def time_interleaved(title: str, sides: Mapping[str, TimedFn], runs: int) -> dict[str, list[float]]:
    """Return the seconds of every side in `runs` rounds, without the first round, which is a warm-up.

    Each side runs once per round, so that a change in the machine's speed affects all sides equally. Every second round
    runs in reverse order, so that a side does not always follow the same other side.
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
    """Return `ratio`, the median seconds of `ours` divided by those of `theirs`, and `pair_ratios` of each round."""
    pairs = [a / b for a, b in zip(times[ours], times[theirs], strict=True)]
    return {
        "ratio": round_significant(statistics.median(times[ours]) / statistics.median(times[theirs])),
        "pair_ratios": [round_significant(pair) for pair in pairs],
    }


def medians(times: SideTimes) -> dict[str, float]:
    """Return the median seconds of every side."""
    return {name: round_significant(statistics.median(values)) for name, values in times.items()}


def round_significant(value: float, number: int = 4) -> float:
    """Return `value` rounded to `number` significant digits."""
    return float(f"{value:.{number}g}")


class Stopwatch:
    """Records the time of each event of a batch, in seconds from the start of the batch."""

    def __init__(self, events: Iterable[PartialOutput | RowOutput]) -> None:
        self.begin = time.perf_counter()
        self.events = [(time.perf_counter() - self.begin, event) for event in events]

    def first_token_seconds(self) -> float:
        """Return the seconds until the first token of any row."""
        return self.events[0][0]

    def step_seconds(self) -> float:
        """Return the seconds per step while all rows are generated together.

        The interval is from the first token of the row that begins last to the end of the row that ends first. Raises
        PromptOrTuneError if the rows were never generated together.
        """
        rows = {event.index for _, event in self.events}
        tokens: dict[int, int] = {}
        start: tuple[float, dict[int, int]] | None = None
        for seconds, event in self.events:
            if isinstance(event, RowOutput):
                if start is None or event.candidates[0].tokens <= start[1][event.index]:
                    break
                return (seconds - start[0]) / (event.candidates[0].tokens - start[1][event.index])
            tokens[event.index] = event.tokens
            if start is None and tokens.keys() == rows:
                start = seconds, dict(tokens)
        raise PromptOrTuneError("The rows were not in flight together: ask for more tokens with --new-tokens.")


def print_progress(line: str) -> None:
    """Print a line of progress on standard error; standard output contains the result alone."""
    print(line, file=sys.stderr, flush=True)


INTENT = "`count_words(path)`: count how often each word occurs in a text file and return a dictionary"
# An earlier intent that fills the prefix cache: its prompts have only the examples of ICL in common with INTENT's.
PREVIOUS_INTENT = "remove the duplicates of a list `names` and keep its order"
# Adapter name to technique. For a base that the library's adapters do not fit, open_bench makes random ones of the same
# names.
ADAPTER_TYPES = {"qlora-4bit-conala": "lora", "ia3-conala": "ia3", "prompt-tuning-conala": "prompt-tuning"}
LORA_ADAPTER = "qlora-4bit-conala"
# Limit on the number of adapters in the engine's memory.
MAX_LOADED_ADAPTERS = 64


@dataclass(frozen=True)
class BenchSettings:
    """Settings of the command line that apply to all benchmarks."""

    base: str = "embedded"
    quantization: str = "nf4"
    device: str = "auto"
    runs: int = 5
    new_tokens: int = 64
    threads: int = 2


@dataclass(frozen=True)
class Bench:
    """An engine with its backend, and a folder for adapters that is deleted after the benchmark."""

    settings: BenchSettings
    engine: LLMEngine
    backend: Any
    folder: Path

    def method_rows(self, methods: Sequence[str], intent: str = INTENT) -> list[Row]:
        """Return one row per method for `intent`; raise PromptOrTuneError if a method has no prompt."""
        return self._rows([Request(Problem("bench", intent), self._parse_method(method)) for method in methods])

    def problem_rows(self, number: int) -> list[Row]:
        """Return `number` zero-shot rows for successive test problems of the starter set."""
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
        """Return the token ids of each row's prompt."""
        return [self.backend._encode(row) for row in rows]

    @contextmanager
    def temporary_adapters(self, number: int) -> Iterator[list[str]]:
        """Add `number` copies of the LoRA adapter to the store for the duration of the block; yield their names."""
        source = self.engine.store.open(LORA_ADAPTER, self.engine.base)
        names = copy_adapters(source, self.folder, number)
        try:
            yield names
        finally:
            for name in names:
                shutil.rmtree(self.folder / name)

    @contextmanager
    def preload_adapters(self, names: Sequence[str]) -> Iterator[None]:
        """Keep adapters in memory for the duration of the block, so that no loading time is measured."""
        adapter_cache = self.engine.adapter_cache
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(adapter_cache.acquire(name))
            yield
        for name in names:
            adapter_cache.unload(name)

    def time_batch(self, rows: Sequence[Row], new_tokens: int | None = None) -> Stopwatch:
        """Generate one batch of greedy rows to its end and return the times of its events.

        Raises AssertionError unless each row has exactly `new_tokens` tokens.
        """
        expected = new_tokens or self.settings.new_tokens
        with without_eos(self.backend):
            watch = Stopwatch(self.backend.generate(rows, SamplingParams(max_new_tokens=expected), Event()))
        tokens = [event.candidates[0].tokens for _, event in watch.events if isinstance(event, RowOutput)]
        if tokens != [expected] * len(rows):
            raise AssertionError(f"unequal work: {tokens}")
        return watch

    def clear_prefix_cache(self) -> None:
        """Empty the prefix cache."""
        self.backend.prefix_cache.clear()

    def warm_prefix_cache(self, rows: Sequence[Row]) -> None:
        """Fill the emptied prefix cache with the prompts of `rows`, as an earlier request does."""
        self.clear_prefix_cache()
        self.time_batch(rows, 1)


@contextmanager
def without_eos(backend: Any) -> Iterator[None]:
    """Disable the rules that end an answer early, so that all sides generate the same number of tokens."""
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
    """Open an engine with an adapter of every technique in ADAPTER_TYPES, and close it at the end of the block."""
    with TemporaryDirectory(prefix="benchmark-", dir=make_dir(cache_dir())) as folder:
        root = Path(folder)
        # The number of adapters limits the memory, not their size.
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


# Hidden size, feed-forward size, layers, heads: of Llama-2-7B (arXiv 2307.09288) and of a model for tests.
MODEL_SIZES = {"7b": (4096, 11008, 32, 32), "tiny": (128, 256, 2, 4)}
CONTEXT_LENGTH = 4096


def make_random_llama(size: str, device: str, report: ProgressFn) -> Path:
    """Return the folder of a Llama base with random weights in the user's cache, created if missing.

    `size` is a key of MODEL_SIZES; "7b" takes 14 GB. Raises BaseModelError if the GPU's memory is too small.
    """
    folder = cache_dir() / "bases" / f"random-llama-{size}"
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve(EMBEDDED, report).folder)
    hidden, intermediate, layers, heads = MODEL_SIZES[size]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
    )
    parameters = _num_parameters(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_disk_space(folder.parent, int(2.1 * parameters))
    report(f"Creating a Llama with {parameters / 1e9:.2f} billion random weights ...")
    target = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    try:
        torch.manual_seed(0)
        with torch.device(target):
            model: Any = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
        with atomic_dir(folder) as building:
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)
    except torch.cuda.OutOfMemoryError as error:
        raise BaseModelError(
            f"A Llama of {parameters / 1e9:.0f} billion weights does not fit the GPU's memory: use a larger one."
        ) from error
    return folder


def _num_parameters(config: Any) -> int:
    """Return the number of parameters of a Llama with this configuration."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return int(LlamaForCausalLM(config).num_parameters())
