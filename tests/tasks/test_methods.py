"""Method names: parsing, canonical names, and errors."""

from __future__ import annotations

import pytest

from errors import PromptOrTuneError, UnknownNameError
from tasks.methods import FixedExamples, Method, NearestExamples, NoExamples, parse_method

ADAPTERS = ["lora-conala", "lora-starter"]


@pytest.mark.parametrize(
    ("name", "examples", "adapter"),
    [
        ("zero-shot", NoExamples(), None),
        ("icl-8", FixedExamples(8, 42), None),
        ("icl-2@7", FixedExamples(2, 7), None),
        ("rag-4", NearestExamples(4), None),
        ("lora-conala", NoExamples(), "lora-conala"),
        ("lora-conala+rag-8", NearestExamples(8), "lora-conala"),
        ("lora-starter+icl-3", FixedExamples(3), "lora-starter"),
    ],
)
def test_method_name_is_parsed_and_restored(name: str, examples: object, adapter: str | None) -> None:
    method = parse_method(name, ADAPTERS)
    assert (method.examples, method.adapter) == (examples, adapter)
    assert method.name == name
    assert parse_method(method.name, ADAPTERS) == method


def test_order_of_parts_and_spaces_is_ignored() -> None:
    assert parse_method(" rag-8 + lora-conala ", ADAPTERS) == Method(
        "lora-conala+rag-8", NearestExamples(8), "lora-conala"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zero-shoot", "did you mean 'zero-shot'"),
        ("lora-conalla", "did you mean 'lora-conala'"),
        ("", "Unknown method ''"),
        ("rag-8@3", "Unknown method"),
        ("zero-shot+rag-8", "Unknown method"),
    ],
)
def test_error_for_an_unknown_name_suggests_the_most_similar_one(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message.replace("(", r"\(")):
        parse_method(name, ADAPTERS)


@pytest.mark.parametrize("name", ["icl-0", "rag-33", "icl-8+rag-8", "lora-conala+lora-starter"])
def test_invalid_methods_are_refused(name: str) -> None:
    with pytest.raises(PromptOrTuneError):
        parse_method(name, ADAPTERS)
