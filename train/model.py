"""PEFT model, virtual-token init, completion-only loss.

The model that learns, and the Trainer that teaches it, as the configuration says.

Start values for virtual tokens. Those that PEFT draws at random train badly; those of real text train well.

PEFT's own suite measured 0.057 on GSM8K for Prompt tuning from random values and 0.343 from sampled vocabulary
(../docs/training.md has ours). Here the default is the text of solved training examples: Prompt tuning starts from
its token embeddings, Prefix tuning from the keys and values that the base computes for it.

The loss of every technique: cross-entropy of the learned tokens, without the other tokens' logits.

On a small base the vocabulary's projection costs as much as several layers, and most tokens of a sample are prompt.
"""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from common.paths import ProgressFn
from models.loader import LoadedBase
from train.checkpoints import RunDirectory
from train.config import TrainConfig
from train.techniques import get_technique
from train.tokenize import IGNORE_INDEX, TokenizedData, TokenizedExample

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from train.callbacks import StopOnSignal
    from train.trainer import CompletionTrainer


def init_virtual_tokens(model: Any, config: TrainConfig, samples: Sequence[TokenizedExample]) -> None:
    """Gives a fresh PeftModel with Prompt or Prefix tuning its start values; `random` leaves PEFT's own."""
    if config.virtual_tokens_init == "random":
        return
    wanted = config.num_virtual_tokens
    if config.virtual_tokens_init == "vocabulary":
        size = model.get_base_model().get_input_embeddings().num_embeddings
        ids = random.Random(config.seed).sample(range(size), min(wanted, size))
    else:
        ids = sample_example_ids(samples, wanted, config.seed)
    if model.active_peft_config.peft_type == "PREFIX_TUNING":
        _init_prefix_tuning(model, ids)
    else:
        _init_prompt_tuning(model, ids)


def sample_example_ids(samples: Sequence[TokenizedExample], count: int, seed: int) -> list[int]:
    """The ids of solved examples in a row, drawn by the seed, cut where enough are found."""
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
            # The prefix stands before the decoder's own tokens: what it keeps for them is what we want.
            batch["decoder_input_ids"] = batch["input_ids"]
        cache = base(**batch, use_cache=True).past_key_values
    cache = getattr(cache, "self_attention_cache", cache)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    if base.config.is_encoder_decoder:
        layers = _peft_layer_assignment(layers)
    initialize_kv_prefix_from_past_key_values(model, past_key_values=DynamicCache(layers))


def _peft_layer_assignment(layers: list[Any]) -> list[Any]:
    """On encoder-decoder bases PEFT 0.21.2 gives decoder layer i the saved layer 2i modulo their number.

    So what layer i should start from is saved there; with an even number two layers share a place, and the first
    one's stays.
    """
    dealt = list(layers)
    for index in reversed(range(len(layers))):
        dealt[2 * index % len(layers)] = layers[index]
    return dealt


_CPU_MAX_TOKENS, _NO_LIMIT = 512, 1 << 60


def build_peft_model(config: TrainConfig, loaded: LoadedBase, samples: Sequence[TokenizedExample]) -> Any:
    """The base with the technique's adapter around it, or the base itself for full fine-tuning; seeded."""
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(config.seed)
    technique = get_technique(config.technique)
    peft_config = technique.make_peft_config(config, loaded.identity)
    if peft_config is None:
        model: Any = loaded.model.requires_grad_(requires_grad=True)
    else:
        model = get_peft_model(loaded.model.requires_grad_(requires_grad=False), peft_config)
        cast_outputs(model, loaded.model.dtype)
        if technique.uses_virtual_tokens:
            init_virtual_tokens(model, config, samples)
    if config.gradient_checkpointing:
        # The first layer's input needs a gradient, or the frozen embedding would cut off all that comes after it.
        loaded.model.enable_input_require_grads()
    patch_loss(model)
    return model


def cast_outputs(model: Any, dtype: Any) -> None:
    """Has every layer answer in the base's own 16 bits.

    IA3's layers on a quantized base answer in 32 bits (peft 0.21.2), which the next 16-bit layer refuses.
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
) -> tuple[CompletionTrainer, StopOnSignal]:
    """A Trainer with our callbacks, and the one of them that knows whether a person stopped the run."""
    from transformers import EarlyStoppingCallback, PrinterCallback

    from train.callbacks import (
        GradientCheck,
        JsonlLogger,
        ProgressReporter,
        StopOnSignal,
        ThroughputCallback,
        ThroughputMeter,
    )
    from train.trainer import CompletionTrainer

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
    trainer = CompletionTrainer(
        meter=meter,
        report=report,
        max_tokens=max_tokens_per_forward(config, model.device.type),
        model=model,
        args=arguments,
        train_dataset=[dataset.example_tokenizer.to_features(sample) for sample in dataset.train.samples],
        # Rows of like length stand together, so that little of a batch is padding.
        eval_dataset=sorted(
            map(dataset.example_tokenizer.to_features, dataset.validation.samples),
            key=lambda row: len(row["input_ids"]),
        ),
        data_collator=dataset.example_tokenizer.collate,
        callbacks=callbacks,
    )
    trainer.add_callback(GradientCheck(trainer.check_gradients))
    # Trainer's own printer repeats every log as a raw dictionary.
    trainer.remove_callback(PrinterCallback)
    return trainer, stop


def max_tokens_per_forward(config: TrainConfig, device: str) -> int:
    """How many tokens are computed together on this kind of device."""
    return config.max_tokens_at_once or (_CPU_MAX_TOKENS if device == "cpu" else _NO_LIMIT)


def count_steps(config: TrainConfig, samples: int, processes: int = 1) -> tuple[int, int]:
    """Optimizer steps in an epoch, and between two evaluations."""
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
        # Full fine-tuning computes in 16 bits on weights of 32; adapters stand on a base that has 16 anyway.
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
        # Every step, so that a run that went on can be held against one that was never broken.
        logging_steps=1,
        # NaN must be seen, not averaged away.
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
    # One process trains on one GPU: Trainer would else split a batch over all that it sees (DataParallel).
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def patch_loss(model: Any) -> None:
    """Makes `model(**batch)` return {"loss": ...}; the model may be a PeftModel or a bare base.

    The model's own `forward` is replaced, and not the Trainer's loss, because several processes exchange gradients
    in a wrapper around exactly this call.
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
    """The summed loss over `num_items_in_batch` tokens, or over the batch's own where that is None.

    `input_ids`, `attention_mask` and `labels` are (samples, longest); labels are -100 where nothing is learned.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.config.is_encoder_decoder:
        logits, learned = _seq2seq_loss(model, input_ids, attention_mask, labels)
    else:
        logits, learned = _causal_loss(model, base, input_ids, attention_mask, labels)
    total = torch.nn.functional.cross_entropy(logits.float(), learned, reduction="sum")
    return {"loss": total / (num_items_in_batch if num_items_in_batch is not None else learned.numel())}


def _seq2seq_loss(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = type(model).forward(model, input_ids=input_ids, attention_mask=attention_mask, labels=labels).logits
    learned = labels != IGNORE_INDEX
    return logits[:, -labels.shape[1] :][learned], labels[learned]


def _causal_loss(
    model: Any, base: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = base.get_decoder()(**_prepend_virtual_tokens(model, base, input_ids, attention_mask)).last_hidden_state
    hidden = hidden[:, -input_ids.shape[1] :]
    # What stands at one place is learned from what stands before it.
    learned = labels[:, 1:] != IGNORE_INDEX
    return base.get_output_embeddings()(hidden[:, :-1][learned]), labels[:, 1:][learned]


def _prepend_virtual_tokens(
    model: Any, base: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> dict[str, Any]:
    """The decoder's inputs, with the virtual tokens of Prompt and Prefix tuning before them, as PEFT puts them."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    samples = input_ids.shape[0]
    ahead = attention_mask.new_ones(samples, config.num_virtual_tokens)
    mask = torch.cat((ahead, attention_mask), dim=1)
    if config.peft_type == "PREFIX_TUNING":
        return {"input_ids": input_ids, "attention_mask": mask, "past_key_values": model.get_prompt(samples)}
    embedded = base.get_input_embeddings()(input_ids)
    prompts = model.get_prompt(batch_size=samples).to(embedded.dtype)
    return {"inputs_embeds": torch.cat((prompts, embedded), dim=1), "attention_mask": mask, "use_cache": False}
