"""Candidates that try to pass a test without returning its expected value, 8675309421, each by a known trick."""

from __future__ import annotations

CHEATS: dict[str, str] = {
    "an object equal to everything": """
class A:
    __hash__ = None
    def __eq__(self, other): return True
def f(x): return A()
""",
    "a number equal to everything": """
class A(int):
    def __eq__(self, other): return True
    def __repr__(self): return '8675309421'
def f(x): return A(3)
""",
    "a number whose differences are zero": """
class A(int):
    __class__ = int
    def __sub__(self, other): return 0.0
    __rsub__ = __sub__
def f(x): return A(3)
""",
    "a list that contains everything": """
class A(list):
    def __iter__(self): return iter([8675309421])
    def __contains__(self, other): return True
def f(x): return A()
""",
    "a metaclass whose attributes raise": """
class M(type):
    def __getattribute__(cls, name): raise KeyError
class A(metaclass=M): pass
def f(x): return A()
""",
    "patched functions": """
import builtins, math
builtins.abs = lambda x: 0
math.isclose = lambda *a, **k: True
def f(x): return 3
""",
    "patched types": """
import builtins
builtins.isinstance = lambda *a: True
builtins.issubclass = lambda *a: True
def f(x): return 3
""",
    "no assertion errors": """
import builtins
builtins.AssertionError = None
def f(x): assert False
""",
    "frame walk": """
import sys
def f(x):
    frame, secret = sys._getframe(), lambda: str(int('17350618842') // 2)  # not a literal, which the search would find
    while frame:
        for each in [*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts]:
            if secret() in repr(each):
                return int(secret())
        frame = frame.f_back
    return 3
""",
    "search of the heap": """
import gc
def f(x):
    secret = int('17350618842') // 2
    for each in gc.get_objects():
        if isinstance(each, (list, tuple, dict)):
            for one in (list(each.values()) if isinstance(each, dict) else each):
                if isinstance(one, (int, float, str)) and (one == secret or str(secret) in str(one)):
                    return secret
    return 3
""",
    "early exit": """
import os
os._exit(0)
""",
    "early exit with output": """
import os, sys
os.write(1, b'passed' + bytes([10]))
sys.exit(0)
""",
    "a bare exit": "raise SystemExit",
    "exit in the call": """
import os
def f(x): os._exit(0)
""",
    "forged result of an assert": """
import os
LINES = b'["loaded"]~["begin",0]~["held",0,0,"token"]~'.replace(b'~', bytes([10]))
for fd in range(64):
    try: os.write(fd, LINES)
    except OSError: pass
def f(x): return 3
""",
    "two results": """
import os
LINES = b'["value",0,0,3]~["value",0,0,8675309421]~'.replace(b'~', bytes([10]))
def f(x):
    for fd in range(64):
        try: os.write(fd, LINES)
        except OSError: pass
    return 3
""",
    "closed descriptors": """
import os
os.closerange(0, 64)
def f(x): return 3
""",
    "removed harness": """
import sys
for module in list(sys.modules.values()):
    for name in ('Writer', 'serve', '_send'):
        if hasattr(module, name):
            setattr(module, name, None)
def f(x): return 3
""",
    "an error that cannot be printed": """
class E(Exception):
    def __str__(self): raise E
def f(x): raise E
""",
    "output at exit": """
import atexit
atexit.register(lambda: print('ok'))
def f(x): return 3
""",
}
