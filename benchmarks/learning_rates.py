r"""Search of learning rates and initial values: short training runs of each technique, and a table of their losses.

    python -m benchmarks.learning_rates --data conala --data-dir ../shared/data --output docs/results/learning-rates

Each run is `python -m train` in a separate process: 60 steps of batch 8 with a schedule of that length, scored by the
loss on the first 64 validation rows. Finished runs are skipped; OUTPUT.md and OUTPUT.json are written after each run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import atomic_write
from common.format import text_table

MAX_STEPS, BATCH_SIZE, EVAL_ROWS = 60, 8, 64
# Technique, learning rates, and initial values of virtual tokens.
GRID: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("prompt-tuning", ("3e-2",), ("random", "vocabulary", "examples")),
    ("prefix-tuning", ("3e-2",), ("random", "examples")),
    ("qlora-4bit", ("3e-4", "1e-3", "2e-3"), ("",)),
    ("ia3", ("3e-3", "1e-2", "3e-2"), ("",)),
    ("prompt-tuning", ("3e-3", "1e-1"), ("examples",)),
    ("prefix-tuning", ("1e-2", "1e-1"), ("examples",)),
)
_TABLE_HEADER = ("technique", "learning rate", "initial virtual tokens", "validation loss", "seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return 0; raise CalledProcessError if a training run fails."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning_rates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="conala")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--output", type=Path, required=True, help="path of the page, without suffix")
    options = parser.parse_args(given)
    file = options.output.with_suffix(".json")
    command = " ".join(["python -m benchmarks.learning_rates", *given])
    done: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    for technique, rates, starts in GRID:
        for rate in rates:
            for start in starts:
                settings = {"technique": technique, "rate": rate, "start": start}
                if any(settings.items() <= run.items() for run in done):
                    continue
                done.append(settings | _train_once(settings, options))
                atomic_write(file, json.dumps(done, indent=1) + "\n")
                atomic_write(options.output.with_suffix(".md"), _render_page(done, options.data, command))
    return 0


def _train_once(settings: Mapping[str, str], options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "train",
            "--technique",
            settings["technique"],
            "--learning-rate",
            settings["rate"],
        ]
        command += ["--dataset-name", options.data, "--model-name-or-path", options.base, "--adapter-name", "short"]
        command += [
            "--max-train-samples",
            str(MAX_STEPS * BATCH_SIZE),
            "--max-eval-samples",
            str(EVAL_ROWS),
            "--output-dir",
            folder,
        ]
        command += ["--num-train-epochs", "1", "--eval-every", "1"]
        command += ["--virtual-tokens-init", settings["start"]] if settings["start"] else []
        command += ["--data-dir", str(options.data_dir)] if options.data_dir else []
        print(" ".join(f"{name} {value}" for name, value in settings.items()), flush=True)
        subprocess.run(command, check=True)
        manifest = json.loads((Path(folder) / "short" / "manifest.json").read_text(encoding="utf-8"))
    return {
        "loss": manifest["scores"][0]["value"],
        "n": manifest["scores"][0]["n"],
        "seconds": manifest["config"]["train_seconds"],
        "base": f"{manifest['base_id']} at {manifest['base_revision']}, {manifest['trained_quantization']}",
        "prompt": f"{manifest['prompt_style']} {manifest['prompt_fingerprint']}",
        "seed": manifest["seed"],
    }


def _render_page(runs: Sequence[Mapping[str, Any]], data: str, command: str) -> str:
    cells = [
        [run["technique"], run["rate"], run["start"] or "-", f"{run['loss']:.4f}", f"{run['seconds']:.0f}"]
        for run in sorted(runs, key=lambda run: (run["technique"], run["loss"]))
    ]
    first = runs[0]
    return (
        f"# Learning rates and initial values on {data}\n\n"
        f"- Base: {first['base']}\n- Prompt style: {first['prompt']}; seed {first['seed']}\n"
        f"- {MAX_STEPS} steps of batch {BATCH_SIZE}, linear schedule; loss on {first['n']} validation rows\n\n"
        f"{text_table(_TABLE_HEADER, cells, markdown=True)}\n\n"
        "A lower loss is better. Short runs favour high learning rates; longer runs may need a lower rate.\n\n"
        f"Command:\n\n```sh\n{command}\n```\n"
    )


if __name__ == "__main__":
    sys.exit(main())
