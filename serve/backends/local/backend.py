"""LocalBackend: loads adapters, opens batches, picks a runner.

The local backend: rows with and without adapters in one batch on one quantized base.

The state that fits a base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

from adapters.store import AdapterFolder
from errors import BaseModelError, PromptOrTuneError
from models.identity import BaseIdentity
from models.loader import LoadedBase
from models.memory import trim_malloc
from models.threads import single_thread
from serve.backends.local.fused_llama import FusedLlama, can_fuse
from serve.backends.local.fused_runner import FusedModelRunner, share_model
from serve.backends.local.hf_runner import HFCausalRunner, HFSeq2SeqRunner
from serve.backends.local.prefix_cache import PrefixCache
from serve.types import Batch, PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import Message, get_style

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from serve.backends.local.model_runner import ModelRunner


class LocalBackend:
    """Generates with a base in this process. Batches belong to one thread; adapters come and go from any."""

    def __init__(self, loaded: LoadedBase) -> None:
        from serve.backends.local.detokenizer import Detokenizer
        from serve.backends.local.lora.registry import AdapterRegistry
        from serve.backends.local.prefix_cache import PrefixCache

        check_trained_style(loaded.identity)
        self._model: Any = loaded.model
        self._tokenizer: Any = loaded.tokenizer
        self._identity = loaded.identity
        self._detokenizer = Detokenizer(loaded.tokenizer, loaded.model)
        self._modules = dict(loaded.model.named_modules())
        self._registry = AdapterRegistry()
        self.prefix_cache = PrefixCache()
        self._make_runner = make_runner_factory(loaded.model, loaded.tokenizer.pad_token_id, self.prefix_cache)

    @property
    def base(self) -> BaseIdentity:
        """What was loaded."""
        return self._identity

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """The base's own chat template around `messages`, open for the assistant's answer."""
        if not self._identity.has_chat_template:
            raise PromptOrTuneError(f"The base '{self._identity.id}' has no chat template.")
        from jinja2 import TemplateError

        try:
            try:
                return self._apply_template(messages)
            except TemplateError:
                # Some templates refuse a system turn, so it is said again as part of the first one.
                return self._apply_template(_without_system(messages))
        except TemplateError as error:
            raise PromptOrTuneError(f"The chat template of '{self._identity.id}' does not work: {error}.") from error

    def _apply_template(self, messages: Sequence[Message]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def count_tokens(self, text: str) -> int:
        """How many tokens the base reads for `text`."""
        return len(self._tokenizer(text, verbose=False)["input_ids"])

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Reads the adapter's tensors, whole or not at all, in any thread; the base itself is not touched."""
        from serve.backends.local.lora.registry import load_adapter

        with single_thread():
            adapter = load_adapter(folder, self._model, self._modules)
        old = self._registry.add(folder.name, adapter)
        if old is not None:
            self.prefix_cache.evict_adapter(old)

    def unload_adapter(self, name: str) -> None:
        """Frees the adapter's memory, and what was read under it."""
        old = self._registry.remove(name)
        if old is not None:
            self.prefix_cache.evict_adapter(old)
        del old
        trim_malloc()

    def adapter_bytes(self, name: str) -> int:
        """The size of the adapter's tensors."""
        return self._registry[name].size

    def open_batch(self, mode: Literal["step", "beam"]) -> Batch:
        """An empty batch."""
        from serve.backends.local.batch import SamplingBatch
        from serve.backends.local.beam_search import BeamSearchBatch

        kind = BeamSearchBatch if mode == "beam" else SamplingBatch
        return kind(self._make_runner, self._encode, self._registry.resolve, self._detokenizer)

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: Event
    ) -> Iterator[PartialOutput | RowOutput]:
        """All rows in one batch. Yields Partials as they grow and one RowOutput a row, by index into `rows`."""
        from serve.backends.local.batch import run_to_end

        return run_to_end(
            self.open_batch("beam" if sampling_params.mode == "beam" else "step"), rows, sampling_params, cancel
        )

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


def make_runner_factory(model: PreTrainedModel, pad_token: int, prefix_cache: PrefixCache) -> Callable[[], ModelRunner]:
    """Makes fresh states of the kind that fits the model."""
    modules = dict(model.named_modules())
    if model.config.is_encoder_decoder:
        return lambda: HFSeq2SeqRunner(model, pad_token, modules)
    if can_fuse(model):
        base = share_model(FusedLlama(model), modules, prefix_cache)
        return lambda: FusedModelRunner(base)
    return lambda: HFCausalRunner(model, pad_token, modules)


def check_trained_style(base: BaseIdentity) -> None:
    """BaseModelError where a fully fine-tuned base was trained with a prompt style that has changed since."""
    if base.prompt_style and get_style(base.prompt_style).fingerprint != base.prompt_fingerprint:
        raise BaseModelError(
            f"The model '{base.id}' was trained with prompt style '{base.prompt_style}' as it was then "
            "(its fingerprint differs): train it again."
        )
