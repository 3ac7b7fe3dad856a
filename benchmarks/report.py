"""The page that `python -m benchmarks.engine --output` writes from its JSON line.

The page that `python -m benchmarks.load_test --output` writes from its JSON line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.format import format_bytes, text_table


@dataclass(frozen=True)
class Target:
    """One figure of the line: what it is called on the page, and what was promised of it."""

    metric: str
    title: str
    maximum: float | None = None
    minimum: float | None = None

    def describe(self) -> str:
        """The promise in words; "" where there is none."""
        if self.maximum is not None:
            return f"at most {self.maximum:g}"
        return "" if self.minimum is None else f"at least {self.minimum:g}"

    def is_met(self, value: float) -> str:
        """Whether `value` keeps it."""
        if self.maximum is None and self.minimum is None:
            return ""
        fits = (self.maximum is None or value <= self.maximum) and (self.minimum is None or value >= self.minimum)
        return "yes" if fits else "**no**"


TARGETS = (
    Target(
        "six_columns_ratio", "six columns in one batch, time divided by six calls of transformers + PEFT", maximum=0.30
    ),
    Target("six_columns_warm_ratio", "the same with the examples of ICL in the prefix cache"),
    Target("slowest_column_ratio", "the same batch, divided by its slowest column alone", maximum=1.5),
    Target(
        "llama_cpp_total_ratio", "tokens a second of the six columns, divided by llama.cpp's one by one", minimum=2.0
    ),
    Target("llama_cpp_single_ratio", "tokens a second of one stream, divided by llama.cpp's", minimum=0.6),
    Target("eight_adapters_ratio", "eight rows with eight LoRA adapters, divided by the bare base", maximum=1.25),
    Target("thousand_adapters_ratio", "throughput over 1,000 adapters, divided by that of one adapter", minimum=0.9),
    Target("cold_load_ms", "milliseconds to load an adapter of rank 16 that was never seen", maximum=150),
    Target("adapter_memory_ratio", "memory of an adapter, divided by its file", maximum=1.2),
    Target(
        "warm_prefix_ratio", "first token of ICL-8 with its examples read before, divided by a cold one", maximum=0.35
    ),
    Target("share_of_limit", "what the memory's bandwidth allows a step to take, divided by what it takes"),
)


def render_engine_page(results: Mapping[str, Any], command: str, file: str) -> str:
    """The page in Markdown; it says only what was measured. `file` is the JSON beside it."""
    rows = [
        [aim.title, f"{results[aim.metric]:g}", aim.describe(), aim.is_met(results[aim.metric])]
        for aim in TARGETS
        if aim.metric in results
    ]
    libraries = ", ".join(f"{name} {results[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    return (
        "# How fast the engine is\n\n"
        f"{text_table(('', 'here', 'promised', 'kept'), rows, markdown=True)}\n\n"
        + "".join(f"- {note}\n" for note in _notes(results))
        + f"- Medians of {results['runs']} rounds after one that warms up; in a round every side has one turn. "
        f"{results['new_tokens']} greedy tokens an answer on every side; the rule that ends an answer early is off.\n"
        f"- {results['base']} at {results['revision']}, {results['quantization']}, on {results['device']}, "
        f"{results['threads']} "
        f"threads on {results['cores']} cores that had a load of {results['load_before']:g} before; {libraries}, "
        f"Python {results['python']}.\n"
        f"\nAll numbers, with the ratio of every round: [{file}]({file}). What is measured how stands at the top of\n"
        f"each `benchmarks/engine_*.py`.\n\n```sh\n{command}\n```\n"
    )


def _notes(results: Mapping[str, Any]) -> list[str]:
    """The raw medians behind the ratios, a sentence a question."""
    notes = []
    if found := results.get("columns"):
        seconds = found["seconds"]
        alone = ", ".join(f"{name} {value:.2f} s" for name, value in found["seconds_alone"].items())
        notes.append(
            f"Six columns: {seconds['cold']:.2f} s in one batch ({seconds['warm']:.2f} s warm), "
            f"{seconds['peer']:.2f} s in six calls; alone {alone}; prompts of "
            f"{_join_numbers(found['prompt_tokens'])} tokens."
        )
    if found := results.get("llama_cpp"):
        rate = found["tokens_per_second"]
        notes.append(
            f"llama.cpp (llama-cpp-python {found['llama_cpp_python']}, {found['file']}, flash attention, n_batch "
            f"{found['n_batch']}, {found['threads']} threads): {rate['llama_total']:.1f} tokens/s over the six "
            f"prompts, their reading included, here {rate['ours_total']:.1f}; one stream {rate['llama_single']:.1f} "
            f"after its first token, here {rate['ours_single']:.1f}."
        )
    if found := results.get("eight_adapters"):
        seconds = found["seconds"]
        notes.append(
            f"Eight rows: {seconds['bare']:.2f} s on the bare base, {seconds['mixed']:.2f} s with eight adapters, "
            f"{seconds['one']:.2f} s with one."
        )
    if found := results.get("thousand_adapters"):
        rate = found["tokens_per_second"]
        notes.append(
            f"{found['registered']} adapters, {found['resident']} in memory, {100 * found['hit_rate']:.1f} % hits as "
            f"counted, {found['evictions']} evictions: {rate['thousand']:.1f} tokens/s for {found['clients']} clients, "
            f"{rate['one']:.1f} with one adapter."
        )
    if found := results.get("cold_load"):
        notes.append(
            f"Loading: median of {found['loads']}, slowest {found['slowest_ms']:g} ms, files of "
            f"{format_bytes(found['file_bytes'])} that the system has in memory."
        )
    if found := results.get("adapter_memory"):
        notes.append(
            f"Memory: {found['adapters']} adapters of {format_bytes(found['file_bytes'])} took "
            f"{format_bytes(found['grown_bytes'])} each; unloading them gave {100 * found['given_back']:.0f} % back "
            f"to the system at once, and {100 * found['given_back_settled']:.0f} % when the allocator was asked to."
        )
    if found := results.get("prefix"):
        seconds = found["seconds"]
        notes.append(
            f"First token of ICL-8: {seconds['warm']:.3f} s warm, {seconds['cold']:.3f} s cold; "
            f"{found['shared_tokens']} of {found['prompt_tokens']} tokens are those of another intent's prompt."
        )
    if found := results.get("limit"):
        read = found["bytes_per_step"]
        notes.append(
            f"A step of the six columns reads {format_bytes(read['weights'])} of weights, "
            f"{format_bytes(read['keys_values'])} of keys and values and {format_bytes(read['adapters'])} of adapters: "
            f"{found['least_step_ms']:.2f} ms at {found['bandwidth_gb_per_second']:.0f} GB/s, and takes "
            f"{found['step_ms']:.2f} ms."
        )
    return notes


def _join_numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


_METRIC_TITLES = (
    ("asked", "questions asked"),
    ("answered", "of them answered"),
    ("busy", "refused for now, with a sentence"),
    ("failed", "failed in any other way"),
    ("hung", "visitors whose last answer never came"),
    ("answers", "answers (a question has one or two methods)"),
    ("wrong", "wrong: of another question, adapter, prompt or example"),
    ("identical_share", "share that is letter by letter what the request gets alone"),
    ("first_token_p50_seconds", "seconds to the first token, half of the questions"),
    ("first_token_p95_seconds", "seconds to the first token, 95 of 100"),
    ("first_token_alone_p50_seconds", "the same for somebody alone, half of the questions"),
    ("whole_p50_seconds", "seconds to the end, half"),
    ("whole_p95_seconds", "seconds to the end, 95 of 100"),
    ("most_waiting_before", "longest line: runs before somebody's own"),
    ("memory_begin_mib", "memory of the program in the first ten seconds, MiB"),
    ("memory_middle_mib", "in the middle"),
    ("memory_end_mib", "in the last ten seconds"),
    ("memory_slope_mib_per_minute", "its slope over the last two thirds, MiB a minute"),
)


def render_load_test_page(results: Mapping[str, Any], command: str, file: str) -> str:
    """The page in Markdown; it says only what was measured. `file` is the JSON beside it."""
    rows = [[title, "–" if results[name] is None else f"{results[name]:g}"] for name, title in _METRIC_TITLES]
    crashed = (
        "The program ended by itself: see its log." if results["crashed"] else "The program was still up at the end."
    )
    return (
        f"# {results['visitors']} visitors at once\n\n"
        f"{results['visitors']} programs ask through `/stream` for {results['seconds']:g} seconds, each as a visitor "
        "of its "
        f"own, one question after the other with a short pause. {crashed}\n\n"
        f"{text_table(('', 'measured'), rows, markdown=True)}\n\n"
        "- The time to the first token has the wait in line in it: four runs have the engine at a time, first come, "
        "first served.\n"
        "- On a quantized base the rows beside a row move the last bits of its numbers, and a token of almost equal "
        "probability can change ([engine.md](../engine.md)): such an answer is its own, and not counted as wrong.\n"
        f"- {results['tokens']:,} tokens. {results['base']}, {results['quantization']}, on {results['device']}; "
        f"{results['cores']} "
        f"cores with a load of {results['load_before']:g} before, on which the visitors ran too. "
        f"Python {results['python']}."
        f"\n\nAll numbers: [{file}]({file}). What is measured how stands at the top of `benchmarks/load_test.py`.\n\n"
        f"```sh\n{command}\n```\n"
    )
