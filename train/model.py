"""PEFT model, initial values of virtual tokens, completion-only loss, the Trainer of a run, and perplexity of rows.

Virtual tokens train badly from PEFT's random values: PEFT's own comparison has 0.057 on GSM8K for Prompt tuning from
random values and 0.343 from sampled vocabulary (docs/training.md has ours). By default they start from the text of
training examples: Prompt tuning from its token embeddings, Prefix tuning from the base's keys and values of it.

The loss of every technique is the cross-entropy of the label tokens. The logits of other tokens are not computed: on a
small base they cost as much as several layers, and most tokens of a sample are prompt.
"""

from __future__ import annotations

import math
import random
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.files import ProgressFn
from models.loader import LoadedBase, import_bitsandbytes, load_base
from models.resources import release_thread_pool
from tasks.problem import Example
from train.config import RunDirectory, TrainConfig
from train.techniques import get_technique
from train.tokenize import (
    IGNORE_INDEX,
    ExampleTokenizer,
    TokenizedData,
    TokenizedExample,
    TokenizerInfo,
    build_example_tokenizer,
)

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from train.trainer import CompletionTrainer, Evaluation, StopOnSignal


def init_virtual_tokens(model: Any, config: TrainConfig, samples: Sequence[TokenizedExample]) -> None:
    """Set the initial values of a new PeftModel with Prompt or Prefix tuning; `random` keeps PEFT's own."""
    if config.virtual_tokens_init == "random":
        return
    count = config.num_virtual_tokens
    if config.virtual_tokens_init == "vocabulary":
        size = model.get_base_model().get_input_embeddings().num_embeddings
        ids = random.Random(config.seed).sample(range(size), min(count, size))
    else:
        ids = sample_example_ids(samples, count, config.seed)
    if model.active_peft_config.peft_type == "PREFIX_TUNING":
        _init_prefix_tuning(model, ids)
    else:
        _init_prompt_tuning(model, ids)


def sample_example_ids(samples: Sequence[TokenizedExample], count: int, seed: int) -> list[int]:
    """Concatenate the ids of training examples, in an order drawn by the seed, to exactly `count` ids."""
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    ids: list[int] = []
    for index in order:
        if len(ids) >= count:
            break
        ids += samples[index].prompt_ids + samples[index].response_ids
    return (ids * (count // max(len(ids), 1) + 1))[:count]


def _init_prompt_tuning(model: Any, ids: list[int]) -> None:
    import torch

    embedding = model.get_base_model().get_input_embeddings()
    weight = model.prompt_encoder[model.active_adapter].embedding.weight
    with torch.no_grad():
        weight.copy_(embedding(torch.tensor(ids, device=embedding.weight.device)).to(weight.dtype))


def _init_prefix_tuning(model: Any, ids: list[int]) -> None:
    import torch
    from peft import initialize_kv_prefix_from_past_key_values
    from transformers import DynamicCache

    base = model.get_base_model()
    batch = {"input_ids": torch.tensor([ids], device=base.device)}
    with torch.no_grad():
        if base.config.is_encoder_decoder:
            # The prefix precedes the decoder's tokens, so its values come from the decoder's cache of the text.
            batch["decoder_input_ids"] = batch["input_ids"]
        cache = base(**batch, use_cache=True).past_key_values
    cache = getattr(cache, "self_attention_cache", cache)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    if base.config.is_encoder_decoder:
        layers = _peft_layer_assignment(layers)
    initialize_kv_prefix_from_past_key_values(model, past_key_values=DynamicCache(layers))


def _peft_layer_assignment(layers: list[Any]) -> list[Any]:
    """Reorder layers for PEFT 0.21.2, which on encoder-decoder bases gives decoder layer i the layer 2i modulo n.

    The values of layer i are therefore stored at that index; with an even n two layers share an index, and the lower
    layer's values stay.
    """
    assigned = list(layers)
    for index in reversed(range(len(layers))):
        assigned[2 * index % len(layers)] = layers[index]
    return assigned


_CPU_MAX_TOKENS, _NO_LIMIT = 512, 1 << 60


def build_peft_model(config: TrainConfig, loaded: LoadedBase, samples: Sequence[TokenizedExample]) -> Any:
    """Wrap the base with the technique's adapter, or return the base for full fine-tuning. Sets the seed."""
    import_bitsandbytes()
    from peft import get_peft_model
    from transformers import set_seed
    from transformers.pytorch_utils import Conv1D

    set_seed(config.seed)
    technique = get_technique(config.technique)
    peft_config = technique.make_peft_config(config, loaded.identity)
    if peft_config is None:
        model: Any = loaded.model.requires_grad_(requires_grad=True)
    else:
        if hasattr(peft_config, "fan_in_fan_out"):
            # PEFT would set it, with a warning.
            peft_config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in loaded.model.modules())
        model = get_peft_model(loaded.model.requires_grad_(requires_grad=False), peft_config)
        cast_outputs(model, loaded.model.dtype)
        if technique.uses_virtual_tokens:
            init_virtual_tokens(model, config, samples)
    if config.gradient_checkpointing:
        # The first layer's input must require a gradient: after a frozen embedding, checkpointed layers would get none.
        loaded.model.enable_input_require_grads()
    patch_loss(model)
    return model


def cast_outputs(model: Any, dtype: Any) -> None:
    """Cast the outputs of IA3's layers to `dtype`.

    On a quantized base they are 32 bits (peft 0.21.2), which the next 16-bit layer does not accept.
    """
    from peft.tuners.ia3 import IA3Layer

    for layer in model.modules():
        if isinstance(layer, IA3Layer):
            layer.register_forward_hook(lambda _layer, _inputs, output: output.to(dtype))


def build_trainer(
    config: TrainConfig,
    model: Any,
    dataset: TokenizedData,
    run_dir: RunDirectory,
    memory: Callable[[], int],
    report: ProgressFn,
    go_on: Callable[[Evaluation], bool] | None = None,
) -> tuple[CompletionTrainer, StopOnSignal]:
    """Build the Trainer with its callbacks, and return it with the callback that knows whether a signal stopped it."""
    from transformers import EarlyStoppingCallback, PrinterCallback

    from train.trainer import (
        CompletionTrainer,
        EvaluationHook,
        GradientCheck,
        JsonlLogger,
        ProgressReporter,
        StopOnSignal,
        ThroughputCallback,
        ThroughputMeter,
    )

    meter, stop = ThroughputMeter(), StopOnSignal(report)
    arguments = _training_arguments(config, len(dataset.train.selected_indices), run_dir, model)
    callbacks: list[Any] = [
        ThroughputCallback(meter),
        JsonlLogger(run_dir.log, meter, memory),
        ProgressReporter(report, int(arguments.eval_steps) // 2, meter),
        stop,
    ]
    if config.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.early_stopping_patience))
    if go_on is not None:
        callbacks.append(EvaluationHook(go_on))
    trainer = CompletionTrainer(
        meter=meter,
        report=report,
        max_tokens=max_tokens_per_forward(config, model.device.type),
        model=model,
        args=arguments,
        train_dataset=[dataset.example_tokenizer.to_features(sample) for sample in dataset.train.samples],
        # Sorted by length, so that batches have little padding.
        eval_dataset=sorted(
            map(dataset.example_tokenizer.to_features, dataset.validation.samples),
            key=lambda row: len(row["input_ids"]),
        ),
        data_collator=dataset.example_tokenizer.collate,
        callbacks=callbacks,
    )
    trainer.add_callback(GradientCheck(trainer.check_gradients))
    # Trainer's own printer would print every log entry as a dictionary.
    trainer.remove_callback(PrinterCallback)
    return trainer, stop


def max_tokens_per_forward(config: TrainConfig, device: str) -> int:
    """Return the most tokens of one forward pass on this type of device."""
    return config.max_tokens_at_once or (_CPU_MAX_TOKENS if device == "cpu" else _NO_LIMIT)


def count_steps(config: TrainConfig, samples: int, processes: int = 1) -> tuple[int, int]:
    """Return the optimizer steps of an epoch, and between two evaluations."""
    per_epoch = -(-samples // (config.effective_batch_size * processes))
    return per_epoch, max(1, round(per_epoch * config.eval_every))


def _training_arguments(config: TrainConfig, samples: int, run_dir: RunDirectory, model: Any) -> TrainingArguments:
    import torch
    from accelerate import PartialState
    from transformers import TrainingArguments

    _, every = count_steps(config, samples, PartialState().num_processes)
    full = config.technique == "full"
    arguments = TrainingArguments(
        output_dir=str(run_dir.checkpoints),
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_train_batch_size * 2,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optim,
        # Full fine-tuning computes in 16 bits on 32-bit weights; the base of an adapter has 16-bit weights.
        bf16=full,
        fp16=not full and model.dtype == torch.float16,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        # Every step, so that a resumed run can be compared with an uninterrupted one.
        logging_steps=1,
        # NaN must be visible.
        logging_nan_inf_filter=False,
        restore_callback_states_from_checkpoint=True,
        prediction_loss_only=True,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=[],
        use_cpu=model.device.type == "cpu",
        seed=config.seed,
    )
    # One process trains on one GPU: Trainer would otherwise split batches over all GPUs (DataParallel).
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def patch_loss(model: Any) -> None:
    """Make `model(**batch)` return {"loss": ...}, for a PeftModel or a base.

    The model's `forward` is replaced instead of the Trainer's loss, because with several processes
    DistributedDataParallel wraps exactly this call to synchronize gradients.
    """
    model.forward = types.MethodType(_loss_forward, model)


def _loss_forward(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    **_: Any,
) -> dict[str, torch.Tensor]:
    """Compute the summed loss, divided by `num_items_in_batch` or by the batch's label tokens if that is None.

    `input_ids`, `attention_mask` and `labels` are (samples, longest); labels are -100 where there is no loss.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.config.is_encoder_decoder:
        logits, targets = _seq2seq_loss(model, input_ids, attention_mask, labels)
    else:
        logits, targets = _causal_loss(model, base, input_ids, attention_mask, labels)
    total = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    return {"loss": total / (num_items_in_batch if num_items_in_batch is not None else targets.numel())}


def _seq2seq_loss(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = type(model).forward(model, input_ids=input_ids, attention_mask=attention_mask, labels=labels).logits
    is_label = labels != IGNORE_INDEX
    return logits[:, -labels.shape[1] :][is_label], labels[is_label]


def _causal_loss(
    model: Any, base: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the label tokens, (label tokens, vocabulary), and these tokens.

    The base's own forward computes them, because some scale or cap what the output layer returns (Gemma 2, Granite,
    Cohere, Falcon-H1); only the output layer's input is reduced to the label tokens.
    """
    # The token at position i + 1 is predicted from the hidden state at position i.
    is_label = labels[:, 1:] != IGNORE_INDEX

    def select_labels(_head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (inputs[0][:, -input_ids.shape[1] :][:, :-1][is_label][None],)

    handle = base.get_output_embeddings().register_forward_pre_hook(select_labels)
    try:
        inputs = _prepend_virtual_tokens(model, base, input_ids, attention_mask)
        logits = type(base).forward(base, **inputs).logits
    finally:
        handle.remove()
    return logits[0], labels[:, 1:][is_label]


def _prepend_virtual_tokens(
    model: Any, base: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> dict[str, Any]:
    """Return the decoder's inputs with the virtual tokens of Prompt and Prefix tuning before them, as in PEFT."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    samples = input_ids.shape[0]
    virtual_mask = attention_mask.new_ones(samples, config.num_virtual_tokens)
    mask = torch.cat((virtual_mask, attention_mask), dim=1)
    if config.peft_type == "PREFIX_TUNING":
        return {"input_ids": input_ids, "attention_mask": mask, "past_key_values": model.get_prompt(samples)}
    embedded = base.get_input_embeddings()(input_ids)
    prompts = model.get_prompt(batch_size=samples).to(embedded.dtype)
    return {"inputs_embeds": torch.cat((prompts, embedded), dim=1), "attention_mask": mask, "use_cache": False}


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss per token of the code, over `rows` rows: of the base, and with the adapter."""

    rows: int
    tokens: int
    base: float
    adapter: float


def measure_perplexity(
    config: TrainConfig, adapter: Path, examples: Sequence[Example], report: ProgressFn
) -> Perplexity:
    """Compute the perplexity of the code of `examples`, each after its prompt, without examples in the prompt.

    `config` says how the adapter in the folder was trained; the base has its quantization. Raises BaseModelError.
    """
    from peft import PeftModel

    loaded = load_base(config.base, config.quantization, config.device, report, config.trust_remote_code, training=True)
    identity = loaded.identity
    info = TokenizerInfo(identity.id, loaded.tokenizer, identity.is_encoder_decoder, identity.context_length)
    tokenizer = build_example_tokenizer(config, info)
    samples = [tokenizer.to_features(tokenizer.tokenize(example)) for example in examples]
    samples = [sample for sample in samples if len(sample["input_ids"]) <= identity.context_length]
    model = PeftModel.from_pretrained(loaded.model, str(adapter)).eval()
    cast_outputs(model, loaded.model.dtype)
    patch_loss(model)
    limit = max_tokens_per_forward(config, identity.device)
    try:
        with_adapter, tokens = _mean_loss(model, tokenizer, samples, limit)
        with model.disable_adapter():
            base, _ = _mean_loss(model, tokenizer, samples, limit)
    finally:
        release_thread_pool()
    return Perplexity(len(samples), tokens, math.exp(base), math.exp(with_adapter))


def _mean_loss(
    model: Any, tokenizer: ExampleTokenizer, samples: Sequence[dict[str, list[int]]], limit: int
) -> tuple[float, int]:
    """Return the mean loss over all label tokens, and their number."""
    total, tokens = 0.0, 0
    ordered = sorted(samples, key=lambda sample: len(sample["input_ids"]))
    while ordered:
        longest = max(len(ordered[0]["input_ids"]), 1)
        count = max(1, limit // longest)
        while count > 1 and len(ordered[min(count, len(ordered)) - 1]["input_ids"]) * count > limit:
            count -= 1
        batch, ordered = ordered[:count], ordered[count:]
        rows = {name: tensor.to(model.device) for name, tensor in tokenizer.collate(batch).items()}
        with torch.no_grad():
            total += float(model(**rows, num_items_in_batch=1)["loss"])
        tokens += sum(label != -100 for row in batch for label in row["labels"])
    return total / max(tokens, 1), tokens
