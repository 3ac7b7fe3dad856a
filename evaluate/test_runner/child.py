"""Evaluator inside the sandbox: runs a candidate's code, evaluates calls, and writes their values as JSON lines.

The source of this file is sent into the child, followed by a call of `run_child`; the host imports it only to read
that source, so it must not import the project. It has the code, the set-up and the calls, but no expected values
(except in asserts that run as a whole). A candidate can tamper with it, but can only send other values, as it can by
returning them.

Results are JSON lines, written to a copy of standard output that is made before the candidate runs; what the
candidate prints goes to standard error. The lines, in this order, with `index` that of the call:

    ["loaded"]                                the candidate's code has run
    ["begin", index]                          a call begins
    ["value", index, seconds, value]          its value (encoded as in evaluate/test_runner/result.py)
    ["held", index, seconds, token]           an assert that ran as a whole raised nothing
    ["error", index, seconds, kind, message]  it raised; index -1: the code itself did; kind is memory or error

It uses the standard library only, and little of it, because every import delays each program.
"""

from __future__ import annotations

import builtins
import io
import os
import sys
import time
from _json import encode_basestring_ascii as quoted  # json itself imports re, which costs 5 ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Call = tuple[int, str, str, str | None, str, str]

MAX_VALUE_CHARACTERS = 200_000
MAX_VALUE_DEPTH = 60
_MAX_PLAIN_INT = 10**15
_CANDIDATE_FILENAME = "<candidate>"


class ValueTooLargeError(Exception):
    """A value larger than any that a test may expect."""


class ValueWriter:
    """Encoder of one value. It calls the methods of base types, so that overrides in subclasses have no effect."""

    def __init__(self) -> None:
        self._size = 0

    def write(self, value: Any, depth: int = 0) -> str:
        """Return the JSON of `value`. Raises ValueTooLargeError beyond 200,000 characters or 60 levels."""
        self._count_characters(1)
        if depth > MAX_VALUE_DEPTH:
            raise ValueTooLargeError(f"returned a value nested more than {MAX_VALUE_DEPTH} deep")
        if value is None or value is True or value is False:
            return {None: "null", True: "true", False: "false"}[value]
        kind = type(value)
        writer = _WRITERS_BY_TYPE.get(kind)
        if writer is None:
            writer = next(
                (method for base, method in _WRITERS_BY_TYPE.items() if issubclass(kind, base)), ValueWriter._other
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
        except UnicodeEncodeError:  # a lone surrogate: JSON would join two of them into one character
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
    """Return 'NameError: ... (line 3)', with the last line of the candidate's code in the traceback."""
    line, trace = (error.lineno if isinstance(error, SyntaxError) else None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _CANDIDATE_FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        message = (error.msg if isinstance(error, SyntaxError) else str(error))[:300]
    except BaseException:  # noqa: BLE001 - the candidate may have defined the exception
        message = ""
    if isinstance(error, SystemExit):
        return f"ended itself (exit status {message or 0}) before it answered"
    location = f" (line {line})" if isinstance(line, int) else ""
    return f"{type(error).__name__}{': ' if message else ''}{message}{location}"


def _send_record(results: int, *parts: str) -> None:
    data = f"[{','.join(parts)}]\n".encode()
    while data:
        data = data[os.write(results, data) :]


def _send_error(results: int, index: int, seconds: str, error: BaseException) -> None:
    kind = '"memory"' if isinstance(error, MemoryError) else '"error"'
    try:
        message = str(error) if isinstance(error, ValueTooLargeError) else _format_error(error)
    except BaseException:  # noqa: BLE001 - as above
        message = "an error that cannot be shown"
    _send_record(results, '"error"', str(index), seconds, kind, quoted(message))


def _load_candidate(code: str, preamble: str) -> dict[str, Any]:
    """Run the candidate as a module and return its names. It is not `__main__`: calls do not test a program run."""
    module = type(sys)("candidate")
    sys.modules["candidate"] = module
    exec(compile(preamble, "<head>", "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - this is the sandbox
    exec(compile(code, _CANDIDATE_FILENAME, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    return module.__dict__


class _CandidateNames(dict):  # type: ignore[type-arg]
    """The built-in names of a test function: the candidate's names, then Python's."""

    def __init__(self, names: dict[str, Any]) -> None:
        super().__init__(__import__=__import__)  # which import statements look up without __missing__
        self._names = names

    def __missing__(self, name: str) -> Any:
        return self._names[name] if name in self._names else vars(builtins)[name]


class _Namespaces:
    """The candidate's namespace, '', and one over it for each test function, so that their local names are not its."""

    def __init__(self, candidate: dict[str, Any]) -> None:
        self._scopes = {"": candidate}

    def __getitem__(self, scope: str) -> dict[str, Any]:
        if scope not in self._scopes:
            self._scopes[scope] = {"__name__": "candidate", "__builtins__": _CandidateNames(self._scopes[""])}
        return self._scopes[scope]


def _evaluate_call(names: dict[str, Any], setup: str, source: str, token: str | None, mode: str) -> tuple[str, str]:
    if setup:
        exec(compile(setup, "<set-up of the test>", "exec", dont_inherit=True), names)  # noqa: S102
    if token is not None or mode == "step":
        exec(compile(source, "<test>", "exec", dont_inherit=True), names)  # noqa: S102
        return ('"held"', quoted(token)) if token is not None else ('"value"', "null")
    if mode == "outcome":
        return '"value"', ValueWriter().write(_run_statements(names, source))
    value = eval(compile(source, "<test>", "eval", dont_inherit=True), names)  # noqa: S307
    return '"value"', ValueWriter().write(value)


def _run_statements(names: dict[str, Any], source: str) -> tuple[str, tuple[str, ...], str, str]:
    """Run the statements as an interactive session does.

    Return what they display, and of the exception that they raise the names of its types, its message and both with
    the candidate's line ('' and () without one).
    """
    try:
        code = compile(source, "<test>", "single", dont_inherit=True)
    except SyntaxError:  # several statements
        code = compile(source, "<test>", "exec", dont_inherit=True)
    stdout, buffer = sys.stdout, io.StringIO()
    sys.stdout, sys.displayhook = buffer, sys.__displayhook__
    try:
        exec(code, names)  # noqa: S102
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001 - the exception may be what the test expects
        try:
            message = str(error)
        except BaseException:  # noqa: BLE001 - the candidate may have defined the exception
            message = ""
        return buffer.getvalue(), tuple(each.__name__ for each in type(error).__mro__), message, _format_error(error)
    finally:
        sys.stdout = stdout
    return buffer.getvalue(), (), "", ""


def run_child(code: str, calls: list[Call], preamble: str) -> None:
    """Run `preamble`, `code` and the calls, each of index, set-up, source, token, scope and mode.

    An assert that runs as a whole has a token. The mode is `value` for an expression, `step` for statements that run
    without a result, `outcome` for statements whose displayed text or exception is the result.
    """
    results = os.dup(1)
    os.dup2(2, 1)
    clock = time.perf_counter
    started = clock()
    try:
        names = _load_candidate(code, preamble)
    except BaseException as error:  # noqa: BLE001 - any exception is the candidate's result
        _send_error(results, -1, f"{clock() - started:.6f}", error)
    else:
        _send_record(results, '"loaded"')
        namespaces = _Namespaces(names)
        for at, setup, source, token, scope, mode in calls:
            _send_record(results, '"begin"', str(at))
            started = clock()
            try:
                event, value = _evaluate_call(namespaces[scope], setup, source, token, mode)
            except BaseException as error:  # noqa: BLE001 - as above
                _send_error(results, at, f"{clock() - started:.6f}", error)
            else:
                _send_record(results, event, str(at), f"{clock() - started:.6f}", value)
    os._exit(0)  # without waiting for the candidate's threads and exit handlers
