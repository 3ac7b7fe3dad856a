"""What the Hugging Face Hub's client raises, as one sentence.

The client's own texts are never repeated: they may quote what was sent, a token among it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adapters.weights import shown
from errors import AdapterError, DiskSpaceError, PeftArenaError

_AGAIN = "run the same command again"
_STATUS = {
    401: ("does not accept your token", "run `hf auth login`, or set HF_TOKEN anew"),
    403: ("does not allow it to your token", "use one with access to it (huggingface.co/settings/tokens)"),
    409: ("says that it changed in the meantime", _AGAIN),
    412: ("says that it changed in the meantime", _AGAIN),
    429: ("asks for a pause", f"wait some minutes and {_AGAIN}"),
}
_FULL = (28, 122)  # no space left on the disk, or the quota is used up


@contextmanager
def client_errors(
    repo: str, doing: str, revision: str | None = None, error: type[PeftArenaError] = AdapterError
) -> Iterator[None]:
    """Whatever the client raises in the block becomes an `error` with one sentence."""
    try:
        yield
    except PeftArenaError:
        raise
    except Exception as fault:  # the client raises several libraries' errors for one broken line
        raise error(sentence(fault, repo, doing, revision)) from fault


def sentence(fault: BaseException, repo: str, doing: str, revision: str | None = None) -> str:
    """What went wrong while `doing` something with `repo` on the Hub, and the mend."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    chain = _chain(fault)
    for each in chain:
        if isinstance(each, errors.GatedRepoError):
            return f"The repository '{repo}' is gated: accept its terms on its Hub page, then run `hf auth login`."
        if isinstance(each, errors.RevisionNotFoundError):
            return f"'{repo}' has no revision {shown(revision)!r} on the Hub: check the part after '@'."
        if isinstance(each, errors.RepositoryNotFoundError):
            return (
                f"There is no repository '{repo}' on the Hub that you may read: check its spelling, "
                "or run `hf auth login`."
            )
        if isinstance(each, errors.OfflineModeIsEnabled):
            return f"HF_HUB_OFFLINE is set, so '{repo}' cannot be reached: unset it and {_AGAIN}."
        if isinstance(each, errors.HfHubHTTPError):
            return _of_status(each.response.status_code, repo, doing)
        if isinstance(each, OSError) and each.errno in _FULL:
            return f"The disk is full, so {doing} '{repo}' stopped: free some room and {_AGAIN}."
    kind = type(chain[-1]).__name__
    if any(isinstance(each, HTTPError | ConnectionError | TimeoutError) for each in chain):
        return f"The connection to the Hub broke while {doing} '{repo}' ({kind}): check the network and {_AGAIN}."
    return f"The Hub's client failed while {doing} '{repo}' ({kind}): check the network and the disk, and {_AGAIN}."


def of_disk(fault: OSError, what: str) -> PeftArenaError:
    """The error for a disk that would not take something."""
    if fault.errno in _FULL:
        return DiskSpaceError(f"{what}, the disk is full: free some room and {_AGAIN}.")
    return AdapterError(f"{what} ({fault.strerror or fault}): check its permissions and {_AGAIN}.")


def _of_status(status: int, repo: str, doing: str) -> str:
    what, mend = _STATUS.get(status, ("refuses it", "look at its page on the Hub"))
    if status >= 500:
        what, mend = "has trouble of its own", f"{_AGAIN} later"
    return f"The Hub {what} (HTTP {status}) while {doing} '{repo}': {mend}."


def _chain(fault: BaseException) -> list[BaseException]:
    """The error and what it came from, so that a wrapper does not hide the reason."""
    found: list[BaseException] = []
    each: BaseException | None = fault
    while each is not None and each not in found:
        found.append(each)
        each = each.__cause__
    return found
