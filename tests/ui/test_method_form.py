"""The form that adds a method, the values of the chips, and the labels of methods."""

from __future__ import annotations

from typing import Any

import pytest

from errors import PromptOrTuneError
from tests import messages
from tests.fakes import FakeEngine
from ui.components import chip_names, chip_values, method_hint, method_label, model_label
from ui.form_fields import _unavailable_message, add_method, default_methods, list_adapter_choices, method_name


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (("zero-shot", 4, None, "none"), "zero-shot"),
        (("icl", 4, "lora-x", "rag"), "icl-4"),
        (("rag", 16, None, "none"), "rag-16"),
        (("adapter", 4, "lora-x", "none"), "lora-x"),
        (("adapter", 4, "lora-x", "rag"), "lora-x+rag-4"),
    ],
)
def test_filled_form_gives_a_method_name(form: Any, name: Any) -> None:
    assert method_name(*form) == name


def test_form_without_an_adapter_is_refused() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.NO_ADAPTER_CHOSEN):
        method_name("adapter", 4, None, "none")


def test_duplicate_method_is_refused() -> None:
    assert add_method(["zero-shot"], "icl-4", []) == ["zero-shot", "icl-4"]
    with pytest.raises(PromptOrTuneError, match=messages.METHOD_ALREADY_ADDED):
        add_method(["icl-4"], "icl-4@42", [])
    with pytest.raises(PromptOrTuneError, match=messages.EXAMPLES_OUT_OF_RANGE):
        add_method([], "icl-0", [])


def test_ninth_column_is_refused() -> None:
    with pytest.raises(PromptOrTuneError, match=messages.TOO_MANY_COLUMNS):
        add_method([f"icl-{k}" for k in range(1, 9)], "rag-1", [])


def test_house_adapter_is_preferred() -> None:
    assert default_methods(["lora-starter", "mine", "qlora-4bit-house"])[3:] == ["qlora-4bit-house"]
    assert default_methods(["lora-conala", "lora-starter"])[-1] == "lora-starter"
    assert default_methods(["mine"]) == ["zero-shot", "icl-8", "rag-8", "mine"]
    assert default_methods([]) == ["zero-shot", "icl-8", "rag-8"]


def test_unusable_adapter_is_not_the_default() -> None:
    known = list_adapter_choices(FakeEngine(errors={"lora-starter": "It was made for another base."}))
    assert known.choices == [("lora-conala", "lora-conala"), ("lora-starter (cannot be used here)", "lora-starter")]
    assert default_methods(known.usable)[-1] == "lora-conala"
    assert known.reasons == {"lora-starter": "It was made for another base."}


def test_unsupported_adapter_shows_its_reason() -> None:
    engine = FakeEngine(unsupported={"lora-starter": "This engine serves LoRA adapters only; <b>it</b> is IA3."})
    known = list_adapter_choices(engine)
    assert known.usable == ["lora-conala"]
    assert _unavailable_message("adapter", "lora-starter", known.reasons) == (
        '<p class="error-message">This engine serves LoRA adapters only; &lt;b&gt;it&lt;/b&gt; is IA3.</p>'
    )
    assert _unavailable_message("adapter", "lora-conala", known.reasons) == ""
    assert _unavailable_message("icl", "lora-starter", known.reasons) == ""


def test_invalid_chips_are_ignored() -> None:
    assert chip_names(chip_values(["zero-shot", "icl-8"])) == ["zero-shot", "icl-8"]
    invalid_value: Any
    for invalid_value in (None, "", "x", 7, {}, [1, None, {}, {"name": ""}]):
        assert chip_names(invalid_value) == []


def test_methods_have_labels() -> None:
    assert method_label("lora-conala+rag-8") == "lora-conala + RAG 8"
    assert method_hint("zero-shot") == "no examples, no training"
    assert method_hint("icl-1") == "1 fixed example"
    assert method_hint("lora-conala+rag-8") == "trained adapter · 8 nearest examples"
    assert model_label("Qwen/Qwen2.5-Coder-0.5B", "int8", "cuda:0") == "Qwen2.5-Coder-0.5B · int8 · GPU"
    assert model_label("owner/base", "unknown", "vLLM at 127.0.0.1:8000") == "base · vLLM at 127.0.0.1:8000"
