"""What the Hugging Face Hub's client raises, as one sentence.

The client's own texts are never repeated: they may quote what was sent, a token among it.
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
    429: ("asks for a pause", f"wait some minutes and {_RETRY_HINT}"),
}
_DISK_FULL_ERRNOS = (28, 122)  # no space left on the disk, or the quota is used up


@contextmanager
def hub_errors(
    repo: str, action: str, revision: str | None = None, error: type[PromptOrTuneError] = AdapterError
) -> Iterator[None]:
    """Whatever the client raises in the block becomes an `error` with one sentence."""
    try:
        yield
    except PromptOrTuneError:
        raise
    except Exception as fault:  # the client raises several libraries' errors for one broken line
        raise error(hub_error_message(fault, repo, action, revision)) from fault


def hub_error_message(error: BaseException, repo: str, action: str, revision: str | None = None) -> str:
    """What went wrong while `doing` something with `repo` on the Hub, and the mend."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    chain = _cause_chain(error)
    for each in chain:
        if isinstance(each, errors.GatedRepoError):
            return f"The repository '{repo}' is gated: accept its terms on its Hub page, then run `hf auth login`."
        if isinstance(each, errors.RevisionNotFoundError):
            return f"'{repo}' has no revision {quote_untrusted(revision)!r} on the Hub: check the part after '@'."
        if isinstance(each, errors.RepositoryNotFoundError):
            return (
                f"There is no repository '{repo}' on the Hub that you may read: check its spelling, "
                "or run `hf auth login`."
            )
        if isinstance(each, errors.OfflineModeIsEnabled):
            return f"HF_HUB_OFFLINE is set, so '{repo}' cannot be reached: unset it and {_RETRY_HINT}."
        if isinstance(each, errors.HfHubHTTPError):
            return _status_message(each.response.status_code, repo, action)
        if isinstance(each, OSError) and each.errno in _DISK_FULL_ERRNOS:
            return f"The disk is full, so {action} '{repo}' stopped: free some room and {_RETRY_HINT}."
    kind = type(chain[-1]).__name__
    if any(isinstance(each, HTTPError | ConnectionError | TimeoutError) for each in chain):
        return f"The connection to the Hub broke while {action} '{repo}' ({kind}): check the network and {_RETRY_HINT}."
    return (
        f"The Hub's client failed while {action} '{repo}' ({kind}): check the network and the disk, and {_RETRY_HINT}."
    )


def disk_error(error: OSError, message: str) -> PromptOrTuneError:
    """The error for a disk that would not take something."""
    if error.errno in _DISK_FULL_ERRNOS:
        return DiskSpaceError(f"{message}, the disk is full: free some room and {_RETRY_HINT}.")
    return AdapterError(f"{message} ({error.strerror or error}): check its permissions and {_RETRY_HINT}.")


def _status_message(status: int, repo: str, action: str) -> str:
    what, mend = _STATUS_MESSAGES.get(status, ("refuses it", "look at its page on the Hub"))
    if status >= 500:
        what, mend = "has trouble of its own", f"{_RETRY_HINT} later"
    return f"The Hub {what} (HTTP {status}) while {action} '{repo}': {mend}."


def _cause_chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from, so that a wrapper does not hide the reason."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in found:
        found.append(each)
        each = each.__cause__
    return found
