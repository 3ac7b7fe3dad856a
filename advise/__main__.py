"""Command line of advice: prompt, retrieve or fine-tune, for the rows of a file or of a data set.

    python -m advise rows.csv --minutes 15
    python -m advise house --minutes 30 --output house.json
    python -m advise mine --base Qwen/Qwen2.5-Coder-1.5B-Instruct --device cuda

A file is kept as a data set first, as `python -m tasks add` does. The advice plans what it runs, chooses
on validation rows, and asks each family's best method the test rows. After Ctrl-C the same command continues. The
result is a page, and with --output a JSON file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advise.folder import DEFAULT_MINUTES, AdviceFolder, AdviseOptions
from common.command import ProgressPrinter, configure_environment, run_command
from common.files import atomic_write, cache_dir, check_writable, make_private_dir
from errors import DataError
from serve.options import ModelOptions, add_model_options, parse_model_options

_MAX_LISTED_ERRORS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 2 after an error that the user can correct, 130 after Ctrl-C."""
    configure_environment()
    options = _parser().parse_args(arguments)
    return run_command(lambda: _run(options), "advise", "Stopped; the same command continues.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m advise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", help="a file of rows, or the name of a data set")
    parser.add_argument(
        "--minutes", type=float, default=DEFAULT_MINUTES, help="the budget for everything (%(default)g)"
    )
    parser.add_argument(
        "--memory-gb",
        type=float,
        default=0.0,
        metavar="GB",
        help="the most memory of a training (default: what is free)",
    )
    parser.add_argument("--seed", type=int, default=42, help="of splits, examples and training (%(default)s)")
    parser.add_argument("--adapter-name", metavar="NAME", help="of the adapter to keep (default: DATA-advised)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the result here; FILE.html beside it")
    parser.add_argument("--overwrite", action="store_true", help="begin anew instead of continuing")
    add_model_options(parser, remote=False)
    return parser


def _run(given: argparse.Namespace) -> None:
    if given.output is not None:
        check_writable(given.output)
    model = parse_model_options(given)
    data = _data_name(given)
    adapter = given.adapter_name or f"{data}-advised"[:64]
    options = AdviseOptions(data, adapter, given.minutes, given.seed, given.memory_gb)
    folder = _advice_folder(options, model, overwrite=given.overwrite)
    progress = ProgressPrinter()
    from advise.advisor import run_advice
    from train.run import TrainingStoppedError

    try:
        result = run_advice(options, model, folder, cache_dir(), progress)
    except TrainingStoppedError as stop:  # its message names options of `train`
        raise KeyboardInterrupt from stop
    _print_result(result, folder)
    if given.output is not None:
        atomic_write(given.output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        atomic_write(given.output.with_suffix(".html"), folder.report_path.read_text(encoding="utf-8"))


def _data_name(given: argparse.Namespace) -> str:
    """Return the name of the data set; a file is added as one, unless one was made of the same file."""
    from tasks.datasets.registry import is_dataset

    if is_dataset(given.data):
        return str(given.data)
    path = Path(given.data).expanduser()
    if not path.is_file():
        raise DataError(
            f"There is no data set and no file '{given.data}': name a file, or a data set that `python -m tasks list` "
            "prints."
        )
    return _add_file(path)


def _add_file(path: Path) -> str:
    from models.embedder import Embedder
    from tasks.datasets.own import add_own_dataset, file_digest, list_own_datasets, suggest_dataset_name
    from tasks.datasets.registry import DATASETS

    digest = file_digest(path)
    found = next((info.name for info in list_own_datasets() if info.digest == digest), None)
    if found is not None:
        return found
    name = suggest_dataset_name(path.name, DATASETS)
    info, errors = add_own_dataset(path, name, reserved=DATASETS, embed=Embedder().embed)
    print(info.describe())
    for error in errors[:_MAX_LISTED_ERRORS]:
        print(f"left out: {error.message}")
    return info.name


def _advice_folder(options: AdviseOptions, model: ModelOptions, *, overwrite: bool) -> AdviceFolder:
    """Return the folder of an advice with these options, so that the same command continues it."""
    import shutil

    key = json.dumps([options.to_json(), str(model)], sort_keys=True)
    name = f"{options.data}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
    path = make_private_dir(cache_dir() / "advice") / name
    if overwrite:
        shutil.rmtree(path, ignore_errors=True)
    return AdviceFolder(make_private_dir(path))


def _print_result(result: dict[str, Any], folder: AdviceFolder) -> None:
    from common.format import text_table

    print()
    rows = [
        [
            family["label"],
            family["method"],
            f"{100 * family['value']:.1f} [{100 * family['low']:.1f}, {100 * family['high']:.1f}]",
            f"{family['prompt_tokens']:.0f}",
            f"{family['seconds']:.2f}",
        ]
        for family in result["families"]
    ]
    print(text_table(["way", "method", result["metric_title"], "tokens in", "s/answer"], rows, markdown=False))
    print()
    print(result["recommendation"]["sentence"])
    for part in ("curve", "retention"):
        if result[part]:
            print(result[part]["sentence"])
    for command in result["commands"]["use"]:
        print(f"  {command}")
    print(f"The whole report: {folder.report_path}")


if __name__ == "__main__":
    sys.exit(main())
