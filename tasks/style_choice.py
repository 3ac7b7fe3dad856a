"""Which prompt style each base gets, chosen on validation problems so that no baseline is handicapped.

`python -m evaluate.choose_style` measures every style of tasks.prompt.STYLES with zero-shot and with 8 fixed
examples and names the best of each; what it found is recorded here (figures: docs/results/prompt-style.md).
A base that was not measured gets the defaults: chat with a fence where it has a chat template, else plain.
"""

from __future__ import annotations

from tasks.prompt import STYLES, PromptStyle

# (base id, data set) -> (style without examples, style with examples); "*" stands for any other data set.
_EMBEDDED_BASE = "embedded/SmolLM2-135M-Instruct-Q4_1"
_BEST_STYLES: dict[tuple[str, str], tuple[str, str]] = {
    (_EMBEDDED_BASE, "conala"): ("chat-short-ask-open", "chat"),
    (_EMBEDDED_BASE, "starter"): ("chat-python-open", "plain"),
    (_EMBEDDED_BASE, "*"): ("chat-python-open", "plain"),
}


def choose_style(base_id: str, has_chat_template: bool, pool: str, with_examples: bool) -> PromptStyle:
    """The style for a row without an adapter."""
    chosen = _BEST_STYLES.get((base_id, pool)) or _BEST_STYLES.get((base_id, "*"))
    if chosen is None:
        default = "chat-python" if has_chat_template else "plain"
        chosen = (default, default)
    return STYLES[chosen[1] if with_examples else chosen[0]]
