"""Tests of the errors of train/preflight.py: common problems with data are reported before anything is loaded.

The quoted errors and complaints are those of users of other tools (LLaMA-Factory, AutoTrain, TRL, Unsloth, PEFT).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer

from errors import BaseModelError, DataError, PromptOrTuneError, TrainingError
from tests import messages
from tests.serve.tiny import make_base, tokenizer
from train.config import TrainConfig
from train.preflight import Preflight, run_preflight
from train.settings import make_config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("refusals") / "base")


def rows(path: Path, *values: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in values))
    return path


def many(count: int) -> list[dict[str, Any]]:
    return [{"intent": f"print {number}", "code": f"print({number})"} for number in range(count)]


def check(base: Path | str, data: Path, **changes: Any) -> Preflight:
    given = {"adapter_name": "tiny", "dataset_name": str(data), "model_name_or_path": str(base), "device": "cpu"}
    return run_preflight(make_config({**given, **changes}), lambda _: None)


def check_error(error: type[PromptOrTuneError], message: str, base: Path | str, data: Path, **changes: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        check(base, data, **changes)
    assert "\n" not in str(caught.value)


def test_unknown_columns_are_listed_with_the_options_to_map_them(base: Path, tmp_path: Path) -> None:
    """ "Cannot find valid samples": the message has the columns and the flags to map them."""
    path = rows(tmp_path / "a.jsonl", *[{"ask": row["intent"], "reply": row["code"]} for row in many(20)])
    check_error(
        DataError, r"a\.jsonl has the columns 'ask', 'reply', .* --intent-column NAME --code-column NAME\.$", base, path
    )
    page = check(base, path, intent_column="ask", code_column="reply")
    assert page.mapping == "ask -> reply"


def test_row_without_a_column_is_listed_and_skipped(base: Path, tmp_path: Path) -> None:
    """ "KeyError: 'text'": the message has line, column and the row's columns; the other rows are used."""
    path = rows(tmp_path / "a.jsonl", *many(20), {"intent": "x", "text": "y"})
    page = check(base, path)
    assert page.row_errors.examples == ("a.jsonl, line 21: column 'code' is missing; the row has 'intent', 'text'.",)
    assert page.rows["train"] == 18


def test_too_long_rows_are_excluded_and_not_truncated(base: Path, tmp_path: Path) -> None:
    """ "A bad result, and zero idea why": rows that are too long are counted, listed and left out, never truncated."""
    path = rows(tmp_path / "a.jsonl", *many(20), {"intent": "x", "code": "y" * 300})
    page = check(base, path, max_length=100)
    assert page.too_long.train.examples + page.too_long.validation.examples == ("a.jsonl, line 21: 334 tokens",)
    for example in page.examples:
        assert example.spans[-1][0].endswith("</s>")


def test_row_without_code_tokens_is_an_error(tmp_path: Path) -> None:
    """ "All labels are -100": a tokenizer that drops a row's code."""
    base_folder = make_base("llama", tmp_path / "base")
    inner = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    inner.normalizer = normalizers.Replace("\u200b", "")
    changed = tokenizer()
    changed._tokenizer = inner
    changed.save_pretrained(base_folder)
    path = rows(tmp_path / "a.jsonl", *many(20), {"intent": "x", "code": "\u200b"})
    validation = rows(tmp_path / "b.jsonl", *many(3))
    check_error(
        TrainingError,
        r"a\.jsonl, line 21: no token of its code would be learned",
        base_folder,
        path,
        validation_file=validation,
    )


def test_end_token_has_a_label(base: Path, tmp_path: Path) -> None:
    """Every sample's last label is the end token, also if it is the padding token."""
    path = rows(tmp_path / "a.jsonl", *many(20))
    assert all(example.spans[-1][0].endswith(")</s>") for example in check(base, path).examples)
    base_folder = make_base("llama", tmp_path / "base")
    tokens = AutoTokenizer.from_pretrained(base_folder)
    tokens.pad_token = tokens.eos_token
    tokens.save_pretrained(base_folder)
    assert all(example.spans[-1][0].endswith(")</s>") for example in check(base_folder, path).examples)
    tokens.eos_token = None
    tokens.save_pretrained(base_folder)
    check_error(TrainingError, "has no end token, so a model could never learn to stop", base_folder, path)


def test_chat_style_requires_a_chat_template(base: Path, tmp_path: Path) -> None:
    """Without a chat template, the adapter could not be served as it was trained."""
    path = rows(tmp_path / "a.jsonl", *many(20))
    check_error(
        TrainingError,
        "Prompt style 'chat' needs a chat template and base has none: choose --prompt-style plain",
        base,
        path,
        prompt_style="chat",
    )


def test_prefix_tuning_with_gradient_checkpointing_is_an_error(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(20))
    config = TrainConfig("tiny", str(path), "prefix-tuning", model_name_or_path=str(base), gradient_checkpointing=True)
    with pytest.raises(TrainingError, match=messages.PREFIX_TUNING_WITH_CHECKPOINTING):
        run_preflight(config, lambda _: None)


def test_fewer_rows_than_a_batch_are_an_error(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(8))
    message = r"7 training samples are fewer than one batch of 8: .* smaller --per-device-train-batch-size"
    check_error(TrainingError, message, base, path)
    assert check(base, path, per_device_train_batch_size=7).steps_per_epoch == 1
    long = rows(tmp_path / "b.jsonl", *many(8), *[{"intent": f"i{n}", "code": "x" * 300} for n in range(9)])
    validation = rows(tmp_path / "c.jsonl", *many(3))
    check_error(
        TrainingError,
        r"8 training samples \(9 more are too long\) are fewer than one batch of 9",
        base,
        long,
        max_length=100,
        validation_file=validation,
        per_device_train_batch_size=9,
    )


def test_too_long_rows_only_are_an_error(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(20))
    message = "None of the 18 training rows fits 20 tokens, the shortest has .*: raise --max-length to "
    check_error(TrainingError, message, base, path, max_length=20)
    validation = rows(tmp_path / "b.jsonl", {"intent": "x", "code": "y" * 600})
    message = "None of the 1 validation rows fits 512 tokens, the shortest has 634: that is as much as the base reads"
    check_error(TrainingError, message, base, path, max_length=4000, validation_file=validation)


def test_missing_validation_rows_are_an_error(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *[row | {"intent": "the same"} for row in many(20)])
    check_error(TrainingError, r"a\.jsonl leaves no row to validate on: give them with --validation-file", base, path)


def test_base_that_cannot_be_found_or_read_is_an_error(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(20))
    check_error(BaseModelError, "holds no model: it has no config.json", tmp_path, path)
    base_folder = make_base("llama", tmp_path / "base")
    (base_folder / "tokenizer.json").write_text("{")
    check_error(BaseModelError, "The tokenizer of base 'base' cannot be loaded: ", base_folder, path)
