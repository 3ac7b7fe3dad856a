"""Tests of train/tokenize.py: labels cover exactly the code and its end token, after the prompt that serving renders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from errors import TrainingError
from tasks.problem import Example
from tasks.prompt import STYLES, format_completion, render_prompt
from tests.serve.tiny import make_base, tokenizer
from train.model import patch_loss
from train.preflight import render_preflight, run_preflight
from train.settings import make_config
from train.tokenize import IGNORE_INDEX, ExampleTokenizer, label_spans

EXAMPLES = [Example("a", "add `x`", "x + 1"), Example("b", "sort the list `items`", "items.sort()\nprint(items)")]
PLAIN = STYLES["plain"]


def test_only_the_code_and_the_end_token_are_learned() -> None:
    tokens = tokenizer()
    encoder = ExampleTokenizer(tokens, PLAIN, is_encoder_decoder=False)
    row = encoder.to_features(encoder.tokenize(EXAMPLES[1]))
    learned = [label for label in row["labels"] if label != IGNORE_INDEX]
    assert tokens.decode(learned[:-1]) == EXAMPLES[1].code
    assert learned[-1] == tokens.eos_token_id
    skipped = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORE_INDEX]
    assert tokens.decode(skipped) == render_prompt(EXAMPLES[1].intent, (), PLAIN)


def test_an_encoder_decoder_base_reads_the_prompt_and_learns_the_response() -> None:
    encoder = ExampleTokenizer(tokenizer(), PLAIN, is_encoder_decoder=True)
    sample = encoder.tokenize(EXAMPLES[0])
    assert encoder.to_features(sample) == {"input_ids": sample.prompt_ids, "labels": sample.response_ids}


def test_a_batch_is_padded_where_nothing_is_read_or_learned() -> None:
    encoder = ExampleTokenizer(tokenizer(), PLAIN, is_encoder_decoder=False)
    rows = [encoder.to_features(encoder.tokenize(example)) for example in EXAMPLES]
    batch = encoder.collate(rows)
    short, long = (len(row["input_ids"]) for row in rows)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, long)
    assert batch["attention_mask"].sum(1).tolist() == [short, long]
    assert (batch["labels"][0, short:] == IGNORE_INDEX).all()


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    with pytest.raises(TrainingError, match="no end token"):
        ExampleTokenizer(SimpleNamespace(eos_token_id=None), PLAIN, is_encoder_decoder=False)


def test_the_loss_is_the_model_s_own() -> None:
    """The oracle is transformers: its loss over all logits, of which ours computes the learned ones alone."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes))
    encoder = ExampleTokenizer(tokenizer(), PLAIN, is_encoder_decoder=False)
    batch = encoder.collate([encoder.to_features(encoder.tokenize(example)) for example in EXAMPLES])
    theirs = model(**batch).loss
    patch_loss(model)
    ours = model(**batch)["loss"]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    shared = model(**batch, num_items_in_batch=1000)["loss"]
    learned = int((batch["labels"] != IGNORE_INDEX).sum())
    assert shared.item() == pytest.approx(ours.item() * learned / 1000, rel=1e-5)


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
