"""The page that `python -m benchmarks.engine --output` writes from its JSON line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluate.grid import grid


@dataclass(frozen=True)
class Aim:
    """One figure of the line: what it is called on the page, and what was promised of it."""

    figure: str
    title: str
    most: float | None = None
    least: float | None = None

    def said(self) -> str:
        """The promise in words; "" where there is none."""
        if self.most is not None:
            return f"at most {self.most:g}"
        return "" if self.least is None else f"at least {self.least:g}"

    def kept(self, value: float) -> str:
        """Whether `value` keeps it."""
        if self.most is None and self.least is None:
            return ""
        fits = (self.most is None or value <= self.most) and (self.least is None or value >= self.least)
        return "yes" if fits else "**no**"


AIMS = (
    Aim("six_columns_ratio", "six columns in one batch, time divided by six calls of transformers + PEFT", most=0.30),
    Aim("six_columns_warm_ratio", "the same with the examples of ICL in the prefix cache"),
    Aim("slowest_column_ratio", "the same batch, divided by its slowest column alone", most=1.5),
    Aim("llama_cpp_total_ratio", "tokens a second of the six columns, divided by llama.cpp's one by one", least=2.0),
    Aim("llama_cpp_single_ratio", "tokens a second of one stream, divided by llama.cpp's", least=0.6),
    Aim("eight_adapters_ratio", "eight rows with eight LoRA adapters, divided by the bare base", most=1.25),
    Aim("thousand_adapters_ratio", "throughput over 1,000 adapters, divided by that of one adapter", least=0.9),
    Aim("cold_load_ms", "milliseconds to load an adapter of rank 16 that was never seen", most=150),
    Aim("adapter_memory_ratio", "memory of an adapter, divided by its file", most=1.2),
    Aim("warm_prefix_ratio", "first token of ICL-8 with its examples read before, divided by a cold one", most=0.35),
    Aim("share_of_limit", "what the memory's bandwidth allows a step to take, divided by what it takes"),
)


def page(line: Mapping[str, Any], command: str, file: str) -> str:
    """The page in Markdown; it says only what was measured. `file` is the JSON beside it."""
    rows = [
        [aim.title, f"{line[aim.figure]:g}", aim.said(), aim.kept(line[aim.figure])]
        for aim in AIMS
        if aim.figure in line
    ]
    libraries = ", ".join(f"{name} {line[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    return (
        "# How fast the engine is\n\n"
        f"{grid(('', 'here', 'promised', 'kept'), rows, markdown=True)}\n\n"
        + "".join(f"- {note}\n" for note in _notes(line))
        + f"- Medians of {line['runs']} rounds after one that warms up; in a round every side has one turn. "
        f"{line['new_tokens']} greedy tokens an answer on every side; the rule that ends an answer early is off.\n"
        f"- {line['base']} at {line['revision']}, {line['quantization']}, on {line['device']}, {line['threads']} "
        f"threads on {line['cores']} cores that had a load of {line['load_before']:g} before; {libraries}, "
        f"Python {line['python']}.\n"
        f"\nAll numbers, with the ratio of every round: [{file}]({file}). What is measured how stands at the top of\n"
        f"each `benchmarks/engine_*.py`.\n\n```sh\n{command}\n```\n"
    )


def _notes(line: Mapping[str, Any]) -> list[str]:
    """The raw medians behind the ratios, a sentence a question."""
    notes = []
    if found := line.get("columns"):
        seconds = found["seconds"]
        alone = ", ".join(f"{name} {value:.2f} s" for name, value in found["seconds_alone"].items())
        notes.append(
            f"Six columns: {seconds['cold']:.2f} s in one batch ({seconds['warm']:.2f} s warm), "
            f"{seconds['peer']:.2f} s in six calls; alone {alone}; prompts of {_listed(found['prompt_tokens'])} tokens."
        )
    if found := line.get("llama_cpp"):
        rate = found["tokens_per_second"]
        notes.append(
            f"llama.cpp (llama-cpp-python {found['llama_cpp_python']}, {found['file']}, flash attention, n_batch "
            f"{found['n_batch']}, {found['threads']} threads): {rate['llama_total']:.1f} tokens/s over the six "
            f"prompts, their reading included, here {rate['ours_total']:.1f}; one stream {rate['llama_single']:.1f} "
            f"after its first token, here {rate['ours_single']:.1f}."
        )
    if found := line.get("eight_adapters"):
        seconds = found["seconds"]
        notes.append(
            f"Eight rows: {seconds['bare']:.2f} s on the bare base, {seconds['mixed']:.2f} s with eight adapters, "
            f"{seconds['one']:.2f} s with one."
        )
    if found := line.get("thousand_adapters"):
        rate = found["tokens_per_second"]
        notes.append(
            f"{found['registered']} adapters, {found['resident']} in memory, {100 * found['hit_rate']:.1f} % hits as "
            f"counted, {found['evictions']} evictions: {rate['thousand']:.1f} tokens/s for {found['clients']} clients, "
            f"{rate['one']:.1f} with one adapter."
        )
    if found := line.get("cold_load"):
        notes.append(
            f"Loading: median of {found['loads']}, slowest {found['slowest_ms']:g} ms, files of "
            f"{found['file_bytes'] / 1e6:.1f} MB that the system has in memory."
        )
    if found := line.get("adapter_memory"):
        notes.append(
            f"Memory: {found['adapters']} adapters of {found['file_bytes'] / 1e6:.2f} MB took "
            f"{found['grown_bytes'] / 1e6:.2f} MB each; unloading them gave {100 * found['given_back']:.0f} % back "
            f"to the system at once, and {100 * found['given_back_settled']:.0f} % when the allocator was asked to."
        )
    if found := line.get("prefix"):
        seconds = found["seconds"]
        notes.append(
            f"First token of ICL-8: {seconds['warm']:.3f} s warm, {seconds['cold']:.3f} s cold; "
            f"{found['shared_tokens']} of {found['prompt_tokens']} tokens are those of another intent's prompt."
        )
    if found := line.get("limit"):
        read = found["bytes_per_step"]
        notes.append(
            f"A step of the six columns reads {read['weights'] / 1e6:.0f} MB of weights, "
            f"{read['keys_values'] / 1e6:.0f} MB of keys and values and {read['adapters'] / 1e6:.0f} MB of adapters: "
            f"{found['least_step_ms']:.2f} ms at {found['bandwidth_gb_per_second']:.0f} GB/s, and takes "
            f"{found['step_ms']:.2f} ms."
        )
    return notes


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
