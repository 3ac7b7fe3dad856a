"""Examples in training prompts: how many, which ones, and what is left out to fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from errors import TrainingError
from tasks.problem import Example
from tasks.prompt import STYLES, render_prompt
from tests.serve.tiny import make_base, tokenizer
from tests.train.runs import tiny_config
from train.config import PromptExamples, parse_train_examples
from train.run import train
from train.tokenize import ExampleTokenizer, tokenize_split

ROWS = [Example(f"row-{n}", f"make {n} zeros", f"[0] * {n}") for n in range(40)]


class InOrder:
    """Retrieves the first rows."""

    def nearest(self, intent: str, k: int) -> list[Example]:
        return ROWS[:k]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", ()),
        ("nearest:4", ((4,),)),
        ("nearest:0-3", ((0, 1, 2, 3),)),
        ("nearest: 0, 0, 4", ((0, 0, 4),)),
        ("nearest:0 + 2-4", ((0,), (2, 3, 4))),
    ],
)
def test_numbers_are_read(text: str, counts: tuple[tuple[int, ...], ...]) -> None:
    assert parse_train_examples(text) == counts


@pytest.mark.parametrize(
    "text",
    [
        "8",
        "nearest",
        "nearest:",
        "nearest:5-2",
        "nearest:0-99",
        "random:0-8",
        "nearest:0+",
        "nearest:0+9-8",
        "0-8+0",
        "nearest:0+1+2+3+4",
    ],
)
def test_other_texts_are_refused_in_the_settings(text: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="train_examples"):
        tiny_config(tmp_path, train_examples=text)


def test_each_number_is_drawn_about_as_often_and_the_same_again() -> None:
    examples = PromptExamples([(0, 1, 4)], InOrder(), 1)
    rows = [Example(f"other-{n}", f"intent {n}", f"code_{n}") for n in range(600)]
    drawn = [len(examples.select(row)[0]) for row in rows]
    assert set(drawn) == {0, 1, 4}
    assert min(Counter(drawn).values()) > 150
    assert drawn == [len(examples.select(row)[0]) for row in reversed(rows)][::-1]
    assert drawn != [len(PromptExamples([(0, 1, 4)], InOrder(), 2).select(row)[0]) for row in rows]


def test_a_row_and_its_twins_are_no_examples() -> None:
    def select(row: Example) -> list[Example]:
        (selected,) = PromptExamples([(4,)], InOrder(), 1).select(row)
        return selected

    assert ROWS[0] not in select(ROWS[0])
    assert len(select(ROWS[0])) == 4
    twin_by_code = Example("x", "zeros, two of them", "[0] * 2  \n")
    twin_by_intent = Example("y", "Make 1  zeros", "print()")
    assert ROWS[2] not in select(twin_by_code)
    assert ROWS[1] not in select(twin_by_intent)


def test_a_row_has_one_prompt_for_each_part() -> None:
    examples = PromptExamples([(0,), (2, 3, 4)], InOrder(), 1)
    rows = [Example(f"other-{n}", f"intent {n}", f"code_{n}") for n in range(50)]
    selected = [examples.select(row) for row in rows]
    assert all(first == [] for first, _ in selected)
    assert {len(second) for _, second in selected} == {2, 3, 4}
    encoder = ExampleTokenizer(tokenizer(), STYLES["plain"], is_encoder_decoder=False)
    split = tokenize_split(encoder, rows, 10_000, examples.select)
    assert [example.id for example in split.examples] == [row.id for row in rows for _ in range(2)]
    assert list(split.example_counts) == [len(part) for parts in selected for part in parts]
    assert split.samples[0] == encoder.tokenize(rows[0])
    assert split.samples[1] == encoder.tokenize(rows[0], selected[0][1])


def select_three(row: Example) -> Sequence[Sequence[Example]]:
    return [[example for example in ROWS[:4] if example.id != row.id][:3]]


def test_prompt_has_the_examples_in_order_and_fewer_where_it_would_be_too_long() -> None:
    tokens = tokenizer()
    encoder = ExampleTokenizer(tokens, STYLES["plain"], is_encoder_decoder=False)
    whole = tokenize_split(encoder, ROWS[:1], 10_000, select_three)
    assert tokens.decode(whole.samples[0].prompt_ids) == render_prompt(ROWS[0].intent, ROWS[1:4], STYLES["plain"])
    assert (list(whole.example_counts), whole.num_shortened) == ([3], 0)
    short = tokenize_split(encoder, ROWS[:1], whole.lengths[0] - 1, select_three)
    assert (list(short.example_counts), short.num_shortened) == ([2], 1)
    assert "2 to 2 examples in a prompt, 2.0 on average (1 fewer than drawn, to fit)" in short.summary("training")
    none = tokenize_split(encoder, ROWS[:1], 10_000)
    assert none.samples[0] == encoder.tokenize(ROWS[0])
    assert "examples" not in none.summary("training")


@pytest.mark.slow
def test_adapter_is_trained_with_the_nearest_rows(tmp_path: Path) -> None:
    make_base("llama", tmp_path / "base")
    progress: list[str] = []
    config = tiny_config(tmp_path, adapter_name="with-examples", train_examples="nearest:0-1")
    folder = train(config, progress.append)
    assert any("0 to 1 examples in a prompt" in line for line in progress), progress
    assert "train_examples: nearest:0-1" in (folder / "config.yaml").read_text(encoding="utf-8")
