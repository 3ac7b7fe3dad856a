"""What the prompts of a batch have in common at their start is read once, and kept for the batches to come.

ICL shows every problem the same examples: hundreds of tokens that are the same in all prompts of a run. What was read
belongs to the adapter that was worn meanwhile and to the very tokens; under another adapter it would be wrong.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from serve.backends.local.prefix import Prefix

# Less is quicker read again than looked after.
LEAST = 32
# The examples of a few methods; each is some 15 MB on the embedded base.
KEPT = 4

Tokens = tuple[int, ...]
Read = Callable[[Tokens], Prefix]


class Beginnings:
    """The beginnings read last, by adapter and tokens."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str | None, Tokens], Prefix] = OrderedDict()

    def shared(self, prompts: Sequence[Sequence[int]], adapter: str | None, read: Read) -> tuple[int, Prefix] | None:
        """How many tokens all prompts share, and the prefix that stands for them; None where too few are shared.

        Each prompt keeps a token of its own. `read` reads tokens under the adapter that all prompts wear.
        """
        if len(prompts) < 2:
            return None
        common = _common([tuple(prompt[:-1]) for prompt in prompts])
        if len(common) < LEAST:
            return None
        for key in self._known:
            known = key[1]
            # Two problems may begin with the same words by chance: that does not make another beginning.
            if key[0] == adapter and len(common) - len(known) < LEAST and common[: len(known)] == known:
                self._known.move_to_end(key)
                return len(known), self._known[key]
        prefix = read(common)
        self._known[adapter, common] = prefix
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return len(common), prefix

    def forget(self, adapter: str) -> None:
        """Drops what was read under an adapter that has changed or gone."""
        for key in [key for key in self._known if key[0] == adapter]:
            del self._known[key]


def _common(prompts: Sequence[Tokens]) -> Tokens:
    """The tokens that all of them begin with: those of the first and last in order are those of all."""
    low, high = min(prompts), max(prompts)
    at = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:at]
