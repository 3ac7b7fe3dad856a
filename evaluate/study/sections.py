"""One part of a YAML file, read strictly: every key is known, every value of its kind, every fault says its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from errors import PromptOrTuneError, unknown_name_error

_T = TypeVar("_T")


class ConfigSection:
    """A mapping at a place of a file, such as `study.yaml: models.CodeLlama-7B`. What is read is checked at once."""

    def __init__(self, values: Any, path: str, keys: Collection[str] | None = None) -> None:
        if not isinstance(values, Mapping):
            raise PromptOrTuneError(f"{path} must hold `name: value` lines, and is {_type_label(values)}.")
        self.path = path
        self._values = {str(name): value for name, value in values.items()}
        if keys is not None:
            self.check_keys(keys)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def check_keys(self, keys: Collection[str]) -> None:
        """PromptOrTuneError, with the nearest key, for one that is not among these."""
        for name in self._values:
            if name not in keys:
                raise PromptOrTuneError(f"{self.path}: {unknown_name_error('key', name, keys)}")

    def key_names(self) -> list[str]:
        """The keys, in the order of the file."""
        return list(self._values)

    def get_section(self, name: str, keys: Collection[str] | None = None) -> ConfigSection:
        """The section under `name`; an empty one where there is none."""
        value = self._values.get(name)
        return ConfigSection({} if value is None else value, f"{self.path}: {name}", keys)

    def get_str(self, name: str, default: str | None = None, choices: Iterable[str] | None = None) -> str:
        """A text, one of `choices` where they are given."""
        value = self._get(name, default)
        if isinstance(value, bool | Mapping | list) or value is None:
            raise self.error(name, f"must be text, and is {_type_label(value)}")
        known = None if choices is None else list(choices)
        if known is not None and str(value) not in known:
            raise PromptOrTuneError(f"{self.path}: {unknown_name_error(name, str(value), known)}")
        return str(value)

    def get_bool(self, name: str, default: bool) -> bool:
        """A value that is true or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, and is {_type_label(value)}")
        return value

    def get_int(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number of at least `least`."""
        return self._check_int(self._get(name, default), name, minimum)

    def get_int_or_all(self, name: str) -> int | None:
        """A whole number, or None for "all" and for nothing."""
        value = self._values.get(name)
        return None if value in (None, "all") else self._check_int(value, name, 1)

    def get_positive_float(self, name: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self._get(name, default)
        try:
            number = float(value) if not isinstance(value, bool) else 0.0
        except (TypeError, ValueError):
            number = 0.0
        if not 0 < number < float("inf"):
            raise self.error(name, f"must be a number above 0, and is {value!r}")
        return number

    def get_choices(
        self, name: str, choices: Iterable[str] | None = None, default: Iterable[str] = ()
    ) -> tuple[str, ...]:
        """A list of different names, each one of `choices` where they are given."""
        known = None if choices is None else list(choices)

        def checked(value: Any) -> str:
            if isinstance(value, bool | Mapping | list) or value is None:
                raise self.error(name, f"must hold names, and one of them is {_type_label(value)}")
            if known is not None and str(value) not in known:
                raise PromptOrTuneError(f"{self.path}: {unknown_name_error(name.rstrip('s'), str(value), known)}")
            return str(value)

        return self._get_list(name, checked, default)

    def get_ints(self, name: str, maximum: int) -> tuple[int, ...]:
        """A list of different whole numbers from 1 to `most`; empty where there is none."""

        def checked(value: Any) -> int:
            number = self._check_int(value, name, 1)
            if number > maximum:
                raise self.error(name, f"may hold numbers up to {maximum}, and holds {number}")
            return number

        return self._get_list(name, checked, ())

    def get_int_pairs(self, name: str) -> tuple[tuple[int, int], ...]:
        """A list of pairs of whole numbers, written [r, alpha]."""

        def checked(value: Any) -> tuple[int, int]:
            if not isinstance(value, list) or len(value) != 2:
                raise self.error(name, f"must hold pairs such as [8, 16], and one of them is {value!r}")
            return self._check_int(value[0], name, 1), self._check_int(value[1], name, 1)

        return self._get_list(name, checked, ())

    def get_sections(self, name: str) -> list[ConfigSection]:
        """The sections of a list."""
        value = self._values.get(name) or []
        if not isinstance(value, list):
            raise self.error(name, f"must be a list, and is {_type_label(value)}")
        return [
            ConfigSection(each, f"{self.path}: {name}, entry {number}") for number, each in enumerate(value, start=1)
        ]

    def error(self, name: str, what: str) -> PromptOrTuneError:
        """The error for a value that cannot be."""
        return PromptOrTuneError(f"{self.path}: {name} {what}.")

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name, default)
        if value is None:
            raise self.error(name, "is missing")
        return value

    def _check_int(self, value: Any, name: str, minimum: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(name, f"must be a whole number of at least {minimum}, and is {value!r}")
        return value

    def _get_list(self, name: str, check: Callable[[Any], _T], default: Iterable[_T]) -> tuple[_T, ...]:
        if name not in self._values or self._values[name] is None:
            return tuple(default)
        value = self._values[name]
        if not isinstance(value, list):
            raise self.error(name, f"must be a list, written [a, b], and is {_type_label(value)}")
        items = [check(each) for each in value]
        twice = next((each for at, each in enumerate(items) if each in items[:at]), None)
        if twice is not None:
            raise self.error(name, f"names {twice!r} twice")
        return tuple(items)


def read_strict_yaml(path: Path) -> Any:
    """What a YAML file holds; PromptOrTuneError, with the line, where it is none or names a key twice."""
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
        raise PromptOrTuneError(f"{path} cannot be read ({fault.strerror or fault}).") from fault
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(fault, "problem", None) or "it is not YAML"
        raise PromptOrTuneError(f"{path}{where}: {problem}; write one `name: value` a line.") from fault


def _type_label(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a group of names"
    return "a list" if isinstance(value, list) else repr(value)
