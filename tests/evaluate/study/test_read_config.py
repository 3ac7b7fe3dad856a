"""The reader of a study's YAML file: the built-in studies, default values, and one message for each error."""

from __future__ import annotations

from pathlib import Path

import pytest

from errors import PromptOrTuneError
from evaluate.study.config import METHOD_TITLES, TECHNIQUE_QUANTIZATIONS
from evaluate.study.jobs import study_jobs
from evaluate.study.read_config import CONFIGS_DIR, read_study_config, resolve_config_path
from tests import messages
from train.techniques import TECHNIQUES as TRAINED

GOOD = """
models:
  tiny: {base: tiny, quantization: nf4}
data:
  conala: {problems: 5, icl: [1, 2], rag: [2]}
techniques: {lora: none, qlora-4bit: nf4}
rq3: {}
hardware: {memory_gb: 8, gigabytes_per_second: 10, teraflops: 0.2, step_milliseconds: 12}
"""


def write_config(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_techniques_equal_those_of_train() -> None:
    assert {name: each.quantizations for name, each in TRAINED.items()} == TECHNIQUE_QUANTIZATIONS
    assert set(METHOD_TITLES) == {"", *TRAINED}


@pytest.mark.parametrize("path", sorted(CONFIGS_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_question_of_built_in_studies_has_unique_jobs(path: Path) -> None:
    config = read_study_config(path)
    for rq in config.questions:
        found = study_jobs(config, rq)
        assert found
        assert len(set(found)) == len(found)


def test_paper_study_has_the_grid_of_the_publication() -> None:
    config = read_study_config(resolve_config_path("paper"))
    assert len(config.models) == 11
    assert all(model.architecture for model in config.models)
    assert {name for model in config.models for name in model.techniques} == set(TECHNIQUE_QUANTIZATIONS)
    conala, alpaca, apps = (config.dataset(name) for name in ("conala", "codealpacapy", "apps"))
    assert (conala.icl, alpaca.icl) == ((1, 2, 3, 4, 5, 8, 16), (1, 2, 3, 4, 5, 8))
    assert (conala.rag, alpaca.rag) == ((1, 2, 3, 4, 5, 8, 16), (1, 2, 3, 4))
    assert [each.max_new_tokens for each in (conala, alpaca, apps)] == [64, 128, 1024]
    assert (conala.mode, conala.candidates) == ("beam", 10)
    assert (apps.mode, apps.candidates, apps.temperature, apps.top_p) == ("sample", 5, 0.6, 0.95)
    assert config.embedder == "thenlper/gte-small"
    # Table 3 has 39 rows on each data set; Figure 5 adds the larger models and the quantized ones.
    tuned = {(job.model.name, job.technique) for job in study_jobs(config, "rq2") if job.technique and not job.pair}
    assert len([row for row in tuned if not row[1].startswith("qlora")]) == 39
    assert ("CodeLlama-34B-Python", "qlora-4bit") in tuned


def test_example_in_docs_is_valid(tmp_path: Path) -> None:
    text = (CONFIGS_DIR.parents[2] / "docs" / "study.md").read_text(encoding="utf-8")
    example = text.partition("```yaml\n")[2].partition("```")[0]
    config = read_study_config(write_config(tmp_path, example))
    assert [job.method for job in study_jobs(config, "rq3")][-1] == "qlora-4bit-conala-qwen2.5-coder-0.5b+rag-8"
    assert config.models[0].architecture is not None
    assert config.models[0].architecture.num_parameters() == pytest.approx(0.494e9, rel=0.01)


def test_empty_section_has_default_values(tmp_path: Path) -> None:
    text = GOOD.replace("rq3: {}", "rq3:").replace("{problems: 5, icl: [1, 2], rag: [2]}", "{icl: , problems: all}")
    config = read_study_config(write_config(tmp_path, text.replace("memory_gb: 8", "memory_gb: 1e-3")))
    assert config.questions["rq3"].models == ("tiny",)
    assert (config.data[0].icl, config.data[0].problems, config.hardware.memory_gb) == ((), None, 0.001)


def test_default_values(tmp_path: Path) -> None:
    config = read_study_config(write_config(tmp_path, GOOD))
    model, data = config.models[0], config.data[0]
    assert (model.techniques, model.architecture, model.beside) == (("lora", "qlora-4bit"), None, "")
    assert (data.mode, data.candidates, data.max_new_tokens, data.batch) == ("beam", 10, 64, 16)
    assert (config.seed, config.training.preset, config.training.epochs) == (42, "default", None)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("quantization: nf4", "quantisation: nf4", "did you mean 'quantization'"),
        ("quantization: nf4", "quantization: nf5", "did you mean 'nf4'"),
        ("base: tiny, ", "", "models: tiny: base is missing"),
        ("problems: 5", "problems: 0", "problems must be a whole number of at least 1, and is 0"),
        ("problems: 5", "problems: true", "problems must be a whole number"),
        ("icl: [1, 2]", "icl: [true]", "icl must be a whole number, and is True"),
        ("icl: [1, 2]", "icl: 8", "icl must be a list, written [a, b], and is 8"),
        ("icl: [1, 2]", "icl: [1, 1]", "icl names 1 twice"),
        ("icl: [1, 2]", "icl: [99]", "icl may hold numbers up to 32, and holds 99"),
        ("problems: 5", "mode: bean", "did you mean 'beam'"),
        ("problems: 5", "mode: greedy, candidates: 3", "greedy"),
        ("problems: 5", "candidates: 11", "11 candidates requested"),
        ("conala:", "konala:", "did you mean 'conala'"),
        ("lora: none", "lora: nf4", "lora trains on a base with quantization none, not nf4"),
        ("lora: none", "lorra: none", "did you mean 'lora'"),
        ("rq3: {}", "rq5: {}", "did you mean"),
        ("rq3: {}", "rq3: {models: [tinny]}", "did you mean 'tiny'"),
        ("rq3: {}", "rq3: {techniques: [ia3]}", "known are lora, qlora-4bit"),
        ("rq3: {}", "rq3: {together: [rag-0]}", "together takes icl-1 to icl-32"),
        ("rq3: {}", "rq3: [conala]", "mine.yaml: rq3 must hold `name: value` lines, and is a list"),
        ("memory_gb: 8", "memory_gb: much", "memory_gb must be a number above 0, and is 'much'"),
        ("memory_gb: 8, ", "", "hardware: memory_gb is missing"),
        ("memory_gb: 8", "memory_gb: true", "memory_gb must be a number above 0, and is True"),
        ("memory_gb: 8", "memory: 8", "hardware: Unknown key 'memory': did you mean 'memory_gb'"),
        ("base: tiny", "base: [tiny]", "models: tiny: base must be text, and is a list"),
        ("base: tiny", "base: tiny, trust_remote_code: 1", "trust_remote_code must be true or false, and is 1"),
        ("base: tiny", "base: tiny, architecture: {hiden: 1}", "models: tiny: architecture: Unknown key 'hiden'"),
        ("lora: none", "lora: nf5", "techniques: Unknown quantization 'nf5': did you mean 'nf4'"),
        ("rq3: {}", "rq3: {models: [[tiny]]}", "models must hold names, and one of them is a list"),
        (
            "rq3: {}",
            "rq3: {}\ntraining: {known: [{technique: lora, data: konala, name: a}]}",
            "known, entry 1: Unknown data",
        ),
        ("rq3: {}", "rq3: {}\ntraining: {known: [{technic: lora}]}", "known, entry 1: Unknown key 'technic'"),
        (
            "rq3: {}",
            "rq3: {}\nsensitivity: {model: tiny, data: conala, pairs: []}",
            "sensitivity: pairs must hold pairs",
        ),
        ("rq3: {}", "rq3: {}\ntraining: {name: '{technique}'}", "must hold {technique} and {data}"),
        ("rq3: {}", "rq3: {}\ntraining: {name: '{technique}-{data}-{size}'}", "may hold {model}"),
        ("rq3: {}", "rq3: {}\ntraining: {name: '{technique'}", "cannot be"),
        ("rq3: {}", "rq3: {}\nsensitivity: {model: tiny, data: conala, pairs: [8]}", "pairs such as [8, 16]"),
        ("rq3: {}", "rq3: {}\nsensitivity: {model: tiny, data: conala, technique: ia3, pairs: [[8, 8]]}", "known are"),
        ("rq3: {}", "rq3: {}\nrq3: {}", "line 8: 'rq3' stands twice"),
        ("rq3: {}", "rq3: {", "mine.yaml, line"),
        (GOOD, "", "must hold `name: value` lines, and is empty"),
        ("  tiny: {base: tiny, quantization: nf4}", "", "models is missing"),
    ],
)
def test_error_names_section_and_key(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    with pytest.raises(PromptOrTuneError) as caught:
        read_study_config(write_config(tmp_path, GOOD.replace(old, new, 1)))
    message = str(caught.value)
    assert expected in message
    assert "mine.yaml" in message
    assert "\n" not in message


def test_shared_adapter_name_is_refused(tmp_path: Path) -> None:
    two = GOOD.replace("data:\n", "  other: {base: other}\ndata:\n", 1)
    with pytest.raises(PromptOrTuneError, match=messages.ADAPTER_NAME_SHARED):
        read_study_config(write_config(tmp_path, two))
    named = two + "training: {name: '{technique}-{data}-{model}'}\n"
    names = {job.adapter for job in study_jobs(read_study_config(write_config(tmp_path, named)), "rq3") if job.adapter}
    assert names == {f"{each}-conala-{model}" for each in ("lora", "qlora-4bit") for model in ("tiny", "other")}


def test_config_path_is_resolved_by_name_or_file(tmp_path: Path) -> None:
    assert resolve_config_path("default").is_file()
    mine = write_config(tmp_path, GOOD)
    assert resolve_config_path(str(mine)) == mine
    with pytest.raises(PromptOrTuneError, match=messages.UNKNOWN_STUDY_SUGGESTS_DEFAULT):
        resolve_config_path("defualt")
    with pytest.raises(PromptOrTuneError, match=messages.STUDY_FILE_MISSING):
        resolve_config_path("nowhere.yaml")
