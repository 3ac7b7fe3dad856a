"""What a method costs: tokens, seconds and memory.

Definitions, each a mean over the problems that were answered (a failure costs nothing and would flatter its method):

- prompt tokens: what the base reads, examples included, without an adapter's virtual tokens;
- tokens: those of the first answer; `generated` counts every sample or beam that was returned, also where several said
  the same code;
- seconds: wall time from a batch's start to its end, divided by its problems. It depends on the machine, on the batch
  and on what else ran: compare it within one run only;
- tokens a second: all generated tokens by all seconds;
- peak memory, of the method and not a mean: on a GPU the most that torch had allocated at once
  (`torch.cuda.max_memory_allocated`), on a CPU the process's largest resident set (VmHWM of proc(5)), base included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate.results import Result


@dataclass(frozen=True)
class Cost:
    """Means over the answered problems, and the method's peak of memory; 0 and None where nothing was measured."""

    seconds: float
    prompt_tokens: float
    tokens: float
    generated: float
    tokens_per_second: float
    peak_memory_bytes: int | None


def summarize_cost(results: Sequence[Result], method_record: Mapping[str, Any]) -> Cost:
    """The cost of a method's results; `method` is what its run knows of it."""
    answered = [result for result in results if result.error is None]
    generated = [count_generated_tokens(result) for result in answered]
    seconds = sum(result.seconds for result in answered)
    return Cost(
        _mean([result.seconds for result in answered]),
        _mean([result.prompt_tokens for result in answered]),
        _mean([result.tokens for result in answered]),
        _mean(generated),
        sum(generated) / seconds if seconds > 0 else 0.0,
        method_record.get("peak_memory_bytes"),
    )


def count_generated_tokens(result: Result) -> int:
    """The tokens of all candidates, each as often as it was said."""
    return sum(int(candidate["tokens"]) * int(candidate.get("times", 1)) for candidate in result.candidates)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
