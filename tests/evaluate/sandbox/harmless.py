"""Harmless programs that must succeed in the sandbox, with their output."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HarmlessProgram:
    name: str
    code: str
    stdout: str
    stdin: str = ""


HARMLESS = (
    HarmlessProgram(
        "deep recursion in a thread with a stack of 64 MB",
        """
import sys, threading
sys.setrecursionlimit(1 << 20)
threading.stack_size(64 << 20)

def depth(n):
    return 0 if n == 0 else 1 + max([depth(n - 1)])

thread = threading.Thread(target=lambda: print(depth(40000)))
thread.start()
thread.join()
""",
        "40000\n",
    ),
    HarmlessProgram(
        "deep recursion",
        "import sys\nsys.setrecursionlimit(20000)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(15000))",
        "15000\n",
    ),
    HarmlessProgram(
        "stdin and stdout as bytes",
        "import sys\ndata = sys.stdin.buffer.read().split()\nsys.stdout.buffer.write(b' '.join(data[::-1]) + b'\\n')",
        "3 2 1\n",
        "1 2 3\n",
    ),
    HarmlessProgram(
        "os.read of stdin", "import os\nprint(sum(map(int, os.read(0, 10 ** 6).split())))", "6\n", "1 2 3\n"
    ),
    HarmlessProgram(
        "only as __main__", "def main():\n    print('ran')\n\nif __name__ == '__main__':\n    main()", "ran\n"
    ),
    HarmlessProgram("exit()", "print('before')\nimport sys\nsys.exit()\nprint('after')", "before\n"),
    HarmlessProgram("quit from deep inside", "def f():\n    raise SystemExit(0)\nprint(1)\nf()", "1\n"),
    HarmlessProgram("exit and quit by name", "print(1)\nif input() == 'q':\n    exit()\nquit()", "1\n", "q\n"),
    HarmlessProgram(
        "input until the end",
        """
total = 0
while True:
    try:
        total += int(input("? "))
    except EOFError:
        break
print(total)
""",
        "? ? ? ? 10\n",
        "1\n2\n7",
    ),
    HarmlessProgram(
        "lines of stdin",
        "import sys\nfor line in sys.stdin:\n    print(line.rstrip()[::-1])",
        "cba\nfed\n",
        "abc\ndef\n",
    ),
    HarmlessProgram("large input", "import sys\nprint(len(sys.stdin.read().split()))", "300000\n", "12345 " * 300_000),
    HarmlessProgram("open(0)", "print(open(0).read().upper())", "ABC\n", "abc"),
    HarmlessProgram("unicode", "s = input()\nprint(s[::-1], 'ü变🙂', len(s))", "变ü ü变🙂 2\n", "ü变\n"),
    HarmlessProgram(
        "large integers", "print(len(str(3 ** 8000)), pow(3, 10 ** 18, 17), 2 ** 70)", "3817 1 1180591620717411303424\n"
    ),
    HarmlessProgram(
        "the library",
        """
from __future__ import annotations
import bisect, collections, copy, datetime, functools, heapq, itertools, json, math, operator
import random, re, statistics, string
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from decimal import Decimal, getcontext
from enum import Enum
from fractions import Fraction
from typing import NamedTuple, Optional

@dataclass(order=True)
class Item:
    size: int
    tags: list[str] = field(default_factory=list)

class Color(Enum):
    RED = 1

class Pair(NamedTuple):
    a: int
    b: Optional[int] = None

heap = [Item(3), Item(1), Item(2)]
heapq.heapify(heap)
getcontext().prec = 30
print(heapq.heappop(heap), Color.RED.name, Pair(1), Decimal(1) / 7, Fraction(1, 3) + 1, Counter("aab").most_common(1))
print(re.sub(r"(\\d+)", lambda m: str(int(m[1]) * 2), "a1b22"), list(itertools.permutations("ab")), math.gcd(12, 18))
print(json.dumps({"b": [1, None]}), datetime.date(2024, 2, 29).isoweekday(), functools.reduce(operator.mul, [2, 3]))
""",
        "Item(size=1, tags=[]) RED Pair(a=1, b=None) 0.142857142857142857142857142857 4/3 [('a', 2)]\n"
        "a2b44 [('a', 'b'), ('b', 'a')] 6\n"
        '{"b": [1, null]} 4 6\n',
    ),
    HarmlessProgram(
        "numpy",
        "import numpy as np\na = np.arange(12.).reshape(3, 4)\nprint((a @ a.T).trace(), np.linalg.inv(np.eye(2)))",
        "506.0 [[1. 0.]\n [0. 1.]]\n",
    ),
    HarmlessProgram(
        "files in its folder",
        """
import os, pathlib, shutil, tempfile
pathlib.Path("notes.txt").write_text("saved")
os.makedirs("a/b", exist_ok=True)
shutil.copyfile("notes.txt", "a/b/copy.txt")
os.rename("a/b/copy.txt", "a/moved.txt")
with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as file:
    named = tempfile.NamedTemporaryFile()
    file.write("x")
    file.seek(0)
    print(open("a/moved.txt").read(), file.read(), os.path.dirname(named.name) == os.getcwd(), os.listdir(folder))
named.close()
print(sorted(os.listdir(".")))
""",
        "saved x True []\n['a', 'notes.txt']\n",
    ),
    HarmlessProgram(
        "threads and queues",
        """
import queue
from concurrent.futures import ThreadPoolExecutor
waiting = queue.Queue()
with ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(lambda n: waiting.put(n) or n * n, range(100))), waiting.qsize())
""",
        "328350 100\n",
    ),
    HarmlessProgram(
        "asyncio",
        """
import asyncio

async def main():
    await asyncio.sleep(0.01)
    return await asyncio.gather(*(asyncio.to_thread(pow, n, 2) for n in range(3)))

print(asyncio.run(main()))
""",
        "[0, 1, 4]\n",
    ),
    HarmlessProgram(
        "signals to itself",
        """
import os, signal
signal.signal(signal.SIGALRM, lambda *_: print("rang"))
signal.signal(signal.SIGUSR1, lambda *_: print("knocked"))
signal.setitimer(signal.ITIMER_REAL, 0.05)
signal.pause()
os.kill(os.getpid(), signal.SIGUSR1)
""",
        "rang\nknocked\n",
    ),
    HarmlessProgram(
        "what happens at the end",
        "import atexit\natexit.register(print, 'last')\nprint('first', end='')",
        "firstlast\n",
    ),
    HarmlessProgram(
        "errors that are caught",
        """
try:
    open("/etc/shadow")
except OSError:
    print("no")
try:
    [0] * (1 << 60)
except MemoryError:
    print("none")
""",
        "no\nnone\n",
    ),
    HarmlessProgram(
        "a class pickled", "import pickle\nclass A:\n    x = 1\nprint(pickle.loads(pickle.dumps(A())).x)", "1\n"
    ),
)
