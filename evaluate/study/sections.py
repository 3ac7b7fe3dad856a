"""One part of a YAML file, read strictly: every key is known, every value of its kind, every fault says its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from errors import PeftArenaError, unknown

_T = TypeVar("_T")


class Section:
    """A mapping at a place of a file, such as `study.yaml: models.CodeLlama-7B`. What is read is checked at once."""

    def __init__(self, values: Any, place: str, keys: Collection[str] | None = None) -> None:
        if not isinstance(values, Mapping):
            raise PeftArenaError(f"{place} must hold `name: value` lines, and is {_kind(values)}.")
        self.place = place
        self._values = {str(name): value for name, value in values.items()}
        if keys is not None:
            self.allow(keys)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def allow(self, keys: Collection[str]) -> None:
        """PeftArenaError, with the nearest key, for one that is not among these."""
        for name in self._values:
            if name not in keys:
                raise PeftArenaError(f"{self.place}: {unknown('key', name, keys)}")

    def names(self) -> list[str]:
        """The keys, in the order of the file."""
        return list(self._values)

    def section(self, name: str, keys: Collection[str] | None = None) -> Section:
        """The section under `name`; an empty one where there is none."""
        value = self._values.get(name)
        return Section({} if value is None else value, f"{self.place}: {name}", keys)

    def text(self, name: str, default: str | None = None, choices: Iterable[str] | None = None) -> str:
        """A text, one of `choices` where they are given."""
        value = self._value(name, default)
        if isinstance(value, bool | Mapping | list) or value is None:
            raise self.fault(name, f"must be text, and is {_kind(value)}")
        known = None if choices is None else list(choices)
        if known is not None and str(value) not in known:
            raise PeftArenaError(f"{self.place}: {unknown(name, str(value), known)}")
        return str(value)

    def truth(self, name: str, default: bool) -> bool:
        """A value that is true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.fault(name, f"must be true or false, and is {_kind(value)}")
        return value

    def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        return self._whole(self._value(name, default), name, least)

    def whole_or_all(self, name: str) -> int | None:
        """A whole number, or None for "all" and for nothing."""
        value = self._values.get(name)
        return None if value in (None, "all") else self._whole(value, name, 1)

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self._value(name, default)
        try:
            number = float(value) if not isinstance(value, bool) else 0.0
        except (TypeError, ValueError):
            number = 0.0
        if not 0 < number < float("inf"):
            raise self.fault(name, f"must be a number above 0, and is {value!r}")
        return number

    def words(self, name: str, choices: Iterable[str] | None = None, default: Iterable[str] = ()) -> tuple[str, ...]:
        """A list of different names, each one of `choices` where they are given."""
        known = None if choices is None else list(choices)

        def checked(value: Any) -> str:
            if isinstance(value, bool | Mapping | list) or value is None:
                raise self.fault(name, f"must hold names, and one of them is {_kind(value)}")
            if known is not None and str(value) not in known:
                raise PeftArenaError(f"{self.place}: {unknown(name.rstrip('s'), str(value), known)}")
            return str(value)

        return self._list(name, checked, default)

    def wholes(self, name: str, most: int) -> tuple[int, ...]:
        """A list of different whole numbers from 1 to `most`; empty where there is none."""

        def checked(value: Any) -> int:
            number = self._whole(value, name, 1)
            if number > most:
                raise self.fault(name, f"may hold numbers up to {most}, and holds {number}")
            return number

        return self._list(name, checked, ())

    def pairs(self, name: str) -> tuple[tuple[int, int], ...]:
        """A list of pairs of whole numbers, written [r, alpha]."""

        def checked(value: Any) -> tuple[int, int]:
            if not isinstance(value, list) or len(value) != 2:
                raise self.fault(name, f"must hold pairs such as [8, 16], and one of them is {value!r}")
            return self._whole(value[0], name, 1), self._whole(value[1], name, 1)

        return self._list(name, checked, ())

    def entries(self, name: str) -> list[Section]:
        """The sections of a list."""
        value = self._values.get(name) or []
        if not isinstance(value, list):
            raise self.fault(name, f"must be a list, and is {_kind(value)}")
        return [Section(each, f"{self.place}: {name}, entry {number}") for number, each in enumerate(value, start=1)]

    def fault(self, name: str, what: str) -> PeftArenaError:
        """The error for a value that cannot be."""
        return PeftArenaError(f"{self.place}: {name} {what}.")

    def _value(self, name: str, default: Any) -> Any:
        value = self._values.get(name, default)
        if value is None:
            raise self.fault(name, "is missing")
        return value

    def _whole(self, value: Any, name: str, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.fault(name, f"must be a whole number of at least {least}, and is {value!r}")
        return value

    def _list(self, name: str, checked: Callable[[Any], _T], default: Iterable[_T]) -> tuple[_T, ...]:
        if name not in self._values or self._values[name] is None:
            return tuple(default)
        value = self._values[name]
        if not isinstance(value, list):
            raise self.fault(name, f"must be a list, written [a, b], and is {_kind(value)}")
        items = [checked(each) for each in value]
        twice = next((each for at, each in enumerate(items) if each in items[:at]), None)
        if twice is not None:
            raise self.fault(name, f"names {twice!r} twice")
        return tuple(items)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; PeftArenaError, with the line, where it is none or names a key twice."""
    import yaml

    class Strict(yaml.SafeLoader):
        """YAML keeps the last of two equal keys; here the second one is a fault."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"'{key.value}' stands twice", problem_mark=key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Strict)  # noqa: S506 - Strict is a SafeLoader
    except OSError as fault:
        raise PeftArenaError(f"{path} cannot be read ({fault.strerror or fault}).") from fault
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(fault, "problem", None) or "it is not YAML"
        raise PeftArenaError(f"{path}{where}: {problem}; write one `name: value` a line.") from fault


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a group of names"
    return "a list" if isinstance(value, list) else repr(value)
