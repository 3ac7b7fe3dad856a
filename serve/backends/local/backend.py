"""The local backend: rows with and without adapters in one batch on one quantized base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any

from adapters.manifest import BaseIdentity
from adapters.store import AdapterFolder
from errors import PeftArenaError
from serve.backends.local.loading import LoadedBase
from serve.rows import Decoding, Finished, Partial, Row
from tasks.prompt import Message

if TYPE_CHECKING:
    import torch


class LocalBackend:
    """Generates with a base in this process. Not thread-safe: the engine's worker is its only caller."""

    def __init__(self, loaded: LoadedBase) -> None:
        from serve.backends.local.beginnings import Beginnings
        from serve.backends.local.speech import Vocabulary
        from serve.backends.local.wear import Wardrobe

        self._model: Any = loaded.model
        self._tokenizer: Any = loaded.tokenizer
        self._identity = loaded.identity
        self._vocabulary = Vocabulary(loaded.tokenizer, loaded.model)
        self._wardrobe = Wardrobe(loaded.model)
        self._beginnings = Beginnings()

    @property
    def base(self) -> BaseIdentity:
        """What was loaded."""
        return self._identity

    def chat(self, messages: Sequence[Message]) -> str:
        """The base's own chat template around `messages`, open for the assistant's answer."""
        if not self._identity.has_chat_template:
            raise PeftArenaError(f"The base '{self._identity.id}' has no chat template.")
        from jinja2 import TemplateError

        try:
            try:
                return self._template(messages)
            except TemplateError:
                # Some templates refuse a system turn, so it is said again as part of the first one.
                return self._template(_without_system(messages))
        except TemplateError as fault:
            raise PeftArenaError(f"The chat template of '{self._identity.id}' does not work: {fault}.") from fault

    def _template(self, messages: Sequence[Message]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def count_tokens(self, text: str) -> int:
        """How many tokens the base reads for `text`."""
        return len(self._tokenizer(text, verbose=False)["input_ids"])

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Reads the adapter's tensors, whole or not at all; the base itself is not touched."""
        from serve.backends.local.wear import read_adapter

        self._beginnings.forget(folder.name)
        self._wardrobe.add(folder.name, read_adapter(folder, self._model, self._adapter_dtype()))

    def unload_adapter(self, name: str) -> None:
        """Frees the adapter's memory."""
        self._beginnings.forget(name)
        self._wardrobe.remove(name)

    def generate(self, rows: Sequence[Row], decoding: Decoding, cancel: Event) -> Iterator[Partial | Finished]:
        """All rows in one batch. Yields Partials as they grow and one Finished a row, by index into `rows`."""
        from serve.backends.local.beams import decode_beams
        from serve.backends.local.causal import Uniform
        from serve.backends.local.states import state_for
        from serve.backends.local.stepwise import decode_stepwise

        # Rows of one adapter stand together, so that they share one product.
        order = sorted(range(len(rows)), key=lambda index: rows[index].adapter or "")
        names = [rows[index].adapter for index in order]
        decode = decode_beams if decoding.mode == "beam" else decode_stepwise
        uniform = Uniform(names[0], self._beginnings) if len(set(names)) == 1 else None
        ahead = [self._wardrobe.ahead(name) for name in names]
        with self._wardrobe.worn(names):
            events = decode(
                state_for(self._model, self._tokenizer.pad_token_id, ahead, uniform),
                [self._encode(rows[index]) for index in order],
                [rows[index].style for index in order],
                decoding,
                self._vocabulary,
                lambda lines: self._wardrobe.set_rows([names[line] for line in lines]),
                cancel.is_set,
            )
            for event in events:
                if isinstance(event, Partial):
                    yield Partial(order[event.index], event.text, event.tokens)
                else:
                    yield Finished(order[event.index], event.candidates, event.seconds, event.cancelled)

    def _encode(self, row: Row) -> list[int]:
        # A chat template writes the special tokens itself; a plain prompt gets what the tokenizer adds.
        ids = self._tokenizer(row.prompt, add_special_tokens=row.style.format == "plain", verbose=False)["input_ids"]
        return list(ids)

    def _adapter_dtype(self) -> torch.dtype:
        """Products of LoRA's size take 2 microseconds in float32 on a CPU and 13 in bfloat16, which is less exact."""
        import torch

        return torch.float32 if self._identity.device == "cpu" else self._model.dtype


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The same chat with its system turn put before the first user turn."""
    if messages[0]["role"] != "system":
        return list(messages)
    first: Message = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]
