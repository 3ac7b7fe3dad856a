r"""Prompt styles: rendering of prompts and of training targets, and the choice of a style for each base.

Training, every method, the API and the study render with `render_prompt`, end answers with `answer_end` and read code
with `extract_code` (tasks.extract). A style is plain or chat, with its wording, and fenced or bare answers. Its
fingerprint is stored with every adapter and every result.

The plain template is the study's: `### Instruction:\n{intent}\n### Response:\n` and then the code (arXiv 2308.10462,
section 4).

`python -m evaluate.prompt_style_search` measures every style on validation problems, with zero-shot and with 8 fixed
examples; the best ones are recorded here (figures: docs/results/prompt-style.md). A base that was not measured gets the
defaults: chat with a fence where it has a chat template, else plain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from errors import PromptOrTuneError, unknown_name_error
from tasks.problem import Example

PROMPT_VERSION = 1
INSTRUCTION = "### Instruction:"
RESPONSE = "### Response:"
_FENCE_START = "```python\n"


class Message(TypedDict):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class PromptStyle:
    """How a problem is worded.

    `system` is the system turn of a chat, or the first line of a plain prompt; `intent_template` is the text around the
    intent; with `fenced`, answers (of examples, and in training) are in a Markdown fence; with `prefill` the prompt
    already opens that fence, so that a small base cannot write prose before its code. `opens_thinking` says of a
    rendered prompt that it ends where thinking begins, as some chat templates do; it changes no text.
    """

    name: str
    format: Literal["plain", "chat"]
    system: str = ""
    intent_template: str = "{intent}"
    fenced: bool = False
    prefill: bool = False
    opens_thinking: bool = False

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that changes the text of a prompt or of a training target.

        The digest is of rendered text, not of these fields, so that adapters stay valid when a field with a neutral
        default is added. Every answer ends with the base's end token ("eos"). The literals below are part of the
        digest: a change of one of them would invalidate every adapter.
        """
        examples, intent = [Example("probe", "probe intent", "probe = 1")], "asked intent"
        turns = (
            _chat_messages(intent, examples, self) if self.format == "chat" else render_prompt(intent, examples, self)
        )
        parts = [PROMPT_VERSION, self.format, turns, self.prefill, format_completion("asked = 1", self), "eos"]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


_SHORT_INSTRUCTION = "Answer with the shortest Python code that does it, often a single line. No explanation."
_EXPERT_INSTRUCTION = (
    "You are an expert Python programmer. Answer with Python code only, without explanation or example usage."
)

STYLES: dict[str, PromptStyle] = {
    style.name: style
    for style in (
        PromptStyle("plain", "plain"),
        PromptStyle("plain-python", "plain", system=_EXPERT_INSTRUCTION),
        PromptStyle("plain-short", "plain", intent_template="{intent}\n" + _SHORT_INSTRUCTION),
        PromptStyle("chat", "chat", fenced=True),
        PromptStyle("chat-python", "chat", system=_EXPERT_INSTRUCTION, fenced=True),
        PromptStyle("chat-python-bare", "chat", system=_EXPERT_INSTRUCTION),
        PromptStyle("chat-short", "chat", system=_EXPERT_INSTRUCTION + " " + _SHORT_INSTRUCTION, fenced=True),
        PromptStyle("chat-short-ask", "chat", intent_template="{intent}\n" + _SHORT_INSTRUCTION, fenced=True),
        PromptStyle("chat-short-bare", "chat", system=_EXPERT_INSTRUCTION + " " + _SHORT_INSTRUCTION),
        PromptStyle("chat-python-open", "chat", system=_EXPERT_INSTRUCTION, fenced=True, prefill=True),
        PromptStyle(
            "chat-short-open", "chat", system=_EXPERT_INSTRUCTION + " " + _SHORT_INSTRUCTION, fenced=True, prefill=True
        ),
        PromptStyle(
            "chat-short-ask-open", "chat", intent_template="{intent}\n" + _SHORT_INSTRUCTION, fenced=True, prefill=True
        ),
    )
}


def get_style(name: str) -> PromptStyle:
    """Return the style of that name; raises UnknownNameError with the nearest one."""
    if name not in STYLES:
        raise unknown_name_error("prompt style", name, STYLES)
    return STYLES[name]


def render_prompt(
    intent: str,
    examples: Sequence[Example],
    style: PromptStyle,
    apply_chat_template: Callable[[Sequence[Message]], str] | None = None,
) -> str:
    """Render the prompt for an intent, with the examples in the given order.

    `apply_chat_template` is the base's own; a style of format "chat" needs it.
    """
    if style.format == "chat":
        if apply_chat_template is None:
            raise PromptOrTuneError(f"Prompt style '{style.name}' needs a chat template and this base has none.")
        return apply_chat_template(_chat_messages(intent, examples, style)) + (_FENCE_START if style.prefill else "")
    turns = [f"{_plain_turn(example.intent, style)}{format_answer(example.code, style)}\n\n" for example in examples]
    head = f"{style.system}\n\n" if style.system else ""
    return head + "".join(turns) + _plain_turn(intent, style) + (_FENCE_START if style.prefill else "")


def format_answer(code: str, style: PromptStyle) -> str:
    """Render an answer with this code, without the end token."""
    return f"{_FENCE_START}{code}\n```" if style.fenced else code


def format_completion(code: str, style: PromptStyle) -> str:
    """Render the training target that follows a rendered prompt, without the end token."""
    return format_answer(code, style).removeprefix(_FENCE_START if style.prefill else "")


def _chat_messages(intent: str, examples: Sequence[Example], style: PromptStyle) -> list[Message]:
    messages: list[Message] = []
    if style.system:
        messages.append({"role": "system", "content": style.system})
    for example in examples:
        messages.append({"role": "user", "content": style.intent_template.format(intent=example.intent)})
        messages.append({"role": "assistant", "content": format_answer(example.code, style)})
    messages.append({"role": "user", "content": style.intent_template.format(intent=intent)})
    return messages


def _plain_turn(intent: str, style: PromptStyle) -> str:
    return f"{INSTRUCTION}\n{style.intent_template.format(intent=intent)}\n{RESPONSE}\n"


# (base id, data set) -> (style without examples, style with examples); "*" is any other data set.
_EMBEDDED_BASE = "embedded/SmolLM2-135M-Instruct-Q4_1"
_BEST_STYLES: dict[tuple[str, str], tuple[str, str]] = {
    (_EMBEDDED_BASE, "conala"): ("chat-short-ask-open", "chat"),
    (_EMBEDDED_BASE, "starter"): ("chat-python-open", "plain"),
    (_EMBEDDED_BASE, "*"): ("chat-python-open", "plain"),
}


def choose_style(base_id: str, has_chat_template: bool, pool: str, with_examples: bool) -> PromptStyle:
    """Return the style for a row without an adapter."""
    chosen = _BEST_STYLES.get((base_id, pool)) or _BEST_STYLES.get((base_id, "*"))
    if chosen is None:
        default = "chat-python" if has_chat_template else "plain"
        chosen = (default, default)
    return STYLES[chosen[1] if with_examples else chosen[0]]
