"""LocalBackend: generates on a quantized base in this process, with and without adapters in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

from adapters.store import AdapterFolder
from errors import BaseModelError, PromptOrTuneError
from models.loader import LoadedBase
from models.resources import single_thread, trim_malloc
from models.source import BaseIdentity
from serve.backends.local.fused_llama import FusedLlama, can_fuse
from serve.backends.local.fused_runner import FusedModelRunner, share_model
from serve.backends.local.hf_runner import HFCausalRunner, HFSeq2SeqRunner, check_batch
from serve.backends.local.prefill import PrefixCache
from serve.types import Batch, PartialOutput, Row, RowOutput, SamplingParams
from tasks.prompt import Message, get_style

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from serve.backends.local.batch import ModelRunner


class LocalBackend:
    """Implements Backend (serve/types.py) in this process.

    Batches must be used by one thread; adapters may be loaded and unloaded by any thread.
    """

    def __init__(self, loaded: LoadedBase) -> None:
        from serve.backends.local.lora.adapter import AdapterRegistry
        from serve.backends.local.prefill import PrefixCache
        from serve.backends.local.sampler import Detokenizer

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
        """The identity of the loaded base."""
        return self._identity

    def apply_chat_template(self, messages: Sequence[Message]) -> str:
        """Render `messages` with the base's chat template, up to the beginning of the assistant's answer.

        Raises PromptOrTuneError without a template or when it fails.
        """
        if not self._identity.has_chat_template:
            raise PromptOrTuneError(f"The base '{self._identity.id}' has no chat template.")
        from jinja2 import TemplateError

        try:
            try:
                return self._apply_template(messages)
            except TemplateError:
                # Some templates refuse a system turn: try again with its text in the first user turn.
                return self._apply_template(_without_system(messages))
        except TemplateError as error:
            raise PromptOrTuneError(f"The chat template of '{self._identity.id}' does not work: {error}.") from error

    def _apply_template(self, messages: Sequence[Message]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        return len(self._tokenizer(text, verbose=False)["input_ids"])

    def load_adapter(self, folder: AdapterFolder) -> None:
        """Load the adapter's tensors, all or none, in any thread; the base itself does not change."""
        from serve.backends.local.lora.adapter import load_adapter

        with single_thread():
            adapter = load_adapter(folder, self._model, self._modules)
        replaced = self._registry.add(folder.name, adapter)
        if replaced is not None:
            self.prefix_cache.evict_adapter(replaced)

    def unload_adapter(self, name: str) -> None:
        """Free the memory of the adapter and of the prefixes that were computed with it."""
        replaced = self._registry.remove(name)
        if replaced is not None:
            self.prefix_cache.evict_adapter(replaced)
        del replaced
        trim_malloc()

    def adapter_bytes(self, name: str) -> int:
        """Return the size of the adapter's tensors in bytes."""
        return self._registry[name].size

    def unsupported_reason(self, folder: AdapterFolder | None, scale: float = 1.0) -> str | None:
        """Return why the adapter cannot be applied at that scale; None if it can."""
        if folder is None or scale == 1:
            return None
        from serve.backends.local.lora.adapter import cannot_scale_message

        config = folder.config
        scalable = config.get("peft_type") in ("LORA", "IA3") and not config.get("use_dora")
        return None if scalable else cannot_scale_message(folder.name)

    def open_batch(self, mode: Literal["step", "beam"]) -> Batch:
        """Return an empty batch: "beam" for beam search, "step" for greedy decoding and sampling."""
        from serve.backends.local.batch import SamplingBatch
        from serve.backends.local.beam_search import BeamSearchBatch

        batch_class = BeamSearchBatch if mode == "beam" else SamplingBatch
        return batch_class(self._make_runner, self._encode, self._registry.resolve, self._detokenizer)

    def generate(
        self, rows: Sequence[Row], sampling_params: SamplingParams, cancel: Event
    ) -> Iterator[PartialOutput | RowOutput]:
        """Generate all rows in one batch; yields PartialOutputs and one RowOutput per row, by index into `rows`."""
        from serve.backends.local.batch import run_to_end

        return run_to_end(
            self.open_batch("beam" if sampling_params.mode == "beam" else "step"), rows, sampling_params, cancel
        )

    def _encode(self, row: Row) -> list[int]:
        # A chat template includes the special tokens; to a plain prompt the tokenizer adds its own.
        plain = row.style is None or row.style.format == "plain"
        ids = self._tokenizer(row.prompt, add_special_tokens=plain, verbose=False)["input_ids"]
        return list(ids)


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """Return the chat with its system turn merged into the first user turn."""
    if messages[0]["role"] != "system":
        return list(messages)
    first: Message = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def make_runner_factory(model: PreTrainedModel, pad_token: int, prefix_cache: PrefixCache) -> Callable[[], ModelRunner]:
    """Return a function that makes empty runners of the kind that fits the model."""
    if can_fuse(model):
        base = share_model(FusedLlama(model), dict(model.named_modules()), prefix_cache)
        return lambda: FusedModelRunner(base)
    return _unfused_runner_factory(model, pad_token)


def _unfused_runner_factory(model: PreTrainedModel, pad_token: int) -> Callable[[], ModelRunner]:
    runner_class = HFSeq2SeqRunner if model.config.is_encoder_decoder else HFCausalRunner
    modules = dict(model.named_modules())
    return lambda: runner_class(model, pad_token, modules)


def check_base(loaded: LoadedBase) -> None:
    """Raise BaseModelError if a small batch on the base fails or gives other answers than each row alone."""
    if not can_fuse(loaded.model):
        check_batch(loaded, _unfused_runner_factory(loaded.model, loaded.tokenizer.pad_token_id))


def check_trained_style(base: BaseIdentity) -> None:
    """Raise BaseModelError if a fully fine-tuned base was trained with a prompt style that has changed since."""
    if base.prompt_style and get_style(base.prompt_style).fingerprint != base.prompt_fingerprint:
        raise BaseModelError(
            f"The model '{base.id}' was trained with an older version of prompt style '{base.prompt_style}' "
            "(its fingerprint differs): train it again."
        )
