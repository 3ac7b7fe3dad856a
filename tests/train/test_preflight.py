"""What the preflight counts and says, of real files and a tiny base."""

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
from train.tokenize import tokenize_data

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


def test_faults_are_counted_with_their_lines_and_the_first_ten_are_shown(base: Path, tmp_path: Path) -> None:
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
    said = render_preflight(page)
    assert "35 read, 15 left out (1 of them empty); 18 train, 2 validate" in said
    assert "- a.jsonl, line 21: column 'code' is empty.\n" in said
    assert "- and 5 more\n" in said


def test_columns_and_changes_are_said(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Instruction,input,output,note\n" + "".join(f'do,{n},"```\nf({n})\n```",\n' for n in range(9)))
    page = check(base, path)
    assert (page.mapping, page.columns) == ("Instruction + input -> output", ("Instruction", "input", "output", "note"))
    assert page.changes == {"a code fence taken off": 9}
    assert "columns     Instruction + input -> output, of Instruction, input, output, note\n" in render_preflight(page)
    assert "9 rows had a code fence taken off" in render_preflight(page)
    assert page.examples[0].spans[1] == ("f(0)</s>", True)


def test_what_is_too_long_is_counted_and_left_out_whole(base: Path, tmp_path: Path) -> None:
    """The tiny tokenizer makes a token of each byte: 32 for the template, then intent, code and the end."""
    held = rows(tmp_path / "held.jsonl", *many(3, start=50), ("a", "x" * 99))
    path = rows(tmp_path / "a.jsonl", *many(40), ("b", "y" * 200), *many(8, start=60), ("c", "z" * 300))
    changes = {"validation_file": held, "max_length": 100}
    page = check(base, path, **changes)
    assert page.too_long.limit == 100
    assert page.too_long.train.examples == ("a.jsonl, line 41: 234 tokens", "a.jsonl, line 50: 334 tokens")
    assert page.too_long.validation.examples == ("held.jsonl, line 4: 133 tokens",)
    assert page.too_long.needed == {"95 %": 133, "99 %": 334, "100 %": 334}
    assert page.response_tokens.max == len("print(39)") + 1
    assert page.steps_per_epoch == 12
    said = render_preflight(page)
    assert "2 training rows and 1 validation row of more than 100 tokens, left out whole: nothing is cut\n" in said
    assert (
        "--max-length would keep 95 % of all rows with 133, 99 % of all rows with 334, 100 % of all rows with" in said
    )
    kept = check(base, path, **changes | {"max_length": 334})
    assert kept.too_long.train.count == kept.too_long.validation.count == 0
    assert "no training rows and no validation rows of more than 334 tokens\n" in render_preflight(kept)


def test_the_base_s_context_ends_a_row_too_and_virtual_tokens_take_places_of_it(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(40), ("b", "y" * 460))
    settings = {"max_length": 5000, "validation_file": rows(tmp_path / "b.jsonl", *many(3, start=50))}
    assert check(base, path, **settings).too_long.limit == 512
    page = check(base, path, **settings, technique="prompt-tuning", num_virtual_tokens=20)
    assert page.too_long.limit == 492
    assert page.too_long.train.examples == ("a.jsonl, line 41: 494 tokens",)


def test_the_run_gets_the_very_rows_that_the_preflight_counts(base: Path, tmp_path: Path) -> None:
    settings = config(base, rows(tmp_path / "a.jsonl", *many(30), ("b", "y" * 200)), max_length=100)
    page = run_preflight(settings, lambda _: None)
    from models.source import resolve

    reader = load_tokenizer_info(resolve(str(base), lambda _: None), trust_remote_code=False)
    prepared = tokenize_data(settings, load_training_data(settings), reader)
    assert sum(len(sample.response_ids) for sample in prepared.train.samples) == page.response_tokens.total
    assert len(prepared.train.lengths) - len(prepared.train.selected_indices) == page.too_long.train.count
    tokens = page.response_tokens.total
    assert prepared.train.summary("training").startswith(
        f"{len(prepared.train.selected_indices)} training samples, {tokens} lea"
    )


def test_steps_are_those_of_the_trainer(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(23))
    held = rows(tmp_path / "b.jsonl", *many(2, start=50))
    page = check(base, path, validation_file=held, gradient_accumulation_steps=2, num_train_epochs=2.5, eval_every=0.5)
    # 23 rows in batches of 4 are 6 batches, two of which make a step: 3 steps an epoch.
    assert (page.steps_per_epoch, page.steps, page.steps_between_evaluations) == (3, 8, 2)
    assert "3 an epoch, 8 in all (2.5 epochs, batch 4 x 2); validated every 2" in render_preflight(page)


def test_duplicates_ambiguities_unparsable_code_and_leaks(base: Path, tmp_path: Path) -> None:
    path = rows(
        tmp_path / "a.jsonl", *many(10), ("print 3", "print(3)"), ("Print  3", "print( 3 )"), ("run", "ls -l | wc -l x")
    )
    held = rows(
        tmp_path / "b.jsonl", ("say 4", "print(4)"), (" PRINT 5", "print('5')"), ("print 6", "print(6)"), ("a", "b")
    )
    page = check(base, path, validation_file=held)
    assert page.duplicates.examples == ("a.jsonl, line 11 repeats a.jsonl, line 4",)
    assert page.conflicts.examples == ("a.jsonl, line 12 has the intent of a.jsonl, line 4",)
    assert page.unparsable.examples == ("a.jsonl, line 13",)
    assert (page.leak.rows, page.leak.intents, page.leak.codes) == (3, 2, 2)
    assert page.leak.examples == (
        "b.jsonl, line 1 has the code of a.jsonl, line 5",
        "b.jsonl, line 2 has the intent of a.jsonl, line 6",
        "b.jsonl, line 3 has the intent and code of a.jsonl, line 7",
    )
    said = render_preflight(page)
    assert "1 row with the intent and the code of an earlier one\n" in said
    assert "1 row whose code does not parse as Python\n" in said
    assert "3 validation rows shared with the training rows: 2 the intent, 2 the code" in said


def test_a_share_that_is_held_out_does_not_leak(base: Path, tmp_path: Path) -> None:
    repeated = [(f"print {number % 30}", f"print({number % 20})") for number in range(200)]
    page = check(base, rows(tmp_path / "a.jsonl", *repeated), validation_split=0.5)
    assert page.leak.intents == 0
    assert page.rows["validation"] > 50


def test_text_that_the_base_takes_for_a_special_token_is_said(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(20), ("close the tag", "print('</s>')"))
    page = check(base, path, validation_file=rows(tmp_path / "b.jsonl", *many(3, start=50)))
    assert page.special_tokens.examples == ("a.jsonl, line 21 has </s>",)
    assert (
        "special     1 row with the text of a special token, which the base reads as that token\n"
        in render_preflight(page)
    )
    assert "special  " not in render_preflight(check(base, rows(path, *many(20))))


def test_findings_count_all_and_name_the_first_ten() -> None:
    part = DataSplit()
    examples = [Example(str(n), "same", "if") for n in range(50)]
    assert (find_duplicates(examples, part.locate).count, len(find_duplicates(examples, part.locate).examples)) == (
        49,
        10,
    )
    assert find_unparsable(examples, part.locate).count == 50
    assert find_conflicts(examples, part.locate).count == 0
    assert find_leaks(examples, examples[:20], part, part).rows == 20


def test_quantiles_are_the_lengths_that_keep_their_share() -> None:
    lengths = list(range(100, 0, -1))
    assert [length_quantile(lengths, share) for share in (0.01, 0.95, 0.99, 1.0)] == [1, 95, 99, 100]
    assert length_quantile([7], 0.95) == 7
    assert (length_stats([1, 2, 30]).median, length_stats([1, 2, 30]).p95, length_stats([1, 2, 30]).total) == (
        2,
        30,
        33,
    )


def test_the_page_is_ready_for_json_and_keeps_private_folders_to_itself(base: Path, tmp_path: Path) -> None:
    page = check(base, rows(tmp_path / "a.jsonl", *many(20)))
    assert json.loads(json.dumps(page.to_dict()))["examples"][2]["spans"][1] == ["print(19)</s>", True]
    # The folder of the base is what --base names; the data's is nobody else's business.
    assert str(tmp_path / "a") not in json.dumps(page.to_dict()["source"])


def test_only_settings_of_the_technique_are_said(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *many(20))
    lora, prompt = (render_preflight(check(base, path, technique=name)) for name in ("lora", "prompt-tuning"))
    assert "lora_r 16" in lora
    assert "num_virtual_tokens" not in lora
    assert "lora_r" not in prompt
    assert "num_virtual_tokens 20" in prompt
    assert "learning_rate 0.03" in prompt


def test_an_estimate_is_shown_where_one_is_made(base: Path, tmp_path: Path) -> None:
    seen = []

    def estimator(settings: TrainConfig, source: Any, prepared: Any) -> dict[str, Any]:
        seen.append((settings.technique, source.folder, len(prepared.train.selected_indices)))
        return {"peak memory": "1.5 GB"}

    page = run_preflight(config(base, rows(tmp_path / "a.jsonl", *many(20))), lambda _: None, estimator)
    assert seen == [("lora", base, 18)]
    assert page.estimate == {"peak memory": "1.5 GB"}
    assert "peak memory: 1.5 GB\n" in render_preflight(page)


def test_control_characters_of_a_file_do_not_reach_the_terminal(base: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *[(f"a\x1b[2J{n}", f"b\x07{n}\t") for n in range(20)])
    with path.open("a") as file:
        file.write('{"intent": "x", "c\\u001bode": "y"}\n')
    said = render_preflight(check(base, path))
    assert not [each for each in said if not each.isprintable() and each not in "\n\t"]
    assert "a\\x1b[2J19" in said


def test_no_weights_are_loaded(base: Path, tmp_path: Path) -> None:
    """In a process of its own: neither PEFT nor bitsandbytes is touched, and no model is built."""
    path = rows(tmp_path / "a.jsonl", *many(20))
    script = f"""
import sys, transformers
from train.preflight import run_preflight
from train.settings import make_config
def refuse(*_, **__): raise AssertionError("weights were loaded")
transformers.PreTrainedModel.from_pretrained = refuse
config = make_config(adapter_name="tiny", dataset_name={str(path)!r}, model_name_or_path={str(base)!r})
assert run_preflight(config, lambda _: None).steps == 6
assert not {{"peft", "bitsandbytes"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)
