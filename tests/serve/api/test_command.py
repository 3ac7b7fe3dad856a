"""`python -m serve`: options, and one run with the embedded base from loading to Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from errors import PromptOrTuneError
from serve.__main__ import parse_options
from tests import messages
from tests.conftest import ROOT
from tests.test_app import free_port

MESSAGES: Any = [{"role": "user", "content": "sort the list `xs` in reverse"}]


def test_options_are_parsed(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("anna:anna-key-0123456789::admin")
    given = ["--max-num-seqs", "8", "--max-queued", "9", "--max-loras", "3", "--adapter-dir", str(tmp_path)]
    given += ["--api-key-file", str(tmp_path / "keys"), "--host", "0.0.0.0", "--port", "9000", "--pool", "conala"]
    given += ["--max-body-kb", "5", "--timeout", "7", "--rows-per-minute", "11", "--quantization", "none"]
    options = parse_options(given)
    limits, settings = options.engine_config, options.api.settings
    assert (limits.max_num_seqs, limits.max_queued, limits.max_loaded_adapters) == (8, 9, 3)
    assert (settings.pool, settings.max_body_bytes, settings.request_timeout_s) == ("conala", 5000, 7)
    assert settings.rows_per_minute == 11
    assert (options.host, options.port, options.adapter_dirs) == ("0.0.0.0", 9000, (tmp_path.resolve(),))
    assert (len(options.api.keys), options.model.quantization) == (1, "none")


def test_option_names_of_earlier_versions_still_work() -> None:
    config = parse_options(["--max-lines", "8", "--max-resident", "3"]).engine_config
    assert (config.max_num_seqs, config.max_loaded_adapters) == (8, 3)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_only_loopback_addresses_are_allowed_without_keys(host: str) -> None:
    assert not len(parse_options(["--host", host]).api.keys)
    assert not parse_options(["--host", host]).api.settings.web.is_answered("evil.example")
    with pytest.raises(PromptOrTuneError, match=messages.KEYS_REQUIRED):
        parse_options(["--host", "192.168.0.9"])
    opened = parse_options(["--host", "192.168.0.9", "--open"])
    assert opened.host == "192.168.0.9"


@pytest.mark.parametrize("arguments", [["--allow-host", "models.example"], ["--trust-proxy"]])
def test_names_and_proxies_need_keys_on_loopback_too(arguments: list[str]) -> None:
    with pytest.raises(PromptOrTuneError, match=messages.KEYS_REQUIRED):
        parse_options(arguments)
    assert parse_options([*arguments, "--open"]).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "x"], "'x' is no port"),
        (["--max-num-seqs", "0"], "'0' is no number for --max-num-seqs"),
        (["--timeout", "1.5"], "'1.5' is no number for --timeout"),
        (["--rows-per-minute", "-3"], "'-3' is no number for --rows-per-minute"),
        (["--pool", "starters"], "did you mean 'starter'"),
        (["--adapter-dir", "no/such"], "There is no adapter folder no/such"),
        (["--api-key-file", "no/such"], "The keys in no/such cannot be read"),
        (["--quantization", "nf5"], "Unknown quantization 'nf5'"),
        (["--base", "./no-such"], "There is no base ./no-such"),
        (["--bass", "x"], "`python -m serve --help` lists all options"),
    ],
)
def test_invalid_options_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(PromptOrTuneError, match=re.escape(words)):
        parse_options(arguments)


def test_unusable_address_prints_one_line_and_exits_with_2() -> None:
    command = [sys.executable, "-m", "serve", "--host", "192.0.2.1", "--open"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert process.stderr == f"{process.stderr.strip()}\n"
    assert re.fullmatch(r"prompt-or-tune: Cannot serve on address '192\.0\.2\.1' .*check --host\.\n", process.stderr)


def test_base_that_cannot_be_loaded_prints_its_message_and_exits_with_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve", "--port", str(free_port()), "--base", str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert process.stderr == f"prompt-or-tune: The folder {tmp_path} holds no model: it has no config.json.\n"


# `python -m serve` with the default handler of Ctrl-C, which programs started in the background ignore.
PROGRAM = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('serve', run_name='__main__', alter_sys=True)"
)


@pytest.fixture
def started(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port()
    command = [sys.executable, "-c", PROGRAM, "--port", str(port)]
    environment = os.environ | {"PROMPT_OR_TUNE_HOME": str(home)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process, f"http://127.0.0.1:{port}"
        process.kill()


def health(url: str) -> int:
    try:
        return httpx.get(f"{url}/health").status_code
    except httpx.TransportError:
        return 0


@pytest.mark.model
def test_embedded_base_answers_and_ctrl_c_exits_cleanly(started: tuple[subprocess.Popen[str], str]) -> None:
    process, url = started
    codes: list[int] = []
    while not codes or codes[-1] != 200:
        assert process.poll() is None, process.communicate()[1]
        codes.append(health(url))
        time.sleep(0.1)
    assert 503 in codes, "the port is open before the model is loaded"
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert {"zero-shot", "icl", "rag", "lora-starter"} <= {model.id for model in client.models.list()}
        request: Any = {"messages": MESSAGES, "max_tokens": 24, "model": "lora-starter"}
        reply = client.chat.completions.create(**request)
        message = reply.choices[0].message
        assert "sort" in message.content
        compile(message.code, "answer", "exec")
        chunks = list(
            client.chat.completions.create(model="lora-starter", messages=MESSAGES, max_tokens=24, stream=True)
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
        raw = client.completions.create(
            model="zero-shot", prompt="def add(a, b):\n    return", max_tokens=4, logprobs=1
        )
        assert len(raw.choices[0].logprobs.tokens) == raw.usage.completion_tokens
        stream = iter(
            client.chat.completions.create(model="zero-shot", messages=MESSAGES, max_tokens=2000, stream=True)
        )
        next(stream)
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match=messages.SERVER_ENDS):
            list(stream)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "\nStopped.\n"
    assert output.splitlines()[-1] == f"Ready: {url}/v1"
