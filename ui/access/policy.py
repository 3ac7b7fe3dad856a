"""Who may do what: the table of all actions, and the policy that decides for a visitor and a thing.

Every event of the pages, every function that a component calls on the server, and every route of the API has an action
of this table (ui/access/guard.py). docs/security.md has the table as `access_table` prints it.

A thing (a job, an adapter, a draft) belongs to the visitor who made it. What nobody is recorded for, such as an adapter
that was copied into the folder by hand, belongs to the owner of the app.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from errors import PromptOrTuneError
from ui.access.quota import VisitorLimits

TrainingAccess = Literal["everyone", "owner", "nobody"]
# anyone: also without a login. visitor: with a login where there are logins. known: a visitor with a login or a cookie.
# maker: a known visitor, for what they made. owner: the owner of the app. key, admin key: a program with a key.
Audience = Literal["anyone", "visitor", "known", "maker", "owner", "key", "admin key"]


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
