"""Rows of each data set, helpers to write them, and the folder of the real data sets."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from tasks.problem import AssertTest, Problem

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("PROMPT_OR_TUNE_TEST_DATA") or ROOT.parent / "shared" / "data")
# The fixture skips the test if there is no data.
needs_real_data = pytest.mark.usefixtures("data_dir")

PAIR = {"id": "q-1", "nl": "add 1 to `x`", "cmd": "x += 1"}
MBPP_ROW = {
    "task_id": 602,
    "text": "Write a function to double.",
    "code": "import math\r\ndef helper(x):\r\n  return x\r\ndef double(x):\r\n  return helper(x) * 2",
    "test_setup_code": "root = 1\r\n",
    "test_list": ["assert (double(root)) == 2", "assert double(2) == 4 "],
    "challenge_test_list": [],
}
APPS_ROW = {
    "id": 7,
    "description": "Double it.",
    "difficulty": "interview",
    "starter_code": "",
    "test_list": [{"input": "2\n", "output": ["4\n"]}, {"input": "3", "output": [6]}],
}

PROMPT = (
    "from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n"
    '    """ Add them.\n    >>> total([1])\n    1\n    """\n'
)
HUMANEVAL_ROW = {
    "task_id": "HumanEval/7",
    "prompt": PROMPT,
    "entry_point": "total",
    "canonical_solution": "    return sum(numbers)\n",
    "test": (
        "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
    ),
}
HUMANEVALPLUS_ROW = {
    **HUMANEVAL_ROW,
    "contract": "\n    assert isinstance(numbers, list)\n",
    "base_input": [[[1, 2]], [[]]],
    "atol": 0,
    "plus_input": [[[float("inf"), -1]], [[10**20]]],
}
# The form of the Hub's row.
HUMANEVALPLUS_HUB_ROW = {
    **HUMANEVAL_ROW,
    "test": (
        "import numpy as np\n\ndef assertion(out, exp, atol):\n    assert out == exp\n\n\ndef check(candidate):\n"
        "    inputs = [[[1, 2]], [[]], [[inf, -1]]]\n    results = [3, 0, inf]\n"
        "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 1e-06)\n"
    ),
}
MBPPPLUS_ROW = {
    "task_id": "Mbpp/2",
    "prompt": (
        '"""\nWrite a function to find the shared ones.\n'
        'assert set(similar_elements((3, 4),(4, 5))) == set((4,))\n"""\n'
    ),
    "entry_point": "similar_elements",
    "canonical_solution": "\ndef similar_elements(a, b):\n  return tuple(set(a) & set(b))\n",
    "contract": "",
    "assertion": "\nassert set(similar_elements((3, 4),(4, 5))) == set((4,))\n",
    "base_input": [[[3, 4], [4, 5]]],
    "plus_input": [[[1, 2, 3], [3, 2]], [[], []]],
    "atol": 0,
}
MBPPPLUS_HUB_ROW = {
    "task_id": 2,
    "code": "def similar_elements(a, b):\n  return tuple(set(a) & set(b))",
    "prompt": "Write a function to find the shared ones.",
    "source_file": "Benchmark Questions Verification V2.ipynb",
    "test_imports": [],
    "test_list": ["assert set(similar_elements((3, 4),(4, 5))) == set((4,))"],
    "test": (
        "def assertion(out, exp, atol):\n    assert set(out) == set(exp)\n\ninputs = [[(3, 4), (4, 5)], [(), ()]]\n"
        "results = [(4,), ()]\nfor i, (inp, exp) in enumerate(zip(inputs, results)):\n"
        "    assertion(similar_elements(*inp), exp, 0)\n"
    ),
}
LEETCODE_ROW = {
    "task_id": "reverse-list",
    "question_id": 206,
    "difficulty": "Easy",
    "tags": ["Linked List"],
    "problem_description": "Reverse the list.\n\xa0\nExample 1:",
    "starter_code": (
        "class Solution:\n    def reverseList(self, head: Optional[ListNode]) -> Optional[ListNode]:\n        "
    ),
    "prompt": (
        "from typing import *\n\nclass ListNode:\n    def __init__(self, val=0, next=None):\n        self.val = val\n"
        "        self.next = next\n"
    ),
    "completion": (
        "class Solution:\n    def reverseList(self, head: Optional[ListNode]) -> Optional[ListNode]:\n"
        "        last = None\n        while head:\n            last, head = ListNode(head.val, last), head.next\n"
        "        return last\n"
    ),
    "entry_point": "Solution().reverseList",
    "test": (
        "def check(candidate):\n"
        "    assert is_same_list(candidate(head = list_node([1, 2, 3])), list_node([3, 2, 1]))\n"
        "    assert candidate(head = list_node([])) == None\n"
    ),
    "input_output": [{"input": "head = [1,2,3]", "output": "[3,2,1]"}],
    "response": "",
}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(problem: Problem, code: str) -> None:
    """Run the problem's asserts in the order of the sandbox: code, set-up, assert."""
    limit = sys.get_int_max_str_digits()
    try:
        for test in problem.tests:
            assert isinstance(test, AssertTest)
            exec(f"{code}\n{test.setup}\n{test.code}", {"__name__": "candidate"})
    finally:
        sys.set_int_max_str_digits(limit)


class FakeHub:
    """Replaces `datasets.load_dataset` with tables of the given rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> None:
        self.requests: list[tuple[str, str]] = []
        self._rows = rows
        monkeypatch.setattr(datasets, "load_dataset", self._load)

    def _load(self, format: str, *, data_files: str, split: str, token: bool) -> Any:
        self.requests.append((format, data_files))
        assert token is False  # our data sets are public
        assert split == "train"  # the only split of a single data file
        return datasets.Dataset.from_list(self._rows)
