"""Evaluator inside the sandbox: runs a candidate's code, evaluates calls, and writes their values as JSON lines.

The source of this file is sent into the child, followed by a call of `run_child`; the host imports it only to read
that source, so it must not import the project. It has the code, the set-up and the calls, but no expected values
(except in asserts that run as a whole). A candidate can tamper with it, but can only send other values, as it can by
returning them.

Results are JSON lines, written to a copy of standard output that is made before the candidate runs; what the
candidate prints goes to standard error. The lines, in this order, with `index` that of the call:

    ["loaded"]                                the candidate's code has run
    ["begin", index]                          a call begins
    ["value", index, seconds, value]          its value (encoded as in evaluate/test_runner/values.py)
    ["value", index, seconds, value, kind, wider]
                                              the same with the value (kind: value) or the message (kind: memory or
                                              error) of `wider`, an expression with VALUE_NAME for the value, which is
                                              evaluated if the host will not know all of the value
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
from _signal import ITIMER_PROF, setitimer  # type: ignore[import-not-found] # signal itself imports enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Call = tuple[int, str, str, str | None, str, str, str, float]

MAX_VALUE_CHARACTERS = 200_000
MAX_DIGEST_ITEMS = 2_000_000  # of a larger value that is compared by its digest
MAX_CACHED_TEXTS = 100  # of a digest
MAX_VALUE_DEPTH = 60
MAX_NAME_CHARACTERS = 100  # of a type's name
MAX_ERROR_CHARACTERS = 300
VALUE_NAME = "__value_of_test__"  # of the value of `source` in `wider`
_DEPTH_MESSAGE = f"returned a value nested more than {MAX_VALUE_DEPTH} deep"
_MAX_PLAIN_INT = 10**15
_WRAPPER_CHARACTERS = 25  # at least those of a tag, its brackets and a comma
_COLLECTION_TYPES = {
    "builtins": {"dict_keys", "dict_items", "dict_values"},
    "collections": {"Counter", "OrderedDict", "deque", "UserList", "UserDict", "UserString"},
}
NUMPY_TYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
}
_CANDIDATE_FILENAME = "<candidate>"


class ValueTooLargeError(Exception):
    """A value that is longer or more deeply nested than what is sent."""


class ValueWriter:
    """Encoder of one value. It calls the methods of base types, so that overrides in subclasses have no effect.

    `is_plain` is False once the value contained an object that the host knows only in part: one of another type, or of
    a subclass.
    """

    def __init__(self) -> None:
        self._size = 0
        self.is_plain = True
        self.is_nested_too_deeply = False

    def write(self, value: Any, depth: int = 0) -> str:
        """Return the JSON of `value`. Raises ValueTooLargeError beyond 200,000 characters or 60 levels."""
        if depth > MAX_VALUE_DEPTH:
            self.is_nested_too_deeply = True
            raise ValueTooLargeError(_DEPTH_MESSAGE)
        if value is None or value is True or value is False:
            return self._leaf({None: "null", True: "true", False: "false"}[value])
        kind = type(value)
        writer = _WRITERS_BY_TYPE.get(kind)
        if writer is not None:
            return writer(self, value, depth)
        known = self._known_type(value, kind, depth)
        if known is not None:
            return known
        self.is_plain = False
        writer = next((method for base, method in _WRITERS_BY_TYPE.items() if issubclass(kind, base)), None)
        if writer is None:
            return f'{{"other":{self._text(str(kind.__name__)[:MAX_NAME_CHARACTERS])}}}'
        self._count_characters(_WRAPPER_CHARACTERS)
        return f'{{"subclass":[{self._text(str(kind.__name__)[:MAX_NAME_CHARACTERS])},{writer(self, value, depth)}]}}'

    def _count_characters(self, characters: int) -> None:
        self._size += characters
        if self._size > MAX_VALUE_CHARACTERS:
            raise ValueTooLargeError(f"returned more than {MAX_VALUE_CHARACTERS} characters")

    def _leaf(self, text: str) -> str:
        self._count_characters(len(text) + 1)  # and a comma
        return text

    def _text(self, text: str) -> str:
        self._count_characters(len(text))  # before a copy of a text of any length is made
        self._size -= len(text)
        return self._leaf(quoted(text))

    def _int(self, value: int, _: int) -> str:
        plain = int.__add__(value, 0)
        if -_MAX_PLAIN_INT < plain < _MAX_PLAIN_INT:
            return self._leaf(int.__repr__(plain))
        return f'{{"int":{self._text(hex(plain))}}}'

    def _float(self, value: float, _: int) -> str:
        plain = float.__float__(value)
        if plain != plain or plain in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN, without importing math
            return self._leaf(f'{{"float":"{float.__repr__(plain)}"}}')
        return self._leaf(float.__repr__(plain))

    def _complex(self, value: complex, _: int) -> str:
        plain = complex.__add__(value, 0)
        return self._leaf(f'{{"complex":["{plain.real.hex()}","{plain.imag.hex()}"]}}')

    def _str(self, value: str, _: int) -> str:
        plain = str.__add__(value, "")
        try:
            plain.encode()
        except UnicodeEncodeError:  # a lone surrogate: JSON would join two of them into one character
            return f'{{"str":{self._text(plain.encode("utf-8", "surrogatepass").hex())}}}'
        return self._text(plain)

    def _bytes(self, value: bytes, _: int) -> str:
        return f'{{"bytes":{self._text(bytes.hex(value))}}}'

    def _bytearray(self, value: bytearray, _: int) -> str:
        return f'{{"bytearray":{self._text(bytearray.hex(value))}}}'

    def _list(self, value: list[Any], depth: int) -> str:
        self._count_characters(3)
        return self._items(list.__iter__(value), depth)

    def _tuple(self, value: tuple[Any, ...], depth: int) -> str:
        return self._tagged("tuple", tuple.__iter__(value), depth)

    def _set(self, value: set[Any], depth: int) -> str:
        return self._tagged("set", set.__iter__(value), depth)

    def _frozenset(self, value: frozenset[Any], depth: int) -> str:
        return self._tagged("frozenset", frozenset.__iter__(value), depth)

    def _dict(self, value: dict[Any, Any], depth: int) -> str:
        return self._pairs("dict", dict.items(value), depth)

    def _pairs(self, tag: str, pairs: Iterable[tuple[Any, Any]], depth: int) -> str:
        self._count_characters(_WRAPPER_CHARACTERS)
        texts = [self._items(pair, depth) for pair in pairs]
        return f'{{"{tag}":[{",".join(texts)}]}}'

    def _tagged(self, tag: str, items: Iterable[Any], depth: int) -> str:
        self._count_characters(_WRAPPER_CHARACTERS)
        return f'{{"{tag}":{self._items(items, depth)}}}'

    def _items(self, items: Iterable[Any], depth: int) -> str:
        self._count_characters(2)
        return f"[{','.join([self.write(item, depth + 1) for item in items])}]"

    def _known_type(self, value: Any, kind: type, depth: int) -> str | None:
        """Return the JSON of a value of a type of the library that the host restores; None for another type."""
        module, name = str(kind.__module__), str(kind.__name__)
        if kind is range:
            return self._tagged("range", (value.start, value.stop, value.step), depth)
        if name in _COLLECTION_TYPES.get(module, ()):
            if name in {"Counter", "OrderedDict"}:
                return self._pairs(name, dict.items(value), depth)
            return self._tagged(name, (value.data,) if name.startswith("User") else value, depth)
        if (module, name) == ("fractions", "Fraction"):
            return f'{{"fraction":[{self._text(hex(value.numerator))},{self._text(hex(value.denominator))}]}}'
        if (module, name) == ("decimal", "Decimal"):
            return f'{{"decimal":{self._text(str(value))}}}'
        if module == "numpy" and getattr(getattr(value, "dtype", None), "name", "") in NUMPY_TYPES:
            parts = (list(value.shape), value.ravel().tolist()) if name == "ndarray" else (value.item(),)
            return self._tagged("ndarray" if name == "ndarray" else "numpy", (value.dtype.name, *parts), depth)
        return None


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
    bytearray: ValueWriter._bytearray,
    complex: ValueWriter._complex,
}


def value_digest(value: Any) -> str:
    """Return a digest of a built-in value: two values have the same one if and only if Python's == says equal.

    NaN, which equals nothing, has a different one each time. Raises ValueTooLargeError beyond 60 levels and TypeError
    for a value of any other type, of a subclass too.
    """
    import hashlib

    return hashlib.blake2b(_canonical_bytes(value, 0), digest_size=16).hexdigest()


class _TextBytes(dict):  # type: ignore[type-arg]
    """The canonical bytes of texts; those of the first ones are cached, as large values often repeat few texts."""

    def __missing__(self, text: str) -> bytes:
        data = text.encode("utf-8", "surrogatepass")
        data = b"s%d:" % len(data) + data
        if len(self) < MAX_CACHED_TEXTS:
            self[text] = data
        return data


_texts = _TextBytes()


def _canonical_bytes(value: Any, depth: int) -> bytes:
    """Return bytes that are the same for equal values, and begin no other value's bytes."""
    if depth > MAX_VALUE_DEPTH:
        raise ValueTooLargeError(_DEPTH_MESSAGE)
    kind = type(value)
    if kind is int or kind is bool:
        return b"%x;" % value
    if kind is float:
        if value != value:  # noqa: PLR0124 - NaN
            return b"nan" + os.urandom(16)
        return b"%x;" % int(value) if value.is_integer() else value.hex().encode() + b";"
    if kind is complex:
        real = _canonical_bytes(value.real, depth)
        return b"j" + real + _canonical_bytes(value.imag, depth) if value.imag else real
    if value is None:
        return b"N"
    if kind is str or kind is bytes or kind is bytearray:
        return _texts[value] if kind is str else b"y%d:" % len(value) + bytes(value)
    if kind is list or kind is tuple:
        # The commonest types inline: a value of a million numbers takes a fraction of a second.
        parts = [
            b"%x;" % item
            if type(item) is int
            else _texts[item]
            if type(item) is str
            else _canonical_bytes(item, depth + 1)
            for item in value
        ]
        return (b"[" if kind is list else b"(") + b"".join(parts) + b"."
    if kind is dict:
        value = [_canonical_bytes(key, depth + 1) + _canonical_bytes(item, depth + 1) for key, item in value.items()]
        return b"{" + b"".join(sorted(value)) + b"."
    if kind is set or kind is frozenset:
        return b"<" + b"".join(sorted([_canonical_bytes(item, depth + 1) for item in value])) + b"."
    raise TypeError(kind)


def _write_value(value: Any) -> tuple[str, bool]:
    """Return the JSON of `value`, and whether the host will know all of it.

    A value of more than 200,000 characters becomes {"large": [type, length, digest]}, with "" for the digest of a value
    of another type or of more than MAX_DIGEST_ITEMS items. Raises ValueTooLargeError beyond 60 levels.
    """
    writer = ValueWriter()
    try:
        return writer.write(value), writer.is_plain
    except ValueTooLargeError:
        if writer.is_nested_too_deeply:
            raise
    kind, length, digest = type(value), 0, ""
    if kind in _WRITERS_BY_TYPE:
        length = len(value) if hasattr(value, "__len__") else 0
        try:
            small = length <= MAX_DIGEST_ITEMS or kind in {str, bytes, bytearray}
            digest = value_digest(value) if small else ""
        except TypeError:  # it contains an object of another type
            digest = ""
    return f'{{"large":[{quoted(str(kind.__name__)[:MAX_NAME_CHARACTERS])},{length},"{digest}"]}}', False


def _format_error(error: BaseException) -> str:
    """Return 'NameError: ... (line 3)', with the last line of the candidate's code in the traceback."""
    line, trace = (error.lineno if isinstance(error, SyntaxError) else None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _CANDIDATE_FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        message = (error.msg if isinstance(error, SyntaxError) else str(error))[:MAX_ERROR_CHARACTERS]
    except BaseException:  # noqa: BLE001 - the candidate may have defined the exception
        message = ""
    if isinstance(error, SystemExit):
        return f"ended itself (exit status {message or 0}) before it answered"
    location = f" (line {line})" if isinstance(line, int) else ""
    return f"{type(error).__name__[:MAX_NAME_CHARACTERS]}{': ' if message else ''}{message}{location}"


def _send_record(results: int, *parts: str) -> None:
    data = f"[{','.join(parts)}]\n".encode()
    while data:
        data = data[os.write(results, data) :]


def _describe_error(error: BaseException) -> tuple[str, str]:
    """Return kind and message of an error as JSON."""
    kind = '"memory"' if isinstance(error, MemoryError) else '"error"'
    try:
        message = str(error) if isinstance(error, ValueTooLargeError) else _format_error(error)
    except BaseException:  # noqa: BLE001 - as above
        message = "an error that cannot be shown"
    return kind, quoted(message)


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


def _evaluate_call(
    names: dict[str, Any], setup: str, source: str, token: str | None, wider: str, mode: str
) -> tuple[str, tuple[str, ...]]:
    """Run one call; return the event and the contents of its record."""
    if setup:
        exec(compile(setup, "<set-up of the test>", "exec", dont_inherit=True), names)  # noqa: S102
    if token is not None or mode == "step":
        exec(compile(source, "<test>", "exec", dont_inherit=True), names)  # noqa: S102
        return ('"held"', (quoted(token),)) if token is not None else ('"value"', ("null",))
    if mode == "outcome":
        return '"value"', (_write_value(_run_statements(names, source))[0],)
    value = _evaluate_expression(names, source)
    text, is_plain = _write_value(value)
    if not wider or is_plain:
        return '"value"', (text,)
    names[VALUE_NAME] = value
    try:
        return '"value"', (text, '"value"', _write_value(_evaluate_expression(names, wider))[0])
    except BaseException as error:  # noqa: BLE001 - as below
        return '"value"', (text, *_describe_error(error))
    finally:
        names.pop(VALUE_NAME, None)


def _evaluate_expression(names: dict[str, Any], source: str) -> Any:
    return eval(compile(source, "<test>", "eval", dont_inherit=True), names)  # noqa: S307


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
    """Run `preamble`, `code` and the calls, each of index, set-up, source, token, `wider`, scope, mode and time.

    An assert that runs as a whole has a token. The mode is `value` for an expression, `step` for statements that run
    without a result, `outcome` for statements whose displayed text or exception is the result. A call with a time
    (processor seconds, 0 for none) is measured in processor time, and the kernel ends this process after it.
    """
    results = os.dup(1)
    os.dup2(2, 1)
    clock = time.perf_counter
    started = clock()
    try:
        names = _load_candidate(code, preamble)
    except BaseException as error:  # noqa: BLE001 - any exception is the candidate's result
        _send_record(results, '"error"', "-1", f"{clock() - started:.6f}", *_describe_error(error))
    else:
        _send_record(results, '"loaded"')
        namespaces = _Namespaces(names)
        for at, setup, source, token, wider, scope, mode, cpu_seconds in calls:
            _send_record(results, '"begin"', str(at))
            clock = time.process_time if cpu_seconds else time.perf_counter
            started = clock()
            if cpu_seconds:
                setitimer(ITIMER_PROF, cpu_seconds)
            try:
                event, contents = _evaluate_call(namespaces[scope], setup, source, token, wider, mode)
            except BaseException as error:  # noqa: BLE001 - as above
                event, contents = '"error"', _describe_error(error)
            if cpu_seconds:
                setitimer(ITIMER_PROF, 0)
            _send_record(results, event, str(at), f"{clock() - started:.6f}", *contents)
    os._exit(0)  # without waiting for the candidate's threads and exit handlers
