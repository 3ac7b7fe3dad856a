"""Who may come in, who may train, and how much one person may have: the options of `app.py` that say so."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from errors import PromptOrTuneError, unknown_name_error
from serve.api.keys import is_loopback
from serve.command import read_secrets
from serve.space import SpaceSettings
from ui.limits import Limits
from ui.visitors import AccessPolicy, TrainingAccess

AUTH_VARIABLE = "PEFT_ARENA_AUTH"
MIN_PASSWORD_LENGTH = 8
TRAINING_CHOICES: tuple[TrainingAccess, ...] = ("everyone", "owner", "nobody")
# Of whole settings a Limits field is made with this many of its units.
_LIMIT_OPTIONS = {
    "rows_at_once": ("--rows-at-once", 1, "answers under way for one person"),
    "rows_per_hour": ("--rows-per-hour", 1, "answers an hour for one person"),
    "jobs_at_once": ("--jobs-at-once", 1, "training jobs that wait or run for one person"),
    "upload_bytes": ("--max-upload", 1 << 20, "megabytes of a file with rows"),
    "archive_bytes": ("--max-archive", 1 << 20, "megabytes of an adapter's zip"),
}


@dataclass(frozen=True)
class AccessOptions:
    """What the options ask for. `accounts` are (name, password); `note` is said at the start, '' for nothing."""

    policy: AccessPolicy = field(default_factory=AccessPolicy)
    accounts: tuple[tuple[str, str], ...] = ()
    note: str = ""


def add_access_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; `read_access` reads them."""
    group = parser.add_argument_group("who may do what")
    group.add_argument(
        "--auth",
        type=Path,
        metavar="FILE",
        help=f"a login for the pages: name:password, one a line (or {AUTH_VARIABLE})",
    )
    group.add_argument("--owner", action="append", metavar="NAME", help="a login that owns this app (repeatable)")
    group.add_argument(
        "--train",
        metavar="WHO",
        help="who may train and change adapters: everyone, owner or nobody (default: everyone on this machine or "
        "with --auth; the owner on a Space; nobody where strangers can come in)",
    )
    for name, (option, unit, words) in _LIMIT_OPTIONS.items():
        usual = getattr(Limits(), name) // unit
        group.add_argument(option, dest=name, metavar="N", help=f"{words}; 0: no limit ({usual})")


def parse_access_options(args: argparse.Namespace, host: str, space: SpaceSettings | None = None) -> AccessOptions:
    """The options, checked; PromptOrTuneError in one sentence. `space` says on whose Space this runs, if on one."""
    space = space or SpaceSettings()
    accounts = _read_accounts(args.auth)
    names = [name.casefold() for name, _ in accounts]
    owners = frozenset(args.owner or space.owners or [name for name, _ in accounts[:1]])
    for owner in owners:
        if accounts and owner.casefold() not in names:
            raise PromptOrTuneError(f"--owner '{owner}' has no login: add a line for it to the file of --auth.")
    training, note = _resolve_training(args.train, host, owners, bool(accounts), space)
    policy = AccessPolicy(training=training, owners=owners, limits=_parse_limits(args))
    return AccessOptions(policy, accounts, note)


def _resolve_training(
    requested: str | None, host: str, owners: frozenset[str], login: bool, space: SpaceSettings
) -> tuple[TrainingAccess, str]:
    """Who may train, and a line for whoever started the program where that is not what they may expect."""
    known: Mapping[str, TrainingAccess] = {name: name for name in TRAINING_CHOICES}
    if space.zero_gpu:
        return "nobody", "ZeroGPU lends its GPU for seconds, so nobody can train here."
    if requested is not None:
        if requested not in known:
            raise unknown_name_error("choice for --train", requested, TRAINING_CHOICES)
        if requested == "owner" and not owners:
            raise PromptOrTuneError("--train owner needs an owner: name one with --owner and give logins with --auth.")
        return known[requested], ""
    if space.is_space:
        return space.training_access, ""
    if login or is_loopback(host):
        return "everyone", ""
    return "nobody", (
        f"Others can reach {host}, so nobody may train or change adapters: give logins with --auth, or say "
        "--train everyone."
    )


def _parse_limits(args: argparse.Namespace) -> Limits:
    limits = Limits()
    for name, (option, unit, _) in _LIMIT_OPTIONS.items():
        text = getattr(args, name)
        if text is None:
            continue
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise PromptOrTuneError(f"{option} '{text}' is no whole number: give one, or 0 for no limit.")
        limits = replace(limits, **{name: int(text) * unit})
    return limits


def _read_accounts(file: Path | None) -> tuple[tuple[str, str], ...]:
    """The logins of the file and of the environment; no message repeats a password."""
    lines = read_secrets(file, AUTH_VARIABLE, "logins", "--auth")
    accounts: dict[str, tuple[str, str]] = {}
    for where, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, password = line.strip().partition(":")
        if not name or not colon or len(password) < MIN_PASSWORD_LENGTH:
            raise PromptOrTuneError(
                f"{where[:1].upper()}{where[1:]} is no login: write name:password, the password with at least "
                f"{MIN_PASSWORD_LENGTH} characters."
            )
        if accounts.setdefault(name.casefold(), (name, password)) != (name, password):
            raise PromptOrTuneError(
                f"{where[:1].upper()}{where[1:]} gives '{name}' a second time: keep one line a name."
            )
    if file is not None and not accounts:
        raise PromptOrTuneError(f"There is no login in {file}: write name:password, one a line.")
    return tuple(accounts.values())
