"""HumanEval, HumanEval+, MBPP+ and LeetCodeDataset, from files and from the Hub, and their errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from errors import DataError
from tasks.datasets.evalplus import argument_source, restore_types
from tasks.datasets.registry import (
    BUNDLED,
    TRAINING_DATASETS,
    available_datasets,
    load_examples,
    load_problems,
    require_training,
)
from tasks.problem import AssertTest, ReferenceTest, ScriptTest, format_test, parse_test
from tests import messages
from tests.tasks.sets import (
    HUMANEVAL_ROW,
    HUMANEVALPLUS_HUB_ROW,
    HUMANEVALPLUS_ROW,
    LEETCODE_ROW,
    MBPPPLUS_HUB_ROW,
    MBPPPLUS_ROW,
    PROMPT,
    FakeHub,
    write_rows,
)

FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "humaneval": ("HumanEval.jsonl", HUMANEVAL_ROW),
    "humanevalplus": ("HumanEvalPlus.jsonl", HUMANEVALPLUS_ROW),
    "mbppplus": ("MbppPlus.jsonl", MBPPPLUS_ROW),
    "leetcode": ("LeetCodeDataset-test.jsonl", LEETCODE_ROW),
}


def test_humaneval_asks_for_the_function_and_runs_its_own_check(tmp_path: Path) -> None:
    write_rows(tmp_path / "humaneval" / "HumanEval.jsonl", HUMANEVAL_ROW)
    (problem,) = load_problems("humaneval", "test", tmp_path)
    assert problem.id == "humaneval-7"
    assert problem.intent == f"Complete this function:\n{PROMPT.strip()}"
    assert problem.reference == PROMPT + "    return sum(numbers)\n"
    assert (problem.entry_point, problem.comparison, problem.prompt) == ("total", "exact", PROMPT)
    assert all(isinstance(test, ScriptTest) for test in problem.tests)
    assert [test.code for test in problem.tests if isinstance(test, ScriptTest)] == [
        "assert total([1, 2]) == 3",
        "assert total([]) == 0",
    ]


def test_humanevalplus_has_a_test_of_base_and_one_of_plus_inputs(tmp_path: Path) -> None:
    write_rows(tmp_path / "HumanEvalPlus.jsonl", {**HUMANEVALPLUS_ROW, "atol": 1e-4})
    (problem,) = load_problems("humanevalplus", "test", tmp_path)
    reference = PROMPT + "    return sum(numbers)\n"
    assert problem.comparison == "evalplus"
    assert problem.tests == (
        ReferenceTest("HumanEval/7 base", "total", ("[1, 2]", "[]"), reference, 1e-4),
        ReferenceTest("HumanEval/7 plus", "total", ("[1e999, -1]", "[100000000000000000000]"), reference, 1e-4),
    )
    assert format_test(problem.tests[1]) == (
        "# HumanEval/7 plus: 2 calls of total must return what the reference returns"
    )


def test_mbppplus_asks_as_mbpp_does_and_restores_tuples(tmp_path: Path) -> None:
    write_rows(tmp_path / "MbppPlus.jsonl", MBPPPLUS_ROW)
    (problem,) = load_problems("mbppplus", "test", tmp_path)
    assert problem.id == "mbpp-2"
    assert problem.intent == (
        "Write a function to find the shared ones.\n"
        "Your code should pass this test: assert set(similar_elements((3, 4),(4, 5))) == set((4,))"
    )
    base, plus = problem.tests
    assert isinstance(base, ReferenceTest)
    assert isinstance(plus, ReferenceTest)
    assert base.inputs == ("(3, 4), (4, 5)",)
    assert plus.inputs == ("(1, 2, 3), (3, 2)", "(), ()")
    assert problem.prompt == ""


def test_a_task_without_added_inputs_has_one_test(tmp_path: Path) -> None:
    empties: tuple[Any, ...] = ({}, [])
    for empty in empties:
        write_rows(tmp_path / "MbppPlus.jsonl", {**MBPPPLUS_ROW, "plus_input": empty})
        (problem,) = load_problems("mbppplus", "test", tmp_path)
        assert len(problem.tests) == 1


def test_leetcode_names_the_method_and_compares_lists_of_nodes_by_their_values(tmp_path: Path) -> None:
    write_rows(tmp_path / "LeetCodeDataset-test.jsonl", LEETCODE_ROW)
    (problem,) = load_problems("leetcode", "test", tmp_path)
    assert problem.id == "leetcode-reverse-list"
    assert problem.difficulty == "easy"
    assert problem.intent.startswith("Reverse the list.\n \nExample 1:\nclass Solution:\n")
    first, second = problem.tests
    assert isinstance(first, AssertTest)
    assert first.code == "assert list_values(Solution().reverseList(head=list_node([1, 2, 3]))) == [3, 2, 1]"
    assert "def list_values" in first.setup
    assert second.code == "assert Solution().reverseList(head=list_node([])) == None"  # type: ignore[union-attr]
    infinite = "def check(candidate):\n    assert candidate(x = 1) == -inf\n"
    write_rows(tmp_path / "LeetCodeDataset-test.jsonl", {**LEETCODE_ROW, "test": infinite})
    (problem,) = load_problems("leetcode", "test", tmp_path)
    assert problem.tests == (AssertTest("assert Solution().reverseList(x=1) == -1e309"),)


def test_last_rows_of_leetcodes_train_file_are_the_validation_split(tmp_path: Path) -> None:
    rows = [{**LEETCODE_ROW, "task_id": f"task-{at}"} for at in range(103)]
    write_rows(tmp_path / "LeetCodeDataset-train.jsonl", *rows)
    assert [each.id for each in load_problems("leetcode", "train", tmp_path)] == [
        "leetcode-task-0",
        "leetcode-task-1",
        "leetcode-task-2",
    ]
    assert len(load_problems("leetcode", "validation", tmp_path)) == 100
    assert len(load_examples("leetcode", tmp_path)) == 3
    with pytest.raises(DataError, match=messages.LEETCODE_TEST_FILE_MISSING):
        load_problems("leetcode", "test", tmp_path)
    write_rows(tmp_path / "LeetCodeDataset-train.jsonl", *rows[:100])
    with pytest.raises(DataError, match=messages.LEETCODE_SPLIT_EMPTY):
        load_problems("leetcode", "train", tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_data_dir_can_be_the_file_also_packed(tmp_path: Path, name: str) -> None:
    file, row = FILES[name]
    plain = write_rows(tmp_path / name / file, row)
    packed = tmp_path / f"another-{file}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    problems = load_problems(name, "test", tmp_path)
    assert load_problems(name, "test", plain) == problems
    assert load_problems(name, "test", packed) == problems
    assert available_datasets(plain) == [*BUNDLED, name]
    assert load_problems("starter", "test", plain)
    assert available_datasets(tmp_path) == [*BUNDLED, name]


@pytest.mark.parametrize(
    ("name", "row", "file"),
    [
        (
            "humaneval",
            HUMANEVAL_ROW,
            "openai/openai_humaneval",
        ),
        ("humanevalplus", HUMANEVALPLUS_HUB_ROW, "evalplus/humanevalplus"),
        ("mbppplus", MBPPPLUS_HUB_ROW, "evalplus/mbppplus"),
        ("leetcode", LEETCODE_ROW, "newfacade/LeetCodeDataset"),
    ],
)
def test_rows_of_the_hub_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, row: dict[str, Any], file: str
) -> None:
    hub = FakeHub(monkeypatch, [row])
    (problem,) = load_problems(name, "test")
    ((_, address),) = hub.requests
    assert address.startswith(f"hf://datasets/{file}@")
    assert len(address.split("@")[1].split("/")[0]) == 40  # a pinned revision
    path, own = FILES[name]
    write_rows(tmp_path / path, own)
    (other,) = load_problems(name, "test", tmp_path)
    assert (problem.id, problem.intent, problem.reference) == (other.id, other.intent, other.reference)


def test_inputs_are_read_from_the_programs_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHub(monkeypatch, [HUMANEVALPLUS_HUB_ROW])
    (problem,) = load_problems("humanevalplus", "test")
    (test,) = problem.tests
    assert isinstance(test, ReferenceTest)
    assert (test.name, test.tolerance) == ("HumanEval/7 base and plus", 1e-6)
    assert test.inputs == ("[1, 2]", "[]", "[1e309, -1]")
    FakeHub(monkeypatch, [MBPPPLUS_HUB_ROW])
    (problem,) = load_problems("mbppplus", "test")
    (test,) = problem.tests
    assert isinstance(test, ReferenceTest)
    assert test.inputs == ("(3, 4), (4, 5)", "(), ()")
    assert (test.function, test.tolerance) == ("similar_elements", 0)


@pytest.mark.parametrize("name", ["humaneval", "humanevalplus", "mbppplus"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_sets_with_one_split_say_so(tmp_path: Path, name: str, split: str) -> None:
    assert name not in TRAINING_DATASETS
    for folder in (None, tmp_path):
        with pytest.raises(DataError, match=messages.NO_SUCH_SPLIT_OF_DATA_SET.format(split=split)):
            load_problems(name, split, folder)
    with pytest.raises(DataError, match=messages.NO_SUCH_SPLIT_OF_DATA_SET.format(split="train")):
        require_training(name)


MISSING = "is missing; the columns there are"


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("humaneval", {"prompt": None}, "column 'prompt' must be text, it is null."),
        ("humaneval", {"test": "  "}, "column 'test' is empty."),
        ("humaneval", {"test": "def check(candidate):\n    pass\n"}, "column 'test' cannot be read as tests (There is"),
        ("humaneval", {"entry_point": "a b"}, "column 'entry_point' must be the name of a function."),
        ("humanevalplus", {"base_input": []}, "column 'base_input' is empty."),
        ("humanevalplus", {"plus_input": "x"}, "column 'plus_input' must be a list, it is text."),
        (
            "humanevalplus",
            {"plus_input": [[1], 2]},
            "column 'plus_input' must be a list of lists of arguments, input 2 is a number.",
        ),
        ("humanevalplus", {"atol": "0"}, "column 'atol' must be a number that is not negative."),
        ("humanevalplus", {"atol": float("inf")}, "column 'atol' must be a number that is not negative."),
        ("mbppplus", {"task_id": "two"}, "column 'task_id' must be a number, or a text like Mbpp/2."),
        ("mbppplus", {"prompt": '"""\n"""'}, "column 'prompt' has no text beside its quotes and asserts."),
        ("mbppplus", {"base_input": [[1, 2]]}, "column 'base_input', input 1: these are no arguments of task 2 ('int'"),
        ("leetcode", {"test": "x = 1"}, "column 'test' must define check(candidate)."),
        ("leetcode", {"test": "def check("}, "column 'test' or 'entry_point' is not Python ("),
        (
            "leetcode",
            {"test": "def check(candidate):\n    x = 1\n    assert candidate(x) == 1\n"},
            "column 'test' must have asserts only in check, line 2 is none.",
        ),
    ],
)
def test_invalid_row_is_reported_with_its_location(
    tmp_path: Path, name: str, change: dict[str, Any], expected: str
) -> None:
    file, row = FILES[name]
    path = write_rows(tmp_path / file, row, {**row, **change})
    with pytest.raises(DataError) as caught:
        load_problems(name, "test", tmp_path)
    assert str(caught.value).startswith(f"{path}, line 2: {expected}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_each_needed_column_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    file, row = FILES[name]
    optional = {
        "test",
        "contract",
        "assertion",
        "atol",
        "question_id",
        "tags",
        "difficulty",
        "starter_code",
        "response",
    }
    optional |= {"prompt", "input_output"} if name == "leetcode" else set()
    for column in [column for column in row if column not in optional]:
        path = write_rows(tmp_path / file, {key: value for key, value in row.items() if key != column})
        if column in ("entry_point", "base_input") and name in ("mbppplus", "humanevalplus"):
            continue  # its absence is the form of the Hub
        with pytest.raises(DataError) as caught:
            load_problems(name, "test", tmp_path)
        assert str(caught.value).startswith(f"{path}, line 1: column '")
        assert MISSING in str(caught.value)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("def check(:", "column 'test' is not Python"),
        ("def check(candidate):\n    pass", "column 'test' has no list of inputs."),
        ("inputs = []", "column 'test' has no list of inputs."),
        ("inputs = [1]", "column 'test', input 1 is no list of arguments."),
    ],
)
def test_test_programs_of_the_hub_that_cannot_be_read(tmp_path: Path, test: str, expected: str) -> None:
    path = write_rows(tmp_path / "HumanEvalPlus.jsonl", {**HUMANEVALPLUS_HUB_ROW, "test": test})
    with pytest.raises(DataError) as caught:
        load_problems("humanevalplus", "test", tmp_path)
    assert str(caught.value).startswith(f"{path}, line 1: {expected}")


def test_bad_line_and_damaged_gzip_are_reported_with_their_line(tmp_path: Path) -> None:
    lines = "".join(json.dumps({**HUMANEVAL_ROW, "task_id": f"HumanEval/{at}"}) + "\n" for at in range(300))
    path = tmp_path / "HumanEval.jsonl"
    path.write_text(lines + '{"task_id": \n')
    with pytest.raises(DataError, match=messages.HUMANEVAL_LINE_NOT_JSON):
        load_problems("humaneval", "test", path)
    path.write_text("")
    with pytest.raises(DataError, match=messages.DATA_FILE_EMPTY):
        load_problems("humaneval", "test", path)
    path.unlink()
    packed = gzip.compress(lines.encode())
    path = tmp_path / "HumanEval.jsonl.gz"
    for content in (
        packed[:-20],
        packed[: len(packed) // 2],
        b"no gzip at all",
        packed[:200] + b"x" * 50 + packed[250:],
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=messages.GZIP_DAMAGED):
            load_problems("humaneval", "test", tmp_path)


def test_several_editions_in_a_folder_are_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "HumanEvalPlus.jsonl", HUMANEVALPLUS_ROW)
    one = write_rows(tmp_path / "HumanEvalPlus-Mini.jsonl", HUMANEVALPLUS_ROW)
    with pytest.raises(DataError, match=messages.SEVERAL_EDITIONS):
        load_problems("humanevalplus", "test", tmp_path)
    assert len(load_problems("humanevalplus", "test", one)) == 1
    assert load_problems("humanevalplus", "test", one, limit=1)


def test_a_file_is_no_data_folder_of_other_sets(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mbpp.jsonl", HUMANEVAL_ROW)
    with pytest.raises(DataError, match=messages.NO_SUCH_DATA_FOLDER):
        load_problems("mbpp", "test", path)


@pytest.mark.parametrize(
    ("task", "arguments", "source"),
    [
        (63, [[[1, 2], [3, 4]]], "[(1, 2), (3, 4)]"),
        (259, [[[1, 2]], [[3, 4]]], "((1, 2),), ((3, 4),)"),
        (75, [[[6, 24]], 6], "[(6, 24)], 6"),
        (106, [[5], [9, 10]], "[5], (9, 10)"),
        (115, [[[2, 1], []]], "[{1, 2}, {}]"),
        (124, ["0", "1j"], "0.0, 1j"),
        (252, ["1+2j"], "(1+2j)"),
        (278, [[1, [2]]], "(1, (2,))"),
        (307, [["a"], 1, 2], "('a',), 1, 2"),
        (580, [[4, [7, []]]], "(4, (7, ()))"),
        (722, [{"a": [6.2, 70]}, 6.0], "{'a': (6.2, 70)}, 6.0"),
        (3, [[1]], "[1]"),
    ],
)
def test_types_that_json_lacks_are_restored(task: int, arguments: list[Any], source: str) -> None:
    assert argument_source(restore_types(task, arguments)) == source


def test_numbers_without_a_literal_have_a_source_without_names() -> None:
    source = argument_source([float("inf"), float("-inf"), float("nan"), {"a": (1,)}, set()])
    assert source == "1e999, -1e999, (1e999-1e999), {'a': (1,)}, set()"
    assert repr(eval(f"[{source}]")) == "[inf, -inf, nan, {'a': (1,)}, set()]"


def test_reference_test_is_restored_from_its_record() -> None:
    test = ReferenceTest("a base", "f", ("1", "2, 3"), "def f(*x): pass", 0.5)
    record = json.loads(json.dumps(vars(test)))
    assert parse_test(record) == test
    assert parse_test({key: value for key, value in record.items() if key != "tolerance"}).tolerance == 0  # type: ignore[union-attr]
