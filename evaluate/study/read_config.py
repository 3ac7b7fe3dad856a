"""YAML -> StudyConfig (pydantic).

From a YAML file to a StudyConfig. Whatever is wrong in it is one sentence with its place, before anything runs.

One part of a YAML file, read strictly: every key is known, every value of its kind, every fault says its place.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from errors import PromptOrTuneError, unknown_name_error
from evaluate.study.config import (
    KNOWN_ARCHITECTURES,
    MODEL_FAMILIES,
    QUANTIZATIONS,
    RESEARCH_QUESTIONS,
    TECHNIQUE_QUANTIZATIONS,
    Architecture,
    HardwareSpec,
    ResearchQuestion,
    SensitivityGrid,
    StudyConfig,
    StudyDataset,
    StudyModel,
    TrainingSpec,
)
from evaluate.study.jobs import study_jobs
from evaluate.study.published import published_models
from tasks.datasets.registry import DATASETS
from tasks.methods import MAX_EXAMPLES

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
    except OSError as error:
        raise PromptOrTuneError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise PromptOrTuneError(f"{path}{where}: {problem}; write one `name: value` a line.") from error


def _type_label(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a group of names"
    return "a list" if isinstance(value, list) else repr(value)


CONFIGS_DIR = Path(__file__).parent / "configs"
_TOP_KEYS = {
    "models",
    "data",
    "techniques",
    "hardware",
    "training",
    "sensitivity",
    "seed",
    "embedder",
    "device",
    *RESEARCH_QUESTIONS,
}
_MODEL_KEYS = {"base", "quantization", "techniques", "beside", "trust_remote_code", "architecture"}
_DATASET_KEYS = {"problems", "mode", "candidates", "max_new_tokens", "batch", "temperature", "top_p", "icl", "rag"}
_QUESTION_KEYS = {"models", "data", "techniques", "together"}
_HARDWARE_RATES = ("memory_gb", "gigabytes_per_second", "teraflops", "step_milliseconds")
_ARCHITECTURE_SIZES = ("hidden", "intermediate", "layers", "heads", "key_value_heads", "vocabulary")


def resolve_config_path(name: str) -> Path:
    """A file, or the one of that name among those that come along (`default`, `paper`)."""
    path = Path(name)
    known = {each.stem: each for each in CONFIGS_DIR.glob("*.yaml")}
    if name in known and not path.exists():
        return known[name]
    if not path.is_file():
        hint = "" if path.suffix else f" {unknown_name_error('study', name, known)}"
        raise PromptOrTuneError(
            f"There is no file {name}: name a YAML file, or one of {', '.join(sorted(known))}.{hint}"
        )
    return path


def read_study_config(path: Path) -> StudyConfig:
    """The study in a YAML file; PromptOrTuneError in one sentence for anything that is not as it must be."""
    top = ConfigSection(read_strict_yaml(path), path.name, _TOP_KEYS)
    techniques = _read_techniques(top.get_section("techniques", TECHNIQUE_QUANTIZATIONS))
    models = tuple(
        _read_model(top.get_section("models"), name, tuple(techniques))
        for name in top.get_section("models").key_names()
    )
    if not models:
        raise PromptOrTuneError(f"{path.name}: models is missing: name at least one.")
    data = tuple(_read_dataset(top.get_section("data", DATASETS), name) for name in top.get_section("data").key_names())
    if not data:
        raise PromptOrTuneError(f"{path.name}: data is missing: name at least one of {', '.join(DATASETS)}.")
    names, sets = [model.name for model in models], [each.name for each in data]
    questions = {
        rq: _read_question(top.get_section(rq, _QUESTION_KEYS), names, sets, techniques)
        for rq in RESEARCH_QUESTIONS
        if rq in top
    }
    config = StudyConfig(
        name=path.name,
        models=models,
        data=data,
        techniques=techniques,
        questions=questions,
        hardware=_read_hardware(top.get_section("hardware", {"name", *_HARDWARE_RATES})),
        training=_read_training(top.get_section("training", {"preset", "name", "known", "epochs"}), sets),
        sensitivity=_read_sensitivity(top, names, sets) if "sensitivity" in top else None,
        seed=top.get_int("seed", 42, minimum=0),
        embedder=top.get_str("embedder", "embedded"),
        device=top.get_str("device", "auto", ("auto", "cpu", "cuda")),
    )
    _check_names(config)
    for each in data:
        _check_decoding(each, config.seed, path.name)
    return config


def _read_techniques(section: ConfigSection) -> dict[str, str]:
    found = {}
    for name in section.key_names():
        quantization = section.get_str(name, choices=QUANTIZATIONS)
        if quantization not in TECHNIQUE_QUANTIZATIONS[name]:
            allowed = " or ".join(TECHNIQUE_QUANTIZATIONS[name])
            raise section.error(name, f"trains on a base with quantization {allowed}, not {quantization}")
        found[name] = quantization
    return found


def _read_model(parent: ConfigSection, name: str, techniques: tuple[str, ...]) -> StudyModel:
    section = parent.get_section(name, _MODEL_KEYS)
    base, own_code = section.get_str("base"), section.get_bool("trust_remote_code", default=False)
    theirs = published_models()
    return StudyModel(
        name=name,
        base=base,
        quantization=section.get_str("quantization", "nf4", QUANTIZATIONS),
        techniques=section.get_choices("techniques", techniques, techniques),
        beside=section.get_str("beside", name if name in theirs else "-", ["-", *theirs]).strip("-"),
        trust_remote_code=own_code,
        architecture=_read_architecture(section) if "architecture" in section else KNOWN_ARCHITECTURES.get(name),
    )


def _read_architecture(parent: ConfigSection) -> Architecture:
    section = parent.get_section("architecture", {"family", *_ARCHITECTURE_SIZES, "head_dim", "encoder_layers", "tied"})
    family = section.get_str("family", choices=MODEL_FAMILIES)
    sizes = {name: section.get_int(name) for name in _ARCHITECTURE_SIZES}
    return Architecture(
        family=next(each for each in MODEL_FAMILIES if each == family),
        **sizes,
        head_dim=section.get_int("head_dim", 0, minimum=0),
        encoder_layers=section.get_int("encoder_layers", 0, minimum=0),
        tied=section.get_bool("tied", default=False),
    )


def _read_dataset(parent: ConfigSection, name: str) -> StudyDataset:
    section = parent.get_section(name, _DATASET_KEYS)
    mode = section.get_str("mode", "beam", ("beam", "sample", "greedy"))
    candidates = section.get_int("candidates", {"beam": 10, "sample": 5, "greedy": 1}[mode])
    if mode == "greedy" and candidates > 1:
        raise section.error("candidates", "must be 1 where mode is greedy: choose beam or sample for more")
    return StudyDataset(
        name=name,
        problems=section.get_int_or_all("problems"),
        mode=mode,
        candidates=candidates,
        max_new_tokens=section.get_int("max_new_tokens", 64),
        batch=section.get_int("batch", 16),
        temperature=section.get_positive_float("temperature", 0.6),
        top_p=section.get_positive_float("top_p", 0.95),
        icl=section.get_ints("icl", MAX_EXAMPLES),
        rag=section.get_ints("rag", MAX_EXAMPLES),
    )


def _read_question(
    section: ConfigSection, models: list[str], data: list[str], techniques: Mapping[str, str]
) -> ResearchQuestion:
    together = section.get_choices("together")
    for each in together:
        kind, _, number = each.partition("-")
        if kind not in ("icl", "rag") or not number.isdigit() or not 1 <= int(number) <= MAX_EXAMPLES:
            raise section.error("together", f"takes icl-1 to icl-{MAX_EXAMPLES} and rag-1 to rag-{MAX_EXAMPLES}")
    return ResearchQuestion(
        models=section.get_choices("models", models, models),
        data=section.get_choices("data", data, data),
        techniques=section.get_choices("techniques", techniques, techniques),
        together=together,
    )


def _read_hardware(section: ConfigSection) -> HardwareSpec:
    return HardwareSpec(
        section.get_str("name", "this machine"), *(section.get_positive_float(name) for name in _HARDWARE_RATES)
    )


def _read_training(section: ConfigSection, data: list[str]) -> TrainingSpec:
    pattern = section.get_str("name", "{technique}-{data}")
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
    except ValueError as fault:
        raise section.error("name", f"cannot be {pattern!r} ({fault})") from fault
    if not {"technique", "data"} <= fields <= {"technique", "data", "model"}:
        raise section.error("name", f"must hold {{technique}} and {{data}}, and may hold {{model}}: it is {pattern!r}")
    known = {}
    for entry in section.get_sections("known"):
        entry.check_keys({"technique", "data", "name"})
        known[entry.get_str("technique", choices=TECHNIQUE_QUANTIZATIONS), entry.get_str("data", choices=data)] = (
            entry.get_str("name")
        )
    epochs = section.get_positive_float("epochs") if "epochs" in section else None
    return TrainingSpec(section.get_str("preset", "default", ("default", "paper")), pattern, known, epochs)


def _read_sensitivity(top: ConfigSection, models: list[str], data: list[str]) -> SensitivityGrid:
    section = top.get_section("sensitivity", {"model", "data", "technique", "pairs"})
    pairs = section.get_int_pairs("pairs")
    if not pairs:
        raise section.error("pairs", "is missing: write pairs of rank and alpha, such as [[8, 16], [16, 32]]")
    lora = ("lora", "qlora-8bit", "qlora-4bit")
    technique = section.get_str("technique", "lora", lora)
    if technique not in top.get_section("techniques"):
        raise section.error("technique", f"is {technique}, which the section techniques does not have")
    return SensitivityGrid(
        section.get_str("model", choices=models), section.get_str("data", choices=data), technique, pairs
    )


def _check_names(config: StudyConfig) -> None:
    """Two adapters must not go by one name, nor two models' results by one file."""
    slugs: dict[str, str] = {}
    for model in config.models:
        if model.slug in slugs:
            raise PromptOrTuneError(
                f"{config.name}: the models {slugs[model.slug]} and {model.name} would share files."
            )
        slugs[model.slug] = model.name
    users: dict[str, str] = {}
    # Whoever writes a name under `known` may mean one adapter for two data sets.
    meant = {"", *config.training.known.values()}
    for job in (job for rq in config.questions for job in study_jobs(config, rq) if job.adapter not in meant):
        user = f"{job.title.partition(' + ')[0]} on {job.model.name}, {job.data.name}"
        if users.setdefault(job.adapter, user) != user:
            raise PromptOrTuneError(
                f"{config.name}: training: name gives '{job.adapter}' to {users[job.adapter]} and to {user}: put "
                "{model} into it."
            )


def _check_decoding(data: StudyDataset, seed: int, file: str) -> None:
    try:
        data.decoding(seed)
    except PromptOrTuneError as error:
        raise PromptOrTuneError(f"{file}: data: {data.name}: {error}") from error
