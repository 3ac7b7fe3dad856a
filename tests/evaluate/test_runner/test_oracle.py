"""What passes, what fails and what is protected: answers that cheat, right ones that look odd, hostile results."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from errors import UnknownNameError
from evaluate.sandbox.sandbox import Sandbox
from evaluate.sandbox.spec import ExecutionResult, Limits, Program
from evaluate.test_runner.result import (
    EVALPLUS,
    EXACT,
    MAX_REASON,
    ComparisonRules,
    TestResult,
    comparison_rules,
    contrast,
)
from evaluate.test_runner.runner import run_tests
from tasks.problem import AssertTest, StdioTest, Test
from tests import messages

pytestmark = pytest.mark.slow

LIMITS = Limits(wall_seconds=8, cpu_seconds=8)


def check(
    sandbox: Sandbox,
    code: str,
    *statements: str,
    setup: str = "",
    rules: ComparisonRules = EXACT,
    limits: Limits = LIMITS,
) -> list[TestResult]:
    tests: Sequence[Test] = [AssertTest(f"assert {statement}", setup) for statement in statements]
    results = run_tests(code, tests, sandbox, limits, workers=1, rules=rules)
    for result in results:
        texts = (result.given, result.expected, result.got, result.reason)
        assert len(result.reason) <= MAX_REASON
        assert all(each.isprintable() or each in "\n\t" for text in texts for each in text)
        assert math.isfinite(result.seconds)
        json.dumps(texts, ensure_ascii=False).encode()
    return results


PATCHED = (
    "import builtins\nbuiltins.sum = builtins.max = builtins.min = builtins.len = builtins.abs = lambda *a, **k: 0\n"
    "builtins.any = builtins.all = builtins.isinstance = lambda *a, **k: True\n"
    "builtins.sorted = builtins.set = builtins.list = lambda *a, **k: []\ndef f(x): return [9, 9, 9]\n"
)
AGREEABLE = (
    "class A:\n    def __add__(s, o): return 0\n"
    "    __truediv__ = __mod__ = __xor__ = __sub__ = __rsub__ = __radd__ = __mul__ = __and__ = __or__ = __add__\n"
    "    def __eq__(s, o): return True\n    def __abs__(s): return 0\n    def __hash__(s): return 4\n"
    "    def __getitem__(s, key): return A()\n    def __contains__(s, o): return True\n    def __len__(s): return 0\n"
    "    def __lt__(s, o): return True\n    __le__ = __gt__ = __ge__ = __lt__\n    def __float__(s): return 4.0\n"
    "    def __iter__(s): return iter([])\n    def __getattr__(s, name): return lambda *a: 0\ndef f(x): return A()\n"
)
NUMPY = "import numpy as np\nnp.linalg.norm = np.max = lambda *a, **k: 0.0\nnp.abs = lambda *a: np.zeros(2)\n"
NUMPY += "np.allclose = np.array_equal = lambda *a, **k: True\ndef f(x): return np.array([9, 9])\n"
SUBCLASS = (
    "class A({}):\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    __hash__ = None\n"
    "    def __iter__(s): return iter([4])\n    def __contains__(s, o): return True\n    def __len__(s): return 1\n"
    "    def __sub__(s, o): return 0\n    __rsub__ = __sub__\n    def __repr__(s): return '4'\n"
    "    def startswith(s, o): return True\n    def get(s, *o): return 4\n    def count(s, *o): return 4\n"
    "def f(x): return A()\n"
)
READER = (
    "import sys, gc\ndef f(x):\n    names = vars(sys.modules['candidate'])\n"
    "    found = [v for k, v in names.items() if k in ('expected', 'WANTED', 'TABLE')]\n"
    "    for each in gc.get_objects():\n"
    "        if isinstance(each, dict) and 'expected' in each and each is not names: found.append(each['expected'])\n"
    "    return found[0] if found else 3\n"
)
WRONG = [
    (PATCHED, "max(abs(a - b) for a, b in zip(f(2), [1, 2, 3])) <= 1e-6", ""),
    (PATCHED, "len(set(f(2)) ^ {1, 2, 3}) == 0", ""),
    (PATCHED, "len(set(f(2)) - {1, 2, 3}) == 0", ""),
    (PATCHED, "sum(abs(a - b) for a, b in zip(f(2), (1, 2, 3))) < 1e-9", ""),
    (PATCHED, "all(a == b for a, b in zip(f(2), [1, 2, 3]))", ""),
    (PATCHED, "any(a == 4 for a in f(2))", ""),
    (PATCHED, "abs(sum(f(2)) - 6) < 1e-9", ""),
    (PATCHED, "abs(len(f(2)) - 4) == 0", ""),
    (PATCHED, "sorted(f(2)) == sorted([1, 2, 3])", ""),
    (PATCHED, "max(f(2)) - min(f(2)) == 1", ""),
    (PATCHED, "len(f(2)) == 0", ""),
    (PATCHED, "isinstance(f(2), str)", ""),
    (PATCHED, "not any(x != 4 for x in f(2))", ""),
    (PATCHED, "list(map(str, f(2))) == ['1']", ""),
    (
        "import math\nmath.dist = lambda *a: 0.0\ndef f(x): return (9.0, 9.0)",
        "math.dist(f(2), (1.0, 2.0)) < 1e-6",
        "import math",
    ),
    (
        "import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return 9.0",
        "isclose(f(2), 4)",
        "from math import isclose",
    ),
    ("import math\nmath.fabs = lambda *a: 0.0\ndef f(x): return 9.0", "m.fabs(f(2) - 4) < 1e-6", "import math as m"),
    (NUMPY, "np.linalg.norm(f(2) - np.array([1, 2])) < 1e-6", "import numpy as np"),
    (NUMPY, "np.abs(f(2) - np.array([1, 2])).max() < 1e-6", "import numpy as np"),
    (NUMPY, "np.allclose(f(2), [1, 2])", "import numpy as np"),
    (NUMPY, "np.array_equal(f(2), np.array([1, 2]))", "import numpy as np"),
    (NUMPY, "(f(2) == np.array([1, 2])).all()", "import numpy as np"),
    (NUMPY, "numpy.max(numpy.abs(f(2) - numpy.array([1, 2]))) < 1", "import numpy"),
    (AGREEABLE, "close(f(2), 4)", "def close(a, b): return abs(a - b) < 1e-9"),
    (AGREEABLE, "close(f(2), 4)", "def close(a, b):\n    difference = a - b\n    return abs(difference) < 1e-9"),
    (AGREEABLE, "close(f(2), b=4)", "def close(a, b, eps=1e-9): return abs(a - b) < eps"),
    (AGREEABLE, "close(4)(f(2))", "def close(a):\n    return lambda b: a == b"),
    (AGREEABLE, "near(f(2))", "def close(a, b): return abs(a - b) < 1e-9\ndef near(a): return close(a, 4)"),
    (AGREEABLE, "distance(f(2), 4) < 1e-9", "def distance(a, b): return abs(a - b)"),
    (
        AGREEABLE,
        "Near(4) == f(2)",
        "class Near:\n    def __init__(self, v): self.v = v\n    def __eq__(self, o): return o == self.v",
    ),
    (AGREEABLE, "f(2) + -4 == 0", ""),
    (AGREEABLE, "f(2) ^ 4 == 0", ""),
    (AGREEABLE, "4 - f(2) == 0", ""),
    (AGREEABLE, "f(2) - 4 == 0", ""),
    (AGREEABLE, "f(2) % 4 == 0", ""),
    (AGREEABLE, "abs(f(2) - 4) <= 0", ""),
    (AGREEABLE, "round(f(2) - 4.0, 3) == 0", ""),
    (AGREEABLE, "math.isclose(f(2), 4)", "import math"),
    (AGREEABLE, "f(2) == 4", ""),
    (AGREEABLE, "4 == f(2)", ""),
    (AGREEABLE, "4 in f(2)", ""),
    (AGREEABLE, "f(2) in [4]", ""),
    (AGREEABLE, "3 < f(2) < 5", ""),
    (AGREEABLE, "f(2)[4] == 0", ""),
    (AGREEABLE, "f(2)[0][4]", ""),
    (AGREEABLE, "f(2).compare(4) == 0", ""),
    (AGREEABLE, "not f(2).compare(4)", ""),
    (AGREEABLE, "f(2).x.compare(4) == 0", ""),
    (AGREEABLE, "f(2).child().compare(4) == 0", ""),
    (AGREEABLE, "f(2).__eq__(4) == True", ""),
    (AGREEABLE, "f(2).startswith('ab')", ""),
    (AGREEABLE, "r.compare(4) == 0", "r = f(2)"),
    (AGREEABLE, "operator.eq(f(2), 4)", "import operator"),
    (AGREEABLE, "functools.reduce(lambda a, b: a == b, [f(2), 4])", "import functools"),
    (AGREEABLE, "(lambda x: x == 4)(f(2))", ""),
    (AGREEABLE, "[x for x in [f(2)] if x == 4]", ""),
    (AGREEABLE, "f(2) == 4 or f(2) == 5", ""),
    (AGREEABLE, "not f(2) != 4", ""),
    (AGREEABLE, "{f(2): 1}[4] == 1", ""),
    (AGREEABLE, "f'{f(2):4}' == '4'", ""),
    (SUBCLASS.format("int"), "f(2) == 4", ""),
    (SUBCLASS.format("int"), "f(2) - 4 == 0", ""),
    (SUBCLASS.format("float"), "abs(f(2) - 4.0) < 1e-9", ""),
    (SUBCLASS.format("list"), "4 in f(2)", ""),
    (SUBCLASS.format("list"), "list(f(2)) == [4]", ""),
    (SUBCLASS.format("list"), "f(2).count(7) == 4", ""),
    (SUBCLASS.format("list"), "len(f(2)) == 1", ""),
    (SUBCLASS.format("str"), "f(2).startswith('ab')", ""),
    (SUBCLASS.format("str"), "f(2) == 'ab'", ""),
    (SUBCLASS.format("dict"), "f(2).get('a') == 4", ""),
    (SUBCLASS.format("dict"), "f(2) == {'a': 1}", ""),
    (SUBCLASS.format("tuple"), "f(2) == (4,)", ""),
    (SUBCLASS.format("set"), "f(2) ^ {4} == set()", ""),
    (READER, "f(2) == expected", "expected = 4711"),
    (READER, "f(2) == TABLE['a']", "TABLE = {'a': 4711}"),
    (READER, "f(2) == expected()", "def expected(): return 4711"),
    (READER, "f(2) == WANTED", "from random import Random\nWANTED = 4711 + 0"),
    (READER, "f(2) == 4711", "expected = int('4711') if True else None"),
    (READER, "f(2) == 4711", "for expected in [4711]: pass"),
    (READER, "f(2) == 4711", "class expected:\n    value = 4711"),
    ("import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit(0)", "f(2) == 4", ""),
    ("import threading, os\nthreading.Thread(target=os._exit, args=(0,)).start()\ndef f(x): return 3", "f(2) == 4", ""),
    ("import sys\ndef spy(*a): return spy\nsys.settrace(spy)\ndef f(x): return 3", "f(2) == 4", ""),
    ("import _json\n_json.encode_basestring_ascii = lambda s: '4'\ndef f(x): return 'x'", "f(2) == 4", ""),
    ("class A:\n    def __reduce__(s): return (int, ('4',))\ndef f(x): return A()", "f(2) == 4", ""),
    (
        "class A:\n    __class__ = int\n    def __int__(s): return 4\n    __index__ = __int__\ndef f(x): return A()",
        "f(2) == 4",
        "",
    ),
    ("import os\nos.write = lambda *a: 0\ndef f(x): return 4", "f(2) == 5", ""),
    (
        "import builtins\nbuiltins.eval = lambda *a: 4\nbuiltins.exec = lambda *a: None\ndef f(x): return 3",
        "f(2) == 5",
        "",
    ),
]


@pytest.mark.parametrize(("code", "statement", "setup"), WRONG)
def test_no_wrong_answer_passes_as_protected(sandbox: Sandbox, code: str, statement: str, setup: str) -> None:
    # One of them never ends.
    (result,) = check(sandbox, code, statement, setup=setup, limits=replace(LIMITS, wall_seconds=3, cpu_seconds=3))
    assert not (result.passed and result.protected)


@pytest.mark.parametrize(
    ("statement", "setup"),
    [
        ("max(abs(a - b) for a, b in zip(f(2), [1, 2])) <= 1e-6", ""),
        ("len(set(f(2)) ^ {1, 2}) == 0", ""),
        ("math.dist(f(2), (1, 2)) < 1e-6", "import math"),
        ("np.linalg.norm(np.array(f(2)) - np.array([1, 2])) < 1e-6", "import numpy as np"),
        ("np.allclose(f(2), [1, 2])", "import numpy as np"),
        ("close(f(2)[0], 1)", "def close(a, b): return abs(a - b) < 1e-9"),
        ("same(f(2))", "expected = [1, 2]\ndef same(a): return a == expected"),
        ("f(2) == expected", "expected = [1, 2]"),
        ("sorted(f(2), reverse=True)[0] == 2", ""),
        ("','.join(map(str, f(2))) == '1,2'", ""),
        ("[x * 2 for x in f(2)] == [2, 4]", ""),
        ("all(x in (1, 2) for x in f(2))", ""),
        ("isinstance(f(2), list) and type(f(2)) is list", ""),
        ("Solution().f(2) == [1, 2]", ""),
        ("s.f(2) == [1, 2]", "s = Solution()"),
        ("f(xs) == [1, 2]", "xs = [3, 4]"),
        ("f(Node(7)) == [1, 2]", "class Node:\n    def __init__(self, value):\n        self.value = value + 17"),
        ("xs == [3, 4] and f(xs) == [1, 2]", "xs = [3, 4]"),
        ("tuple(g(3)) == (0, 1, 2)", ""),
        ("sum(g(4)) == 6 and 2 in g(3)", ""),
        ("str(f(2)) == '[1, 2]' and repr(f(2)) == '[1, 2]'", ""),
        ("f(2) == [1, 2]", "import random\nrandom.seed(17)"),
        (
            "f(P(7)) == expected",
            "from dataclasses import dataclass\nexpected = [1, 2]\n@dataclass\nclass P:\n    x: int",
        ),
        ("h(2).x == 2 and h(2).both() == (2, 3)", ""),
        ("[each.x for each in [h(1), h(2)]] == [1, 2]", ""),
    ],
)
def test_right_answers_pass_as_protected(sandbox: Sandbox, statement: str, setup: str) -> None:
    code = (
        "def f(x): return [1, 2]\nclass Solution:\n    def f(self, x): return [1, 2]\n"
        "def g(n):\n    yield from range(n)\n"
        "class H:\n    def __init__(self, x): self.x = x\n    def both(self): return self.x, self.x + 1\n"
        "def h(x): return H(x)\n"
    )
    (result,) = check(sandbox, code, statement, setup=setup)
    assert result.passed, result.reason
    assert result.protected


RAW_LINES = {
    "NaN seconds": b'["value",0,NaN,4]\n',
    "infinite seconds": b'["value",0,1e999,4]\n',
    "seconds of 400 digits": b'["value",0,' + b"9" * 400 + b",4]\n",
    "seconds of 5000 digits": b'["value",0,' + b"9" * 5000 + b",4]\n",
    "negative seconds": b'["value",0,-1.0,4]\n',
    "hours": b'["value",0,99999.0,4]\n',
    "true seconds": b'["value",0,true,4]\n',
    "an infinite value": b'["value",0,0.0,1e999]\n',
    "Infinity": b'["value",0,0.0,Infinity]\n',
    "a value of 5000 digits": b'["value",0,0.0,' + b"4" * 5000 + b"]\n",
    "an unknown tag": b'["value",0,0.0,{"module":"os"}]\n',
    "two tags": b'["value",0,0.0,{"int":"0x4","str":"34"}]\n',
    "a set of lists": b'["value",0,0.0,{"set":[[4]]}]\n',
    "an array of another shape": b'["value",0,0.0,{"ndarray":["int64",[9],[4]]}]\n',
    "an array of objects": b'["value",0,0.0,{"ndarray":["object",[1],[4]]}]\n',
    "a number of another type": b'["value",0,0.0,{"numpy":["int8",400]}]\n',
    "a range of texts": b'["value",0,0.0,{"range":["a","b","c"]}]\n',
    "a large value without length": b'["value",0,0.0,{"large":["list",null,""]}]\n',
    "a name of a megabyte": b'["value",0,0.0,{"other":"' + b"n" * 400_000 + b'"}]\n',
    "an error of a megabyte": b'["error",0,0.0,"error","' + b"E" * 150_000 + b'"]\n',
    "an error that is no text": b'["error",0,0.0,"error",{"a":1}]\n',
    "another kind of error": b'["error",0,0.0,"fine","x"]\n',
    "a half line": b'["value",0,0.0,4',
    "no JSON": b"4\x00\xff\n",
    "null": b"null\n",
    "an object": b'{"value":4}\n',
    "the wrong index": b'["value",7,0.0,4]\n',
    "a false index": b'["value",false,0.0,4]\n',
    "nothing": b"\n",
    "deep brackets": b"[" * 100_000 + b"\n",
    "a token": b'["held",0,0.0,"4"]\n',
    "too many fields": b'["value",0,0.0,4,4,4,4]\n',
    "a million lines": b"x\n" * 450_000,
}


@pytest.mark.parametrize("line", RAW_LINES.values(), ids=RAW_LINES)
def test_a_line_that_no_child_writes_fails_its_test_alone(sandbox: Sandbox, line: bytes) -> None:
    code = (
        "import os\ndef f(x):\n    if x != 1: return 4\n    for at in range(3, 64):\n"
        f"        try: os.write(at, {line!r}.replace(b',0,', b',1,'))\n        except OSError: pass\n    os._exit(0)\n"
    )
    before, bad, after = check(sandbox, code, "f(0) == 4", "f(1) == 4", "f(2) == 4")
    assert before.passed
    assert after.passed
    assert not bad.passed
    assert bad.reason in (f"f(1) {messages.SENT_NO_RESULT}", f"f(1) {messages.ENDED_BEFORE_IT_ANSWERED}")


def test_what_a_child_says_is_escaped_and_short(sandbox: Sandbox) -> None:
    code = (
        "def f(x):\n    if x == 0: raise ValueError('\\ud800 \\x1b[2J\\u202e bad')\n"
        "    if x == 1: raise type('N' * 100_000, (Exception,), {})('m' * 10**6)\n"
        "    if x == 2: return '\\x1b[2J\\ud800'\n    return type('T\\x1b' + 'N' * 10**5, (), {})()"
    )
    results = check(sandbox, code, *(f"f({x}) == 4" for x in range(4)))
    assert results[0].reason == r"f(0) raised ValueError: \ud800 \x1b[2J\u202e bad (line 2)"
    assert results[2].got == r"'\x1b[2J\ud800'"
    assert not any(result.passed for result in results)


def test_one_large_value_fails_only_its_own_test(sandbox: Sandbox) -> None:
    for large, expected, passes in [
        ("[123456789] * 30000", "[123456789] * 30000", True),
        ("[(i, i) for i in range(12000)]", "4", False),
        ("[[0.0] * 300 for _ in range(300)]", "4", False),
        ("[[0.0] * 300 for _ in range(300)]", "[[0] * 300] * 300", True),
        ("'a' * 300000", "'a' * 300000", True),
        ("'a' * 300000", "'a' * 299999 + 'b'", False),
        ("{i: {str(i)} for i in range(30000)}", "dict((i, {str(i)}) for i in range(30000))", True),
        ("set(range(100000))", "set(range(100000))", True),
        ("list(range(100000))", "tuple(range(100000))", False),
        ("10 ** 300000", "10 ** 300000", False),  # larger than what the host computes
    ]:
        code = f"def f(x): return 4 if x < 5 else {large}"
        first, second, third = check(sandbox, code, "f(1) == 4", f"f(9) == {expected}", "f(2) == 4")
        assert first.passed
        assert third.passed
        assert second.passed == passes or not second.protected
        if not passes and second.protected:
            assert messages.RETURNED_TOO_MANY_CHARACTERS in second.reason


def test_parts_of_large_values(sandbox: Sandbox) -> None:
    results = check(
        sandbox,
        "def f(x): return [x] * 200000",
        "len(f(1)) == 200000",
        "f(1)",
        "sum(f(2)) == 400000",
        "f(3)[0] == 3",
        "len(f(1)) == 1",
    )
    assert [result.passed for result in results] == [True, True, True, True, False]
    assert [result.protected for result in results] == [True, True, True, False, True]


NUMPY_4 = "import numpy as np\ndef f(x): return np.int64(4)"
EQUALITY = [
    (
        "from collections import OrderedDict\ndef f(x): return OrderedDict([('b', 1), ('a', 2)])",
        "f(2) == OrderedDict([('a', 2), ('b', 1)])",
        False,
    ),
    (
        "from collections import OrderedDict\ndef f(x): return OrderedDict([('b', 1), ('a', 2)])",
        "f(2) == {'a': 2, 'b': 1}",
        True,
    ),
    (
        "from collections import Counter\ndef f(x):\n    c = Counter('ab'); c.subtract('ab'); return c",
        "f(2) == Counter()",
        True,
    ),
    (
        "from collections import Counter\ndef f(x):\n    c = Counter('ab'); c.subtract('ab'); return c",
        "f(2) == {}",
        False,
    ),
    (
        "from collections import defaultdict\ndef f(x):\n    d = defaultdict(int); d['a']; return d",
        "f(2) == {'a': 0}",
        True,
    ),
    ("from collections import deque\ndef f(x): return deque([1])", "f(2) == [1]", False),
    ("from collections import deque\ndef f(x): return deque([1])", "f(2) == deque([1])", True),
    ("from collections import UserList\ndef f(x): return UserList([1])", "f(2) == [1]", True),
    ("from collections import UserDict\ndef f(x): return UserDict(a=1)", "f(2) == {'a': 1}", True),
    (NUMPY_4, "isinstance(f(2), int)", False),
    (NUMPY_4, "f(2) == 4", True),
    (NUMPY_4, "f(2) is 4", False),
    (NUMPY_4, "type(f(2)) == int", False),
    ("import numpy as np\ndef f(x): return np.float64(0.5)", "isinstance(f(2), float) and f(2) == 0.5", True),
    ("import numpy as np\ndef f(x): return np.bool_(True)", "f(2) is True", False),
    ("import numpy as np\ndef f(x): return np.bool_(True)", "f(2) == True", True),
    ("import numpy as np\ndef f(x): return [np.int64(1), 2]", "f(2) == [1, 2]", True),
    ("import numpy as np\ndef f(x): return np.array([1, 2])", "(f(2) == [1, 2]).all()", True),
    ("import numpy as np\ndef f(x): return np.array([1, 2])", "f(2) == [1, 2]", False),
    (
        "import numpy as np\ndef f(x): return np.array([1, 2])",
        "isinstance(f(2), np.ndarray) and f(2).shape == (2,)",
        True,
    ),
    ("from enum import Enum\nclass C(str, Enum):\n    A = 'a'\ndef f(x): return C.A", "f(2) is 'a'", False),
    ("from enum import Enum\nclass C(str, Enum):\n    A = 'a'\ndef f(x): return C.A", "f(2) == 'a'", True),
    ("from enum import Enum\nclass C(str, Enum):\n    A = 'a'\ndef f(x): return C.A", "f(2).name == 'A'", True),
    (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\ndef f(x): return P(x)",
        "f(2) == (2,) and f(2).x == 2",
        True,
    ),
    (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\ndef f(x): return P(x)",
        "type(f(2)) is tuple",
        False,
    ),
    ("def f(x): return {'a': 1}.items()", "f(2) == {('a', 1)}", True),
    ("def f(x): return {'a': 1}.keys()", "f(2) == {'a'}", True),
    ("def f(x): return {'a': 1}.values()", "f(2) == [1]", False),
    ("def f(x): return {'a': 1}.values()", "list(f(2)) == [1]", True),
    ("def f(x): return range(3)", "f(2) == range(0, 3)", True),
    ("def f(x): return range(3)", "f(2) == [0, 1, 2]", False),
    ("def f(x): return range(10 ** 15)", "f(2) == 4", False),
    ("def f(x): return bytearray(b'a')", "f(2) == b'a'", True),
    ("def f(x): return bytearray(b'a')", "isinstance(f(2), bytes)", False),
    ("def f(x): return 1", "f(2) == True == 1.0", True),
    ("def f(x): return [1]", "f(2) == (1,)", False),
    ("def f(x): return float('nan')", "f(2) == float('nan')", False),
    ("def f(x): return float('nan')", "f(2) != f(2)", True),
    ("def f(x): return -0.0", "f(2) == 0", True),
    ("from decimal import Decimal\ndef f(x): return Decimal('0.5')", "f(2) == 0.5", True),
    ("from fractions import Fraction\ndef f(x): return Fraction(1, 2)", "f(2) == 0.5", True),
    (
        "import datetime\ndef f(x): return datetime.date(2020, 1, x)",
        "f(2).year == 2020 and str(f(2)) == '2020-01-02'",
        True,
    ),
    ("def f(x): return '%d' % x", "'%s' % f(2) == '2'", True),
    ("def f(x): return x / 3", "'%.2f' % f(2) == '0.67' and f'{f(2):.1f}' == '0.7'", True),
]


@pytest.mark.parametrize(("code", "statement", "holds"), EQUALITY)
def test_equality_is_that_of_python(sandbox: Sandbox, code: str, statement: str, holds: bool) -> None:
    imports = "from collections import OrderedDict, Counter, deque\nimport numpy as np" if "np." in statement else ""
    (result,) = check(sandbox, code, statement, setup=imports or "from collections import OrderedDict, Counter, deque")
    assert result.passed == holds, result.reason


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("f() == 1 or f() == 99", "f() == 2"),
        ("f() == 99 or f() == 2", "f() == 3"),
        ("f() == 1 and f() == 2", "f() == 3"),
        ("f() == 1 or f() == 2 or f() == 3", "f() == 2"),
        ("not (f() == 99 and f() == 98)", "f() == 2"),
        ("1 <= f() <= 1", "f() == 2"),
    ],
)
def test_a_call_that_python_would_not_make_is_not_made(sandbox: Sandbox, first: str, second: str) -> None:
    code = "n = 0\ndef f():\n    global n\n    n += 1\n    return n"
    assert [result.passed for result in check(sandbox, code, first, second)] == [True, True]


@pytest.mark.parametrize(
    ("value", "expected", "got", "wanted"),
    [
        ("'a  b'", "'a b'", "'a  b'", "'a b'"),
        ("'a\\tb'", "'a b'", r"'a\tb'", "'a b'"),
        ("'a\\n'", "'a'", r"'a\n'", "'a'"),
        ("'a\\u00a0b'", "'a b'", r"'a\xa0b'", "'a b'"),
    ],
)
def test_a_message_shows_blanks(sandbox: Sandbox, value: str, expected: str, got: str, wanted: str) -> None:
    (result,) = check(sandbox, f"def f(x): return {value}", f"f(2) == {expected}")
    assert result.reason == f"f(2) gave {got}, expected {wanted}"
    if value.endswith("n'"):
        return  # a line's end is no difference of output
    printed = run_tests(f"print({value} + 'x')", [StdioTest("", eval(expected) + "x\n")], sandbox, LIMITS)[0]
    assert got[1:-1] in printed.reason


def test_a_message_shows_the_difference_of_long_values() -> None:
    left, right = contrast("x" * 5000 + "1" + "y" * 500, "x" * 5000 + "2" + "y" * 500)
    assert left != right
    assert len(left) <= len("x" * 120)
    assert "x1y" in left
    assert "x2y" in right


TOLERANT = [
    ("def f(x): return 0.1 + 0.2", "f(2) == 0.3", False, True),
    ("def f(x): return 0.3001", "f(2) == 0.3", False, False),
    ("def f(x): return [0.1 + 0.2, 1.0]", "f(2) == [0.3, 1.0]", False, True),
    ("def f(x): return (0.1 + 0.2, 1.0)", "f(2) == [0.3, 1.0]", False, False),
    ("def f(x): return [0.1 + 0.2]", "f(2) == [0.3, 1.0]", False, False),
    ("def f(x): return 3", "f(2) == 3.0000001", False, False),  # another type
    ("def f(x): return 3", "f(2) == 3.0", True, True),
    ("def f(x): return 0.1 + 0.2", "f(2) != 0.3", True, False),
    ("def similar_elements(a, b): return [5, 4]", "similar_elements((3, 4, 5), (5, 4)) == (4, 5)", False, True),
    ("def Diff(a, b): return [1, 1, 2]", "Diff([1], [2]) == [2, 1]", False, True),
    ("def f(a): return [5, 4]", "f(1) == [4, 5]", False, False),
    ("import re\ndef check_str(s): return re.search('a', s)", "check_str('a') == True", False, True),
    ("import re\ndef check_str(s): return re.search('b', s)", "check_str('a') == True", False, False),
    ("def check_str(s): return False", "check_str('a') == True", False, False),
    ("def are_equivalent(a, b): return 0", "are_equivalent(36, 57) == False", True, True),
    ("def are_equivalent(a, b): return 7", "are_equivalent(36, 57) == False", False, True),
    ("def sum_div(a): return 0", "sum_div(8) == 7", False, True),
    ("def sum_div(a): return 6", "sum_div(8) == 7", False, False),
    ("def surface_Area(b, s): return 32", "surface_Area(3, 4) == 33", False, False),
    (
        "def surface_Area(b, s): return round(b * b + 2 * b * ((b / 2) ** 2 + s * s) ** 0.5)",
        "surface_Area(3, 4) == 33",
        False,
        True,
    ),
    ("def digit_distance_nums(a, b): return 9", "digit_distance_nums(123, 6) == 3", False, False),
    ("def digit_distance_nums(a, b): return 6", "digit_distance_nums(123, 6) == 3", False, True),
    ("def find_zero(xs): return -0.5", "find_zero([1, 2]) == -0.49999", False, True),
    ("def find_zero(xs): return -0.6", "find_zero([1, 2]) == -0.5", False, False),
]


@pytest.mark.parametrize(("code", "statement", "exact", "evalplus"), TOLERANT)
def test_rules_of_comparison(sandbox: Sandbox, code: str, statement: str, exact: bool, evalplus: bool) -> None:
    (result,) = check(sandbox, code, statement)
    assert (result.passed, result.protected) == (exact, True)
    (result,) = check(sandbox, code, statement, rules=EVALPLUS)
    assert (result.passed, result.protected) == (evalplus, True)


def test_the_tolerance_of_one_test(sandbox: Sandbox) -> None:
    tests = [AssertTest("assert f(2) == 1.0", tolerance=0.1), AssertTest("assert f(2) == 1.0")]
    results = run_tests("def f(x): return 1.05", tests, sandbox, LIMITS)
    assert [result.passed for result in results] == [True, False]


def test_rules_are_named() -> None:
    assert comparison_rules("evalplus") is EVALPLUS
    with pytest.raises(UnknownNameError, match=messages.UNKNOWN_COMPARISON):
        comparison_rules("evalpuls")


class Forger(Sandbox):
    """A sandbox whose child wrote these lines."""

    def __init__(self, lines: str) -> None:
        super().__init__("landlock")
        self._lines = lines

    def run(self, program: Program) -> ExecutionResult:
        return ExecutionResult("ok", self._lines, "", self.layer, 0.1)


PIECES = [
    *("1", "-1", "0.0", "1e400", "NaN", '"x"', "null", "true", "[]", "{}", '{"int":"0xff"}', '{"set":[1,[2]]}'),
    *('{"tuple":[1,2]}', '{"other":"T"}', '{"subclass":["A",4]}', '{"subclass":["A",{"tuple":[1]}]}', '"\\ud800"'),
    *('{"large":["list",300000,"' + "a" * 32 + '"]}', '{"large":["str",0,""]}', '{"numpy":["int64",3]}', "[[[]]]"),
    *('{"ndarray":["float64",[2],[1.0,2.0]]}', '{"range":[0,1000000000000,1]}', '{"dict":[[1,2]]}', '{"deque":[1]}'),
    *('{"Counter":[["a",null]]}', '{"OrderedDict":[[1,2]]}', '{"decimal":"NaN"}', '{"decimal":"1E9999"}'),
    *('{"fraction":["0x1","0x0"]}', '{"float":"nan"}', '{"complex":["0x1p+0","nan"]}', '{"UserString":["a"]}'),
    *('{"dict_items":[{"tuple":[1,2]}]}', '{"dict_values":[1]}', '{"bytes":"zz"}', '{"ndarray":["int64",[0,9],[]]}'),
]
STATEMENTS = [
    *("f(0) == 4", "f(0)", "abs(f(0) - 4.0) < 1e-6", "sorted(f(0)) == [1]", "f(0)[0] == 1", "len(f(0)) == 2"),
    *("4 in f(0)", "f(0) is True", "isinstance(f(0), int)", "np.allclose(f(0), [1, 2])", "f(0) + [1] == 4"),
    *("f(0) == 1 or f(1) == 2", "sum(f(0)) == 4", "str(f(0)) == '4'", "set(f(0)) ^ {1} == set()", "-f(0) < 3"),
    *("list(map(list, f(0))) == []", "f(0).startswith('a')", "Counter(f(0)) == Counter('a')", "f(0) ** 2 == 4"),
    *("max(f(0), key=lambda x: -x) == 1", "round(f(0), 2) == 1.5", "'%s' % f(0) == '1'", "[f(0)] * 3 == 4"),
]


@pytest.mark.parametrize("seed", range(20))
def test_any_line_of_a_child_gives_a_result(seed: int) -> None:
    random = Random(seed)
    for statement in STATEMENTS:
        one, other = random.choice(PIECES), random.choice(PIECES)
        value = random.choice([one, one, f"[{one},{other}]", f'{{"tuple":[{one},{other}]}}'])
        line = random.choice(
            [
                f'["value",0,0.0,{value}]',
                f'["value",0,0.0,{value},"value",{other}]',
                f'["error",0,0.0,"error",{other}]',
                f'["value",0,{other},1]',
                f"[{other},0,0.0,{value}]",
            ]
        )
        forger = Forger(f'["loaded"]\n["begin",0]\n{line}\n')
        for rules in (EXACT, EVALPLUS):
            check(forger, "def f(x): pass", statement, rules=rules)
