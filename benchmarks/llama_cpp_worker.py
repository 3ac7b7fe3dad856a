"""Worker process of benchmarks.llama_cpp: reads requests as JSON lines and answers each with one JSON line.

Run by this file's path with a Python that has llama-cpp-python; it imports no module of the project. The first line
loads the model: `{"model": path, "context": 2048, "threads": 2, "flash_attention": true}`; its answer contains the
settings and versions. Every other line is `{"prompts": [[1, 2, ...], ...], "new_tokens": 64}`; its answer contains for
each prompt `seconds` (in total), `decode_seconds` (after the first token), and `tokens` (the generated ids).

Calls llama.cpp's C functions with its greedy sampler, ignores end tokens, and clears the cache before each prompt.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class LlamaWorker:
    """A llama.cpp model with one context."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._llama: Any = importlib.import_module("llama_cpp")
        self._model: Any = self._llama.Llama(
            options["model"],
            n_ctx=options["context"],
            n_threads=options["threads"],
            n_threads_batch=options["threads"],
            flash_attn=options["flash_attention"],
            verbose=False,
        )
        self._context = self._model._ctx.ctx
        self._greedy = self._llama.llama_sampler_init_greedy()

    def settings(self) -> dict[str, Any]:
        """Return the settings and versions that llama.cpp reports."""
        return {
            "llama_cpp_python": self._llama.__version__,
            "system": self._llama.llama_print_system_info().decode(),
            "threads": self._llama.llama_n_threads(self._context),
            "threads_batch": self._llama.llama_n_threads_batch(self._context),
            "n_batch": self._llama.llama_n_batch(self._context),
            "context": self._llama.llama_n_ctx(self._context),
        }

    def generate(self, prompt: Sequence[int], new_tokens: int) -> dict[str, Any]:
        """Prefill a prompt in chunks of the batch size and generate exactly `new_tokens` tokens."""
        llama, context = self._llama, self._context
        size = llama.llama_n_batch(context)
        begin = time.perf_counter()
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        for start in range(0, len(prompt), size):
            self._prefill(prompt[start : start + size])
        output = [llama.llama_sampler_sample(self._greedy, context, -1)]
        first = time.perf_counter()
        while len(output) < new_tokens:
            self._prefill(output[-1:])
            output.append(llama.llama_sampler_sample(self._greedy, context, -1))
        end = time.perf_counter()
        return {"seconds": end - begin, "decode_seconds": end - first, "tokens": output}

    def _prefill(self, tokens: Sequence[int]) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        if self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama_decode failed")


def main() -> int:
    """Answer requests until the end of standard input."""
    # Redirect llama.cpp's own output, so that standard output contains the answers alone.
    answers = sys.stdout
    sys.stdout = sys.stderr
    worker = None
    for line in sys.stdin:
        request = json.loads(line)
        if worker is None:
            worker = LlamaWorker(request)
            answer: Any = worker.settings()
        else:
            answer = [worker.generate(prompt, request["new_tokens"]) for prompt in request["prompts"]]
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # benchmarks/llama_cpp.py would hide the package llama_cpp
    sys.exit(main())
