"""The options that choose another engine, the same for every program that has them."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field

from errors import PeftArenaError, unknown

BACKENDS = ("local", "openai")


@dataclass(frozen=True)
class Remote:
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


def remote_of(given: argparse.Namespace) -> Remote | None:
    """The server that the options name, None for the local engine; PeftArenaError where they contradict one another."""
    if given.backend not in BACKENDS:
        raise unknown("backend", given.backend, BACKENDS)
    if given.backend == "local":
        for name in ("url", "model", "api_key_env"):
            if getattr(given, name) is not None:
                raise PeftArenaError(
                    f"--{name.replace('_', '-')} belongs to --backend openai: add that, or leave it out."
                )
        return None
    if not given.url:
        raise PeftArenaError("--backend openai needs the server's address: add --url http://127.0.0.1:8000/v1.")
    return Remote(given.url, given.model, _key(given.api_key_env))


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise PeftArenaError("The variable that --api-key-env names is not set, or empty: set it to the server's key.")
    return key
