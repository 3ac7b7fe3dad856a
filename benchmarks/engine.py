r"""Benchmark of the serving engine against transformers + PEFT and llama.cpp.

    pip install --no-deps -r requirements-benchmarks.txt
    python -m benchmarks.engine [--runs 5] [--only columns,llama] [--output docs/results/engine-speed]
    python -m benchmarks.engine --device cuda --random-llama 7b [--quantization none]

Prints one JSON line. The parts that --only selects, their metrics, and the module that documents each method:

    columns    six_columns_ratio, slowest_column_ratio              engine_batches.py
    llama      llama_cpp_total_ratio, llama_cpp_single_ratio        llama_cpp.py
    eight      eight_adapters_ratio                                 engine_adapters.py
    thousand   thousand_adapters_ratio                              engine_adapters.py
    cold       cold_load_ms                                         engine_adapters.py
    memory     adapter_memory_ratio                                 engine_adapters.py
    prefix     warm_prefix_ratio                                    engine_batches.py
    limit      share_of_limit                                       engine_batches.py

The sides of each part run alternately, and their medians are compared. --output also writes the line to OUTPUT.json and
a page to OUTPUT.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command import configure_environment, run_command
from errors import unknown_name_error

if TYPE_CHECKING:
    from benchmarks.engine_harness import Bench, BenchSettings

BENCHMARKS = ("columns", "llama", "eight", "thousand", "cold", "memory", "prefix", "limit")
VERSIONED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
BenchmarkFn = Callable[["Bench"], dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected benchmarks, print one JSON line, and return the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _options(given)
    configure_environment()

    def run() -> None:
        results = measure(options)
        if options.output is not None:
            _write_report(options.output, results, _command(given))
        print(json.dumps(results))

    return run_command(run, "benchmarks.engine")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--quantization", default="nf4", choices=("nf4", "int8", "none"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=int, default=5, help="measured rounds, after one warm-up round")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch and of llama.cpp")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help=f"comma-separated parts of {BENCHMARKS}")
    parser.add_argument(
        "--llama-python", default=sys.executable, help="Python interpreter with llama-cpp-python installed"
    )
    parser.add_argument("--gguf", type=Path, help="GGUF file of the base for llama.cpp; not needed for embedded")
    parser.add_argument(
        "--random-llama", choices=("7b", "tiny"), help="use a Llama base of this size with random weights"
    )
    parser.add_argument("--output", type=Path, help="path of the page and its JSON file, without suffix")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the selected benchmarks and return the contents of the JSON line.

    Raises PromptOrTuneError for a missing requirement before the first measurement.
    """
    selected = _selected_benchmarks(options)
    functions = _benchmark_functions(selected, options)
    # Set before torch is imported: it reads the number of threads once.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(options.threads)
    from benchmarks.engine_harness import open_bench

    settings = _settings(options)
    load = os.getloadavg()[0]
    with open_bench(settings) as bench:
        parts = [functions[name](bench) for name in selected]
        base = bench.engine.base
    headlines = {name: value for part in parts for name, value in part.items() if not isinstance(value, Mapping)}
    details = {name: value for part in parts for name, value in part.items() if isinstance(value, Mapping)}
    return {
        **headlines,
        **details,
        "runs": settings.runs,
        "new_tokens": settings.new_tokens,
        "threads": settings.threads,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "base": base.id,
        "revision": base.revision,
        "quantization": base.quantization,
        "device": _device_name(base.device),
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONED_PACKAGES},
    }


def _selected_benchmarks(options: argparse.Namespace) -> list[str]:
    """Return the selected parts in the order of BENCHMARKS, without llama.cpp if the base is a random one."""
    selected = [name.strip() for name in options.only.split(",")]
    for name in selected:
        if name not in BENCHMARKS:
            raise unknown_name_error("benchmark", name, BENCHMARKS)
    return [name for name in BENCHMARKS if name in selected and not (name == "llama" and options.random_llama)]


def _benchmark_functions(selected: Sequence[str], options: argparse.Namespace) -> dict[str, BenchmarkFn]:
    from benchmarks import engine_adapters, engine_batches, llama_cpp

    functions: dict[str, BenchmarkFn] = {
        "columns": engine_batches.bench_columns,
        "eight": engine_adapters.bench_eight_adapters,
        "thousand": engine_adapters.bench_thousand_adapters,
        "cold": engine_adapters.bench_cold_load,
        "memory": engine_adapters.bench_adapter_memory,
        "prefix": engine_batches.bench_prefix_cache,
        "limit": engine_batches.bench_bandwidth_limit,
    }
    if "llama" in selected:
        llama_cpp.check_python(options.llama_python)
        gguf = llama_cpp.gguf_file(options.base, options.gguf)
        functions["llama"] = lambda bench: llama_cpp.bench_llama_cpp(bench, options.llama_python, gguf)
    return functions


def _settings(options: argparse.Namespace) -> BenchSettings:
    from benchmarks.engine_harness import BenchSettings, make_random_llama, print_progress

    base = options.base
    if options.random_llama is not None:
        base = str(make_random_llama(options.random_llama, options.device, print_progress))
    return BenchSettings(
        base, options.quantization, options.device, options.runs, options.new_tokens, threads=options.threads
    )


def _device_name(device: str) -> str:
    """Return the device with its model name if it is a GPU."""
    if device.startswith("cuda"):
        import torch

        return f"{device} ({torch.cuda.get_device_name()})"
    return device


def _command(arguments: Sequence[str]) -> str:
    """Return the command for the page, without --llama-python, whose path is valid on this machine only."""
    words: list[str] = []
    for argument in arguments:
        if not argument.startswith("--llama-python=") and words[-1:] != ["--llama-python"]:
            words.append(argument)
        elif words[-1:] == ["--llama-python"]:
            words.pop()
    return " ".join(["python -m benchmarks.engine", *words])


def _write_report(output: Path, results: Mapping[str, Any], command: str) -> None:
    from benchmarks.report import render_engine_page
    from common.files import atomic_write

    atomic_write(output.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    atomic_write(output.with_suffix(".md"), render_engine_page(results, command, output.with_suffix(".json").name))


if __name__ == "__main__":
    sys.exit(main())
