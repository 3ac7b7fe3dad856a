"""Prompt styles: rendered prompts and training targets, fingerprints, and the style of each base."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from errors import PromptOrTuneError, UnknownNameError
from tasks.problem import Example
from tasks.prompt import STYLES, Message, choose_style, format_answer, format_completion, get_style, render_prompt

EXAMPLES = [Example("a", "add `x` and `y`", "x + y"), Example("b", "sort `z`", "z.sort()\nprint(z)")]


def chat(messages: object) -> str:
    assert isinstance(messages, list)
    turns: list[Message] = messages
    return "".join(f"<{turn['role']}>{turn['content']}</>" for turn in turns) + "<assistant>"


def test_the_plain_style_is_the_study_s_template_to_the_letter() -> None:
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
def test_a_prompt_and_its_completion_are_an_example_s_turn(style: object) -> None:
    """What training appends to a prompt is exactly what an example with that code looks like."""
    assert style in STYLES.values()
    chosen = get_style(style.name)  # type: ignore[attr-defined]
    asked = render_prompt(EXAMPLES[0].intent, [], chosen, chat) + format_completion(EXAMPLES[0].code, chosen)
    shown = render_prompt("next", EXAMPLES[:1], chosen, chat)
    assert shown.startswith(asked)


def test_fingerprints_differ_between_styles_and_change_with_the_text() -> None:
    prints = {style.fingerprint for style in STYLES.values()}
    assert len(prints) == len(STYLES)
    for change in ({"system": "Hello."}, {"intent_template": "Please: {intent}"}, {"fenced": True}):
        assert dataclasses.replace(STYLES["plain"], **change).fingerprint not in prints


def test_the_shipped_adapters_prompts_are_still_what_they_were_trained_with() -> None:
    """A change here makes every adapter on the Hub useless: raise PROMPT_VERSION and train again only on purpose."""
    assert STYLES["plain"].fingerprint == "8295293f1faa5233"


def test_an_intent_with_braces_is_left_alone() -> None:
    assert "format {x} and {}" in render_prompt("format {x} and {}", [], STYLES["plain-short"])


def test_a_chat_style_without_a_template_is_refused() -> None:
    with pytest.raises(PromptOrTuneError, match="needs a chat template"):
        render_prompt("x", [], STYLES["chat"])


def test_an_unknown_style_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'plain-short'"):
        get_style("plain-shrt")


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.mark.parametrize("data", ["conala", "starter"])
def test_each_baseline_gets_the_style_in_which_it_did_best_on_validation(data: str) -> None:
    measured = json.loads((RESULTS / f"prompt-style-{data}.json").read_text(encoding="utf-8"))
    assert measured["settings"]["split"] == "validation"
    for shots in ("zero-shot", "few-shot"):
        scores = [score for score in measured["scores"] if score["shots"] == shots]
        best = max(scores, key=lambda score: score["mean"])  # the first of equals, as the command has it
        chosen = choose_style(measured["settings"]["base_id"], True, data, shots == "few-shot")
        assert (chosen.name, chosen.fingerprint) == (best["style"], best["fingerprint"])


def test_a_base_that_was_not_measured_gets_what_it_can_read() -> None:
    assert choose_style("someone/new", True, "starter", False).format == "chat"
    assert choose_style("someone/new", False, "starter", True).format == "plain"
