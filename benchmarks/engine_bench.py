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

from benchmarks.engine_folders import copies, make_adapter
from benchmarks.engine_timing import Watch, report
from errors import AdapterError, PeftArenaError
from serve.build import build_engine
from serve.engine import Engine
from serve.home import home, make_folder
from serve.method import parse_method
from serve.rows import Decoding, Finished, Request, Row
from serve.scheduling.limits import EngineLimits
from tasks.datasets import load_problems
from tasks.problem import Problem

INTENT = "`count_words(path)`: count how often each word occurs in a text file and return a dictionary"
# Another intent, for what a prefix cache may know before: its prompts share the examples of ICL and nothing else.
EARLIER = "remove the duplicates of a list `names` and keep its order"
# Adapter -> technique. Where the library's were trained for another base, ones of random weights take their place:
# what a step costs does not depend on the values.
ADAPTERS = {"qlora-4bit-conala": "lora", "ia3-conala": "ia3", "prompt-tuning-conala": "prompt-tuning"}
LORA = "qlora-4bit-conala"
# Adapters that the engine holds in memory.
RESIDENT = 64


@dataclass(frozen=True)
class Settings:
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

    settings: Settings
    engine: Engine
    backend: Any
    folder: Path

    def rows(self, methods: Sequence[str], intent: str = INTENT) -> list[Row]:
        """A row per method, for one intent; PeftArenaError where one cannot be answered."""
        return self._rows([Request(Problem("bench", intent), self._method(method)) for method in methods])

    def problems(self, number: int) -> list[Row]:
        """That many rows of zero-shot, each for another problem of the starter set."""
        problems = load_problems("starter", "test", None, None)
        chosen = [problems[place % len(problems)] for place in range(number)]
        return self._rows([Request(problem, self._method("zero-shot")) for problem in chosen])

    def _method(self, name: str) -> Any:
        return parse_method(name, self.engine.adapters())

    def _rows(self, requests: list[Request]) -> list[Row]:
        answers = self.engine.answer(requests, Decoding(max_new_tokens=1))
        for answer in answers:
            if answer.error:
                raise PeftArenaError(answer.error)
        return [Row(answer.prompt, answer.style, answer.request.method.adapter) for answer in answers]

    def tokens(self, rows: Sequence[Row]) -> list[list[int]]:
        """The token ids that the base reads for each row's prompt."""
        return [self.backend._encode(row) for row in rows]

    @contextmanager
    def adapters(self, number: int) -> Iterator[list[str]]:
        """That many LoRA adapters of their own in the store, for the length of the block; their names."""
        like = self.engine.store.open(LORA, self.engine.base)
        made = copies(like, self.folder, number)
        try:
            yield made
        finally:
            for name in made:
                shutil.rmtree(self.folder / name)

    @contextmanager
    def resident(self, names: Sequence[str]) -> Iterator[None]:
        """Holds adapters in memory for the length of the block, so that no measured answer waits for one."""
        residents = self.engine.residents
        with ExitStack() as held:
            for name in names:
                held.enter_context(residents.acquire(name))
            yield
        for name in names:
            residents.unload(name)

    def watch(self, rows: Sequence[Row], new_tokens: int | None = None) -> Watch:
        """One batch of greedy rows to its end; AssertionError unless each said exactly `new_tokens` tokens."""
        wanted = new_tokens or self.settings.new_tokens
        with endless(self.backend):
            watch = Watch(self.backend.generate(rows, Decoding(max_new_tokens=wanted), Event()))
        said = [event.candidates[0].tokens for _, event in watch.events if isinstance(event, Finished)]
        if said != [wanted] * len(rows):
            raise AssertionError(f"unequal work: {said}")
        return watch

    def forget(self) -> None:
        """Empties the prefix cache."""
        self.backend.prefixes.clear()

    def read_before(self, rows: Sequence[Row]) -> None:
        """Leaves in the prefix cache what `rows`, an earlier request, left there, and nothing else."""
        self.forget()
        self.watch(rows, 1)


@contextmanager
def endless(backend: Any) -> Iterator[None]:
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
def open_bench(settings: Settings) -> Iterator[Bench]:
    """Loads the base, sees to it that every technique has an adapter for it, and closes the engine in the end."""
    with TemporaryDirectory(prefix="benchmark-", dir=make_folder(home())) as folder:
        root = Path(folder)
        # As many adapters as the questions say, whatever their size.
        limits = EngineLimits(max_resident=RESIDENT, max_resident_bytes=16 << 30)
        engine = build_engine(
            settings.base,
            settings.quantization,
            settings.device,
            report=report,
            adapter_dirs=(root,),
            limits=limits,
        )
        try:
            for name, technique in ADAPTERS.items():
                try:
                    engine.store.open(name, engine.base)
                except AdapterError:
                    make_adapter(root / name, technique, engine.base)
                engine.residents.pin(name)
            yield Bench(settings, engine, engine._backend, root)
        finally:
            engine.close()
