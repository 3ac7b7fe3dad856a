"""Tests of train/tokenize.py: labels cover exactly the code and its end token, after the prompt of serving."""

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
from tests import messages as expected
from tests.serve.tiny import make_base, tokenizer
from train.model import patch_loss
from train.preflight import render_preflight, run_preflight
from train.settings import make_config
from train.tokenize import IGNORE_INDEX, ExampleTokenizer, label_spans

EXAMPLES = [Example("a", "add `x`", "x + 1"), Example("b", "sort the list `items`", "items.sort()\nprint(items)")]
PLAIN = STYLES["plain"]


def test_labels_are_the_code_and_the_end_token() -> None:
    tokens = tokenizer()
    encoder = ExampleTokenizer(tokens, PLAIN, is_encoder_decoder=False)
    row = encoder.to_features(encoder.tokenize(EXAMPLES[1]))
    labels = [label for label in row["labels"] if label != IGNORE_INDEX]
    assert tokens.decode(labels[:-1]) == EXAMPLES[1].code
    assert labels[-1] == tokens.eos_token_id
    skipped = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORE_INDEX]
    assert tokens.decode(skipped) == render_prompt(EXAMPLES[1].intent, (), PLAIN)


def test_features_of_an_encoder_decoder_base_are_prompt_and_response() -> None:
    encoder = ExampleTokenizer(tokenizer(), PLAIN, is_encoder_decoder=True)
    sample = encoder.tokenize(EXAMPLES[0])
    assert encoder.to_features(sample) == {"input_ids": sample.prompt_ids, "labels": sample.response_ids}


def test_padding_has_no_attention_and_no_labels() -> None:
    encoder = ExampleTokenizer(tokenizer(), PLAIN, is_encoder_decoder=False)
    rows = [encoder.to_features(encoder.tokenize(example)) for example in EXAMPLES]
    batch = encoder.collate(rows)
    short, long = (len(row["input_ids"]) for row in rows)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, long)
    assert batch["attention_mask"].sum(1).tolist() == [short, long]
    assert (batch["labels"][0, short:] == IGNORE_INDEX).all()


def test_tokenizer_without_an_end_token_is_an_error() -> None:
    with pytest.raises(TrainingError, match=expected.NO_END_TOKEN):
        ExampleTokenizer(SimpleNamespace(eos_token_id=None), PLAIN, is_encoder_decoder=False)


def test_loss_agrees_with_transformers() -> None:
    """The reference is the loss of transformers, which computes the logits of all tokens."""
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
    num_labels = int((batch["labels"] != IGNORE_INDEX).sum())
    assert shared.item() == pytest.approx(ours.item() * num_labels / 1000, rel=1e-5)


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
    """Make texts with white space, multi-byte characters, and text that looks like a marker or special token."""
    generator = random.Random(seed)
    return ["a" + "".join(generator.choices(_PIECES, k=generator.randint(1, 12))) + "z" for _ in range(count)]


def chat_tokenizer() -> PreTrainedTokenizerFast:
    made = tokenizer()
    made.chat_template = CHAT
    return made


@pytest.mark.parametrize("style", ["plain", "plain-short", "chat", "chat-short-open", "chat-python-bare"])
@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_label_spans_are_the_answer_and_the_end_token(style: str, is_encoder_decoder: bool) -> None:
    tokens = chat_tokenizer()
    encoder = ExampleTokenizer(tokens, STYLES[style], is_encoder_decoder)

    def chat(messages: Any) -> str:
        return str(tokens.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    for intent, code in zip(texts(1, 25), texts(2, 25), strict=True):
        sample = encoder.tokenize(Example("x", intent, code))
        spans = label_spans(encoder, tokens, sample)
        assert [is_label for _, is_label in spans] == [False, True]
        assert spans[1][0] == format_completion(code, STYLES[style]) + tokens.eos_token
        assert spans[0][0] == render_prompt(intent, (), STYLES[style], chat)
        # The labelled span is the decoded text of the labels in the Trainer's row.
        labels = [label for label in encoder.to_features(sample)["labels"] if label != IGNORE_INDEX]
        assert tokens.decode(labels) == spans[1][0]
        assert labels[-1] == tokens.eos_token_id


@pytest.mark.parametrize("kind", ["llama", "qwen2", "codegen", "t5"])
def test_preflight_shows_three_samples_of_every_architecture(tmp_path: Path, kind: str) -> None:
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
    first, second = page.examples[0].spans[1][0].splitlines()
    assert f"   | «{first}\n   | {second}»\n" in render_preflight(page)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Make a tokenizer like Llama's and T5's: it adds a space before a text's first word and drops it in decoding."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0)]
    vocabulary += [(chr(letter), -3.0) for letter in range(33, 127)] + [("▁print", -1.0), ("\n", -3.0)]
    inner = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    inner.normalizer = normalizers.Replace("\r", "\n")
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_space_added_by_the_tokenizer_is_part_of_the_label_span() -> None:
    tokens = sentencepiece_like()
    encoder = ExampleTokenizer(tokens, STYLES["plain"], is_encoder_decoder=False)
    sample = encoder.tokenize(Example("x", "print 1", "print(1)"))
    (prompt, _), (response, is_label) = label_spans(encoder, tokens, sample)
    assert is_label
    # The response is tokenized separately, so its first token is "▁print", with the space.
    assert tokens.convert_ids_to_tokens(sample.response_ids)[0] == "▁print"
    assert response == " print(1)</s>"
    assert prompt == render_prompt("print 1", (), STYLES["plain"])


def test_preflight_shows_beginning_and_end_of_long_examples(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    path = tmp_path / "a.jsonl"
    code = "\n".join(f"x{number}" for number in range(100))
    path.write_text("".join(json.dumps({"intent": f"i{n}", "code": f"{code}+{n}"}) + "\n" for n in range(20)))
    text = render_preflight(
        run_preflight(
            make_config(adapter_name="tiny", dataset_name=str(path), model_name_or_path=str(base)), lambda _: None
        )
    )
    assert "   | «x0\n" in text
    assert "   | ... (73 more lines) ...\n" in text
    assert "   | x99+19</s>»" in text
