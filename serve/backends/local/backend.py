"""The local backend: rows with and without adapters in one batch on one quantized base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any, Literal

from adapters.manifest import BaseIdentity
from adapters.store import AdapterFolder
from errors import PeftArenaError
from serve.backends.local.loading import LoadedBase
from serve.backends.memory import give_back
from serve.backends.openmp import one_core
from serve.rows import Batch, Decoding, Finished, Partial, Row
from tasks.prompt import Message


class LocalBackend:
    """Generates with a base in this process. Batches belong to one thread; adapters come and go from any."""

    def __init__(self, loaded: LoadedBase) -> None:
        from serve.backends.local.prefixes import Prefixes
        from serve.backends.local.speech import Vocabulary
        from serve.backends.local.states import state_maker
        from serve.backends.local.wear import Wardrobe

        self._model: Any = loaded.model
        self._tokenizer: Any = loaded.tokenizer
        self._identity = loaded.identity
        self._vocabulary = Vocabulary(loaded.tokenizer, loaded.model)
        self._modules = dict(loaded.model.named_modules())
        self._wardrobe = Wardrobe()
        self.prefixes = Prefixes()
        self._make_state = state_maker(loaded.model, loaded.tokenizer.pad_token_id, self.prefixes)

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
        """Reads the adapter's tensors, whole or not at all, in any thread; the base itself is not touched."""
        from serve.backends.local.wear import read_adapter

        with one_core():
            adapter = read_adapter(folder, self._model, self._modules)
        old = self._wardrobe.add(folder.name, adapter)
        if old is not None:
            self.prefixes.forget(old)

    def unload_adapter(self, name: str) -> None:
        """Frees the adapter's memory, and what was read under it."""
        old = self._wardrobe.remove(name)
        if old is not None:
            self.prefixes.forget(old)
        del old
        give_back()

    def adapter_bytes(self, name: str) -> int:
        """The size of the adapter's tensors."""
        return self._wardrobe[name].size

    def open_batch(self, mode: Literal["step", "beam"]) -> Batch:
        """An empty batch."""
        from serve.backends.local.beams import BeamBatch
        from serve.backends.local.stepwise import StepBatch

        kind = BeamBatch if mode == "beam" else StepBatch
        return kind(self._make_state, self._encode, self._wardrobe.worn, self._vocabulary)

    def generate(self, rows: Sequence[Row], decoding: Decoding, cancel: Event) -> Iterator[Partial | Finished]:
        """All rows in one batch. Yields Partials as they grow and one Finished a row, by index into `rows`."""
        from serve.backends.local.flight import run_to_end

        return run_to_end(self.open_batch("beam" if decoding.mode == "beam" else "step"), rows, decoding, cancel)

    def _encode(self, row: Row) -> list[int]:
        # A chat template writes the special tokens itself; a plain prompt gets what the tokenizer adds.
        plain = row.style is None or row.style.format == "plain"
        ids = self._tokenizer(row.prompt, add_special_tokens=plain, verbose=False)["input_ids"]
        return list(ids)


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """The same chat with its system turn put before the first user turn."""
    if messages[0]["role"] != "system":
        return list(messages)
    first: Message = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]
