"""Endpoints of models, adapters, tokens, metrics, health and version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from serve.api.app import VERSION
from serve.api.auth import read_keys
from tests import messages as expected
from tests.adapters.folders import CONFIG, write_adapter
from tests.conftest import ROOT as CHECKOUT
from tests.serve.api.conftest import Served, serving
from tests.serve.api.test_errors import error_of

ADMIN, USER = "admin-key-0123456789", "user-key-0123456789"
AS_ADMIN = {"authorization": f"Bearer {ADMIN}"}


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("managed")
    (folder / "keys").write_text(f"admin:{ADMIN}::admin\nuser:{USER}\n")
    write_adapter(folder / "more" / "deep" / "fresh")
    write_adapter(folder / "elsewhere" / "outside")
    write_adapter(folder / "more" / "wrong", {**CONFIG, "r": 5})
    with serving(folder, keys=read_keys(folder / "keys")) as served:
        yield served


def post_adapter(served: Served, action: str, **body: object) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/{action}_lora_adapter", json=body, headers=AS_ADMIN)


def test_model_list_contains_base_methods_and_adapters(client: OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny/base", "zero-shot", "icl", "rag", "lora-a", "lora-b"]
    base, *others = models
    assert base.parent is None
    assert (base.max_model_len, base.revision, base.quantization) == (2048, "a" * 40, "nf4")
    assert all(model.parent == model.root == "tiny/base" for model in others)
    assert {model.owned_by for model in models} == {"prompt-or-tune"}
    assert all(model.created > 0 and model.object == "model" for model in models)


@pytest.mark.parametrize("name", ["tiny/base", "zero-shot", "icl-4", "lora-a", "lora-a*0.5+rag-2"])
def test_model_is_returned_by_name(client: OpenAI, name: str) -> None:
    assert client.models.retrieve(name).id == name


def test_invalid_adapter_is_not_listed_and_requests_for_it_get_the_reason(tmp_path: Path) -> None:
    write_adapter(tmp_path / "root" / "lora-broken", {**CONFIG, "r": 5})
    with serving(tmp_path) as served, served.client() as client:
        assert "lora-broken" not in [model.id for model in client.models.list()]
        with pytest.raises(openai.NotFoundError, match=expected.NAMES_LORA_BROKEN):
            client.models.retrieve("lora-broken")
        with pytest.raises(openai.BadRequestError, match=expected.NAMES_LORA_BROKEN) as caught:
            client.completions.create(model="lora-broken", prompt="x")
        assert caught.value.param == "model"


def test_adapter_is_loaded_used_and_unloaded(managed: Served) -> None:
    loaded = post_adapter(
        managed, "load", lora_name="fresh", lora_path=str(managed.adapters / "more" / "deep" / "fresh")
    )
    assert loaded.status_code == 200, loaded.text
    assert loaded.text == "Success: LoRA adapter 'fresh' added successfully."
    assert "fresh" in managed.backend.adapters
    with managed.client(USER) as client:
        assert "fresh" in [model.id for model in client.models.list()]
        assert client.completions.create(model="fresh", prompt="x", max_tokens=9).choices[0].text.endswith("# fresh*1")
        unloaded = post_adapter(managed, "unload", lora_name="fresh")
        assert unloaded.text == "Success: LoRA adapter 'fresh' removed successfully."
        assert "fresh" not in managed.backend.adapters
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="fresh", prompt="x")
    assert error_of(post_adapter(managed, "unload", lora_name="fresh"), 404)["param"] == "lora_name"


def test_adapter_of_the_store_is_unloaded_but_not_unregistered(managed: Served) -> None:
    with managed.client(USER) as client:
        client.completions.create(model="lora-b", prompt="x")
        assert "lora-b" in managed.backend.adapters
        assert post_adapter(managed, "unload", lora_name="lora-b").status_code == 200
        assert "lora-b" not in managed.backend.adapters
        assert (
            client.completions.create(model="lora-b", prompt="x", max_tokens=9).choices[0].text.endswith("# lora-b*1")
        )


@pytest.mark.parametrize(
    ("name", "path", "param"),
    [
        ("outside", "elsewhere/outside", "lora_path"),
        ("outside", "more/../elsewhere/outside", "lora_path"),
        ("wrong", "more/wrong", "lora_path"),
        ("nothing", "more/nothing", "lora_path"),
        ("../evil", "more/deep/fresh", "lora_path"),
        ("lora-a", "more/deep/fresh", "lora_path"),
        ("", "more/deep/fresh", "lora_name"),
    ],
)
def test_refused_adapter_is_not_registered(managed: Served, name: str, path: str, param: str) -> None:
    before = set(managed.backend.adapters), managed.engine.adapters()
    error = error_of(post_adapter(managed, "load", lora_name=name, lora_path=str(managed.adapters / path)), 400)
    assert error["param"] == param
    assert (set(managed.backend.adapters), managed.engine.adapters()) == before


def test_only_admins_may_load_and_unload_adapters(managed: Served, served: Served) -> None:
    body = {"lora_name": "fresh", "lora_path": "/"}
    for action in ("load", "unload"):
        path = f"/v1/{action}_lora_adapter"
        answer = httpx.post(managed.url + path, json=body, headers={"authorization": f"Bearer {USER}"})
        assert error_of(answer, 403)["code"] == "admin_key_required"
        assert error_of(httpx.post(served.url + path, json=body), 403)["code"] == "admin_key_required"


def test_tokens_are_counted(served: Served) -> None:
    response = served.post("/tokenize", {"model": "zero-shot", "prompt": "a b c"}).json()
    assert response["count"] == 3
    assert response["max_model_len"] == 2048
    assert response["tokens"] is None
    messages = [{"role": "user", "content": "a b c"}]
    few, many = (
        served.post("/tokenize", {"model": model, "messages": messages}).json()["count"]
        for model in ("zero-shot", "icl-4")
    )
    assert 3 < few < many
    assert error_of(served.post("/tokenize", {"model": "zero-shot"}), 400)["param"] == "prompt"


def test_metrics_have_the_format_of_prometheus(served: Served) -> None:
    served.post("/v1/completions", {"model": "lora-a", "prompt": "x"})
    answer = httpx.get(f"{served.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    names = {line.split("{")[0].split(" ")[0] for line in answer.text.splitlines() if not line.startswith("#")}
    assert {
        "prompt_or_tune_num_requests_waiting",
        "prompt_or_tune_num_seqs_running",
        "prompt_or_tune_batch_num_seqs_bucket",
        "prompt_or_tune_generation_tokens_total",
        "prompt_or_tune_prompt_tokens_total",
        "prompt_or_tune_e2e_request_latency_seconds_count",
        "prompt_or_tune_adapter_hits_total",
        "prompt_or_tune_adapter_loads_total",
    } <= names


def test_health_and_version_are_returned(served: Served) -> None:
    import tomllib

    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}
    assert httpx.head(f"{served.url}/health").status_code == 200
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert httpx.get(f"{served.url}/version").json() == {"version": version}
    assert version == VERSION
