"""From a YAML file to a StudyConfig. Whatever is wrong in it is one sentence with its place, before anything runs."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path

from errors import PeftArenaError, unknown
from evaluate.study.architectures import FAMILIES, KNOWN, Architecture
from evaluate.study.config import (
    QUANTIZATIONS,
    RQS,
    TECHNIQUES,
    Data,
    Hardware,
    Model,
    Question,
    Sensitivity,
    StudyConfig,
    Training,
)
from evaluate.study.jobs import jobs
from evaluate.study.published import models as published_models
from evaluate.study.sections import Section, read_yaml
from serve.method import MAX_EXAMPLES
from tasks.datasets import DATASETS

CONFIGS = Path(__file__).parent / "configs"
_TOP = {"models", "data", "techniques", "hardware", "training", "sensitivity", "seed", "embedder", "device", *RQS}
_MODEL = {"base", "quantization", "techniques", "beside", "trust_remote_code", "architecture"}
_DATA = {"problems", "mode", "candidates", "max_new_tokens", "batch", "temperature", "top_p", "icl", "rag"}
_QUESTION = {"models", "data", "techniques", "together"}
_RATES = ("memory_gb", "gigabytes_per_second", "teraflops", "step_milliseconds")
_SIZES = ("hidden", "intermediate", "layers", "heads", "key_value_heads", "vocabulary")


def config_path(name: str) -> Path:
    """A file, or the one of that name among those that come along (`default`, `paper`)."""
    path = Path(name)
    known = {each.stem: each for each in CONFIGS.glob("*.yaml")}
    if name in known and not path.exists():
        return known[name]
    if not path.is_file():
        hint = "" if path.suffix else f" {unknown('study', name, known)}"
        raise PeftArenaError(f"There is no file {name}: name a YAML file, or one of {', '.join(sorted(known))}.{hint}")
    return path


def read_config(path: Path) -> StudyConfig:
    """The study in a YAML file; PeftArenaError in one sentence for anything that is not as it must be."""
    top = Section(read_yaml(path), path.name, _TOP)
    techniques = _techniques(top.section("techniques", TECHNIQUES))
    models = tuple(_model(top.section("models"), name, tuple(techniques)) for name in top.section("models").names())
    if not models:
        raise PeftArenaError(f"{path.name}: models is missing: name at least one.")
    data = tuple(_data(top.section("data", DATASETS), name) for name in top.section("data").names())
    if not data:
        raise PeftArenaError(f"{path.name}: data is missing: name at least one of {', '.join(DATASETS)}.")
    names, sets = [model.name for model in models], [each.name for each in data]
    questions = {rq: _question(top.section(rq, _QUESTION), names, sets, techniques) for rq in RQS if rq in top}
    config = StudyConfig(
        name=path.name,
        models=models,
        data=data,
        techniques=techniques,
        questions=questions,
        hardware=_hardware(top.section("hardware", {"name", *_RATES})),
        training=_training(top.section("training", {"preset", "name", "known", "epochs"}), sets),
        sensitivity=_sensitivity(top, names, sets) if "sensitivity" in top else None,
        seed=top.whole("seed", 42, least=0),
        embedder=top.text("embedder", "embedded"),
        device=top.text("device", "auto", ("auto", "cpu", "cuda")),
    )
    _check_names(config)
    for each in data:
        _check_decoding(each, config.seed, path.name)
    return config


def _techniques(section: Section) -> dict[str, str]:
    found = {}
    for name in section.names():
        quantization = section.text(name, choices=QUANTIZATIONS)
        if quantization not in TECHNIQUES[name]:
            allowed = " or ".join(TECHNIQUES[name])
            raise section.fault(name, f"trains on a base with quantization {allowed}, not {quantization}")
        found[name] = quantization
    return found


def _model(parent: Section, name: str, techniques: tuple[str, ...]) -> Model:
    section = parent.section(name, _MODEL)
    base, own_code = section.text("base"), section.truth("trust_remote_code", default=False)
    theirs = published_models()
    return Model(
        name=name,
        base=base,
        quantization=section.text("quantization", "nf4", QUANTIZATIONS),
        techniques=section.words("techniques", techniques, techniques),
        beside=section.text("beside", name if name in theirs else "-", ["-", *theirs]).strip("-"),
        trust_remote_code=own_code,
        architecture=_architecture(section) if "architecture" in section else KNOWN.get(name),
    )


def _architecture(parent: Section) -> Architecture:
    section = parent.section("architecture", {"family", *_SIZES, "head_dim", "encoder_layers", "tied"})
    family = section.text("family", choices=FAMILIES)
    sizes = {name: section.whole(name) for name in _SIZES}
    return Architecture(
        family=next(each for each in FAMILIES if each == family),
        **sizes,
        head_dim=section.whole("head_dim", 0, least=0),
        encoder_layers=section.whole("encoder_layers", 0, least=0),
        tied=section.truth("tied", default=False),
    )


def _data(parent: Section, name: str) -> Data:
    section = parent.section(name, _DATA)
    mode = section.text("mode", "beam", ("beam", "sample", "greedy"))
    candidates = section.whole("candidates", {"beam": 10, "sample": 5, "greedy": 1}[mode])
    if mode == "greedy" and candidates > 1:
        raise section.fault("candidates", "must be 1 where mode is greedy: choose beam or sample for more")
    return Data(
        name=name,
        problems=section.whole_or_all("problems"),
        mode=mode,
        candidates=candidates,
        max_new_tokens=section.whole("max_new_tokens", 64),
        batch=section.whole("batch", 16),
        temperature=section.number("temperature", 0.6),
        top_p=section.number("top_p", 0.95),
        icl=section.wholes("icl", MAX_EXAMPLES),
        rag=section.wholes("rag", MAX_EXAMPLES),
    )


def _question(section: Section, models: list[str], data: list[str], techniques: Mapping[str, str]) -> Question:
    together = section.words("together")
    for each in together:
        kind, _, number = each.partition("-")
        if kind not in ("icl", "rag") or not number.isdigit() or not 1 <= int(number) <= MAX_EXAMPLES:
            raise section.fault("together", f"takes icl-1 to icl-{MAX_EXAMPLES} and rag-1 to rag-{MAX_EXAMPLES}")
    return Question(
        models=section.words("models", models, models),
        data=section.words("data", data, data),
        techniques=section.words("techniques", techniques, techniques),
        together=together,
    )


def _hardware(section: Section) -> Hardware:
    return Hardware(section.text("name", "this machine"), *(section.number(name) for name in _RATES))


def _training(section: Section, data: list[str]) -> Training:
    pattern = section.text("name", "{technique}-{data}")
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
    except ValueError as fault:
        raise section.fault("name", f"cannot be {pattern!r} ({fault})") from fault
    if not {"technique", "data"} <= fields <= {"technique", "data", "model"}:
        raise section.fault("name", f"must hold {{technique}} and {{data}}, and may hold {{model}}: it is {pattern!r}")
    known = {}
    for entry in section.entries("known"):
        entry.allow({"technique", "data", "name"})
        known[entry.text("technique", choices=TECHNIQUES), entry.text("data", choices=data)] = entry.text("name")
    epochs = section.number("epochs") if "epochs" in section else None
    return Training(section.text("preset", "default", ("default", "paper")), pattern, known, epochs)


def _sensitivity(top: Section, models: list[str], data: list[str]) -> Sensitivity:
    section = top.section("sensitivity", {"model", "data", "technique", "pairs"})
    pairs = section.pairs("pairs")
    if not pairs:
        raise section.fault("pairs", "is missing: write pairs of rank and alpha, such as [[8, 16], [16, 32]]")
    lora = ("lora", "qlora-8bit", "qlora-4bit")
    technique = section.text("technique", "lora", lora)
    if technique not in top.section("techniques"):
        raise section.fault("technique", f"is {technique}, which the section techniques does not have")
    return Sensitivity(section.text("model", choices=models), section.text("data", choices=data), technique, pairs)


def _check_names(config: StudyConfig) -> None:
    """Two adapters must not go by one name, nor two models' results by one file."""
    slugs: dict[str, str] = {}
    for model in config.models:
        if model.slug in slugs:
            raise PeftArenaError(f"{config.name}: the models {slugs[model.slug]} and {model.name} would share files.")
        slugs[model.slug] = model.name
    users: dict[str, str] = {}
    # Whoever writes a name under `known` may mean one adapter for two data sets.
    meant = {"", *config.training.known.values()}
    for job in (job for rq in config.questions for job in jobs(config, rq) if job.adapter not in meant):
        user = f"{job.title.partition(' + ')[0]} on {job.model.name}, {job.data.name}"
        if users.setdefault(job.adapter, user) != user:
            raise PeftArenaError(
                f"{config.name}: training: name gives '{job.adapter}' to {users[job.adapter]} and to {user}: put "
                "{model} into it."
            )


def _check_decoding(data: Data, seed: int, file: str) -> None:
    try:
        data.decoding(seed)
    except PeftArenaError as fault:
        raise PeftArenaError(f"{file}: data: {data.name}: {fault}") from fault
