"""Inputs of EvalPlus's rows: the types that JSON lacks, and the source of a call's arguments.

Which arguments of which tasks of MBPP+ are tuples, sets or complex numbers is EvalPlus's own knowledge (the function
`mbpp_deserialize_inputs` of its data/mbpp.py, release 0.3.1); the rows do not say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

_Restore = Callable[[list[Any]], list[Any]]


def restore_types(task: int, arguments: list[Any]) -> list[Any]:
    """Return the arguments of an input of the MBPP task of that number with the types that it expects.

    Raises TypeError, ValueError, IndexError or AttributeError for arguments that the task cannot have.
    """
    restore = _RESTORE_BY_TASK.get(task)
    return restore(arguments) if restore else arguments


def argument_source(arguments: list[Any]) -> str:
    """Return Python's source of the arguments of a call, without names; raises ValueError for too long numbers."""
    return ", ".join(map(_source, arguments))


def _source(value: Any) -> str:
    match value:
        case float() if not math.isfinite(value):
            if math.isnan(value):
                return "(1e999-1e999)"
            return "1e999" if value > 0 else "-1e999"
        case list():
            return f"[{', '.join(map(_source, value))}]"
        case tuple():
            return f"({', '.join(map(_source, value))}{',' if len(value) == 1 else ''})"
        case set() if value:
            return f"{{{', '.join(sorted(map(_source, value)))}}}"
        case dict():
            return f"{{{', '.join(f'{_source(key)}: {_source(item)}' for key, item in value.items())}}}"
    return repr(value)


def _each_tuple(arguments: list[Any]) -> list[Any]:
    return [tuple(each) for each in arguments]


def _each_list_of_tuples(arguments: list[Any]) -> list[Any]:
    return [[tuple(each) for each in argument] for argument in arguments]


def _each_tuple_of_tuples(arguments: list[Any]) -> list[Any]:
    return [tuple(tuple(each) for each in argument) for argument in arguments]


def _first_tuple(arguments: list[Any]) -> list[Any]:
    return [tuple(arguments[0]), *arguments[1:]]


def _second_tuple(arguments: list[Any]) -> list[Any]:
    return [arguments[0], tuple(arguments[1])]


def _first_list_of_tuples(arguments: list[Any]) -> list[Any]:
    return [[tuple(each) for each in arguments[0]], arguments[1]]


def _first_tuple_with_tuples(arguments: list[Any]) -> list[Any]:
    return [tuple(tuple(each) if isinstance(each, list) else each for each in arguments[0])]


def _first_dict_of_tuples(arguments: list[Any]) -> list[Any]:
    return [{key: tuple(each) for key, each in arguments[0].items()}, *arguments[1:]]


def _first_list_of_sets(arguments: list[Any]) -> list[Any]:
    return [[set(each) if isinstance(each, list) and each else {} for each in arguments[0]]]


def _float_and_complex(arguments: list[Any]) -> list[Any]:
    return [float(arguments[0]), complex(arguments[1])]


def _one_complex(arguments: list[Any]) -> list[Any]:
    return [complex(arguments[0])]


def _all_tuples(arguments: list[Any]) -> list[Any]:
    return [_deep_tuple(each) for each in arguments]


def _deep_tuple(value: Any) -> Any:
    return tuple(map(_deep_tuple, value)) if isinstance(value, list) else value


_TASKS: tuple[tuple[_Restore, tuple[int, ...]], ...] = (
    (
        _each_tuple,
        (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809),
    ),
    (_each_list_of_tuples, (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780)),
    (_each_tuple_of_tuples, (259, 401, 445)),
    (_first_list_of_tuples, (75, 413, 444, 753)),
    (_first_tuple, (250, 307, 405, 446, 617, 720, 763, 808)),
    (_second_tuple, (106, 750)),
    (_first_tuple_with_tuples, (278,)),
    (_first_dict_of_tuples, (722,)),
    (_first_list_of_sets, (115,)),
    (_float_and_complex, (124,)),
    (_one_complex, (252,)),
    (_all_tuples, (580, 615, 791)),
)
_RESTORE_BY_TASK: dict[int, _Restore] = {task: restore for restore, tasks in _TASKS for task in tasks}
