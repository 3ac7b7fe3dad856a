"""Base identity, chat template, token counting.

What the base behind a server is: what the server says, made exact by --base and what this machine knows of it.

How many tokens a prompt has at the server: asked of the server, else of the base's tokenizer, else estimated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.manifest import UNKNOWN
from common.format import quote_untrusted
from common.paths import ProgressFn
from errors import BaseModelError, PromptOrTuneError
from models.identity import BaseIdentity
from models.source import EMBEDDED, EMBEDDED_ID, is_commit, resolve
from serve.backends.remote.client import ServerClient, ServerResponse
from serve.backends.remote.servers import OURS, ServerInfo
from tasks.prompt import Message

PLAIN = "plain"
# Bases of today read more; a prompt that fits this fits them all.
_SAFE_CONTEXT = 2048
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class KnownBase:
    """A base by its name, with its files where they are on this machine (configuration and tokenizer, not weights)."""

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
        adds = self._tokenizer("", verbose=False)["input_ids"]
        self._bos_token = bos if bos and adds[:1] == [self._tokenizer.bos_token_id] else ""

    @property
    def has_template(self) -> bool:
        """Whether it knows how a chat is written."""
        return bool(self._tokenizer.chat_template)

    def chat(self, messages: Sequence[Message]) -> str:
        """The template around `messages`, without the token that the server puts first itself."""
        text = str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        return text.removeprefix(self._bos_token) if self._bos_token else text

    def count(self, text: str) -> int:
        """How many tokens `text` has."""
        return len(self._tokenizer(text, verbose=False)["input_ids"])


def known_base(base: str, report: ProgressFn) -> KnownBase:
    """What is known here of the base that --base names; nothing is downloaded from the Hub.

    BaseModelError where it is a folder or file that does not exist.
    """
    name, _, revision = base.partition("@")
    is_here = base in (EMBEDDED, EMBEDDED_ID) or base.endswith(".gguf") or Path(base).expanduser().is_dir()
    if is_here or base.startswith((".", "/", "~")):
        found = resolve(base, report)
        return KnownBase(found.id, found.revision, found.folder)
    folder = _cached_snapshot(name, revision or None)
    if folder is not None:
        return KnownBase(name, folder.name, folder)
    return KnownBase(name, revision if is_commit(revision) else "")


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    """The snapshot in the Hub's cache, where it has a tokenizer."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # noqa: BLE001 - the client raises several libraries' errors for what it does not have
        return None
    return folder if (folder / "tokenizer_config.json").is_file() else None


def base_identity(
    server: ServerInfo, known: KnownBase | None, tokenizer: LocalTokenizer | None, engine: str
) -> BaseIdentity:
    """What adapters, results and pages must know of the base that `engine` serves.

    Shapes stay unknown: the engine that holds the weights checks them. Without the base's own chat template every
    prompt is a plain one. PromptOrTuneError where the server says that it has another base than `known`.
    """
    if known is not None:
        _check_same_base(server, known, engine)
    config = _read_config(known)
    read = next((value for key in ("max_position_embeddings", "n_positions") if (value := config.get(key))), 0)
    context = server.context_length or (read if type(read) is int else 0) or _SAFE_CONTEXT
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


def _check_same_base(server: ServerInfo, known: KnownBase, engine: str) -> None:
    """--base may say more than the server does, and nothing else."""
    named = server.server_type is OURS or (_HUB_ID.fullmatch(server.base_id) and _HUB_ID.fullmatch(known.id))
    if named and server.base_id.casefold() != known.id.casefold():
        raise BaseModelError(
            f"{engine} serves {quote_untrusted(server.base_id)} and --base says {known.id}: name the base that it serves."
        )
    if server.revision and known.revision and server.revision != known.revision:
        raise BaseModelError(
            f"{engine} serves revision {quote_untrusted(server.revision)} of {known.id} and --base says {known.revision}: "
            "name the revision that it serves."
        )


def _read_config(known: KnownBase | None) -> dict[str, Any]:
    if known is None or known.folder is None:
        return {}
    try:
        value = json.loads((known.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptOrTuneError(f"The config.json in {known.folder} cannot be read: check --base.") from error
    return value if isinstance(value, dict) else {}


# Fewer bytes a token than code and prose in any language have on average with the tokenizers of today's bases (code
# has 3 to 4): the estimate is meant to come out too high.
_BYTES_PER_TOKEN = 2.0
_MAX_CACHED_TEXTS = 256
_PROBE_TEXT = "x = 1"
ESTIMATED_NOTE = "Prompt lengths are estimated, on the safe side: the server has no way to count tokens."

CountFn = Callable[[str], int]


@dataclass(frozen=True)
class _CountEndpoint:
    """One server's way to count: the path beside /v1, the body, and where the number is in the answer."""

    path: str
    body: Callable[[str, str], Mapping[str, Any]]
    parse: Callable[[ServerResponse], object]


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else 0


_COUNT_ENDPOINTS = (
    # vLLM and Prompt or Tune
    _CountEndpoint("/tokenize", lambda model, text: {"model": model, "prompt": text}, lambda said: said.field("count")),
    # llama-cpp-python
    _CountEndpoint("/extras/tokenize/count", lambda _, text: {"input": text}, lambda said: said.field("count")),
    # llama.cpp
    _CountEndpoint(
        "/tokenize", lambda _, text: {"content": text, "add_special": True}, lambda said: _length(said.field("tokens"))
    ),
    # LoRAX
    _CountEndpoint("/tokenize", lambda _, text: {"inputs": text}, lambda said: _length(said.value)),
)


class TokenCounter:
    """Counts tokens. Which way the server has is found out once; the same text is asked for once in a while."""

    def __init__(self, client: ServerClient, model: str, count_locally: CountFn | None) -> None:
        self._client = client
        self._model = model
        self._count_locally = count_locally
        self._endpoint = next((form for form in _COUNT_ENDPOINTS if self._count_at(form, _PROBE_TEXT)), None)
        self._cache: dict[str, int] = {}

    @property
    def is_estimate(self) -> bool:
        """Whether its numbers are guesses."""
        return self._endpoint is None and self._count_locally is None

    def __call__(self, text: str) -> int:
        """The number of tokens of `text`."""
        if text not in self._cache:
            if len(self._cache) >= _MAX_CACHED_TEXTS:
                self._cache.clear()
            self._cache[text] = self._count(text)
        return self._cache[text]

    def _count(self, text: str) -> int:
        if not text:
            return 0
        if self._endpoint is not None and (count := self._count_at(self._endpoint, text)):
            return count
        return (
            self._count_locally(text)
            if self._count_locally is not None
            else int(len(text.encode()) / _BYTES_PER_TOKEN) + 1
        )

    def _count_at(self, endpoint: _CountEndpoint, text: str) -> int:
        """What the server says, 0 where it does not say."""
        try:
            reply = self._client.post(endpoint.path, endpoint.body(self._model, text), at_root=True)
        except PromptOrTuneError:
            return 0
        count = endpoint.parse(reply) if reply.status == 200 else 0
        return count if type(count) is int and count > 0 else 0
