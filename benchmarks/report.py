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
    """Return the page in Markdown, with the measured metrics. `file` is the name of the JSON file beside it."""
    rows = [
        [target.title, f"{results[target.metric]:g}", target.describe(), target.is_met(results[target.metric])]
        for target in TARGETS
        if target.metric in results
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
    """Return one sentence for each measured part, with the medians that its ratios come from."""
    notes = []
    if part := results.get("columns"):
        seconds = part["seconds"]
        alone = ", ".join(f"{name} {value:.2f} s" for name, value in part["seconds_alone"].items())
        notes.append(
            f"Six columns: {seconds['cold']:.2f} s in one batch ({seconds['warm']:.2f} s warm), "
            f"{seconds['peer']:.2f} s in six calls; alone {alone}; prompts of "
            f"{_join_numbers(part['prompt_tokens'])} tokens."
        )
    if part := results.get("llama_cpp"):
        rate = part["tokens_per_second"]
        notes.append(
            f"llama.cpp (llama-cpp-python {part['llama_cpp_python']}, {part['file']}, flash attention, n_batch "
            f"{part['n_batch']}, {part['threads']} threads): {rate['llama_total']:.1f} tokens/s over the six "
            f"prompts, their reading included, here {rate['ours_total']:.1f}; one stream {rate['llama_single']:.1f} "
            f"after its first token, here {rate['ours_single']:.1f}."
        )
    if part := results.get("eight_adapters"):
        seconds = part["seconds"]
        notes.append(
            f"Eight rows: {seconds['bare']:.2f} s on the bare base, {seconds['mixed']:.2f} s with eight adapters, "
            f"{seconds['one']:.2f} s with one."
        )
    if part := results.get("thousand_adapters"):
        rate = part["tokens_per_second"]
        notes.append(
            f"{part['registered']} adapters, {part['resident']} in memory, {100 * part['hit_rate']:.1f} % hits as "
            f"counted, {part['evictions']} evictions: {rate['thousand']:.1f} tokens/s for {part['clients']} clients, "
            f"{rate['one']:.1f} with one adapter."
        )
    if part := results.get("cold_load"):
        notes.append(
            f"Loading: median of {part['loads']}, slowest {part['slowest_ms']:g} ms, files of "
            f"{format_bytes(part['file_bytes'])} that the system has in memory."
        )
    if part := results.get("adapter_memory"):
        notes.append(
            f"Memory: {part['adapters']} adapters of {format_bytes(part['file_bytes'])} took "
            f"{format_bytes(part['grown_bytes'])} each; unloading them gave {100 * part['given_back']:.0f} % back "
            f"to the system at once, and {100 * part['given_back_settled']:.0f} % when the allocator was asked to."
        )
    if part := results.get("prefix"):
        seconds = part["seconds"]
        notes.append(
            f"First token of ICL-8: {seconds['warm']:.3f} s warm, {seconds['cold']:.3f} s cold; "
            f"{part['shared_tokens']} of {part['prompt_tokens']} tokens are those of another intent's prompt."
        )
    if part := results.get("limit"):
        read = part["bytes_per_step"]
        notes.append(
            f"A step of the six columns reads {format_bytes(read['weights'])} of weights, "
            f"{format_bytes(read['keys_values'])} of keys and values and {format_bytes(read['adapters'])} of adapters: "
            f"{part['least_step_ms']:.2f} ms at {part['bandwidth_gb_per_second']:.0f} GB/s, and takes "
            f"{part['step_ms']:.2f} ms."
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
    """Return the page in Markdown, with the measured metrics. `file` is the name of the JSON file beside it."""
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
