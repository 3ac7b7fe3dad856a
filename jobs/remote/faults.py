"""What can go wrong between this machine and Hugging Face Jobs, as one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from adapters.hub_errors import sentence
from adapters.weights import shown
from errors import PeftArenaError, TrainingError
from jobs.remote.hardware import MOST_HOURS

_SAID = "train: "
_BILLING = "huggingface.co/settings/billing"


@contextmanager
def jobs_errors(namespace: str, doing: str) -> Iterator[None]:
    """Whatever the client raises in the block becomes a TrainingError with one sentence."""
    try:
        yield
    except PeftArenaError:
        raise
    except Exception as fault:  # the client raises several libraries' errors for one broken line
        raise TrainingError(_sentence(fault, namespace, doing)) from fault


def is_unreachable(fault: BaseException) -> bool:
    """Whether the Hub may answer the same question a while later: the line broke, or it has trouble of its own."""
    from huggingface_hub.errors import HfHubHTTPError

    status = _status(fault)
    return (status >= 500 or status == 429) if isinstance(fault, HfHubHTTPError) else True


def no_credit(namespace: str) -> str:
    """Why nothing is begun without money."""
    return (
        f"Hugging Face Jobs is paid in advance and '{namespace}' has no credit left: add some at {_BILLING}, or train "
        "on this machine."
    )


def failure(stage: str, message: str | None, lines: Sequence[str], url: str) -> str:
    """Why a job that is over has no adapter; `lines` are the last ones that it said."""
    if stage in ("CANCELED", "DELETED"):
        return f"The job was cancelled on the Hub ({url}): retry it to begin again."
    if "timeout" in (message or "").casefold().replace(" ", ""):
        return (
            f"The job was ended after {MOST_HOURS} hours, the most that it may take ({url}): choose fewer epochs or a "
            "faster machine."
        )
    said = next((line.strip() for line in reversed(lines) if line.startswith(_SAID)), "")
    if said:
        return shown(said.removeprefix(_SAID), 500)
    why = shown((message or "").strip(" ."), 200) or "the Hub does not say why"
    return f"The job failed on Hugging Face Jobs ({why}): its log is at {url}; retry it to begin again."


def _sentence(fault: BaseException, namespace: str, doing: str) -> str:
    status = _status(fault)
    if status == 402:
        return no_credit(namespace)
    if status == 403:
        return (
            f"The token of this machine may not use Hugging Face Jobs as '{namespace}' (HTTP 403): give it the right "
            "to run jobs at huggingface.co/settings/tokens."
        )
    return sentence(fault, f"{namespace}/jobs", doing)


def _status(fault: BaseException) -> int:
    return int(getattr(getattr(fault, "response", None), "status_code", 0) or 0)
