r"""Prompt styles and rendering; style chosen per base.

The one place where a problem becomes text and where a completion becomes code again.

Training, every method, the API and the study render through `render`, end answers with `answer_end` and read
code with `extract_code`. A style (plain or chat, its wording, fenced or bare answers) is chosen for each base on
validation problems (tasks/prompt.py); its fingerprint is stored with every adapter and every result.

The plain template is the study's: `### Instruction:\n{intent}\n### Response:\n` with the code after it
(arXiv 2308.10462, section 4).

Which prompt style each base gets, chosen on validation problems so that no baseline is handicapped.

`python -m evaluate.prompt_style_search` measures every style of tasks.prompt.STYLES with zero-shot and with 8 fixed
examples and names the best of each; what it found is recorded here (figures: docs/results/prompt-style.md).
A base that was not measured gets the defaults: chat with a fence where it has a chat template, else plain.
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

    `system` is the system turn of a chat, or the first line of a plain prompt; `ask` wraps the intent; `fenced`
    says whether answers (of examples, and in training) stand in a Markdown fence; `prefill` opens that fence for
    the model, so that a small base cannot chat before its code.
    """

    name: str
    format: Literal["plain", "chat"]
    system: str = ""
    intent_template: str = "{intent}"
    fenced: bool = False
    prefill: bool = False

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that changes the text of a prompt or of a learned answer.

        It is taken from what is rendered, not from these fields, so that a new field with a neutral default leaves
        the adapters trained before it valid. Every answer ends with the base's own end token ("eos").
        """
        shown, asked = Example("probe", "probe intent", "probe = 1"), "asked intent"
        turns = _chat_messages(asked, [shown], self) if self.format == "chat" else render_prompt(asked, [shown], self)
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
    """The style of that name; UnknownNameError with the nearest one otherwise."""
    if name not in STYLES:
        raise unknown_name_error("prompt style", name, STYLES)
    return STYLES[name]


def render_prompt(
    intent: str,
    examples: Sequence[Example],
    style: PromptStyle,
    apply_chat_template: Callable[[Sequence[Message]], str] | None = None,
) -> str:
    """The text that a base reads before it answers.

    `chat` puts the base's own chat template around messages; a style of format "chat" needs it. Examples stand
    in the order given.
    """
    if style.format == "chat":
        if apply_chat_template is None:
            raise PromptOrTuneError(f"Prompt style '{style.name}' needs a chat template and this base has none.")
        return apply_chat_template(_chat_messages(intent, examples, style)) + (_FENCE_START if style.prefill else "")
    shown = [f"{_plain_turn(example.intent, style)}{format_answer(example.code, style)}\n\n" for example in examples]
    head = f"{style.system}\n\n" if style.system else ""
    return head + "".join(shown) + _plain_turn(intent, style) + (_FENCE_START if style.prefill else "")


def format_answer(code: str, style: PromptStyle) -> str:
    """What a right answer with this code looks like in this style, without the end token."""
    return f"{_FENCE_START}{code}\n```" if style.fenced else code


def format_completion(code: str, style: PromptStyle) -> str:
    """What training teaches to follow a rendered prompt, without the end token."""
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
