"""`python -m train publish`: a finished folder to the Hub, read back and compared."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adapters.store import LIBRARY
from errors import unknown
from serve.quiet import quiet
from train.workspace import store


def publish_command(arguments: Sequence[str]) -> int:
    """Runs the command; 0. Raises PeftArenaError in one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m train publish",
        description="Publishes a finished adapter (or fully fine-tuned model) to the Hugging Face Hub in one commit, "
        "reads it back, and compares both token by token. The token is the one of `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("folder", metavar="NAME|FOLDER", help="an adapter's name in your store, or its folder")
    parser.add_argument("repo_id", metavar="user/name", help="the repository; it is created where it does not exist")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--base", help="the base, where it came from a folder or file")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trust-remote-code", action="store_true", help="the base brings code of its own")
    options = parser.parse_args(arguments)
    quiet()
    from train.publish import publish

    published = publish(
        _folder(options.folder),
        options.repo_id,
        lambda line: print(line, flush=True),
        private=options.private,
        base=options.base,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    print(f"Published as {published.url}.")
    return 0


def _folder(named: str) -> Path:
    """A folder by its path, or by its name in the person's store and in the library."""
    if "/" in named or Path(named).is_dir():
        return Path(named)
    for root in (store(None), LIBRARY):
        if (root / named).is_dir():
            return root / named
    known = [folder.name for root in (store(None), LIBRARY) if root.is_dir() for folder in root.iterdir()
             if folder.is_dir() and not folder.name.startswith(".")]  # fmt: skip
    raise unknown("adapter", named, known)
