"""Markdown pages of `python -m benchmarks.engine` and `python -m benchmarks.load_test`, from their JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.format import format_bytes, text_table


@dataclass(frozen=True)
class Target:
    """A metric of the JSON line with its title on the page and its target."""

    metric: str
    title: str
    maximum: float | None = None
    minimum: float | None = None

    def describe(self) -> str:
        """Return the target in words, or "" if there is none."""
        if self.maximum is not None:
            return f"at most {self.maximum:g}"
        return "" if self.minimum is None else f"at least {self.minimum:g}"

    def is_met(self, value: float) -> str:
        """Return whether `value` meets the target: "yes", "**no**", or "" if there is none."""
        if self.maximum is None and self.minimum is None:
            return ""
        is_met = (self.maximum is None or value <= self.maximum) and (self.minimum is None or value >= self.minimum)
        return "yes" if is_met else "**no**"


TARGETS = (
    Target(
        "six_columns_ratio", "six methods in one batch: time relative to six calls of transformers + PEFT", maximum=0.30
    ),
    Target("six_columns_warm_ratio", "the same, with the ICL examples in the prefix cache"),
    Target("slowest_column_ratio", "the same batch: time relative to its slowest method alone", maximum=1.5),
    Target(
        "llama_cpp_total_ratio",
        "the same batch: tokens per second relative to llama.cpp, one prompt after another",
        minimum=2.0,
    ),
    Target("llama_cpp_single_ratio", "one row: tokens per second relative to llama.cpp", minimum=0.6),
    Target("eight_adapters_ratio", "eight rows with eight LoRA adapters: time relative to the bare base", maximum=1.25),
    Target("thousand_adapters_ratio", "1,000 adapters: throughput relative to one adapter", minimum=0.9),
    Target("cold_load_ms", "milliseconds to load an adapter of rank 16 for the first time", maximum=150),
    Target("adapter_memory_ratio", "memory of a loaded adapter relative to the size of its file", maximum=1.2),
    Target(
        "warm_prefix_ratio",
        "time to first token of ICL-8 with cached examples, relative to an empty cache",
        maximum=0.35,
    ),
    Target("share_of_limit", "minimum time of a step by memory bandwidth, relative to its measured time"),
)


def render_engine_page(results: Mapping[str, Any], command: str, file: str) -> str:
    """Return the page in Markdown, with the measured metrics. `file` is the name of the JSON file in its folder."""
    rows = [
        [target.title, f"{results[target.metric]:g}", target.describe(), target.is_met(results[target.metric])]
        for target in TARGETS
        if target.metric in results
    ]
    libraries = ", ".join(f"{name} {results[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    return (
        "# Engine speed\n\n"
        f"{text_table(('metric', 'measured', 'target', 'met'), rows, markdown=True)}\n\n"
        + "".join(f"- {note}\n" for note in _notes(results))
        + f"- The values are medians of {results['runs']} rounds after a warm-up round; each side runs once per round. "
        f"Every answer has {results['new_tokens']} greedy tokens on all sides; early stopping is disabled.\n"
        f"- Base: {results['base']} at {results['revision']}, {results['quantization']}. Device: {results['device']}, "
        f"{results['threads']} threads, {results['cores']} cores, load average before the start "
        f"{results['load_before']:g}. Versions: {libraries}, Python {results['python']}.\n"
        f"\n[{file}]({file}) contains all values, with the ratio of each round. The docstrings of\n"
        f"`benchmarks/engine_*.py` describe the methods.\n\n```sh\n{command}\n```\n"
    )


def _notes(results: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each measured part, with the medians that its ratios come from."""
    notes = []
    if part := results.get("columns"):
        seconds = part["seconds"]
        alone = ", ".join(f"{name} {value:.2f} s" for name, value in part["seconds_alone"].items())
        notes.append(
            f"Six methods: {seconds['cold']:.2f} s in one batch ({seconds['warm']:.2f} s with cached examples), "
            f"{seconds['peer']:.2f} s in six calls; each method alone: {alone}; prompts of "
            f"{_join_numbers(part['prompt_tokens'])} tokens."
        )
    if part := results.get("llama_cpp"):
        rate = part["tokens_per_second"]
        notes.append(
            f"llama.cpp (llama-cpp-python {part['llama_cpp_python']}, {part['file']}, flash attention, n_batch "
            f"{part['n_batch']}, {part['threads']} threads): {rate['llama_total']:.1f} tokens/s for the six prompts "
            f"including prefill, engine {rate['ours_total']:.1f}; {rate['llama_single']:.1f} tokens/s for one row "
            f"after the first token, engine {rate['ours_single']:.1f}."
        )
    if part := results.get("eight_adapters"):
        seconds = part["seconds"]
        notes.append(
            f"Eight rows: {seconds['bare']:.2f} s on the bare base, {seconds['mixed']:.2f} s with eight adapters, "
            f"{seconds['one']:.2f} s with one adapter."
        )
    if part := results.get("thousand_adapters"):
        rate = part["tokens_per_second"]
        notes.append(
            f"{part['registered']} adapters, {part['resident']} in memory, hit rate {100 * part['hit_rate']:.1f} % by "
            f"the engine's counters, {part['evictions']} evictions: {rate['thousand']:.1f} tokens/s for "
            f"{part['clients']} clients, {rate['one']:.1f} with one adapter."
        )
    if part := results.get("cold_load"):
        notes.append(
            f"Loading: median of {part['loads']} adapters, maximum {part['slowest_ms']:g} ms; files of "
            f"{format_bytes(part['file_bytes'])} in the system's page cache."
        )
    if part := results.get("adapter_memory"):
        notes.append(
            f"Memory: {part['adapters']} adapters with files of {format_bytes(part['file_bytes'])} took "
            f"{format_bytes(part['grown_bytes'])} each. Unloading returned {100 * part['given_back']:.0f} % of it to "
            f"the system, and {100 * part['given_back_settled']:.0f} % after the allocator was trimmed."
        )
    if part := results.get("prefix"):
        seconds = part["seconds"]
        notes.append(
            f"Time to first token of ICL-8: {seconds['warm']:.3f} s with cached examples, {seconds['cold']:.3f} s with "
            f"an empty cache; {part['shared_tokens']} of {part['prompt_tokens']} tokens are shared with the cached "
            "prompt of another intent."
        )
    if part := results.get("limit"):
        read = part["bytes_per_step"]
        notes.append(
            f"A step of the six methods reads {format_bytes(read['weights'])} of weights, "
            f"{format_bytes(read['keys_values'])} of keys and values and {format_bytes(read['adapters'])} of adapters: "
            f"at least {part['least_step_ms']:.2f} ms at {part['bandwidth_gb_per_second']:.0f} GB/s; measured "
            f"{part['step_ms']:.2f} ms."
        )
    return notes


def _join_numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


_METRIC_TITLES = (
    ("asked", "requests"),
    ("answered", "answered requests"),
    ("busy", "requests rejected because of a limit"),
    ("failed", "requests with another error"),
    ("hung", "visitors whose last request did not end"),
    ("answers", "answers (one per method of a request)"),
    ("wrong", "wrong answers (of another question, adapter, prompt or example)"),
    ("identical_share", "share of answers identical to the answer without load"),
    ("first_token_p50_seconds", "time to first token, p50 (s)"),
    ("first_token_p95_seconds", "time to first token, p95 (s)"),
    ("first_token_alone_p50_seconds", "time to first token without load, p50 (s)"),
    ("whole_p50_seconds", "total time, p50 (s)"),
    ("whole_p95_seconds", "total time, p95 (s)"),
    ("most_waiting_before", "highest queue position (runs ahead of a request)"),
    ("memory_begin_mib", "memory of the app in the first ten seconds (MiB)"),
    ("memory_middle_mib", "memory in the middle of the test (MiB)"),
    ("memory_end_mib", "memory in the last ten seconds (MiB)"),
    ("memory_slope_mib_per_minute", "slope of the memory over the last two thirds (MiB/min)"),
)


def render_load_test_page(results: Mapping[str, Any], command: str, file: str) -> str:
    """Return the page in Markdown, with the measured metrics. `file` is the name of the JSON file in its folder."""
    rows = [[title, "–" if results[name] is None else f"{results[name]:g}"] for name, title in _METRIC_TITLES]
    crashed = (
        "The app crashed during the test: see its log."
        if results["crashed"]
        else "The app ran until the end of the test."
    )
    return (
        f"# Load test with {results['visitors']} concurrent visitors\n\n"
        f"{results['visitors']} clients, each with its own visitor cookie, send requests to `/stream` one after "
        f"another for {results['seconds']:g} seconds, with short pauses. {crashed}\n\n"
        f"{text_table(('metric', 'measured'), rows, markdown=True)}\n\n"
        "- The time to first token includes the time in the queue: the engine runs four requests at a time, first in, "
        "first out.\n"
        "- On a quantized base, the other rows of a batch change the last bits of a row's numbers, and so the choice "
        "between tokens of almost equal probability ([engine.md](../engine.md)). Such an answer is not identical, but "
        "does not count as wrong.\n"
        f"- {results['tokens']:,} tokens generated. Base: {results['base']}, {results['quantization']}. Device: "
        f"{results['device']}, {results['cores']} cores, which the clients used too; load average before the start "
        f"{results['load_before']:g}. Python {results['python']}."
        f"\n\n[{file}]({file}) contains all values. The docstring of `benchmarks/load_test.py` describes the "
        f"method.\n\n"
        f"```sh\n{command}\n```\n"
    )
