"""The options that choose another engine, the same for every program that has them."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field

from errors import PromptOrTuneError, unknown_name_error

BACKENDS = ("local", "openai")


@dataclass(frozen=True)
class RemoteOptions:
    """A server to ask instead of a base in this process. The key is in no representation."""

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)


def add_remote_options(parser: argparse.ArgumentParser) -> None:
    """Adds --backend, --url, --model and --api-key-env."""
    parser.add_argument("--backend", default="local", help=f"{', '.join(BACKENDS)}: which engine answers (%(default)s)")
    parser.add_argument("--url", help="for --backend openai: the server's address, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="for --backend openai: what the server calls its base; else its first model")
    parser.add_argument(
        "--api-key-env", metavar="VARIABLE", help="for --backend openai: the variable that holds the server's API key"
    )


def parse_remote_options(args: argparse.Namespace) -> RemoteOptions | None:
    """The server that the options name, None for the local engine; PromptOrTuneError where they contradict one another."""
    if args.backend not in BACKENDS:
        raise unknown_name_error("backend", args.backend, BACKENDS)
    if args.backend == "local":
        for name in ("url", "model", "api_key_env"):
            if getattr(args, name) is not None:
                raise PromptOrTuneError(
                    f"--{name.replace('_', '-')} belongs to --backend openai: add that, or leave it out."
                )
        return None
    if not args.url:
        raise PromptOrTuneError("--backend openai needs the server's address: add --url http://127.0.0.1:8000/v1.")
    return RemoteOptions(args.url, args.model, _read_api_key(args.api_key_env))


def _read_api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise PromptOrTuneError(
            "The variable that --api-key-env names is not set, or empty: set it to the server's key."
        )
    return key
