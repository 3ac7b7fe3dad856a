"""What a line has said as text: as it grows, where it stops, and token by token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from threading import Event
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from serve.backends.local.batch import run_to_end
from serve.backends.local.detokenizer import Detokenizer, IncrementalDetokenizer
from serve.generated_text import dedupe_candidates, find_stop, stable_prefix
from serve.types import Candidate, PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import INSTRUCTION, STYLES
from tests.serve.scripted_runner import END, Bench, saying, vocabulary
from tests.serve.tiny import tokenizer

BYTE = 9
PLAIN, FENCED = STYLES["plain"], STYLES["chat-short-open"]


def _pieces() -> Detokenizer:
    """Words with their blanks and single bytes, as the tokenizers of Llama and T5 have them."""
    words = ["<unk>", "</s>", "▁the", "▁", "list", "▁list", "s", "é", "€", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner = Tokenizer(
        models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=[], byte_fallback=True)
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model: Any = type("Model", (), {"generation_config": None})
    return Detokenizer(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>"), model)


def test_incremental_text_equals_the_text_of_all_tokens() -> None:
    words, chance = vocabulary(), random.Random(3)
    spoken = [tokenizer()("def f(é):\n    return '€ 𝒳'" * 3)["input_ids"]]
    spoken += [[chance.randrange(len(tokenizer())) for _ in range(chance.randrange(80))] for _ in range(100)]
    for tokens in spoken:
        telling = IncrementalDetokenizer(words)
        for count, token in enumerate(tokens, 1):
            telling.add(token)
            assert telling.text == words.decode(tokens[:count])


def test_incremental_text_with_metaspace_and_byte_fallback() -> None:
    words, chance = _pieces(), random.Random(3)
    spelled = [[BYTE + byte for byte in character.encode()] for character in "aé€𝒳"]
    units = [[1], [2], [3], [4], [5], [6], [7], [8], *spelled, *spelled]
    for _ in range(100):
        telling, tokens = IncrementalDetokenizer(words), list[int]()
        for unit in chance.choices(units, k=40):
            for token in unit:
                before = telling.text
                telling.add(token)
                tokens.append(token)
                assert telling.text.startswith(before)
            assert telling.text == words.decode(tokens)


def test_cost_of_a_token_does_not_depend_on_length() -> None:
    words = vocabulary()
    decoded: list[int] = []
    unfinished = words.decode_partial

    def counted(tokens: Sequence[int]) -> str:
        decoded.append(len(tokens))
        return unfinished(tokens)

    words.decode_partial = counted  # type: ignore[method-assign]
    telling = IncrementalDetokenizer(words)
    for token in words._tokenizer("x = [é]\n" * 200)["input_ids"]:
        telling.add(token)
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
    finished, shown = _run("one\n\ntwo END three", SamplingParams(stop=("\n\nthree", "END")))
    (said,) = finished.candidates
    assert (said.text, said.code, said.finish) == ("one\n\ntwo ", "one\n\ntwo ", "stop")
    assert said.tokens == len("one\n\ntwo END"), "what was generated counts"
    assert all(said.text.startswith(text) for text in shown)
    assert "one\n\ntwo" in shown, "what was held back comes when the string has not completed"
    assert "one\n" not in shown


def test_first_stop_string_wins_and_may_be_the_whole_text() -> None:
    assert _run("abcd", SamplingParams(stop=("bcd", "cd")))[0].candidates[0].text == "a"
    assert _run("abcd", SamplingParams(stop=("bcde", "c")))[0].candidates[0].text == "ab"
    assert _run("abcd", SamplingParams(stop=("a",)))[0].candidates[0].text == ""
    finished, shown = _run("ab", SamplingParams(stop=("bc",)))
    assert finished.candidates[0].text == "ab", "what was held back belongs to an answer that ends"
    assert shown == ["a", "a"]


def test_finish_reason() -> None:
    assert _run("abc", SamplingParams())[0].candidates[0].finish == "stop"
    limited = _run("abc", SamplingParams(max_new_tokens=3))[0].candidates[0]
    assert (limited.text, limited.tokens, limited.finish) == ("abc", 3, "length")
    assert _run("abc", SamplingParams(max_new_tokens=4))[0].candidates[0].finish == "stop"
    stopped = _run("x = 1\n```\n", SamplingParams(), Row("p", FENCED), end=False)[0].candidates[0]
    assert (stopped.text, stopped.code, stopped.finish) == ("x = 1\n```", "x = 1", "stop")


def test_raw_text_does_not_end_at_a_fence_or_turn() -> None:
    text = f"x\n```\n{INSTRUCTION}\nmore"
    (said,) = _run(text, SamplingParams())[0].candidates
    assert said.text == said.code == text


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
    finished, shown = _run(answer, SamplingParams(), Row("p", style))
    text = finished.candidates[0].text
    assert shown
    assert [part for part in shown if not text.startswith(part)] == []
    assert len(shown[-1]) > len(text) - 20, "hardly anything is held back for long"


def test_logprob_tokens_join_to_the_answer() -> None:
    decoding = SamplingParams(top_logprobs=2)
    (said,) = _run("é = 1", decoding)[0].candidates
    assert [token.token for token in said.token_logprobs] == ["", "é", " ", "=", " ", "1"], "a character is whole"
    assert sum(token.logprob for token in said.token_logprobs) > said.logprob, "the end token has one too"
    for token in said.token_logprobs:
        assert token.top[0] == (token.token, token.logprob), "what was said is the likeliest in this script"
        assert len(token.top) == 2
    (cut,) = _run("one END", SamplingParams(top_logprobs=0, stop=("e E",)))[0].candidates
    assert "".join(token.token for token in cut.token_logprobs) == cut.text == "on"
    assert all(token.top == () for token in cut.token_logprobs)
    assert _run("one", SamplingParams())[0].candidates[0].token_logprobs == ()


def test_text_of_a_single_token() -> None:
    words = _pieces()
    assert [words.token_text(token) for token in (2, 4, 5, 1, BYTE + 0xC3)] == [
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
    assert ends == {3, 20}, "else nothing ends early"
    for copy, sample in enumerate(finished.samples):
        assert sample.finish == ("length" if sample.tokens == 20 else "stop")
        if sample.finish == "stop":
            assert last[copy] == sample.text
    assert sum(candidate.count for candidate in finished.candidates) == 8


def test_equal_candidates_are_merged() -> None:
    said = [Candidate(text, text, -1.0, 3) for text in ("x", " x", "y", "x")]
    assert [(each.text, each.count) for each in dedupe_candidates(said)] == [("x", 3), ("y", 1)]
    assert [(each.text, each.count) for each in dedupe_candidates(said, raw=True)] == [("x", 2), (" x", 1), ("y", 1)]


def test_find_stop_and_stable_prefix() -> None:
    assert find_stop("abcd", ("d", "bc")) == 1
    assert find_stop("abcd", ("bc",), begin=3) is None
    assert find_stop("abcd", ("bcd",), begin=3) == 1
    assert find_stop("abcd", ()) is None
    assert stable_prefix("a\n\n#", ("\n\n\n", "#x"), raw=True) == "a\n\n"
    assert stable_prefix("aaa", ("aab",), raw=True) == "a"


def test_end_token_has_no_text_even_if_not_special() -> None:
    words = vocabulary()
    dot = tokenizer()(".")["input_ids"][0]
    words.eos_token_ids = frozenset({END, dot})
    assert words.decode_answer([*tokenizer()("a.")["input_ids"]]) == "a"
    assert words.decode_answer([]) == ""
