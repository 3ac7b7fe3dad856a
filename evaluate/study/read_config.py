"""Reader of a study's YAML file: duplicate keys, types, names and references are checked before anything runs.

pydantic checks keys and types (evaluate.study.schema). Every problem becomes one PromptOrTuneError that names the
section and the key.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from errors import PromptOrTuneError, unknown_name_error
from evaluate.study.config import (
    KNOWN_ARCHITECTURES,
    MODEL_FAMILIES,
    RESEARCH_QUESTIONS,
    TECHNIQUE_QUANTIZATIONS,
    Architecture,
    HardwareSpec,
    ModelFamily,
    ResearchQuestion,
    SensitivityGrid,
    StudyConfig,
    StudyDataset,
    StudyModel,
    TrainingSpec,
)
from evaluate.study.jobs import study_jobs
from evaluate.study.schema import (
    ArchitectureSection,
    DatasetSection,
    ModelSection,
    QuestionSection,
    StudyFile,
    UnknownNameValueError,
    published_models,
)
from tasks.datasets.registry import TRAINING_DATASETS

CONFIGS_DIR = Path(__file__).parent / "configs"
_DEFAULT_CANDIDATES = {"beam": 10, "sample": 5, "greedy": 1}
_KEY_ERRORS = ("extra_forbidden", "invalid_key")


def resolve_config_path(name: str) -> Path:
    """Return the file of that name, or else the built-in configuration (`default`, `paper`, ...)."""
    path = Path(name)
    known = {config.stem: config for config in CONFIGS_DIR.glob("*.yaml")}
    if name in known and not path.exists():
        return known[name]
    if not path.is_file():
        hint = "" if path.suffix else f" {unknown_name_error('study', name, known)}"
        raise PromptOrTuneError(
            f"There is no file {name}: name a YAML file, or one of {', '.join(sorted(known))}.{hint}"
        )
    return path


def read_study_config(path: Path) -> StudyConfig:
    """Return the study in a YAML file; raises PromptOrTuneError with section and key for anything invalid in it."""
    content = read_strict_yaml(path)
    try:
        study = StudyFile.model_validate(content)
    except ValidationError as error:
        raise _study_error(path.name, error) from error
    return _build_config(path.name, study)


def read_strict_yaml(path: Path) -> Any:
    """Return the content of a YAML file; raises PromptOrTuneError, with the line, for bad YAML and duplicate keys."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        """Refuses a second key of the same name, of which YAML would use the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"'{key.value}' stands twice", problem_mark=key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(path.read_text(encoding="utf-8"), StrictLoader)  # noqa: S506 - a subclass of SafeLoader
    except OSError as error:
        raise PromptOrTuneError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise PromptOrTuneError(f"{path}{where}: {problem}; write one `name: value` a line.") from error


def _study_error(file: str, error: ValidationError) -> PromptOrTuneError:
    """Return one message for the first error; an unknown key comes first, as another is often missing because of it."""
    details = error.errors()
    detail = min(details, key=lambda each: each["type"] not in _KEY_ERRORS and "[key]" not in each["loc"])
    kind, value, loc = detail["type"], detail["input"], [part for part in detail["loc"] if part != "[key]"]
    cause = detail.get("ctx", {}).get("error")
    if kind in _KEY_ERRORS:
        section = _section_at(loc[:-1])
        return PromptOrTuneError(
            f"{_location(file, loc[:-1])}: {unknown_name_error('key', str(loc[-1]), section.model_fields)}"
        )
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return PromptOrTuneError(f"{_location(file, loc)} must hold `name: value` lines, and is {_type_label(value)}.")
    is_item = isinstance(loc[-1], int)
    field = loc.index(next(part for part in reversed(loc) if isinstance(part, str)))
    name, location = str(loc[field]), _location(file, loc[:field])
    if isinstance(cause, UnknownNameValueError):
        return PromptOrTuneError(f"{_location(file, loc[:-1]) if cause.is_key else location}: {cause}")
    if kind == "value_error":
        return PromptOrTuneError(f"{location}: {name} {cause}.")
    return PromptOrTuneError(f"{location}: {name} {_problem_text(kind, value, detail.get('ctx', {}), is_item)}.")


def _problem_text(kind: str, value: Any, context: Mapping[str, Any], is_item: bool) -> str:
    """Return what is wrong with a value of the wrong type, as the end of a sentence about its key."""
    if kind == "missing" or (value is None and not is_item):
        return "is missing"
    if kind == "bool_type":
        return f"must be true or false, and is {_type_label(value)}"
    if kind == "string_type":
        return ("must hold names, and one of them" if is_item else "must be text, and") + f" is {_type_label(value)}"
    if kind == "less_than_equal":
        return f"may hold numbers up to {context['le']}, and holds {value}"
    if kind == "greater_than_equal":
        return f"must be a whole number of at least {context['ge']}, and is {value!r}"
    if kind.startswith("int"):
        return f"must be a whole number, and is {value!r}"
    if kind in ("too_short", "too_long") or (kind == "list_type" and is_item):
        return f"must hold pairs such as [8, 16], and {'one of them is' if is_item else 'is'} {value!r}"
    if kind == "list_type":
        return f"must be a list, written [a, b], and is {_type_label(value)}"
    return f"must be a number above 0, and is {value!r}"


def _section_at(loc: list[int | str]) -> type[BaseModel]:
    """Return the model of the section at this location of the file."""
    section: type[BaseModel] = StudyFile
    parts = iter(loc)
    for part in parts:
        annotation = section.model_fields[str(part)].annotation
        while True:
            origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
            if origin in (dict, list):
                next(parts)  # the entry's name or index
            if not arguments:
                break
            annotation = arguments[-1] if origin is dict else arguments[0]
        assert isinstance(annotation, type)  # noqa: S101 - for mypy
        section = annotation
    return section


def _location(file: str, loc: Iterable[int | str]) -> str:
    text = file
    for part in loc:
        text += f", entry {part + 1}" if isinstance(part, int) else f": {part}"
    return text


def _type_label(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a group of names"
    return "a list" if isinstance(value, list) else repr(value)


def _build_config(file: str, study: StudyFile) -> StudyConfig:
    """Convert the sections and check what they say about one another."""
    _check_techniques(file, study.techniques)
    if not study.models:
        raise PromptOrTuneError(f"{file}: models is missing: name at least one.")
    if not study.data:
        raise PromptOrTuneError(f"{file}: data is missing: name at least one of {', '.join(TRAINING_DATASETS)}.")
    models = tuple(_build_model(file, name, section, study.techniques) for name, section in study.models.items())
    data = tuple(_build_dataset(name, section) for name, section in study.data.items())
    questions = {
        rq: _build_question(f"{file}: {rq}", section, study)
        for rq in RESEARCH_QUESTIONS
        if (section := getattr(study, rq)) is not None
    }
    hardware = study.hardware
    config = StudyConfig(
        name=file,
        models=models,
        data=data,
        techniques=study.techniques,
        questions=questions,
        hardware=HardwareSpec(**hardware.model_dump()),
        training=_build_training(file, study),
        sensitivity=_build_sensitivity(file, study),
        seed=study.seed,
        embedder=study.embedder,
        device=study.device,
    )
    _check_shared_names(config)
    for dataset in data:
        try:
            dataset.decoding(config.seed)
        except PromptOrTuneError as error:
            raise PromptOrTuneError(f"{file}: data: {dataset.name}: {error}") from error
    return config


def _check_techniques(file: str, techniques: Mapping[str, str]) -> None:
    for name, quantization in techniques.items():
        if quantization not in TECHNIQUE_QUANTIZATIONS[name]:
            allowed = " or ".join(TECHNIQUE_QUANTIZATIONS[name])
            raise PromptOrTuneError(
                f"{file}: techniques: {name} trains on a base with quantization {allowed}, not {quantization}."
            )


def _check_choices(location: str, kind: str, names: Iterable[str], choices: Iterable[str]) -> tuple[str, ...]:
    """Return the names; raises PromptOrTuneError, with the nearest choice, for one that is not among the choices."""
    known = list(choices)
    for name in (names := tuple(names)):
        if name not in known:
            raise PromptOrTuneError(f"{location}: {unknown_name_error(kind, name, known)}")
    return names


def _build_model(file: str, name: str, section: ModelSection, techniques: Iterable[str]) -> StudyModel:
    beside = section.beside or (name if name in published_models() else "-")
    architecture = section.architecture
    return StudyModel(
        name=name,
        base=section.base,
        quantization=section.quantization,
        techniques=_choose(f"{file}: models: {name}", "technique", section.techniques, techniques),
        beside=beside.strip("-"),
        trust_remote_code=section.trust_remote_code,
        architecture=_build_architecture(architecture) if architecture else KNOWN_ARCHITECTURES.get(name),
    )


def _choose(location: str, kind: str, names: Iterable[str] | None, choices: Iterable[str]) -> tuple[str, ...]:
    """Return the names after checking them, or all choices where the file names none."""
    return tuple(choices) if names is None else _check_choices(location, kind, names, choices)


def _build_architecture(section: ArchitectureSection) -> Architecture:
    family: ModelFamily = next(family for family in MODEL_FAMILIES if family == section.family)
    return Architecture(family=family, **section.model_dump(exclude={"family"}))


def _build_dataset(name: str, section: DatasetSection) -> StudyDataset:
    return StudyDataset(
        name=name,
        problems=section.problems,
        mode=section.mode,
        candidates=section.candidates or _DEFAULT_CANDIDATES[section.mode],
        max_new_tokens=section.max_new_tokens,
        batch=section.batch,
        temperature=section.temperature,
        top_p=section.top_p,
        icl=tuple(section.icl),
        rag=tuple(section.rag),
    )


def _build_question(location: str, section: QuestionSection, study: StudyFile) -> ResearchQuestion:
    return ResearchQuestion(
        models=_choose(location, "model", section.models, study.models),
        data=_choose(location, "data", section.data, study.data),
        techniques=_choose(location, "technique", section.techniques, study.techniques),
        together=tuple(section.together),
    )


def _build_training(file: str, study: StudyFile) -> TrainingSpec:
    training = study.training
    for index, entry in enumerate(training.known, start=1):
        _check_choices(f"{file}: training: known, entry {index}", "data", [entry.data], study.data)
    known = {(entry.technique, entry.data): entry.name for entry in training.known}
    return TrainingSpec(training.preset, training.name, known, training.epochs)


def _build_sensitivity(file: str, study: StudyFile) -> SensitivityGrid | None:
    section, location = study.sensitivity, f"{file}: sensitivity"
    if section is None:
        return None
    if section.technique not in study.techniques:
        raise PromptOrTuneError(
            f"{location}: technique is {section.technique}, which the section techniques does not have."
        )
    _check_choices(location, "model", [section.model], study.models)
    _check_choices(location, "data", [section.data], study.data)
    pairs = tuple((rank, alpha) for rank, alpha in section.pairs)
    return SensitivityGrid(section.model, section.data, section.technique, pairs)


def _check_shared_names(config: StudyConfig) -> None:
    """Raise PromptOrTuneError when two adapters have one name, or two models would share result files."""
    slugs: dict[str, str] = {}
    for model in config.models:
        if model.slug in slugs:
            raise PromptOrTuneError(
                f"{config.name}: the models {slugs[model.slug]} and {model.name} would share files."
            )
        slugs[model.slug] = model.name
    users: dict[str, str] = {}
    # A name under `known` may be one adapter for two data sets on purpose.
    explicit = {"", *config.training.known.values()}
    for job in (job for rq in config.questions for job in study_jobs(config, rq) if job.adapter not in explicit):
        user = f"{job.title.partition(' + ')[0]} on {job.model.name}, {job.data.name}"
        if users.setdefault(job.adapter, user) != user:
            raise PromptOrTuneError(
                f"{config.name}: training: name gives '{job.adapter}' to {users[job.adapter]} and to {user}: put "
                "{model} into it."
            )
