"""Command line of data sets of one's own: add, list, show and remove them.

    python -m tasks add rows.csv --name mine
    python -m tasks add user/name@revision --name theirs
    python -m tasks list
    python -m tasks show mine
    python -m tasks remove mine

A data set that was added is used by its name: `python -m evaluate --data mine`, `python -m train --dataset-name mine`,
`python -m serve --pool mine`, and on the pages. `add` reads JSONL, JSON, CSV, TSV and Parquet files and the training
files of a data set on the Hub, splits the rows into training, validation and test rows that do not resemble each other,
and keeps a copy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from common.command import run_command

_MAX_LISTED_ERRORS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 2 after an error that the user can correct, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: options.run(options), "tasks", "Stopped; no data set was left incomplete.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="read a file or a data set of the Hub, and keep its rows as a data set")
    add.add_argument("source", metavar="FILE", help="a file, or user/name@revision on the Hub")
    add.add_argument("--name", required=True, help="the name to use it by, such as mine")
    add.add_argument("--intent-column", metavar="NAME", help="the column that says what the code should do")
    add.add_argument("--code-column", metavar="NAME", help="the column with the code")
    add.add_argument("--tests-column", metavar="NAME", help="the column with tests (default: tests, test_list, test)")
    add.add_argument("--group-column", metavar="NAME", help="rows with one value stay on one side (default: group)")
    add.add_argument("--validation-share", type=float, default=0.1, metavar="X", help="share of rows (%(default)s)")
    add.add_argument("--test-share", type=float, default=0.2, metavar="X", help="share of rows (%(default)s)")
    add.add_argument("--seed", type=int, default=42, help="of the split (%(default)s)")
    add.add_argument("--overwrite", action="store_true", help="replace your data set of that name")
    add.set_defaults(run=_add)
    listing = commands.add_parser("list", help="list your data sets, one a line")
    listing.set_defaults(run=_list)
    for name, run, text in (("show", _show, "show the facts about one"), ("remove", _remove, "delete one")):
        command = commands.add_parser(name, help=text)
        command.add_argument("name", metavar="NAME")
        command.set_defaults(run=run)
    return parser


def _add(options: argparse.Namespace) -> None:
    from models.embedder import Embedder
    from tasks.datasets.own import RowOptions, add_own_dataset
    from tasks.datasets.registry import DATASETS

    info, errors = add_own_dataset(
        _source(options.source),
        options.name,
        RowOptions(**{field.name: getattr(options, field.name) for field in fields(RowOptions)}),
        reserved=DATASETS,
        embed=Embedder().embed,
        overwrite=options.overwrite,
    )
    print(info.describe())
    for error in errors[:_MAX_LISTED_ERRORS]:
        print(f"left out: {error.message}")
    if len(errors) > _MAX_LISTED_ERRORS:
        print(f"and {len(errors) - _MAX_LISTED_ERRORS} more")
    print(f"Use it: python -m evaluate --data {info.name} --methods zero-shot,rag-8 --output run.jsonl")


def _source(text: str) -> Path | str:
    """Return the path of a file, or a data set of the Hub as it is."""
    from tasks.datasets.hub import is_hub_id
    from tasks.datasets.tables import FORMATS

    path = Path(text).expanduser()
    return text if is_hub_id(text) and not path.exists() and path.suffix.casefold() not in FORMATS else path


def _list(_options: argparse.Namespace) -> None:
    from tasks.datasets.own import list_own_datasets

    found = list_own_datasets()
    for info in found:
        print(info.describe().splitlines()[0])
    if not found:
        print("You have no data set: add one with `python -m tasks add FILE --name mine`.")


def _show(options: argparse.Namespace) -> None:
    from tasks.datasets.own import read_own_dataset

    print(read_own_dataset(options.name).describe())


def _remove(options: argparse.Namespace) -> None:
    from tasks.datasets.own import remove_own_dataset

    remove_own_dataset(options.name)
    print(f"'{options.name}' is deleted.")


if __name__ == "__main__":
    sys.exit(main())
