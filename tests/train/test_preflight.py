"""Tests of train/preflight.py: the counts and the text of the report, with real files and a tiny base."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.problem import Example
from tests.serve.tiny import make_base
from train.config import TrainConfig
from train.data import (
    DataSplit,
    find_conflicts,
    find_duplicates,
    find_leaks,
    find_unparsable,
    length_quantile,
    length_stats,
    load_training_data,
)
from train.preflight import Preflight, load_tokenizer_info, render_preflight, run_preflight
from train.settings import make_config
from train.techniques import get_technique
from train.tokenize import tokenize_data

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("preflight") / "base")


def rows(path: Path, *pairs: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"intent": intent, "code": code}) + "\n" for intent, code in pairs))
    return path


def many(count: int, start: int = 0) -> list[tuple[str, str]]:
    return [(f"print {number}", f"print({number})") for number in range(start, start + count)]


def config(base: Path, data: Path | str, **changes: Any) -> TrainConfig:
    given = {"adapter_name": "tiny", "dataset_name": str(data), "model_name_or_path": str(base), "device": "cpu"}
    return make_config({**given, "per_device_train_batch_size": 4, **changes})


def check(base: Path, data: Path | str, **changes: Any) -> Preflight:
    return run_preflight(config(base, data, **changes), lambda _: None)


def test_row_errors_are_counted_and_the_first_ten_are_listed(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(20))
    with path.open("a") as file:
        file.write('{"intent": "x", "code": " "}\n{"intent": 1, "code": "y"}\nnot json\n' + '{"code": "z"}\n' * 12)
    page = check(base, path)
    assert page.rows == {"read": 35, "left out": 15, "train": 18, "validation": 2}
    assert (page.row_errors.count, page.empty) == (15, 1)
    assert page.row_errors.examples[:2] == (
        "a.jsonl, line 21: column 'code' is empty.",
        "a.jsonl, line 22: column 'intent' must be text, it is a number.",
    )
    assert len(page.row_errors.examples) == 10
    text = render_preflight(page)
    assert "35 read, 15 left out (1 of them empty); 18 train, 2 validate" in text
    assert "- a.jsonl, line 21: column 'code' is empty.\n" in text
    assert "- and 5 more\n" in text


def test_report_lists_columns_and_changes(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Instruction,input,output,note\n" + "".join(f'do,{n},"```\nf({n})\n```",\n' for n in range(9)))
    page = check(base, path)
    assert (page.mapping, page.columns) == ("Instruction + input -> output", ("Instruction", "input", "output", "note"))
    assert page.changes == {"a code fence taken off": 9}
    assert "columns     Instruction + input -> output, of Instruction, input, output, note\n" in render_preflight(page)
    assert "9 rows had a code fence taken off" in render_preflight(page)
    assert page.examples[0].spans[1] == ("f(0)</s>", True)


def test_too_long_rows_are_counted_and_excluded(base: Path, tmp_path: Path) -> None:
    """The tiny tokenizer has one token for each byte: 32 for the template, then intent, code and end token."""
    validation = rows(tmp_path / "validation.jsonl", *many(3, start=50), ("a", "x" * 99))
    path = rows(tmp_path / "a.jsonl", *many(40), ("b", "y" * 200), *many(8, start=60), ("c", "z" * 300))
    changes = {"validation_file": validation, "max_length": 100}
    page = check(base, path, **changes)
    assert page.too_long.limit == 100
    assert page.too_long.train.examples == ("a.jsonl, line 41: 234 tokens", "a.jsonl, line 50: 334 tokens")
    assert page.too_long.validation.examples == ("validation.jsonl, line 4: 133 tokens",)
    assert page.too_long.needed == {"95 %": 133, "99 %": 334, "100 %": 334}
    assert page.response_tokens.max == len("print(39)") + 1
    assert page.steps_per_epoch == 12
    text = render_preflight(page)
    assert "2 training rows and 1 validation row of more than 100 tokens, left out whole: nothing is cut\n" in text
    assert (
        "--max-length would keep 95 % of all rows with 133, 99 % of all rows with 334, 100 % of all rows with" in text
    )
    longer = check(base, path, **changes | {"max_length": 334})
    assert longer.too_long.train.count == longer.too_long.validation.count == 0
    assert "no training rows and no validation rows of more than 334 tokens\n" in render_preflight(longer)


def test_rows_are_limited_by_the_context_of_the_base_without_virtual_tokens(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(40), ("b", "y" * 460))
    settings = {"max_length": 5000, "validation_file": rows(tmp_path / "b.jsonl", *many(3, start=50))}
    assert check(base, path, **settings).too_long.limit == 512
    page = check(base, path, **settings, technique="prompt-tuning", num_virtual_tokens=20)
    assert page.too_long.limit == 492
    assert page.too_long.train.examples == ("a.jsonl, line 41: 494 tokens",)


def test_preflight_and_run_have_the_same_rows(base: Path, tmp_path: Path) -> None:
    settings = config(base, rows(tmp_path / "a.jsonl", *many(30), ("b", "y" * 200)), max_length=100)
    page = run_preflight(settings, lambda _: None)
    from models.source import resolve

    tokenizer_info = load_tokenizer_info(resolve(str(base), lambda _: None), False, get_technique("lora"))
    prepared = tokenize_data(settings, load_training_data(settings), tokenizer_info)
    assert sum(len(sample.response_ids) for sample in prepared.train.samples) == page.response_tokens.total
    assert len(prepared.train.lengths) - len(prepared.train.selected_indices) == page.too_long.train.count
    tokens = page.response_tokens.total
    assert prepared.train.summary("training").startswith(
        f"{len(prepared.train.selected_indices)} training samples, {tokens} lea"
    )


def test_step_counts_agree_with_the_trainer(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(23))
    validation = rows(tmp_path / "b.jsonl", *many(2, start=50))
    page = check(
        base, path, validation_file=validation, gradient_accumulation_steps=2, num_train_epochs=2.5, eval_every=0.5
    )
    # 23 rows in batches of 4 are 6 batches, two of which make a step: 3 steps an epoch.
    assert (page.steps_per_epoch, page.steps, page.steps_between_evaluations) == (3, 8, 2)
    assert "3 an epoch, 8 in all (2.5 epochs, batch 4 x 2); validated every 2" in render_preflight(page)


def test_duplicates_ambiguities_unparsable_code_and_leaks_are_reported(base: Path, tmp_path: Path) -> None:
    path = rows(
        tmp_path / "a.jsonl", *many(10), ("print 3", "print(3)"), ("Print  3", "print( 3 )"), ("run", "ls -l | wc -l x")
    )
    validation = rows(
        tmp_path / "b.jsonl", ("say 4", "print(4)"), (" PRINT 5", "print('5')"), ("print 6", "print(6)"), ("a", "b")
    )
    page = check(base, path, validation_file=validation)
    assert page.duplicates.examples == ("a.jsonl, line 11 repeats a.jsonl, line 4",)
    assert page.conflicts.examples == ("a.jsonl, line 12 has the intent of a.jsonl, line 4",)
    assert page.unparsable.examples == ("a.jsonl, line 13",)
    assert (page.leak.rows, page.leak.intents, page.leak.codes) == (3, 2, 2)
    assert page.leak.examples == (
        "b.jsonl, line 1 has the code of a.jsonl, line 5",
        "b.jsonl, line 2 has the intent of a.jsonl, line 6",
        "b.jsonl, line 3 has the intent and code of a.jsonl, line 7",
    )
    text = render_preflight(page)
    assert "1 row with the intent and the code of an earlier one\n" in text
    assert "1 row whose code does not parse as Python\n" in text
    assert "3 validation rows shared with the training rows: 2 the intent, 2 the code" in text


def test_held_out_share_has_no_leak(base: Path, tmp_path: Path) -> None:
    repeated = [(f"print {number % 30}", f"print({number % 20})") for number in range(200)]
    page = check(base, rows(tmp_path / "a.jsonl", *repeated), validation_split=0.5)
    assert page.leak.intents == 0
    assert page.rows["validation"] > 50


def test_special_tokens_in_the_text_are_an_issue(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(20), ("close the tag", "print('</s>')"))
    page = check(base, path, validation_file=rows(tmp_path / "b.jsonl", *many(3, start=50)))
    assert page.special_tokens.examples == ("a.jsonl, line 21 has </s>",)
    assert (
        "special     1 row with the text of a special token, which the base reads as that token\n"
        in render_preflight(page)
    )
    assert "special  " not in render_preflight(check(base, rows(path, *many(20))))


def test_issues_count_all_rows_and_list_the_first_ten() -> None:
    split = DataSplit()
    examples = [Example(str(n), "same", "if") for n in range(50)]
    duplicates = find_duplicates(examples, split.locate)
    assert (duplicates.count, len(duplicates.examples)) == (49, 10)
    assert find_unparsable(examples, split.locate).count == 50
    assert find_conflicts(examples, split.locate).count == 0
    assert find_leaks(examples, examples[:20], split, split).rows == 20


def test_length_quantiles_and_statistics_are_computed() -> None:
    lengths = list(range(100, 0, -1))
    assert [length_quantile(lengths, share) for share in (0.01, 0.95, 0.99, 1.0)] == [1, 95, 99, 100]
    assert length_quantile([7], 0.95) == 7
    stats = length_stats([1, 2, 30])
    assert (stats.median, stats.p95, stats.total) == (2, 30, 33)


def test_report_as_json_contains_no_private_paths(base: Path, tmp_path: Path) -> None:
    page = check(base, rows(tmp_path / "a.jsonl", *many(20)))
    assert json.loads(json.dumps(page.to_dict()))["examples"][2]["spans"][1] == ["print(19)</s>", True]
    # The base is its folder here; the folder of the data must not appear.
    assert str(tmp_path / "a") not in json.dumps(page.to_dict()["source"])


def test_report_contains_only_settings_of_the_technique(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(20))
    lora, prompt = (render_preflight(check(base, path, technique=name)) for name in ("lora", "prompt-tuning"))
    assert "lora_r 16" in lora
    assert "num_virtual_tokens" not in lora
    assert "lora_r" not in prompt
    assert "num_virtual_tokens 20" in prompt
    assert "learning_rate 0.03" in prompt


def test_report_contains_the_estimate(base: Path, tmp_path: Path) -> None:
    calls = []

    def estimator(settings: TrainConfig, source: Any, prepared: Any) -> dict[str, Any]:
        calls.append((settings.technique, source.folder, len(prepared.train.selected_indices)))
        return {"peak memory": "1.5 GB"}

    page = run_preflight(config(base, rows(tmp_path / "a.jsonl", *many(20))), lambda _: None, estimator)
    assert calls == [("lora", base, 18)]
    assert page.estimate == {"peak memory": "1.5 GB"}
    assert "peak memory: 1.5 GB\n" in render_preflight(page)


def test_control_characters_of_a_file_are_escaped(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *[(f"a\x1b[2J{n}", f"b\x07{n}\t") for n in range(20)])
    with path.open("a") as file:
        file.write('{"intent": "x", "c\\u001bode": "y"}\n')
    text = render_preflight(check(base, path))
    assert not [char for char in text if not char.isprintable() and char not in "\n\t"]
    assert "a\\x1b[2J19" in text


def test_preflight_loads_no_weights(base: Path, tmp_path: Path) -> None:
    """In a new process, neither PEFT nor bitsandbytes is imported, and no model is built."""
    path = rows(tmp_path / "a.jsonl", *many(20))
    script = f"""
import sys, transformers
from train.preflight import run_preflight
from train.settings import make_config
from train.techniques import get_technique
def refuse(*_, **__): raise AssertionError("weights were loaded")
transformers.PreTrainedModel.from_pretrained = refuse
config = make_config(adapter_name="tiny", dataset_name={str(path)!r}, model_name_or_path={str(base)!r})
assert run_preflight(config, lambda _: None).steps == 6
assert not {{"peft", "bitsandbytes"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)
