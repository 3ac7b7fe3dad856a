r"""Benchmark of training: speed and peak memory of `python -m train` against TRL's SFTTrainer with its defaults.

    pip install --no-deps -r requirements-benchmarks.txt
    python -m benchmarks.training --data conala --data-dir ../shared/data

Both sides train LoRA (rank 16 on the attention) on the same unquantized base and the same texts, in batches of 8, for
one epoch, alternately, each in a separate process. Other settings are each side's defaults: for TRL gradient
checkpointing, AdamW, its learning rate and random batches; only the base's precision is ours instead of TRL's 32 bits.
The time is that of the steps, the memory is their peak, and tokens are counted without padding. The validation loss is
reported for both sides on the same rows; it differs because the learning rates do. Prints one JSON line with medians
and the ratios of ours to TRL's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import PromptOrTuneError

BATCH_SIZE = 8
SEED = 42
VALIDATION_ROWS = 64
SIDES = ("ours", "trl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 2 after an error, which is printed on standard error, else 0."""
    options = _options(arguments)
    try:
        if options.worker:
            from common.command import configure_environment

            configure_environment()
            print(json.dumps(_train_with_project(options) if options.worker == "ours" else _train_with_trl(options)))
            return 0
        if importlib.util.find_spec("trl") is None:
            raise PromptOrTuneError("TRL is not installed: pip install --no-deps -r requirements-benchmarks.txt.")
        print(json.dumps(_compare_sides(options)))
    except PromptOrTuneError as error:
        print(f"benchmarks.training: {error}", file=sys.stderr)
        return 2
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="conala")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--samples", type=int, default=320, help="training samples in the epoch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _compare_sides(options: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats):
        for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
            runs[side].append(_measure_side(side, options))
            print(f"{side}: {runs[side][-1]}", file=sys.stderr, flush=True)

    def median(side: str, field: str) -> float:
        return statistics.median(run[field] for run in runs[side])

    ratios = {
        f"{field}_ratio": round(median("ours", field) / median("trl", field), 3)
        for field in ("tokens_per_second", "peak_memory_bytes")
    }
    first = runs["ours"][0]
    return {
        "tokens_per_second_ratio": ratios["tokens_per_second_ratio"],
        "peak_memory_ratio": ratios["peak_memory_bytes_ratio"],
        **{f"{side}_tokens_per_second": round(median(side, "tokens_per_second"), 1) for side in SIDES},
        **{f"{side}_peak_memory_mb": round(median(side, "peak_memory_bytes") / 1e6) for side in SIDES},
        "tokens": {side: runs[side][0]["tokens"] for side in SIDES},
        "validation_loss": {side: round(median(side, "validation_loss"), 4) for side in SIDES},
        "settings": {side: runs[side][0]["settings"] for side in SIDES},
        "runs": {
            side: [[round(run["tokens_per_second"], 1), run["peak_memory_bytes"]] for run in runs[side]]
            for side in SIDES
        },
        "samples": options.samples,
        "batch": BATCH_SIZE,
        "seed": SEED,
        "repeats": options.repeats,
        "data": options.data,
        "base": first["base"],
        "versions": runs["trl"][0]["versions"],
        "cores": os.cpu_count(),
    }


def _measure_side(side: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", "--worker", side, "--data", options.data]
    command += ["--base", options.base, "--samples", str(options.samples)]
    command += ["--data-dir", str(options.data_dir)] if options.data_dir else []
    process = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise PromptOrTuneError(f"The run of {side} failed: see its output above.")
    return dict(json.loads(process.stdout.splitlines()[-1]))


def _train_with_project(options: argparse.Namespace) -> dict[str, Any]:
    from train.run import train
    from train.settings import make_config

    with tempfile.TemporaryDirectory() as folder:
        config = make_config(
            adapter_name="ours",
            dataset_name=options.data,
            data_dir=options.data_dir,
            model_name_or_path=options.base,
            max_train_samples=options.samples,
            # Evaluation is not compared: one row at the end is the minimum.
            max_eval_samples=1,
            eval_every=1.0,
            num_train_epochs=1.0,
            per_device_train_batch_size=BATCH_SIZE,
            seed=SEED,
            output_dir=folder,
        )
        adapter = train(config, lambda line: print(line, file=sys.stderr))
        log = [json.loads(line) for line in (adapter / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        manifest = json.loads((adapter / "manifest.json").read_text(encoding="utf-8"))
        last = [entry for entry in log if "loss" in entry][-1]
        loss = _validation_loss(options, adapter)
    return {
        "tokens": last["tokens"],
        "tokens_per_second": last["tokens"] / last["seconds"],
        "peak_memory_bytes": last["memory_bytes"],
        "validation_loss": loss,
        "settings": {name: getattr(config, name) for name in ("optim", "learning_rate", "gradient_checkpointing")},
        "base": f"{manifest['base_id']} at {manifest['base_revision']}, unquantized",
    }


def _train_with_trl(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from models.loader import load_base
    from models.resources import PeakMemory
    from tasks.datasets.registry import load_examples
    from tasks.prompt import format_completion, get_style, render_prompt
    from train.techniques import attention_target_modules
    from train.trainer import ThroughputCallback, ThroughputMeter

    loaded = load_base(options.base, "none", "cpu", lambda line: print(line, file=sys.stderr), training=True)
    style = get_style("plain")
    rows = [
        {"prompt": render_prompt(example.intent, (), style), "completion": format_completion(example.code, style)}
        for example in load_examples(options.data, options.data_dir)[: options.samples]
    ]
    memory, meter = PeakMemory("cpu"), ThroughputMeter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=loaded.model,
            args=SFTConfig(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH_SIZE,
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                seed=SEED,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            peft_config=LoraConfig(
                task_type="CAUSAL_LM",
                r=16,
                lora_alpha=32,
                lora_dropout=0.05,
                target_modules=attention_target_modules(loaded.identity),
            ),
            callbacks=[ThroughputCallback(meter)],
        )
        tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
        memory.start()
        trainer.train()
        peak = memory.bytes()
        trainer.save_model(folder)
        loss = _validation_loss(options, Path(folder))
        settings = {name: getattr(trainer.args, name) for name in ("optim", "learning_rate", "gradient_checkpointing")}
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / meter.seconds,
        "peak_memory_bytes": peak,
        "validation_loss": loss,
        "settings": {name: getattr(value, "value", value) for name, value in settings.items()},
        "versions": versions,
    }


def _validation_loss(options: argparse.Namespace, adapter: Path) -> float:
    """Return the loss of the adapter on the first validation rows, in nats per labelled token."""
    import torch
    from peft import PeftModel

    from models.loader import load_base
    from tasks.prompt import get_style
    from train.data import load_training_data
    from train.settings import make_config
    from train.tokenize import IGNORE_INDEX, ExampleTokenizer

    config = make_config(
        adapter_name="rows", dataset_name=options.data, data_dir=options.data_dir, max_eval_samples=VALIDATION_ROWS
    )
    loaded = load_base(options.base, "none", "cpu", lambda line: print(line, file=sys.stderr), training=True)
    model = PeftModel.from_pretrained(loaded.model, adapter).eval()
    encoder = ExampleTokenizer(loaded.tokenizer, get_style("plain"), is_encoder_decoder=False)
    total, labelled = 0.0, 0
    for example in load_training_data(config).validation:
        batch = encoder.collate([encoder.to_features(encoder.tokenize(example))])
        labels = batch.pop("labels")[0, 1:]
        with torch.inference_mode():
            logits = model(**batch).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE_INDEX).item()
        labelled += int((labels != IGNORE_INDEX).sum())
    return total / labelled


if __name__ == "__main__":
    sys.exit(main())
