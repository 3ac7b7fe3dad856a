"""Detokenizer: incremental text, the end of answers, stop strings and log-probabilities."""

from __future__ import annotations

import random
from collections.abc import Sequence
from threading import Event
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from serve.backends.local.batch import run_to_end
from serve.backends.local.sampler import Detokenizer, IncrementalDetokenizer
from serve.types import (
    Candidate,
    PartialOutput,
    Row,
    RowOutput,
    SamplingParams,
    dedupe_candidates,
    find_stop,
    stable_prefix,
)
from tasks.prompt import INSTRUCTION, STYLES
from tests.serve.scripted_runner import END, Bench, saying, vocabulary
from tests.serve.tiny import tokenizer

BYTE = 9
PLAIN, FENCED = STYLES["plain"], STYLES["chat-short-open"]


def _pieces() -> Detokenizer:
    """Return a detokenizer with metaspace words and byte fallback, like the tokenizers of Llama and T5."""
    tokens = ["<unk>", "</s>", "▁the", "▁", "list", "▁list", "s", "é", "€", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[], byte_fallback=True)
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model: Any = type("Model", (), {"generation_config": None})
    return Detokenizer(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>"), model)


def test_incremental_text_equals_the_text_of_all_tokens() -> None:
    detokenizer, random_source = vocabulary(), random.Random(3)
    token_lists = [tokenizer()("def f(é):\n    return '€ 𝒳'" * 3)["input_ids"]]
    token_lists += [
        [random_source.randrange(len(tokenizer())) for _ in range(random_source.randrange(80))] for _ in range(100)
    ]
    for tokens in token_lists:
        incremental = IncrementalDetokenizer(detokenizer)
        for count, token in enumerate(tokens, 1):
            incremental.add(token)
            assert incremental.text == detokenizer.decode(tokens[:count])


def test_incremental_text_with_metaspace_and_byte_fallback() -> None:
    detokenizer, random_source = _pieces(), random.Random(3)
    byte_tokens = [[BYTE + byte for byte in character.encode()] for character in "aé€𝒳"]
    units = [[1], [2], [3], [4], [5], [6], [7], [8], *byte_tokens, *byte_tokens]
    for _ in range(100):
        incremental, tokens = IncrementalDetokenizer(detokenizer), list[int]()
        for unit in random_source.choices(units, k=40):
            for token in unit:
                before = incremental.text
                incremental.add(token)
                tokens.append(token)
                assert incremental.text.startswith(before)
            assert incremental.text == detokenizer.decode(tokens)


def test_cost_of_a_token_does_not_depend_on_length() -> None:
    detokenizer = vocabulary()
    decoded: list[int] = []
    unfinished = detokenizer.decode_partial

    def counted(tokens: Sequence[int]) -> str:
        decoded.append(len(tokens))
        return unfinished(tokens)

    detokenizer.decode_partial = counted  # type: ignore[method-assign]
    incremental = IncrementalDetokenizer(detokenizer)
    for token in detokenizer._tokenizer("x = [é]\n" * 200)["input_ids"]:
        incremental.add(token)
    assert max(decoded) < 20


def _run(
    answer: str, decoding: SamplingParams, row: Row | None = None, end: bool = True
) -> tuple[RowOutput, list[str]]:
    row = row or Row("p", None)
    bench = Bench(saying({row.prompt: answer}, end))
    events = list(run_to_end(bench.batch, [row], decoding, Event()))
    assert isinstance(events[-1], RowOutput)
    return events[-1], [event.text for event in events if isinstance(event, PartialOutput)]


def test_answer_ends_before_a_stop_string_and_partials_never_include_it() -> None:
    finished, partial_texts = _run("one\n\ntwo END three", SamplingParams(stop=("\n\nthree", "END")))
    (candidate,) = finished.candidates
    assert (candidate.text, candidate.code, candidate.finish) == ("one\n\ntwo ", "one\n\ntwo ", "stop")
    assert candidate.tokens == len("one\n\ntwo END"), "all generated tokens count"
    assert all(candidate.text.startswith(text) for text in partial_texts)
    assert "one\n\ntwo" in partial_texts, "text is released when the stop string does not complete"
    assert "one\n" not in partial_texts


def test_answer_ends_at_the_first_stop_string_even_if_it_is_the_whole_text() -> None:
    assert _run("abcd", SamplingParams(stop=("bcd", "cd")))[0].candidates[0].text == "a"
    assert _run("abcd", SamplingParams(stop=("bcde", "c")))[0].candidates[0].text == "ab"
    assert _run("abcd", SamplingParams(stop=("a",)))[0].candidates[0].text == ""
    finished, partial_texts = _run("ab", SamplingParams(stop=("bc",)))
    assert finished.candidates[0].text == "ab", "a partial stop string belongs to a finished answer"
    assert partial_texts == ["a", "a"]


def test_finish_reason_is_stop_or_length() -> None:
    assert _run("abc", SamplingParams())[0].candidates[0].finish == "stop"
    limited = _run("abc", SamplingParams(max_new_tokens=3))[0].candidates[0]
    assert (limited.text, limited.tokens, limited.finish) == ("abc", 3, "length")
    assert _run("abc", SamplingParams(max_new_tokens=4))[0].candidates[0].finish == "stop"
    stopped = _run("x = 1\n```\n", SamplingParams(), Row("p", FENCED), end=False)[0].candidates[0]
    assert (stopped.text, stopped.code, stopped.finish) == ("x = 1\n```", "x = 1", "stop")


def test_raw_text_does_not_end_at_a_fence_or_turn() -> None:
    text = f"x\n```\n{INSTRUCTION}\nmore"
    (candidate,) = _run(text, SamplingParams())[0].candidates
    assert candidate.text == candidate.code == text


@pytest.mark.parametrize(
    ("answer", "style"),
    [
        (f"x = 1\n  {INSTRUCTION}\nanother", PLAIN),
        ("# a comment\n    ## another\n### and more\nx", PLAIN),
        ("x = 1\n```\nThat is all.", FENCED),
        ("if x:\n    <|im\n    <|im_end|>\n", PLAIN),
    ],
)
def test_partial_text_is_always_a_prefix_of_the_answer(answer: str, style: Any) -> None:
    finished, partial_texts = _run(answer, SamplingParams(), Row("p", style))
    text = finished.candidates[0].text
    assert partial_texts
    assert [part for part in partial_texts if not text.startswith(part)] == []
    assert len(partial_texts[-1]) > len(text) - 20, "little text is held back"


def test_logprob_tokens_join_to_the_answer() -> None:
    decoding = SamplingParams(top_logprobs=2)
    (candidate,) = _run("é = 1", decoding)[0].candidates
    assert [token.token for token in candidate.token_logprobs] == ["", "é", " ", "=", " ", "1"], (
        "characters are complete"
    )
    assert sum(token.logprob for token in candidate.token_logprobs) > candidate.logprob, "the end token has one too"
    for token in candidate.token_logprobs:
        assert token.top[0] == (token.token, token.logprob), "the generated token is the most likely one in this script"
        assert len(token.top) == 2
    (cut,) = _run("one END", SamplingParams(top_logprobs=0, stop=("e E",)))[0].candidates
    assert "".join(token.token for token in cut.token_logprobs) == cut.text == "on"
    assert all(token.top == () for token in cut.token_logprobs)
    assert _run("one", SamplingParams())[0].candidates[0].token_logprobs == ()


def test_text_of_a_single_token_is_decoded() -> None:
    detokenizer = _pieces()
    assert [detokenizer.token_text(token) for token in (2, 4, 5, 1, BYTE + 0xC3)] == [
        " the",
        "list",
        " list",
        "</s>",
        "\ufffd",
    ]


def test_early_finished_samples_are_reported_at_once() -> None:
    bench = Bench(saying({"p": "ab"}))
    rows, decoding = [Row("p", None)], SamplingParams("sample", 20, 8, 1.3, 1.0, seed=1)
    events = list(run_to_end(bench.batch, rows, decoding, Event()))
    (finished,) = (event for event in events if isinstance(event, RowOutput))
    last = {event.candidate: event.text for event in events if isinstance(event, PartialOutput)}
    assert len(finished.samples) == 8
    ends = {sample.tokens for sample in finished.samples}
    assert ends == {3, 20}, "some samples must end early"
    for copy, sample in enumerate(finished.samples):
        assert sample.finish == ("length" if sample.tokens == 20 else "stop")
        if sample.finish == "stop":
            assert last[copy] == sample.text
    assert sum(candidate.count for candidate in finished.candidates) == 8


def test_equal_candidates_are_merged() -> None:
    candidate = [Candidate(text, text, -1.0, 3) for text in ("x", " x", "y", "x")]
    assert [(candidate.text, candidate.count) for candidate in dedupe_candidates(candidate)] == [("x", 3), ("y", 1)]
    assert [(candidate.text, candidate.count) for candidate in dedupe_candidates(candidate, raw=True)] == [
        ("x", 2),
        (" x", 1),
        ("y", 1),
    ]


def test_find_stop_and_stable_prefix_on_examples() -> None:
    assert find_stop("abcd", ("d", "bc")) == 1
    assert find_stop("abcd", ("bc",), begin=3) is None
    assert find_stop("abcd", ("bcd",), begin=3) == 1
    assert find_stop("abcd", ()) is None
    assert stable_prefix("a\n\n#", ("\n\n\n", "#x"), raw=True) == "a\n\n"
    assert stable_prefix("aaa", ("aab",), raw=True) == "a"


def test_end_token_has_no_text_even_if_not_special() -> None:
    detokenizer = vocabulary()
    dot = tokenizer()(".")["input_ids"][0]
    detokenizer.eos_token_ids = frozenset({END, dot})
    assert detokenizer.decode_answer([*tokenizer()("a.")["input_ids"]]) == "a"
    assert detokenizer.decode_answer([]) == ""
