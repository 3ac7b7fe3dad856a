"""Command-line options of access: logins, owners, who may train, and the limits."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.command import read_secrets
from errors import PromptOrTuneError, unknown_name_error
from serve.api.auth import WebAccess
from space.settings import SpaceSettings
from ui.access.policy import AccessPolicy, TrainingAccess
from ui.access.quota import VisitorLimits

AUTH_VARIABLE = "PROMPT_OR_TUNE_AUTH"
MIN_PASSWORD_LENGTH = 8
TRAINING_CHOICES: tuple[TrainingAccess, ...] = ("everyone", "owner", "nobody")
NOBODY_OWNS_NOTE = (
    "Anybody who can reach {} may train, and nobody owns this app: give logins with --auth FILE, and the first one "
    "owns it."
)
# Field of Limits: (option, unit by which its value is multiplied, description).
_LIMIT_OPTIONS = {
    "rows_at_once": ("--rows-at-once", 1, "answers running for one person"),
    "rows_per_hour": ("--rows-per-hour", 1, "answers an hour for one person"),
    "rows_per_address": (
        "--rows-per-address",
        1,
        "answers running for all without a login at one address, as in a class room; an hour in proportion",
    ),
    "requests_per_second": ("--requests-per-second", 1, "requests of one address in a second; more wait"),
    "jobs_at_once": ("--jobs-at-once", 1, "training jobs that wait or run for one person"),
    "upload_bytes": ("--max-upload", 1 << 20, "megabytes of a file with rows"),
    "archive_bytes": ("--max-archive", 1 << 20, "megabytes of an adapter's zip"),
    "stored_bytes": ("--max-stored", 1 << 20, "megabytes of uploads that one person may leave within a day"),
    "total_stored_bytes": ("--max-stored-total", 1 << 20, "megabytes of uploads that all may leave within a day"),
    "drafts_bytes": ("--max-drafts", 1 << 20, "megabytes of all rows that wait on the Train page, of all visitors"),
}


@dataclass(frozen=True)
class AccessOptions:
    """The parsed options. `accounts` are (name, password); `note` is printed at the start, '' for none."""

    policy: AccessPolicy = field(default_factory=AccessPolicy)
    accounts: tuple[tuple[str, str], ...] = ()
    note: str = ""

    def upload_limits(self) -> VisitorLimits:
        """Return the limits for the pages: where nobody adds adapters, an upload is at most a file with rows."""
        limits = self.policy.limits
        return replace(limits, archive_bytes=limits.upload_bytes) if self.policy.training == "nobody" else limits


def add_access_options(parser: argparse.ArgumentParser) -> None:
    """Add the access options to `parser`; `parse_access_options` reads them."""
    group = parser.add_argument_group("access")
    group.add_argument(
        "--auth",
        type=Path,
        metavar="FILE",
        help=f"a login for the pages: name:password, one a line (or {AUTH_VARIABLE})",
    )
    group.add_argument("--owner", action="append", metavar="NAME", help="a login that owns this app (repeatable)")
    group.add_argument(
        "--train",
        metavar="VISITORS",
        help="who may train and change adapters: everyone, owner or nobody (default: everyone on this machine or "
        "with --auth; the owner on a Space; nobody where other machines can connect)",
    )
    for name, (option, unit, description) in _LIMIT_OPTIONS.items():
        default = getattr(VisitorLimits(), name) // unit
        group.add_argument(option, dest=name, metavar="N", help=f"{description}; 0: no limit ({default})")


def parse_access_options(args: argparse.Namespace, web: WebAccess, space: SpaceSettings | None = None) -> AccessOptions:
    """Return the checked options for an app that is reached as `web` says, and that runs on `space` if on one.

    Raises PromptOrTuneError for a bad one.
    """
    space = space or SpaceSettings()
    accounts = _read_accounts(args.auth)
    names = [name.casefold() for name, _ in accounts]
    owners = frozenset(args.owner or space.owners or [name for name, _ in accounts[:1]])
    for owner in owners:
        if accounts and owner.casefold() not in names:
            raise PromptOrTuneError(f"--owner '{owner}' has no login: add a line for it to the file of --auth.")
    training, note = _resolve_training(args.train, web.public_name, owners, bool(accounts), space)
    local = not (web.public_name or space.is_space)
    policy = AccessPolicy(training, owners, _parse_limits(args), local=local, logins=bool(accounts))
    return AccessOptions(policy, accounts, note)


def _resolve_training(
    requested: str | None, public_name: str, owners: frozenset[str], login: bool, space: SpaceSettings
) -> tuple[TrainingAccess, str]:
    """Return the visitors that may train, and a note for the log where that is not obvious ('' otherwise)."""
    choices: Mapping[str, TrainingAccess] = {name: name for name in TRAINING_CHOICES}
    if space.zero_gpu:
        return "nobody", "ZeroGPU gives its GPU for seconds only, so nobody can train here."
    if requested is not None:
        if requested not in choices:
            raise unknown_name_error("choice for --train", requested, TRAINING_CHOICES)
        if requested == "owner" and not owners:
            raise PromptOrTuneError("--train owner needs an owner: name one with --owner and give logins with --auth.")
        is_open = requested == "everyone" and public_name and not (login or space.is_space)
        return choices[requested], NOBODY_OWNS_NOTE.format(public_name) if is_open else ""
    if space.is_space:
        return space.training_access, ""
    if login or not public_name:
        return "everyone", ""
    return "nobody", (
        f"Others can reach {public_name}, so nobody may train or change adapters: give logins with --auth FILE; the "
        "first login then owns this app."
    )


def _parse_limits(args: argparse.Namespace) -> VisitorLimits:
    limits = VisitorLimits()
    for name, (option, unit, _) in _LIMIT_OPTIONS.items():
        text = getattr(args, name)
        if text is None:
            continue
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise PromptOrTuneError(f"{option} '{text}' is no whole number: give one, or 0 for no limit.")
        limits = replace(limits, **{name: int(text) * unit})
    return limits


def _read_accounts(file: Path | None) -> tuple[tuple[str, str], ...]:
    """Return the logins of the file and of the environment. No error message contains a password."""
    lines = read_secrets(file, AUTH_VARIABLE, "logins", "--auth")
    accounts: dict[str, tuple[str, str]] = {}
    for location, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, password = line.strip().partition(":")
        if not name or not colon or len(password) < MIN_PASSWORD_LENGTH:
            raise PromptOrTuneError(
                f"{location[:1].upper()}{location[1:]} is no login: write name:password, the password with at least "
                f"{MIN_PASSWORD_LENGTH} characters."
            )
        if accounts.setdefault(name.casefold(), (name, password)) != (name, password):
            raise PromptOrTuneError(
                f"{location[:1].upper()}{location[1:]} gives '{name}' a second time: keep one line a name."
            )
    if file is not None and not accounts:
        raise PromptOrTuneError(f"There is no login in {file}: write name:password, one a line.")
    return tuple(accounts.values())
