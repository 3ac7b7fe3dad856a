"""Hugging Face Hub: with whose token and cache it is asked, and the client's exceptions turned into one message.

The client's own texts are never repeated, because they may quote what was sent, including a token.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.format import quote_untrusted
from errors import AdapterError, DiskSpaceError, PromptOrTuneError

_RETRY_HINT = "run the same command again"
_STATUS_MESSAGES = {
    401: ("does not accept your token", "run `hf auth login`, or set HF_TOKEN anew"),
    403: ("does not allow it to your token", "use one with access to it (huggingface.co/settings/tokens)"),
    409: ("says that it changed in the meantime", _RETRY_HINT),
    412: ("says that it changed in the meantime", _RETRY_HINT),
    429: ("has received too many requests", f"wait some minutes and {_RETRY_HINT}"),
}
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


HubToken = str | Literal[False] | None  # None: the token of this machine; False: none
# When the data sets that visitors fetched have more, the oldest are removed, but none of the last hour.
MAX_VISITOR_CACHE_BYTES = 4 << 30
_RECENT_SECONDS = 3600.0


@dataclass(frozen=True)
class HubAccess:
    """Whose token a request to the Hub carries, and the folder in which downloads are cached.

    The default is the login and the cache of this machine, which are its owner's.
    """

    token: HubToken = field(default=None, repr=False)
    cache: Path | None = None


def visitor_hub_access(home: Path, token: str | None = None) -> HubAccess:
    """Return the access of a visitor: their own token or none, and a cache that no other token's downloads are in."""
    owner = hashlib.sha256(token.encode()).hexdigest()[:16] if token else "public"
    return HubAccess(token or False, home / "visitor-hub" / owner)


def trim_visitor_cache(access: HubAccess, limit: int = MAX_VISITOR_CACHE_BYTES) -> None:
    """Remove the oldest repositories of all visitors while their caches have more than `limit` bytes together."""
    if access.cache is None or not access.cache.parent.is_dir():
        return
    sizes = {
        folder: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        for folder in access.cache.parent.glob("*/*--*")
    }
    total = sum(sizes.values())
    for folder in sorted(sizes, key=lambda folder: folder.stat().st_mtime):
        if total <= limit or time.time() - folder.stat().st_mtime < _RECENT_SECONDS:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= sizes[folder]


@contextmanager
def hub_errors(
    repo: str,
    action: str,
    revision: str | None = None,
    error: type[PromptOrTuneError] = AdapterError,
    status_messages: Mapping[int, str] | None = None,
) -> Iterator[None]:
    """Turn any exception of the client in the block into an `error` with one message.

    `status_messages` has the whole messages for HTTP statuses that mean something special for this action.
    """
    try:
        yield
    except PromptOrTuneError:
        raise
    except Exception as raised:  # for one broken connection the client raises errors of several libraries
        special = (status_messages or {}).get(http_status(raised))
        raise error(special or hub_error_message(raised, repo, action, revision)) from raised


def hub_error_message(
    error: BaseException, repo: str, action: str, revision: str | None = None, kind: str = "repository"
) -> str:
    """Return the message for an error during `action` (such as "downloading") on `repo`, with what to do.

    `kind` is what the message calls a repository that is missing or may not be read, such as "data set".
    """
    from httpx2 import HTTPError
    from huggingface_hub import errors

    chain = _cause_chain(error)
    for cause in chain:
        if isinstance(cause, errors.GatedRepoError):
            return f"The {kind} '{repo}' is gated: accept its terms on its Hub page, then run `hf auth login`."
        if isinstance(cause, errors.RevisionNotFoundError):
            quoted = quote_untrusted(revision)
            return f"The {kind} '{repo}' has no revision {quoted!r} on the Hub: check the part after '@'."
        if isinstance(cause, errors.RepositoryNotFoundError):
            return (
                f"There is no {kind} '{repo}' on the Hub that you may read: check its spelling, or run `hf auth login`."
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return f"HF_HUB_OFFLINE is set, so '{repo}' cannot be reached: unset it and {_RETRY_HINT}."
        if isinstance(cause, errors.HfHubHTTPError):
            return _status_message(cause.response.status_code, repo, action)
        if _is_disk_full(cause):
            return f"The disk is full, so {action} '{repo}' stopped: free some space and {_RETRY_HINT}."
    name = type(chain[-1]).__name__
    if any(isinstance(cause, HTTPError | ConnectionError | TimeoutError) for cause in chain):
        return f"The connection to the Hub broke while {action} '{repo}' ({name}): check the network and {_RETRY_HINT}."
    return (
        f"The Hub's client failed while {action} '{repo}' ({name}): check the network and the disk, and {_RETRY_HINT}."
    )


def cache_error_message(error: BaseException, repo: str, action: str, revision: str | None, kind: str) -> str:
    """Return the message for an error during a download into the Hub's cache, which HF_HOME can move."""
    if any(map(_is_disk_full, _cause_chain(error))):
        return (
            f"The disk is full: '{repo}' does not fit the Hub's cache; free some space or set HF_HOME to a larger disk."
        )
    return hub_error_message(error, repo, action, revision, kind)


def uncached_message(error: BaseException, what: str, alternative: str) -> str:
    """Return the message for an error that the cache cannot make up for; `alternative` is what else can be done."""
    return (
        f"The Hub could not be reached for {what} ({type(error).__name__}) and it is not in the cache: check the "
        f"network, or {alternative}."
    )


def cache_may_help(error: BaseException) -> bool:
    """Return whether a copy in the cache can be used instead: neither the Hub nor the disk refused the request."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    return not (
        isinstance(error, RepositoryNotFoundError | RevisionNotFoundError)  # a gated repository is one of the former
        or any(map(_is_disk_full, _cause_chain(error)))
    )


def is_hub_unreachable(error: BaseException) -> bool:
    """Return whether the same request may work later: no connection, HTTP 429 or a server error."""
    from huggingface_hub.errors import HfHubHTTPError

    status = http_status(error)
    return (status >= 500 or status == 429) if isinstance(error, HfHubHTTPError) else True


def http_status(error: BaseException) -> int:
    """Return the status of the Hub's answer that the error or one of its causes has; 0 where there is none."""
    statuses = (getattr(getattr(cause, "response", None), "status_code", 0) for cause in _cause_chain(error))
    return next((int(status) for status in statuses if status), 0)


def disk_error(error: OSError, message: str) -> PromptOrTuneError:
    """Return the error for a failed write, with `message` as its beginning."""
    if _is_disk_full(error):
        return DiskSpaceError(f"{message}, the disk is full: free some space and {_RETRY_HINT}.")
    return AdapterError(f"{message} ({error.strerror or error}): check its permissions and {_RETRY_HINT}.")


def _is_disk_full(error: BaseException) -> bool:
    """Return whether the error says that the disk has no space left or the quota is used up."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL_ERRNOS


def _status_message(status: int, repo: str, action: str) -> str:
    what, advice = _STATUS_MESSAGES.get(status, ("refuses it", "see its page on the Hub"))
    if status >= 500:
        what, advice = "has an internal error", f"{_RETRY_HINT} later"
    return f"The Hub {what} (HTTP {status}) while {action} '{repo}': {advice}."


def _cause_chain(error: BaseException) -> list[BaseException]:
    """Return the error and its causes, as a wrapper may hide the reason."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__
    return found
