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


def test_the_plain_style_is_exactly_the_template_of_the_study() -> None:
    assert render_prompt("reverse `s`", [], STYLES["plain"]) == "### Instruction:\nreverse `s`\n### Response:\n"


def test_examples_come_first_and_in_their_order() -> None:
    assert render_prompt("reverse `s`", EXAMPLES, STYLES["plain"]) == (
        "### Instruction:\nadd `x` and `y`\n### Response:\nx + y\n\n"
        "### Instruction:\nsort `z`\n### Response:\nz.sort()\nprint(z)\n\n"
        "### Instruction:\nreverse `s`\n### Response:\n"
    )


def test_examples_of_a_chat_are_earlier_turns() -> None:
    text = render_prompt("reverse `s`", EXAMPLES[:1], STYLES["chat"], chat)
    assert text == "<user>add `x` and `y`</><assistant>```python\nx + y\n```</><user>reverse `s`</><assistant>"


def test_a_prefilled_style_opens_the_fence_that_training_continues() -> None:
    style = STYLES["chat-python-open"]
    assert render_prompt("x", [], style, chat).endswith("<assistant>```python\n")
    assert format_completion("x = 1", style) == "x = 1\n```"
    assert format_answer("x = 1", style) == "```python\nx = 1\n```"


@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
def test_a_prompt_with_its_completion_is_the_turn_of_an_example(style: object) -> None:
    """A training target has exactly the form of an example with that code."""
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
    """A change here makes every existing adapter unusable."""
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


def test_an_intent_with_braces_is_left_alone() -> None:
    assert "format {x} and {}" in render_prompt("format {x} and {}", [], STYLES["plain-short"])


def test_a_chat_style_without_a_template_is_refused() -> None:
    with pytest.raises(PromptOrTuneError, match=expected.NEEDS_CHAT_TEMPLATE):
        render_prompt("x", [], STYLES["chat"])


def test_an_unknown_style_is_reported_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=expected.UNKNOWN_STYLE_SUGGESTS_PLAIN_SHORT):
        get_style("plain-shrt")


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.mark.parametrize("data", ["conala", "starter"])
def test_each_baseline_gets_its_best_style_on_validation(data: str) -> None:
    measured = json.loads((RESULTS / f"prompt-style-{data}.json").read_text(encoding="utf-8"))
    assert measured["settings"]["split"] == "validation"
    for shots in ("zero-shot", "few-shot"):
        scores = [score for score in measured["scores"] if score["shots"] == shots]
        best = max(scores, key=lambda score: score["mean"])  # the first of equals, as in the command
        chosen = choose_style(measured["settings"]["base_id"], True, data, shots == "few-shot")
        assert (chosen.name, chosen.fingerprint) == (best["style"], best["fingerprint"])


def test_a_base_that_was_not_measured_gets_a_default() -> None:
    assert choose_style("someone/new", True, "starter", False).format == "chat"
    assert choose_style("someone/new", False, "starter", True).format == "plain"
