"""What runs inside of the sandbox around a candidate: it runs the code, evaluates calls, and writes what they gave.

The text of this file goes into the child, followed by a call of `serve`; the host imports it for that text alone.
It knows the code, the set-up and the calls, no expected value (but for asserts that are run whole). The candidate may
do to it what it likes: all it gains is to send values of its own choice, which is what returning them does.

Results go, one JSON line each, to a copy of standard output that is made before the candidate runs; what the candidate
prints goes to standard error. The lines, in this order, with `at` the index of the call:

    ["loaded"]                              the candidate's code has run
    ["begin", at]                           a call begins
    ["value", at, seconds, value]           it gave this (evaluate/test_runner/result.py says how values are written)
    ["held", at, seconds, token]            an assert that ran whole raised nothing
    ["error", at, seconds, kind, sentence]  it raised; -1 for `at`: the code itself did; kind is memory or error

Standard library only, and as little of it as can be: every import costs each program its time.
"""

from __future__ import annotations

import os
import sys
import time
from _json import encode_basestring_ascii as quoted  # json itself imports re, which costs 5 ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Call = tuple[int, str, str, str | None]

MAX_VALUE_CHARACTERS = 200_000
MAX_VALUE_DEPTH = 60
_MAX_PLAIN_INT = 10**15
_CANDIDATE_FILENAME = "<candidate>"


class ValueTooLargeError(Exception):
    """A value that is too large to be compared with anything that a test may expect."""


class ValueWriter:
    """Writes one value. Base types' own methods are called, so that a subclass has no say in what is written."""

    def __init__(self) -> None:
        self._size = 0

    def write(self, value: Any, depth: int = 0) -> str:
        """The JSON of `value`; ValueTooLargeError beyond 200,000 characters or 60 levels."""
        self._count_characters(1)
        if depth > MAX_VALUE_DEPTH:
            raise ValueTooLargeError(f"returned a value nested more than {MAX_VALUE_DEPTH} deep")
        if value is None or value is True or value is False:
            return {None: "null", True: "true", False: "false"}[value]
        kind = type(value)
        writer = _WRITERS_BY_TYPE.get(kind)
        if writer is None:
            writer = next(
                (each for base, each in _WRITERS_BY_TYPE.items() if issubclass(kind, base)), ValueWriter._other
            )
        return writer(self, value, depth)

    def _count_characters(self, characters: int) -> None:
        self._size += characters
        if self._size > MAX_VALUE_CHARACTERS:
            raise ValueTooLargeError(f"returned more than {MAX_VALUE_CHARACTERS} characters")

    def _text(self, text: str) -> str:
        text = quoted(text)
        self._count_characters(len(text))
        return text

    def _int(self, value: int, _: int) -> str:
        plain = int.__add__(value, 0)
        return (
            int.__repr__(plain) if -_MAX_PLAIN_INT < plain < _MAX_PLAIN_INT else f'{{"int":{self._text(hex(plain))}}}'
        )

    def _float(self, value: float, _: int) -> str:
        plain = float.__float__(value)
        if plain != plain or plain in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN, without importing math
            return f'{{"float":"{float.__repr__(plain)}"}}'
        return float.__repr__(plain)

    def _complex(self, value: complex, _: int) -> str:
        plain = complex.__add__(value, 0)
        return f'{{"complex":["{plain.real.hex()}","{plain.imag.hex()}"]}}'

    def _str(self, value: str, _: int) -> str:
        plain = str.__add__(value, "")
        try:
            plain.encode()
        except UnicodeEncodeError:  # a lone surrogate: JSON would join two of them to one character
            return f'{{"str":{self._text(plain.encode("utf-8", "surrogatepass").hex())}}}'
        return self._text(plain)

    def _bytes(self, value: bytes | bytearray, _: int) -> str:
        plain = bytes.__add__(value, b"") if isinstance(value, bytes) else bytes(bytearray.__add__(value, b""))
        return f'{{"bytes":{self._text(plain.hex())}}}'

    def _list(self, value: list[Any], depth: int) -> str:
        return self._items(list.__iter__(value), depth)

    def _tuple(self, value: tuple[Any, ...], depth: int) -> str:
        return f'{{"tuple":{self._items(tuple.__iter__(value), depth)}}}'

    def _set(self, value: set[Any], depth: int) -> str:
        return f'{{"set":{self._items(set.__iter__(value), depth)}}}'

    def _frozenset(self, value: frozenset[Any], depth: int) -> str:
        return f'{{"frozenset":{self._items(frozenset.__iter__(value), depth)}}}'

    def _dict(self, value: dict[Any, Any], depth: int) -> str:
        pairs = (f"[{self.write(key, depth + 1)},{self.write(item, depth + 1)}]" for key, item in dict.items(value))
        return f'{{"dict":[{",".join(pairs)}]}}'

    def _items(self, items: Iterable[Any], depth: int) -> str:
        return f"[{','.join([self.write(item, depth + 1) for item in items])}]"

    def _other(self, value: Any, depth: int) -> str:
        kind = type(value)
        module, name = str(kind.__module__), str(kind.__name__)
        if module.partition(".")[0] == "numpy" and getattr(value, "shape", None) == ():
            return self.write(value.item(), depth + 1)
        if (module, name) == ("fractions", "Fraction"):
            return f'{{"fraction":[{self._text(hex(value.numerator))},{self._text(hex(value.denominator))}]}}'
        if (module, name) == ("decimal", "Decimal"):
            return f'{{"decimal":{self._text(str(value))}}}'
        if isinstance(value, type({}.keys())):  # equal to a set of the same keys
            return f'{{"set":{self._items(value, depth)}}}'
        return f'{{"other":{self._text(name)}}}'


_WRITERS_BY_TYPE: dict[type, Callable[[ValueWriter, Any, int], str]] = {
    int: ValueWriter._int,
    str: ValueWriter._str,
    float: ValueWriter._float,
    list: ValueWriter._list,
    tuple: ValueWriter._tuple,
    dict: ValueWriter._dict,
    set: ValueWriter._set,
    frozenset: ValueWriter._frozenset,
    bytes: ValueWriter._bytes,
    bytearray: ValueWriter._bytes,
    complex: ValueWriter._complex,
}


def _format_error(error: BaseException) -> str:
    """'NameError: ... (line 3)': the last line of the candidate's code that the error passed through."""
    line, trace = (error.lineno if isinstance(error, SyntaxError) else None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _CANDIDATE_FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        said = (error.msg if isinstance(error, SyntaxError) else str(error))[:300]
    except BaseException:  # noqa: BLE001 - the error may be of the candidate's own making
        said = ""
    if isinstance(error, SystemExit):
        return f"ended itself (exit status {said or 0}) before it answered"
    where = f" (line {line})" if isinstance(line, int) else ""
    return f"{type(error).__name__}{': ' if said else ''}{said}{where}"


def _send_record(results: int, *parts: str) -> None:
    data = f"[{','.join(parts)}]\n".encode()
    while data:
        data = data[os.write(results, data) :]


def _send_error(results: int, index: int, seconds: str, error: BaseException) -> None:
    kind = '"memory"' if isinstance(error, MemoryError) else '"error"'
    try:
        sentence = str(error) if isinstance(error, ValueTooLargeError) else _format_error(error)
    except BaseException:  # noqa: BLE001 - as above
        sentence = "an error that cannot be shown"
    _send_record(results, '"error"', str(index), seconds, kind, quoted(sentence))


def _load_candidate(code: str, preamble: str) -> dict[str, Any]:
    """The names of the candidate's module. It is no `__main__`: what it does as a program is not what calls test."""
    module = type(sys)("candidate")
    sys.modules["candidate"] = module
    exec(compile(preamble, "<head>", "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - this is the sandbox
    exec(compile(code, _CANDIDATE_FILENAME, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    return module.__dict__


def _evaluate_call(names: dict[str, Any], setup: str, source: str, token: str | None) -> tuple[str, str]:
    if setup:
        exec(compile(setup, "<set-up of the test>", "exec", dont_inherit=True), names)  # noqa: S102
    if token is not None:
        exec(compile(source, "<test>", "exec", dont_inherit=True), names)  # noqa: S102
        return '"held"', quoted(token)
    value = eval(compile(source, "<test>", "eval", dont_inherit=True), names)  # noqa: S307
    return '"value"', ValueWriter().write(value)


def run_child(code: str, calls: list[Call], preamble: str) -> None:
    """Runs `head`, `code` and each of `calls`: its index, set-up and source, and a token for an assert run whole."""
    results = os.dup(1)
    os.dup2(2, 1)
    clock = time.perf_counter
    started = clock()
    try:
        names = _load_candidate(code, preamble)
    except BaseException as error:  # noqa: BLE001 - whatever the candidate raises is its result
        _send_error(results, -1, f"{clock() - started:.6f}", error)
    else:
        _send_record(results, '"loaded"')
        for at, setup, source, token in calls:
            _send_record(results, '"begin"', str(at))
            started = clock()
            try:
                said, value = _evaluate_call(names, setup, source, token)
            except BaseException as error:  # noqa: BLE001 - as above
                _send_error(results, at, f"{clock() - started:.6f}", error)
            else:
                _send_record(results, said, str(at), f"{clock() - started:.6f}", value)
    os._exit(0)  # threads of the candidate, or what it registered to run at exit, need not be waited for
