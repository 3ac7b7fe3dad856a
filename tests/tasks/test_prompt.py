"""Prompt styles: rendered prompts and training targets, fingerprints, and the style of each base."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from errors import PromptOrTuneError, UnknownNameError
from tasks.problem import Example
from tasks.prompt import STYLES, Message, choose_style, format_answer, format_completion, get_style, render_prompt
from tests import messages as expected

EXAMPLES = [Example("a", "add `x` and `y`", "x + y"), Example("b", "sort `z`", "z.sort()\nprint(z)")]


def chat(messages: object) -> str:
    assert isinstance(messages, list)
    turns: list[Message] = messages
    return "".join(f"<{turn['role']}>{turn['content']}</>" for turn in turns) + "<assistant>"


def test_plain_style_equals_the_template_of_the_study() -> None:
    assert render_prompt("reverse `s`", [], STYLES["plain"]) == "### Instruction:\nreverse `s`\n### Response:\n"


def test_examples_precede_the_intent_in_their_order() -> None:
    assert render_prompt("reverse `s`", EXAMPLES, STYLES["plain"]) == (
        "### Instruction:\nadd `x` and `y`\n### Response:\nx + y\n\n"
        "### Instruction:\nsort `z`\n### Response:\nz.sort()\nprint(z)\n\n"
        "### Instruction:\nreverse `s`\n### Response:\n"
    )


def test_examples_of_a_chat_style_are_earlier_turns() -> None:
    text = render_prompt("reverse `s`", EXAMPLES[:1], STYLES["chat"], chat)
    assert text == "<user>add `x` and `y`</><assistant>```python\nx + y\n```</><user>reverse `s`</><assistant>"


def test_completion_of_a_prefilled_style_continues_after_the_opened_fence() -> None:
    style = STYLES["chat-python-open"]
    assert render_prompt("x", [], style, chat).endswith("<assistant>```python\n")
    assert format_completion("x = 1", style) == "x = 1\n```"
    assert format_answer("x = 1", style) == "```python\nx = 1\n```"


@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
def test_training_text_equals_the_turn_of_an_example(style: object) -> None:
    """The prompt with its completion is the same text as an example in a few-shot prompt."""
    assert style in STYLES.values()
    chosen = get_style(style.name)  # type: ignore[attr-defined]
    training_text = render_prompt(EXAMPLES[0].intent, [], chosen, chat) + format_completion(EXAMPLES[0].code, chosen)
    few_shot_prompt = render_prompt("next", EXAMPLES[:1], chosen, chat)
    assert few_shot_prompt.startswith(training_text)


def test_fingerprints_differ_between_styles_and_change_with_the_text() -> None:
    prints = {style.fingerprint for style in STYLES.values()}
    assert len(prints) == len(STYLES)
    for change in ({"system": "Hello."}, {"intent_template": "Please: {intent}"}, {"fenced": True}):
        assert dataclasses.replace(STYLES["plain"], **change).fingerprint not in prints


def test_fingerprints_of_the_styles_have_not_changed() -> None:
    """A changed fingerprint makes every existing adapter unusable."""
    assert {name: style.fingerprint for name, style in STYLES.items()} == {
        "plain": "8295293f1faa5233",
        "plain-python": "9f969445107fe6db",
        "plain-short": "0ec59ae7603db383",
        "chat": "c47880247f28893b",
        "chat-python": "b6c7efebead92681",
        "chat-python-bare": "b07ea1208affa7b2",
        "chat-short": "316eafa750787da1",
        "chat-short-ask": "67325bb2d667c663",
        "chat-short-bare": "6d29a83ee88437a4",
        "chat-python-open": "cb6ebc12b2767bc8",
        "chat-short-open": "a0f4e5dfff9f60d8",
        "chat-short-ask-open": "e1f29138a6478981",
    }


def test_braces_in_an_intent_are_not_formatted() -> None:
    assert "format {x} and {}" in render_prompt("format {x} and {}", [], STYLES["plain-short"])


def test_chat_style_without_a_template_is_refused() -> None:
    with pytest.raises(PromptOrTuneError, match=expected.NEEDS_CHAT_TEMPLATE):
        render_prompt("x", [], STYLES["chat"])


def test_error_of_an_unknown_style_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=expected.UNKNOWN_STYLE_SUGGESTS_PLAIN_SHORT):
        get_style("plain-shrt")


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.mark.parametrize("data", ["conala", "starter"])
def test_each_baseline_uses_its_best_style_on_validation(data: str) -> None:
    measured = json.loads((RESULTS / f"prompt-style-{data}.json").read_text(encoding="utf-8"))
    assert measured["settings"]["split"] == "validation"
    for shots in ("zero-shot", "few-shot"):
        scores = [score for score in measured["scores"] if score["shots"] == shots]
        best = max(scores, key=lambda score: score["mean"])  # the first of equal scores, as in the command
        chosen = choose_style(measured["settings"]["base_id"], True, data, shots == "few-shot")
        assert (chosen.name, chosen.fingerprint) == (best["style"], best["fingerprint"])


def test_default_style_is_used_for_a_base_without_results() -> None:
    assert choose_style("someone/new", True, "starter", False).format == "chat"
    assert choose_style("someone/new", False, "starter", True).format == "plain"
