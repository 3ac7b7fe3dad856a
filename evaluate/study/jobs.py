"""From a study and a question to its jobs: one method of one model on one data set each, and the run file it fills."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.store import user_root
from evaluate.study.config import (
    DEFAULT_LORA_ALPHA,
    DEFAULT_LORA_RANK,
    METHOD_TITLES,
    ResearchQuestion,
    SensitivityGrid,
    StudyConfig,
    StudyDataset,
    StudyModel,
)
from serve.backends.local.source import EMBEDDED, EMBEDDED_ID

ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class StudyJob:
    """One method on one data set. `technique` is '' without an adapter; `examples` is '', "icl-k" or "rag-k".

    `adapter` is also the name of the fully fine-tuned model, which answers as a base of its own. `pair` holds LoRA's
    rank and alpha where the job belongs to the sensitivity section.
    """

    model: StudyModel
    data: StudyDataset
    quantization: str
    technique: str = ""
    examples: str = ""
    adapter: str = ""
    pair: tuple[int, int] | None = None

    @property
    def is_full_finetune(self) -> bool:
        """Whether the fine-tuned base itself answers."""
        return self.technique == "full"

    @property
    def method(self) -> str:
        """The method's name, as serve.method reads it."""
        parts = [part for part in ("" if self.is_full_finetune else self.adapter, self.examples) if part]
        return "+".join(parts) or ZERO_SHOT

    @property
    def k(self) -> int:
        """How many examples the prompt shows."""
        return int(self.examples.partition("-")[2] or 0)

    @property
    def kind(self) -> str:
        """zero-shot, icl, rag, or the technique, with "+icl" or "+rag" where both meet: what rows are grouped by."""
        examples = self.examples.partition("-")[0]
        return "+".join(part for part in (self.technique, examples) if part) or ZERO_SHOT

    @property
    def title(self) -> str:
        """As tables name it: LoRA + RAG (8)."""
        shown = f"{self.examples.partition('-')[0].upper()} ({self.k})" if self.examples else ""
        tuned = METHOD_TITLES[self.technique] if self.technique else ""
        if self.pair:
            tuned += f" r {self.pair[0]}, alpha {self.pair[1]}"
        return " + ".join(part for part in (tuned, shown) if part) or METHOD_TITLES[""]

    @property
    def base(self) -> str:
        """What --base takes: the model's own, or the folder of the fully fine-tuned one."""
        return str(user_root() / self.adapter) if self.is_full_finetune else self.model.base

    @property
    def base_id(self) -> str:
        """How a run names that base."""
        if self.is_full_finetune:
            return self.adapter
        name, _, _ = self.model.base.partition("@")
        if name == EMBEDDED:
            return EMBEDDED_ID
        path = Path(name).expanduser()
        if name.endswith(".gguf"):
            return path.stem
        return path.resolve().name if path.is_dir() else name


def study_jobs(config: StudyConfig, rq: str) -> list[StudyJob]:
    """All jobs of a question, each once, in the order in which they run."""
    question = config.question(rq)
    found: list[StudyJob] = []
    for model in map(config.model, question.models):
        for data in map(config.dataset, question.data):
            found += _question_jobs(config, rq, question, model, data)
    if rq == "rq2" and config.sensitivity:
        found += _sensitivity_jobs(config, config.sensitivity)
    return list(dict.fromkeys(found))


def limit_problems(jobs: Sequence[StudyJob], limit: int | None) -> list[StudyJob]:
    """The same jobs over at most the first `limit` problems."""
    if limit is None:
        return list(jobs)
    return [replace(job, data=replace(job.data, problems=min(limit, job.data.problems or limit))) for job in jobs]


def run_path(folder: Path, job: StudyJob) -> Path:
    """The file that a job's answers go to: one for each base, quantization, data set, number of problems, decoding."""
    data = job.data
    base = job.adapter if job.is_full_finetune else job.model.slug
    problems = "all" if data.problems is None else f"first{data.problems}"
    decoding = "greedy" if data.mode == "greedy" else f"{data.mode}{data.candidates}"
    return folder / f"{base}-{job.quantization}-{data.name}-{problems}-{decoding}.jsonl"


def _question_jobs(
    config: StudyConfig, rq: str, question: ResearchQuestion, model: StudyModel, data: StudyDataset
) -> Iterator[StudyJob]:
    techniques = [name for name in question.techniques if name in model.techniques] if rq != "rq1" else []
    plain = StudyJob(model, data, model.quantization)
    yield plain
    if rq == "rq2":
        # So that every technique has the untuned base beside it, with the same weights.
        yield from (replace(plain, quantization=config.techniques[name]) for name in techniques if name != "full")
    if rq in ("rq1", "rq3"):
        yield from (replace(plain, examples=f"icl-{k}") for k in data.icl)
    if rq == "rq3":
        yield from (replace(plain, examples=f"rag-{k}") for k in data.rag)
    for name in techniques:
        job = replace(plain, quantization=config.techniques[name], technique=name)
        job = replace(job, adapter=config.adapter_name(name, data.name, model))
        yield job
        if rq == "rq3":
            yield from (replace(job, examples=each) for each in question.together)


def _sensitivity_jobs(config: StudyConfig, section: SensitivityGrid) -> Iterator[StudyJob]:
    model, data = config.model(section.model), config.dataset(section.data)
    for pair in section.pairs:
        name = config.adapter_name(section.technique, data.name, model, pair)
        job = StudyJob(model, data, config.techniques[section.technique], section.technique, adapter=name)
        yield job if pair == (DEFAULT_LORA_RANK, DEFAULT_LORA_ALPHA) else replace(job, pair=pair)
