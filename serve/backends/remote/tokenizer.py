"""Base identity, chat template and token counting for the base of a remote server.

The identity is what the server tells, completed by --base and the base's files on this machine. Tokens are counted by
the server, else by the base's tokenizer, else estimated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.manifest import UNKNOWN
from common.files import ProgressFn
from common.format import quote_untrusted
from errors import BaseModelError, EngineError, PromptOrTuneError
from models.source import EMBEDDED, EMBEDDED_ID, BaseIdentity, is_commit, resolve
from serve.backends.remote.client import ServerClient, ServerResponse
from serve.backends.remote.servers import OURS, ServerInfo
from tasks.prompt import Message

PLAIN = "plain"
# A context length that all current bases have.
_SAFE_CONTEXT = 2048
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class KnownBase:
    """A base by its id, with the folder of its configuration and tokenizer if that is on this machine."""

    id: str
    revision: str = ""
    folder: Path | None = None


class LocalTokenizer:
    """The base's own tokenizer and chat template, read from its files on this machine."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (ValueError, OSError, KeyError, ImportError) as error:
            raise BaseModelError(f"The tokenizer in {folder} cannot be read: check --base.") from error
        bos = self._tokenizer.bos_token
        added_tokens = self._tokenizer("", verbose=False)["input_ids"]
        self._bos_token = bos if bos and added_tokens[:1] == [self._tokenizer.bos_token_id] else ""

    @property
    def has_template(self) -> bool:
        """Whether it has a chat template."""
        return bool(self._tokenizer.chat_template)

    def chat(self, messages: Sequence[Message]) -> str:
        """Render `messages` with the template, without the first special token, which the server adds itself."""
        text = str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        return text.removeprefix(self._bos_token) if self._bos_token else text

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        return len(self._tokenizer(text, verbose=False)["input_ids"])


def known_base(base: str, report: ProgressFn) -> KnownBase:
    """Return what this machine knows of the base that --base names, without downloads from the Hub.

    Raises BaseModelError for a folder or file that does not exist.
    """
    name, _, revision = base.partition("@")
    is_here = base in (EMBEDDED, EMBEDDED_ID) or base.endswith(".gguf") or Path(base).expanduser().is_dir()
    if is_here or base.startswith((".", "/", "~")):
        source = resolve(base, report)
        return KnownBase(source.id, source.revision, source.folder)
    folder = _cached_snapshot(name, revision or None)
    if folder is not None:
        return KnownBase(name, folder.name, folder)
    return KnownBase(name, revision if is_commit(revision) else "")


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    """Return the snapshot in the Hub's cache, None if it is missing or has no tokenizer."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # noqa: BLE001 - the client raises several libraries' errors for what it does not have
        return None
    return folder if (folder / "tokenizer_config.json").is_file() else None


def base_identity(
    server: ServerInfo, known: KnownBase | None, tokenizer: LocalTokenizer | None, engine: str
) -> BaseIdentity:
    """Return the identity of the base that `engine` serves.

    Shapes stay unknown: the server checks them. Without the base's own chat template all prompts have the plain style.
    Raises PromptOrTuneError if the server has another base than `known`.
    """
    if known is not None:
        _check_same_base(server, known, engine)
    config = _read_config(known)
    context = known_context_length(server, known) or _SAFE_CONTEXT
    has_template = tokenizer is not None and tokenizer.has_template
    architectures = config.get("architectures") or [UNKNOWN]
    return BaseIdentity(
        id=known.id if known else server.base_id,
        revision=(known.revision if known else server.revision) or UNKNOWN,
        architecture=str(architectures[0]),
        quantization=server.quantization or UNKNOWN,
        device=engine,
        context_length=context,
        has_chat_template=has_template,
        is_encoder_decoder=bool(config.get("is_encoder_decoder")),
        prompt_style="" if has_template else PLAIN,
    )


def known_context_length(server: ServerInfo, known: KnownBase | None) -> int:
    """Return the context length that the server tells, else that of the base's configuration, else 0."""
    config = _read_config(known)
    max_positions = next((value for key in ("max_position_embeddings", "n_positions") if (value := config.get(key))), 0)
    return server.context_length or (max_positions if type(max_positions) is int else 0)


def _check_same_base(server: ServerInfo, known: KnownBase, engine: str) -> None:
    """Raise BaseModelError if --base contradicts the server; --base may be more specific."""
    has_names = server.server_type is OURS or (_HUB_ID.fullmatch(server.base_id) and _HUB_ID.fullmatch(known.id))
    if has_names and server.base_id.casefold() != known.id.casefold():
        raise BaseModelError(
            f"{engine} serves {quote_untrusted(server.base_id)} and --base says {known.id}: "
            "name the base that it serves."
        )
    if server.revision and known.revision and server.revision != known.revision:
        raise BaseModelError(
            f"{engine} serves revision {quote_untrusted(server.revision)} of {known.id} and --base says "
            f"{known.revision}: name the revision that it serves."
        )


def _read_config(known: KnownBase | None) -> dict[str, Any]:
    if known is None or known.folder is None:
        return {}
    try:
        value = json.loads((known.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptOrTuneError(f"The config.json in {known.folder} cannot be read: check --base.") from error
    return value if isinstance(value, dict) else {}


# Less than the average bytes per token of code (3 to 4) and prose with the tokenizers of current bases, so that the
# estimate is too high rather than too low.
_BYTES_PER_TOKEN = 2.0
_MAX_CACHED_TEXTS = 256
_PROBE_TEXT = "x = 1"
ESTIMATED_NOTE = "Prompt lengths are estimated (rather too high): the server cannot count tokens."

CountFn = Callable[[str], int]


@dataclass(frozen=True)
class _CountEndpoint:
    """One server type's endpoint for token counts: the path beside /v1, the body, the number in the response."""

    path: str
    body: Callable[[str, str], Mapping[str, Any]]
    parse: Callable[[ServerResponse], object]


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else 0


_COUNT_ENDPOINTS = (
    # vLLM and Prompt or Tune
    _CountEndpoint(
        "/tokenize", lambda model, text: {"model": model, "prompt": text}, lambda response: response.field("count")
    ),
    # llama-cpp-python
    _CountEndpoint("/extras/tokenize/count", lambda _, text: {"input": text}, lambda response: response.field("count")),
    # llama.cpp
    _CountEndpoint(
        "/tokenize",
        lambda _, text: {"content": text, "add_special": True},
        lambda response: _length(response.field("tokens")),
    ),
    # LoRAX
    _CountEndpoint("/tokenize", lambda _, text: {"inputs": text}, lambda response: _length(response.value)),
)


class TokenCounter:
    """Counts tokens with the server's endpoint, which is found out once; recent texts are cached.

    A server that counts and fails to do so raises an error instead of an estimate: an estimate is too high, and would
    leave out examples or refuse a prompt that fits.
    """

    def __init__(self, client: ServerClient, model: str, count_locally: CountFn | None) -> None:
        self._client = client
        self._model = model
        self._count_locally = count_locally
        self._endpoint = next((endpoint for endpoint in _COUNT_ENDPOINTS if self._has_endpoint(endpoint)), None)
        self._cache: dict[str, int] = {}

    @property
    def is_estimate(self) -> bool:
        """Whether its numbers are estimates."""
        return self._endpoint is None and self._count_locally is None

    def __call__(self, text: str) -> int:
        """Return the number of tokens of `text`; raises the error of `ServerClient.post` or of the response."""
        if text not in self._cache:
            if len(self._cache) >= _MAX_CACHED_TEXTS:
                self._cache.clear()
            self._cache[text] = self._count(text)
        return self._cache[text]

    def _count(self, text: str) -> int:
        if not text:
            return 0
        if self._endpoint is None:
            if self._count_locally is not None:
                return self._count_locally(text)
            return int(len(text.encode()) / _BYTES_PER_TOKEN) + 1
        try:
            return self._count_at(self._endpoint, text)
        except PromptOrTuneError:
            if self._count_locally is None:
                raise
            return self._count_locally(text)

    def _has_endpoint(self, endpoint: _CountEndpoint) -> bool:
        try:
            return self._count_at(endpoint, _PROBE_TEXT) > 0
        except PromptOrTuneError:
            return False

    def _count_at(self, endpoint: _CountEndpoint, text: str) -> int:
        """Return the endpoint's count; raises PromptOrTuneError if it gives none."""
        response = self._client.post(endpoint.path, endpoint.body(self._model, text), at_root=True)
        if response.status != 200:
            raise self._client.status_error(response.status, response.headers, response.value, self._model)
        count = endpoint.parse(response)
        if type(count) is int and count > 0:
            return count
        raise EngineError(f"The server at {self._client.host} counted no tokens of a prompt: look at its log.")
