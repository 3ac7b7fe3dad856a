"""Hugging Face Hub errors: the client's exceptions turned into one message.

The client's own texts are never repeated, because they may quote what was sent, including a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
_DISK_FULL_ERRNOS = (28, 122)  # no space left on the disk, or the quota is used up


@contextmanager
def hub_errors(
    repo: str, action: str, revision: str | None = None, error: type[PromptOrTuneError] = AdapterError
) -> Iterator[None]:
    """Turn any exception of the client in the block into an `error` with one message."""
    try:
        yield
    except PromptOrTuneError:
        raise
    except Exception as raised:  # for one broken connection the client raises errors of several libraries
        raise error(hub_error_message(raised, repo, action, revision)) from raised


def hub_error_message(error: BaseException, repo: str, action: str, revision: str | None = None) -> str:
    """Return the message for an error during `action` (such as "downloading") on `repo`, with what to do."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    chain = _cause_chain(error)
    for cause in chain:
        if isinstance(cause, errors.GatedRepoError):
            return f"The repository '{repo}' is gated: accept its terms on its Hub page, then run `hf auth login`."
        if isinstance(cause, errors.RevisionNotFoundError):
            return f"'{repo}' has no revision {quote_untrusted(revision)!r} on the Hub: check the part after '@'."
        if isinstance(cause, errors.RepositoryNotFoundError):
            return (
                f"There is no repository '{repo}' on the Hub that you may read: check its spelling, "
                "or run `hf auth login`."
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return f"HF_HUB_OFFLINE is set, so '{repo}' cannot be reached: unset it and {_RETRY_HINT}."
        if isinstance(cause, errors.HfHubHTTPError):
            return _status_message(cause.response.status_code, repo, action)
        if isinstance(cause, OSError) and cause.errno in _DISK_FULL_ERRNOS:
            return f"The disk is full, so {action} '{repo}' stopped: free some space and {_RETRY_HINT}."
    kind = type(chain[-1]).__name__
    if any(isinstance(cause, HTTPError | ConnectionError | TimeoutError) for cause in chain):
        return f"The connection to the Hub broke while {action} '{repo}' ({kind}): check the network and {_RETRY_HINT}."
    return (
        f"The Hub's client failed while {action} '{repo}' ({kind}): check the network and the disk, and {_RETRY_HINT}."
    )


def disk_error(error: OSError, message: str) -> PromptOrTuneError:
    """Return the error for a failed write, with `message` as its beginning."""
    if error.errno in _DISK_FULL_ERRNOS:
        return DiskSpaceError(f"{message}, the disk is full: free some space and {_RETRY_HINT}.")
    return AdapterError(f"{message} ({error.strerror or error}): check its permissions and {_RETRY_HINT}.")


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
