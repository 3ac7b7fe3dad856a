"""Access policy: who may do what on the pages, and the command-line options of the pages that decide it.

Every event of the pages, every function that a component calls on the server, and every route of the API has an action
of this table (ui/access/guard.py). docs/security.md has the table as `access_table` prints it.

A thing (a job, an adapter, a draft) belongs to the visitor who made it. What nobody is recorded for, such as an adapter
that was copied into the folder by hand, belongs to the owner of the app.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from common.command import read_secrets
from errors import PromptOrTuneError, unknown_name_error
from serve.api.auth import WebAccess
from space.settings import SpaceSettings
from ui.access.quota import VisitorLimits

TrainingAccess = Literal["everyone", "owner", "nobody"]
# anyone: also without a login. visitor: with a login where there are logins. known: a visitor with a login or a cookie.
# maker: a known visitor, for what they made. owner: the owner of the app. key, admin key: a program with a key.
Audience = Literal["anyone", "visitor", "known", "maker", "owner", "key", "admin key"]
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
class Rule:
    """Who may do one action; with `training` only if `--train` lets them, which holds for the owner of the app too."""

    action: str
    audience: Audience
    training: bool = False
    note: str = ""


_RULES = (
    Rule("view pages", "visitor", note="also the list of adapters, the ratings, and runs over data sets of everybody"),
    Rule("compare", "visitor", note="within the quota, also with adapters of others"),
    Rule(
        "use own data sets",
        "owner",
        note="of the Data page and `python -m tasks add`, and the runs over them: to others they do not exist",
    ),
    Rule("vote", "known", note="on an open match of their own"),
    Rule("save all votes", "owner", note="they hold the questions of all visitors"),
    Rule("look at rows", "known", True, "an upload, and the draft that is made of it"),
    Rule("look at a Hub data set", "known", True, "with their own token or none"),
    Rule("train", "known", True, "and start an advice, which waits in the same queue"),
    Rule("train on Hugging Face Jobs", "owner", True, "the machine's account pays for it"),
    Rule("see that jobs run", "visitor", True, "place in the queue, technique and progress"),
    Rule("see a job", "maker", True, "names, log, losses, verdict, and the result of an advice"),
    Rule("change a job", "maker", True, "stop, resume, finish"),
    Rule("delete a job", "maker", True),
    Rule("publish", "maker", True, "with their own token; the owner of the app also with the machine's"),
    Rule("add an adapter", "known", True, "from a zip or the Hub, under a name that is free"),
    Rule("load an adapter", "known", True),
    Rule("unload an adapter", "maker", True),
    Rule("see an adapter's data", "maker", note="file names, card and manifest; those that are nobody's: everybody"),
    Rule("download an adapter", "maker", note="those that come with the program: everybody"),
    Rule("delete an adapter", "maker", True),
    Rule("see paths of the machine", "owner"),
    Rule("use the machine's Hub token", "owner", note="and its cache of the Hub"),
    Rule("ask the API", "key", note="without keys: on this machine only, or with `--open`"),
    Rule("change adapters by the API", "admin key"),
    Rule("see the state of the API", "anyone", note="health, metrics and version"),
)
RULES = {rule.action: rule for rule in _RULES}
# How the app is served, who owns it, and who may train without `--train`.
_MODES = (
    (
        "to this machine only, without `--allow-host` and `--trust-proxy`",
        "who sits at the machine; with `--auth` the first login, or those of `--owner`",
        "everyone",
    ),
    ("to a network, behind a name or a proxy, without `--auth`", "nobody", "nobody"),
    ("to a network, behind a name or a proxy, with `--auth`", "the first login, or those of `--owner`", "everyone"),
    ("as a Space", "the account of the Space and `PROMPT_OR_TUNE_OWNERS`", "the owner; nobody on ZeroGPU"),
)
# Action of each route of serve.api.app.Api, which checks the keys itself.
API_ACTIONS = {
    "/v1/chat/completions": "ask the API",
    "/v1/completions": "ask the API",
    "/v1/models": "ask the API",
    "/v1/models/{name:path}": "ask the API",
    "/tokenize": "ask the API",
    "/v1/load_lora_adapter": "change adapters by the API",
    "/v1/unload_lora_adapter": "change adapters by the API",
    "/health": "see the state of the API",
    "/metrics": "see the state of the API",
    "/version": "see the state of the API",
}


@dataclass(frozen=True)
class Visitor:
    """One visitor. `id` is a stable hash; `name` is the name of the login, '' without one.

    `owner` says that they own the app. A visitor is `identified` by a login or a cookie; an address alone may be that
    of several people, so it owns nothing. `address` is a hash of the address (of the network, for IPv6) of a visitor
    without a login, '' with one.
    """

    id: str
    name: str = ""
    owner: bool = False
    identified: bool = True
    address: str = field(default="", compare=False)


@dataclass(frozen=True)
class AccessPolicy:
    """Who owns the app, who may train, and the limits.

    `owners` are names of logins, compared without case. Without any, the person at the machine owns the app if it is
    served to this machine only (`local`), and nobody does otherwise. `logins` says that every visitor has to log in.
    """

    training: TrainingAccess = "everyone"
    owners: frozenset[str] = frozenset()
    limits: VisitorLimits = field(default_factory=VisitorLimits)
    local: bool = True
    logins: bool = False

    def is_owner(self, name: str) -> bool:
        """Return whether the visitor with this login ('' for none) owns the app."""
        return name.casefold() in {owner.casefold() for owner in self.owners} if self.owners else self.local

    def denied_reason(self, visitor: Visitor, action: str, *, owner: str | None = None) -> str | None:
        """Return why the visitor may not do `action`; None if they may.

        `owner` is the id of the visitor to whom the thing belongs, '' for the owner of the app. Without it the answer
        is about things of their own.
        """
        rule = RULES[action]
        if rule.audience in ("key", "admin key"):
            raise ValueError(f"'{action}' is decided by the keys of the API.")
        if self.logins and not visitor.name and rule.audience != "anyone":
            return "This needs a login: load the page again and log in."
        if rule.training and (reason := self._training_denied_reason(visitor)) is not None:
            return reason
        if visitor.owner or rule.audience in ("anyone", "visitor"):
            return None
        if rule.audience == "owner":
            return f"Only the owner of this app may {action} here: ask them, or run Prompt or Tune yourself."
        if not visitor.identified:
            return f"To {action} you need a cookie of this app: allow cookies and load the page again."
        if rule.audience == "maker" and owner is not None and owner != visitor.id:
            return f"This is another person's: only they, or the owner of this app, may {action} of theirs."
        return None

    def may(self, visitor: Visitor, action: str, *, owner: str | None = None) -> bool:
        """Return whether the visitor may do `action` (`denied_reason`)."""
        return self.denied_reason(visitor, action, owner=owner) is None

    def check(self, visitor: Visitor, action: str, *, owner: str | None = None) -> None:
        """Raise PromptOrTuneError with the reason if the visitor may not do `action` (`denied_reason`)."""
        reason = self.denied_reason(visitor, action, owner=owner)
        if reason is not None:
            raise PromptOrTuneError(reason)

    def _training_denied_reason(self, visitor: Visitor) -> str | None:
        if self.training == "nobody":
            return (
                "Training is switched off here: run Prompt or Tune on a machine of your own, or ask this one's owner."
            )
        if self.training == "owner" and not visitor.owner:
            owners = " or ".join(sorted(self.owners)) or "its owner"
            return (
                f"Only {owners} may train and change adapters here: log in as the owner, or duplicate this Space and "
                "train in your own."
            )
        return None


def access_table() -> str:
    """Return the tables of docs/security.md in Markdown: a row for each mode, and one for each action."""
    lines = [
        "| the app is served | owner of the app | who may train by default |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(mode)} |" for mode in _MODES),
        "",
        "| action | stranger | visitor | who made it | owner of the app | note |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for rule in RULES.values():
        cells = [_cell(rule, role) for role in ("stranger", "visitor", "maker", "owner")]
        lines.append(f"| {' | '.join([rule.action, *cells, rule.note])} |")
    return "\n".join(lines)


def _cell(rule: Rule, role: Literal["stranger", "visitor", "maker", "owner"]) -> str:
    if rule.audience in ("key", "admin key"):
        return "with a key" if rule.audience == "key" else "with an admin's key"
    roles = {"anyone": 0, "visitor": 1, "known": 1, "maker": 2, "owner": 3}
    if ("stranger", "visitor", "maker", "owner").index(role) < roles[rule.audience]:
        return "no"
    return "as `--train` says" if rule.training else "yes"


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
