"""What every question of `python -m benchmarks.engine` measures on: one engine, its backend, prompts, equal work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

from benchmarks.engine_folders import copy_adapters, make_adapter
from benchmarks.engine_timing import Stopwatch, print_progress
from common.paths import cache_dir, make_dir
from errors import AdapterError, PromptOrTuneError
from serve.engine.build import build_engine
from serve.engine.config import EngineConfig
from serve.engine.llm_engine import LLMEngine
from serve.options import ModelOptions
from serve.types import Request, Row, RowOutput, SamplingParams
from tasks.datasets.registry import load_problems
from tasks.methods import parse_method
from tasks.problem import Problem

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
        chosen = [problems[place % len(problems)] for place in range(number)]
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
        residents = self.engine.adapter_cache
        with ExitStack() as held:
            for name in names:
                held.enter_context(residents.acquire(name))
            yield
        for name in names:
            residents.unload(name)

    def time_batch(self, rows: Sequence[Row], new_tokens: int | None = None) -> Stopwatch:
        """One batch of greedy rows to its end; AssertionError unless each said exactly `new_tokens` tokens."""
        wanted = new_tokens or self.settings.new_tokens
        with without_eos(self.backend):
            watch = Stopwatch(self.backend.generate(rows, SamplingParams(max_new_tokens=wanted), Event()))
        said = [event.candidates[0].tokens for _, event in watch.events if isinstance(event, RowOutput)]
        if said != [wanted] * len(rows):
            raise AssertionError(f"unequal work: {said}")
        return watch

    def clear_prefix_cache(self) -> None:
        """Empties the prefix cache."""
        self.backend.prefixes.clear()

    def warm_prefix_cache(self, rows: Sequence[Row]) -> None:
        """Leaves in the prefix cache what `rows`, an earlier request, left there, and nothing else."""
        self.clear_prefix_cache()
        self.time_batch(rows, 1)


@contextmanager
def without_eos(backend: Any) -> Iterator[None]:
    """Turns off the rules that end an answer early, so that all sides say the same number of tokens."""
    vocabulary = backend._vocabulary
    ends = vocabulary.ends
    vocabulary.ends, vocabulary.ends_answer = frozenset(), lambda *_: False
    try:
        yield
    finally:
        vocabulary.ends = ends
        del vocabulary.ends_answer


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
