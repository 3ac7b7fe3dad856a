"""`python -m train publish`: a finished folder to the Hub, read back and compared."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adapters.store import LIBRARY
from errors import unknown_name_error
from serve.quiet import configure_environment
from train.workspace import adapter_store_dir


def publish_command(arguments: Sequence[str]) -> int:
    """Runs the command; 0. Raises PromptOrTuneError in one sentence."""
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
    configure_environment()
    from train.publish import publish_folder

    published = publish_folder(
        _resolve_folder(options.folder),
        options.repo_id,
        lambda line: print(line, flush=True),
        private=options.private,
        base=options.base,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    print(f"Published as {published.url}.")
    return 0


def _resolve_folder(name: str) -> Path:
    """A folder by its path, or by its name in the person's store and in the library."""
    if "/" in name or Path(name).is_dir():
        return Path(name)
    for root in (adapter_store_dir(None), LIBRARY):
        if (root / name).is_dir():
            return root / name
    known = [folder.name for root in (adapter_store_dir(None), LIBRARY) if root.is_dir() for folder in root.iterdir()
             if folder.is_dir() and not folder.name.startswith(".")]  # fmt: skip
    raise unknown_name_error("adapter", name, known)
