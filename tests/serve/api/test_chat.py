"""POST /v1/chat/completions with the `openai` client, whole and streamed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.serve.api.conftest import Served


def ask(client: OpenAI, content: Any = "reverse `s`", model: str = "zero-shot", **more: Any) -> Any:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return client.chat.completions.create(model=model, messages=messages, **more)


def streamed(client: OpenAI, *arguments: Any, **more: Any) -> tuple[dict[int, str], dict[int, Any], list[Any]]:
    """Return the text and the last chunk of each choice, and all chunks."""
    texts: dict[int, str] = {}
    last: dict[int, Any] = {}
    chunks = list(ask(client, *arguments, stream=True, **more))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                last[choice.index] = choice
    return texts, last, chunks


def test_response_has_all_fields(client: OpenAI) -> None:
    reply = ask(client)
    (choice,) = reply.choices
    assert choice.message.content == "print('reverse `s`') # base*1"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert choice.message.code == choice.message.content
    assert reply.object == "chat.completion"
    assert reply.model == "zero-shot"
    assert reply.id.startswith("chatcmpl-")
    assert reply.system_fingerprint == "fp_aaaaaaaaaaaa_nf4"
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_message_contains_the_code_of_a_fenced_answer(client: OpenAI) -> None:
    message = ask(client, "something fenced").choices[0].message
    assert message.content == "```python\nx = 1\n```"
    assert message.code == "x = 1"


@pytest.mark.parametrize(
    ("model", "adapter", "examples"),
    [
        ("zero-shot", "base*1", 0),
        ("tiny/base", "base*1", 0),
        ("icl", "base*1", 8),
        ("icl-4", "base*1", 4),
        ("rag", "base*1", 8),
        ("lora-a", "lora-a*1", 0),
        ("lora-b+rag-2", "lora-b*1", 2),
        ("lora-a*0.5", "lora-a*0.5", 0),
    ],
)
def test_model_selects_the_method(client: OpenAI, served: Served, model: str, adapter: str, examples: int) -> None:
    reply = ask(client, f"say {model}", model)
    assert reply.choices[0].message.content.endswith(f"# {adapter}")
    assert reply.model == model
    (prompt,) = {seen for seen in served.backend.prompts if f"say {model}\n" in seen}
    assert prompt.count("### Instruction:") == examples + 1


def test_stream_has_the_text_and_usage_of_the_response(client: OpenAI) -> None:
    response = ask(client, "count 40", max_tokens=60)
    texts, last, chunks = streamed(client, "count 40", max_tokens=60, stream_options={"include_usage": True})
    assert texts == {0: response.choices[0].message.content}
    assert last[0].finish_reason == "stop"
    assert last[0].delta.code == response.choices[0].message.code
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == response.usage
    assert len(chunks) > 5, "several chunks"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_stream_has_usage_only_if_requested(client: OpenAI) -> None:
    _, _, chunks = streamed(client, "count 3")
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_token_limit_ends_the_answer(client: OpenAI, name: str) -> None:
    limit: Any = {name: 5}
    reply = ask(client, "count 40", **limit)
    assert reply.choices[0].message.content == "1 2 3 4 5"
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 5
    texts, last, _ = streamed(client, "count 40", **limit)
    assert (texts[0], last[0].finish_reason) == ("1 2 3 4 5", "length")


@pytest.mark.parametrize("stop", [" 4", [" 9", " 4"]])
def test_stop_strings_end_the_answer(client: OpenAI, stop: Any) -> None:
    choice = ask(client, "count 40", stop=stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("1 2 3", "stop")
    texts, last, _ = streamed(client, "count 40", stop=stop)
    assert (texts[0], last[0].finish_reason) == ("1 2 3", "stop")


def test_samples_are_returned_as_choices(client: OpenAI) -> None:
    reply = ask(client, "sort", n=3, temperature=0.7, seed=11)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert texts == [f"print('sort') # base*1 # sample {sample} of seed 11" for sample in range(3)]
    assert reply.usage.completion_tokens == 3 * len(texts[0].split())
    streamed_texts, _, _ = streamed(client, "sort", n=3, temperature=0.7, seed=11)
    assert [streamed_texts[index] for index in range(3)] == texts


def test_greedy_choices_are_equal_and_computed_once(client: OpenAI, served: Served) -> None:
    reply = ask(client, "copy me", n=4, temperature=0)
    assert {choice.message.content for choice in reply.choices} == {"print('copy me') # base*1"}
    assert len(reply.choices) == 4
    assert sum("copy me" in prompt for prompt in served.backend.prompts) == 1
    texts, last, _ = streamed(client, "copy me", n=4, temperature=0)
    assert set(texts.values()) == {"print('copy me') # base*1"}
    assert set(last) == {0, 1, 2, 3}


def test_mode_depends_on_temperature_top_p_and_n(client: OpenAI) -> None:
    def sampled(**more: Any) -> bool:
        return "sample" in ask(client, "sort", **more).choices[0].message.content

    assert not sampled()
    assert not sampled(temperature=0, seed=3)
    assert not sampled(top_p=1)
    assert sampled(temperature=0.2)
    assert sampled(top_p=0.9)
    assert sampled(n=2)


def test_samples_differ_without_a_seed(client: OpenAI) -> None:
    texts = {ask(client, "sort", temperature=1).choices[0].message.content for _ in range(4)}
    assert len(texts) > 1


def test_logprobs_are_returned(client: OpenAI) -> None:
    reply = ask(client, "count 3", logprobs=True, top_logprobs=2)
    content = reply.choices[0].logprobs.content
    assert [entry.token for entry in content] == ["1", " 2", " 3"]
    assert [entry.logprob for entry in content] == [-0.5] * 3
    assert bytes(content[1].bytes) == b" 2"
    assert [top.token for top in content[0].top_logprobs] == ["other0", "other1"]
    _, last, _ = streamed(client, "count 3", logprobs=True, top_logprobs=2)
    assert last[0].logprobs.content == content
    assert ask(client, "count 3", logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_system_message_precedes_the_intent(client: OpenAI, served: Served) -> None:
    messages = [{"role": "system", "content": "Use numpy."}, {"role": "user", "content": "add a system line"}]
    ask(client, messages)
    (prompt,) = {seen for seen in served.backend.prompts if "add a system line" in seen}
    assert "Use numpy.\n\nadd a system line" in prompt


def test_earlier_turns_are_in_the_prompt(client: OpenAI, served: Served) -> None:
    messages = [
        {"role": "user", "content": "first question"},
        {"role": "assistant", "content": "Sure:\n```python\nfirst = 1\n```"},
        {"role": "user", "content": [{"type": "text", "text": "and now "}, {"type": "text", "text": "the second"}]},
    ]
    ask(client, messages, "icl-2")
    (prompt,) = {seen for seen in served.backend.prompts if "and now the second" in seen}
    assert prompt.count("### Instruction:") == 4
    assert "first question\n### Response:\nfirst = 1\n\n### Instruction:\nand now the second" in prompt


def test_ignored_parameters_are_accepted(client: OpenAI) -> None:
    reply = ask(
        client,
        user="somebody",
        store=False,
        metadata={"a": "b"},
        presence_penalty=0,
        frequency_penalty=0,
        logit_bias={},
        response_format={"type": "text"},
        parallel_tool_calls=True,
        service_tier="auto",
    )
    assert reply.choices[0].message.content


def test_concurrent_clients_get_their_own_answers(served: Served) -> None:
    with served.client() as client, ThreadPoolExecutor(40) as pool:

        def one(number: int) -> tuple[int, str]:
            model = ("zero-shot", "lora-a", "lora-b", "lora-a*0.5")[number % 4]
            if number % 2:
                return number, ask(client, f"mine is {number}", model).choices[0].message.content
            return number, streamed(client, f"mine is {number}", model)[0][0]

        for number, text in pool.map(one, range(80)):
            adapter = ("base*1", "lora-a*1", "lora-b*1", "lora-a*0.5")[number % 4]
            assert text == f"print('mine is {number}') # {adapter}"


@pytest.mark.parametrize("text", ["", "   "])
def test_empty_question_is_refused(client: OpenAI, text: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, text)
    assert caught.value.param == "messages[0].content"
