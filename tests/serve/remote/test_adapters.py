"""Adapters on remote servers: loading, request fields, and messages for unsupported adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.manifest import UNKNOWN
from adapters.store import AdapterFolder
from errors import AdapterError, EngineError, PromptOrTuneError
from serve.types import Row, SamplingParams
from tests import messages
from tests.adapters.folders import BASE, CONFIG, LAYERS, MANIFEST, store, tensors, write_adapter
from tests.serve.remote.standin import VLLM_MODELS, Reply, StandIn, saying
from tests.serve.remote.test_stream import PLAIN, answer, finish

IA3 = {
    **{name: CONFIG[name] for name in ("task_type", "base_model_name_or_path", "inference_mode", "peft_version")},
    "peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": [],
}  # fmt: skip
OURS: list[dict[str, Any]] = [
    {"id": "tiny/base", "owned_by": "prompt-or-tune", "root": "tiny/base", "parent": None, "max_model_len": 512,
     "revision": BASE.revision, "quantization": "nf4"},
    {"id": "zero-shot", "owned_by": "prompt-or-tune", "root": "tiny/base", "parent": "tiny/base"},
    {"id": "ia3-mine", "owned_by": "prompt-or-tune", "root": "tiny/base", "parent": "tiny/base"},
]  # fmt: skip
SERVED: list[dict[str, Any]] = [{"id": "tiny/base", "owned_by": "vllm", "root": "tiny/base", "parent": None}]


def lora(tmp_path: Path, name: str = "lora-mine", rank: int = 8, **changes: Any) -> AdapterFolder:
    config = {**CONFIG, "r": rank, **changes}
    write_adapter(tmp_path / name, config, replace(MANIFEST, name=name), tensors(rank))
    return store(tmp_path).open(name, BASE)


def ia3(tmp_path: Path, name: str = "ia3-mine") -> AdapterFolder:
    weights = {f"base_model.model.{layer}.ia3_l": np.ones((12, 1), np.float32) for layer in LAYERS}
    write_adapter(tmp_path / name, IA3, replace(MANIFEST, name=name, technique="ia3"), weights)
    return store(tmp_path).open(name, BASE)


def loading(standin: StandIn) -> StandIn:
    """Make the stand-in a vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING, which lists its loaded adapters."""

    def load(body: dict[str, Any]) -> Reply:
        if not body["lora_name"]:
            return Reply({"error": {"message": "Both 'lora_name' and 'lora_path' must be provided."}}, 400)
        if any(entry["id"] == body["lora_name"] for entry in standin.models or ()):
            return Reply({"error": {"message": "has already been loaded"}}, 400)
        assert standin.models is not None
        standin.models.append({"id": body["lora_name"], "owned_by": "vllm", "parent": "tiny/base"})
        return Reply(b"Success")

    def unload(body: dict[str, Any]) -> Reply:
        assert standin.models is not None
        standin.models[:] = [entry for entry in standin.models if entry["id"] != body["lora_name"]]
        return Reply(b"Success")

    standin.models = [dict(entry) for entry in SERVED]
    standin.pages |= {"/v1/load_lora_adapter": load, "/v1/unload_lora_adapter": unload}
    return standin


def generate_with(backend: Any, name: str | None, scale: float = 1.0) -> Any:
    batch = backend.open_batch("step")
    batch.add(0, Row("p", PLAIN, name, scale), SamplingParams(max_new_tokens=8))
    return finish(batch)[0][0]


def test_vllm_loads_a_lora_folder_and_answers_with_it(serve: Any, connect: Any, tmp_path: Path) -> None:
    standin = serve(loading(StandIn(saying("x"))))
    backend = connect(standin.url)
    folder = lora(tmp_path)
    assert backend.unsupported_reason(folder) is None
    backend.load_adapter(folder)
    backend.load_adapter(folder)
    asked = [body for body in standin.bodies("/v1/load_lora_adapter") if body["lora_name"]]
    assert asked == [{"lora_name": "lora-mine", "lora_path": str(tmp_path / "lora-mine")}]
    assert generate_with(backend, "lora-mine").error is None
    assert standin.bodies()[-1]["model"] == "lora-mine"
    assert generate_with(backend, None).error is None
    assert standin.bodies()[-1]["model"] == "tiny/base"


def test_new_version_replaces_the_old_one(serve: Any, connect: Any, tmp_path: Path) -> None:
    standin = serve(loading(StandIn(saying("x"))))
    backend = connect(standin.url)
    folder = lora(tmp_path)
    backend.load_adapter(folder)
    backend.load_adapter(replace(folder, digest="sha256:other"))
    paths = [path for path, body, _ in standin.asked if "lora_adapter" in path and body["lora_name"]]
    assert paths == ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/load_lora_adapter"]
    backend.unload_adapter("lora-mine")
    assert [entry["id"] for entry in standin.models] == ["tiny/base"]
    backend.unload_adapter("lora-mine")


def test_adapter_listed_by_the_server_is_used_by_name(serve: Any, connect: Any, tmp_path: Path) -> None:
    standin = serve(StandIn(saying("x"), [*SERVED, {"id": "lora-mine", "owned_by": "vllm", "parent": "tiny/base"}]))
    backend = connect(standin.url)
    backend.load_adapter(lora(tmp_path))
    assert generate_with(backend, "lora-mine").error is None
    assert not [path for path, body, _ in standin.asked if "load" in path and body["lora_name"]]
    backend.unload_adapter("lora-mine")


def test_vllm_refuses_ia3(serve: Any, connect: Any, tmp_path: Path) -> None:
    backend = connect(serve(loading(StandIn(saying("x")))).url)
    folder = ia3(tmp_path)
    reason = backend.unsupported_reason(folder)
    assert reason.startswith("This engine serves LoRA adapters only; 'ia3-mine' is IA3:")
    with pytest.raises(AdapterError, match=messages.SERVES_LORA_ONLY):
        backend.load_adapter(folder)


def test_lora_unsupported_by_vllm_is_refused_before_loading(serve: Any, connect: Any, tmp_path: Path) -> None:
    folder = replace(lora(tmp_path), config={**CONFIG, "use_dora": True})
    reason = connect(serve(loading(StandIn(saying("x")))).url).unsupported_reason(folder)
    assert "cannot use 'lora-mine': it is a DoRA (use_dora), which vLLM refuses" in reason


def test_server_without_runtime_loading_names_the_option(serve: Any, connect: Any, tmp_path: Path) -> None:
    reason = connect(serve(StandIn(saying("x"), SERVED)).url).unsupported_reason(lora(tmp_path))
    assert "does not list 'lora-mine' among its models: start it with that adapter (--lora-modules)" in reason
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in reason


def test_folder_invisible_to_the_server_gives_one_message(serve: Any, connect: Any, tmp_path: Path) -> None:
    def refuse(body: dict[str, Any]) -> Reply:
        return Reply(
            {"error": {"message": "Loading lora failed: No adapter found\nfor x"}}, 404 if body["lora_name"] else 400
        )

    standin = serve(StandIn(saying("x"), SERVED, pages={"/v1/load_lora_adapter": refuse}))
    with pytest.raises(AdapterError, match=messages.FOLDER_NOT_VISIBLE_TO_SERVER) as caught:
        connect(standin.url).load_adapter(lora(tmp_path))
    assert "\n" not in str(caught.value)


def test_llama_cpp_python_refuses_adapters(serve: Any, connect: Any, tmp_path: Path) -> None:
    backend = connect(serve(StandIn(saying("x"), [{"id": "base.gguf", "owned_by": "me"}])).url)
    assert "has no adapters that requests can choose" in backend.unsupported_reason(lora(tmp_path))


def test_scale_needs_a_server_that_supports_it(serve: Any, connect: Any, tmp_path: Path) -> None:
    folder = lora(tmp_path)
    vllm = connect(serve(loading(StandIn(saying("x")))).url)
    assert "cannot scale adapters" in (vllm.unsupported_reason(folder, 0.5) or "")
    vllm.load_adapter(folder)
    with pytest.raises(PromptOrTuneError, match=messages.CANNOT_SCALE_ADAPTERS):
        generate_with(vllm, "lora-mine", 0.5)
    standin = serve(StandIn(saying("x"), OURS))
    generate_with(connect(standin.url), "ia3-mine", 0.5)
    assert standin.bodies()[-1]["model"] == "ia3-mine*0.5"


def test_own_server_serves_all_listed_techniques(serve: Any, connect: Any, tmp_path: Path) -> None:
    backend = connect(serve(StandIn(saying("x"), OURS)).url)
    assert (backend.base.revision, backend.base.quantization) == (BASE.revision, "nf4")
    backend.load_adapter(ia3(tmp_path))
    assert "does not list 'lora-mine'" in (backend.unsupported_reason(lora(tmp_path)) or "")
    assert store(tmp_path).open("ia3-mine", backend.base).name == "ia3-mine"


def test_unknown_revision_message_names_base_option(serve: Any, connect: Any, tmp_path: Path) -> None:
    backend = connect(serve(loading(StandIn(saying("x")))).url)
    lora(tmp_path)
    assert backend.base.revision == UNKNOWN
    with pytest.raises(AdapterError, match=messages.BASE_REVISION_REQUIRED.format(revision=BASE.revision)):
        store(tmp_path).open("lora-mine", backend.base)
    named = connect(serve(loading(StandIn(saying("x")))).url, base=f"tiny/base@{BASE.revision}")
    assert store(tmp_path).open("lora-mine", named.base).name == "lora-mine"


def test_base_that_contradicts_the_server_is_refused(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("x"), OURS))
    with pytest.raises(PromptOrTuneError, match=messages.SERVES_TINY_BASE):
        connect(standin.url, base="other/base")
    with pytest.raises(PromptOrTuneError, match=messages.SERVES_OTHER_REVISION):
        connect(standin.url, base=f"tiny/base@{'b' * 40}")
    assert connect(standin.url, base=f"tiny/base@{BASE.revision}").base.revision == BASE.revision
    vllm = serve(StandIn(saying("x"), VLLM_MODELS))
    with pytest.raises(PromptOrTuneError, match=messages.SERVES_OWNER_BASE):
        connect(vllm.url, base="tiny/base")


def test_llama_cpp_applies_requested_adapters_only(serve: Any, connect: Any, tmp_path: Path) -> None:
    slots = [{"id": 0, "path": "/x/lora-mine.gguf", "scale": 1.0}, {"id": 1, "path": "other.gguf", "scale": 1.0}]
    pages: Any = {
        "/lora-adapters": Reply(slots),
        "/props": Reply({"default_generation_settings": {"n_ctx": 1024}}),
        "/tokenize": lambda body: Reply({"tokens": [1] * len(body.get("content", "").split())}),
    }
    standin = serve(StandIn(saying("x"), [{"id": "base.gguf", "owned_by": "llamacpp"}], pages))
    backend = connect(standin.url)
    assert backend.base.context_length == 1024
    assert backend.count_tokens("one two three") == 3
    generate_with(backend, None)
    assert standin.bodies()[-1]["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
    backend.load_adapter(lora(tmp_path))
    generate_with(backend, "lora-mine", 0.5)
    assert standin.bodies()[-1]["lora"] == [{"id": 0, "scale": 0.5}, {"id": 1, "scale": 0.0}]
    assert "convert it with convert_lora_to_gguf.py" in backend.unsupported_reason(lora(tmp_path, "lora-new"))


def test_lorax_gets_the_adapter_folder(serve: Any, connect: Any, tmp_path: Path) -> None:
    info = {"model_id": "tiny/base", "model_sha": BASE.revision, "max_total_tokens": 2048}
    standin = serve(StandIn(saying("x"), None, {"/info": Reply(info)}, logprobs=False))
    backend = connect(standin.url)
    assert (backend.base.id, backend.base.revision, backend.base.context_length) == ("tiny/base", BASE.revision, 2048)
    backend.load_adapter(lora(tmp_path))
    generate_with(backend, "lora-mine")
    body = standin.bodies()[-1]
    assert (body["model"], body["adapter_source"]) == (str(tmp_path / "lora-mine"), "local")
    assert "temperature" not in body
    assert "n" not in body


def test_unknown_model_message_lists_models(serve: Any, connect: Any) -> None:
    standin = serve(StandIn(saying("x"), VLLM_MODELS))
    with pytest.raises(PromptOrTuneError, match=messages.UNKNOWN_SERVER_MODEL):
        connect(standin.url, model="owner/bse")
    assert connect(standin.url, model="owner/base").base.context_length == 4096
    with pytest.raises(PromptOrTuneError, match=messages.SERVER_MODEL_UNNAMED):
        connect(serve(StandIn(saying("x"))).url)


@pytest.mark.parametrize(
    ("pages", "counted"),
    [
        ({"/tokenize": lambda body: Reply({"count": 7}) if "prompt" in body else Reply({}, 400)}, 7),
        ({"/extras/tokenize/count": Reply({"count": 5})}, 5),
        ({"/tokenize": lambda body: Reply([{"id": 1}] * 4) if "inputs" in body else Reply({}, 422)}, 4),
        ({"/tokenize": Reply({"count": -1})}, 14),
        ({}, 14),
    ],
    ids=["vLLM", "llama-cpp-python", "LoRAX", "nonsense", "none"],
)
def test_tokens_are_counted_as_the_server_counts_or_estimated(
    serve: Any, connect: Any, pages: Any, counted: int
) -> None:
    backend = connect(serve(StandIn(saying("x"), VLLM_MODELS, pages)).url)
    assert backend.count_tokens("dict(zip(keys, values)) # 2") == counted
    assert any("estimated" in note for note in answer(backend).notes) == (counted == 14)


def test_counter_that_fails_later_gives_no_estimate(serve: Any, connect: Any) -> None:
    replies = [Reply({"count": 5}), Reply({"count": 7}), Reply(b"", 502), Reply({"count": 0})]
    standin = serve(StandIn(saying("x"), VLLM_MODELS, {"/tokenize": lambda _: replies.pop(0)}))
    backend = connect(standin.url)
    assert backend.count_tokens("one") == 7
    for expected in ("answered with status 502", "counted no tokens"):
        with pytest.raises(EngineError, match=expected):
            backend.count_tokens("two")


@pytest.mark.parametrize(
    ("models", "pages", "exact"),
    [
        (VLLM_MODELS, {"/tokenize": Reply({"count": 5})}, True),
        (VLLM_MODELS, {}, False),
        ([{"id": "x", "owned_by": "someone"}], {"/tokenize": Reply({"count": 5})}, False),
    ],
    ids=["known", "tokens estimated", "context guessed"],
)
def test_prompt_is_refused_here_only_where_its_limits_are_known(
    serve: Any, connect: Any, models: Any, pages: Any, exact: bool
) -> None:
    """A guess must not score a method 0: the server is asked, and refuses what is too long for it."""
    backend = connect(serve(StandIn(saying("x"), models, pages)).url)
    assert backend.has_exact_limits is exact
