"""Where pages and the API get their engine from: both stand while the model is loaded behind them."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from errors import PromptOrTuneError

if TYPE_CHECKING:
    from serve.engine import LLMEngine

ProgressFn = Callable[[str], None]
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d+)?)\s?%")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadState:
    """How far the loading is. `fraction` is 0 to 1 where the last line of progress names a percentage."""

    phase: Literal["loading", "ready", "failed"]
    message: str
    fraction: float | None = None


class EngineLoader:
    """Runs `build` once in a thread of its own and keeps its last line of progress, its engine or its failure."""

    def __init__(self, build: Callable[[ProgressFn], LLMEngine]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._started = False
        self._state = LoadState("loading", "Loading the model")
        self._engine: LLMEngine | None = None

    def start(self) -> EngineLoader:
        """Begins to load, once; further calls do nothing."""
        with self._lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._load, name="load-model", daemon=True).start()
        return self

    def state(self) -> LoadState:
        return self._state

    def wait(self, seconds: float) -> LLMEngine | None:
        """The engine, or None when it is not ready within `seconds`; PromptOrTuneError when it will never be."""
        self.start()
        if not self._finished.wait(seconds):
            return None
        if self._engine is None:
            raise PromptOrTuneError(self._state.message)
        return self._engine

    def engine(self) -> LLMEngine:
        """The engine, however long it takes; PromptOrTuneError when loading failed."""
        while True:
            engine = self.wait(60)
            if engine is not None:
                return engine

    def _on_progress(self, message: str) -> None:
        percent = _PERCENT.search(message)
        fraction = min(float(percent[1]) / 100, 1.0) if percent else None
        self._state = LoadState("loading", message.strip() or self._state.message, fraction)

    def _load(self) -> None:
        try:
            self._engine = self._build(self._on_progress)
            self._state = LoadState("ready", "Ready", 1.0)
        except PromptOrTuneError as fault:
            self._state = LoadState("failed", str(fault))
        except Exception as fault:  # noqa: BLE001 - whoever waits must hear of any failure; it is logged whole
            _log.exception("The model could not be loaded.")
            self._state = LoadState("failed", f"The model could not be loaded ({type(fault).__name__}: {fault}).")
        finally:
            self._finished.set()
