"""What the preflight marks is what is learned: exactly the answer and its end token, on every architecture."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tasks.problem import Example
from tasks.prompt import STYLES, format_completion, render_prompt
from tests.serve.tiny import make_base, tokenizer
from train.preflight import render_preflight, run_preflight
from train.settings import make_config
from train.tokenize import IGNORE_INDEX, ExampleTokenizer, label_spans

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
_PIECES = [
    "x",
    " ",
    "\n",
    "    ",
    "\t",
    "def f(a):",
    "é",
    "漢字",
    "🙂",
    "#",
    '"',
    "```",
    "</s>",
    "### Response:",
    "«",
    "<s>",
]


def texts(seed: int, count: int) -> list[str]:
    """Texts of all that could confuse a mask: white space, many-byte characters, and what looks like a marker."""
    draw = random.Random(seed)
    return ["a" + "".join(draw.choices(_PIECES, k=draw.randint(1, 12))) + "z" for _ in range(count)]


def chatting() -> PreTrainedTokenizerFast:
    made = tokenizer()
    made.chat_template = CHAT
    return made


@pytest.mark.parametrize("style", ["plain", "plain-short", "chat", "chat-short-open", "chat-python-bare"])
@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_the_marked_part_is_the_answer_and_the_end_token(style: str, is_encoder_decoder: bool) -> None:
    tokens = chatting()
    encoder = ExampleTokenizer(tokens, STYLES[style], is_encoder_decoder)

    def chat(messages: Any) -> str:
        return str(tokens.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    for intent, code in zip(texts(1, 25), texts(2, 25), strict=True):
        sample = encoder.tokenize(Example("x", intent, code))
        pieces = label_spans(encoder, tokens, sample)
        assert [learned for _, learned in pieces] == [False, True]
        assert pieces[1][0] == format_completion(code, STYLES[style]) + tokens.eos_token
        assert pieces[0][0] == render_prompt(intent, (), STYLES[style], chat)
        # Token by token: what is marked is what the labels of the Trainer's row have.
        labels = [label for label in encoder.to_features(sample)["labels"] if label != IGNORE_INDEX]
        assert tokens.decode(labels) == pieces[1][0]
        assert labels[-1] == tokens.eos_token_id


@pytest.mark.parametrize("kind", ["llama", "qwen2", "codegen", "t5"])
def test_the_preflight_shows_three_samples_of_every_architecture(tmp_path: Path, kind: str) -> None:
    base = make_base(kind, tmp_path / kind)
    codes = [f"print({number})\nprint('é')" for number in range(21)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"intent": f"print {n}", "code": code}) + "\n" for n, code in enumerate(codes)))
    config = make_config(
        adapter_name="tiny", dataset_name=str(path), model_name_or_path=str(base), validation_split=0.04
    )
    page = run_preflight(config, lambda _: None)
    assert len(page.examples) == 3
    for example in page.examples:
        number = int(example.location.rsplit(" ", 1)[1]) - 1
        assert example.spans == (
            (render_prompt(f"print {number}", (), STYLES["plain"]), False),
            (codes[number] + "</s>", True),
        )
        assert example.num_label_tokens == len(codes[number].encode()) + 1
    shown = page.examples[0].spans[1][0]
    assert f"   | «{shown.splitlines()[0]}\n   | {shown.splitlines()[1]}»\n" in render_preflight(page)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama's and T5's own: a space is a visible mark, put before a text's first word and dropped when decoding."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0)]
    vocabulary += [(chr(letter), -3.0) for letter in range(33, 127)] + [("▁print", -1.0), ("\n", -3.0)]
    inner = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    inner.normalizer = normalizers.Replace("\r", "\n")
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_a_space_that_a_tokenizer_adds_is_shown_where_it_is_learned() -> None:
    tokens = sentencepiece_like()
    encoder = ExampleTokenizer(tokens, STYLES["plain"], is_encoder_decoder=False)
    sample = encoder.tokenize(Example("x", "print 1", "print(1)"))
    (read, _), (learned, marked_as_learned) = label_spans(encoder, tokens, sample)
    assert marked_as_learned
    # The response is encoded by itself, so this tokenizer's first token of it is "▁print": the model learns the space.
    assert tokens.convert_ids_to_tokens(sample.response_ids)[0] == "▁print"
    assert learned == " print(1)</s>"
    assert read == render_prompt("print 1", (), STYLES["plain"])


def test_long_examples_show_their_beginning_and_their_end(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    path = tmp_path / "a.jsonl"
    code = "\n".join(f"x{number}" for number in range(100))
    path.write_text("".join(json.dumps({"intent": f"i{n}", "code": f"{code}+{n}"}) + "\n" for n in range(20)))
    said = render_preflight(
        run_preflight(
            make_config(adapter_name="tiny", dataset_name=str(path), model_name_or_path=str(base)), lambda _: None
        )
    )
    assert "   | «x0\n" in said
    assert "   | ... (73 more lines) ...\n" in said
    assert "   | x99+19</s>»" in said
