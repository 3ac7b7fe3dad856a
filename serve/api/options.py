"""The API's options on a command line, the same for `python -m serve` and for `python app.py --api`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from errors import PromptOrTuneError, unknown_name_error
from serve.api.app import ApiSettings
from serve.api.keys import ENV_VARIABLE, ApiKeys, is_loopback, read_keys
from tasks.datasets import DATASETS


@dataclass(frozen=True)
class ApiOptions:
    """Who may ask, and the API's bounds."""

    keys: ApiKeys
    settings: ApiSettings


def add_api_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; `read_api_options` reads them."""
    usual = ApiSettings()
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="keys, one a line: see docs/serving.md")
    parser.add_argument("--open", action="store_true", help="serve other machines without any API key")
    parser.add_argument("--rows-per-minute", metavar="N", help="answers a minute for whose key says nothing else")
    parser.add_argument(
        "--pool",
        default=usual.pool,
        help=f"whose examples icl and rag show: {', '.join(DATASETS)} (%(default)s)",
    )
    for option, value, text in (
        ("--max-body-kb", usual.max_body_bytes // 1000, "the largest body of a request, in kB"),
        ("--timeout", int(usual.request_timeout_s), "seconds that one request may take"),
    ):
        parser.add_argument(option, default=str(value), metavar="N", help=f"{text} (%(default)s)")


def read_api_options(args: argparse.Namespace, host: str) -> ApiOptions:
    """What was given, with the keys read; PromptOrTuneError in one sentence, also where `host` needs keys."""
    keys = read_keys(args.api_key_file)
    if not (len(keys) or args.open or is_loopback(host)):
        raise PromptOrTuneError(
            f"Without keys anybody could ask on {host}: give --api-key-file, set {ENV_VARIABLE}, or allow it with --open."
        )
    if args.pool not in DATASETS:
        raise unknown_name_error("data set", args.pool, DATASETS)
    rows = args.rows_per_minute
    settings = ApiSettings(
        pool=args.pool,
        max_body_bytes=parse_count(args.max_body_kb, "--max-body-kb") * 1000,
        request_timeout_s=parse_count(args.timeout, "--timeout"),
        rows_per_minute=None if rows is None else parse_count(rows, "--rows-per-minute"),
        loopback_only=not (len(keys) or args.open),
    )
    return ApiOptions(keys, settings)


def parse_count(text: str, option: str) -> int:
    """A number of something; PromptOrTuneError where it is none."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
        raise PromptOrTuneError(f"'{text}' is no number for {option}: give one from 1 to 1000000.")
    return int(text)
