"""The model that learns, and the Trainer that teaches it, as the configuration says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from serve.backends.local.loading import LoadedBase
from serve.home import ProgressFn
from train.config import TrainConfig
from train.encode import TokenizedExample
from train.initialise import init_virtual_tokens
from train.prepare import TokenizedData
from train.techniques import get_technique
from train.workspace import RunDirectory

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from train.callbacks import StopOnSignal
    from train.trainer import CompletionTrainer

_CPU_MAX_TOKENS, _NO_LIMIT = 512, 1 << 60


def build_peft_model(config: TrainConfig, loaded: LoadedBase, samples: Sequence[TokenizedExample]) -> Any:
    """The base with the technique's adapter around it, or the base itself for full fine-tuning; seeded."""
    from peft import get_peft_model
    from transformers import set_seed

    from train.objective import patch_loss

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

    from train.callbacks import GradientCheck, JsonlLogger, ProgressReporter, StopOnSignal, ThroughputCallback
    from train.meter import ThroughputMeter
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
