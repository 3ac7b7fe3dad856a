"""What can go wrong between this machine and Hugging Face Jobs, as one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from adapters.hub_errors import hub_error_message
from adapters.weights import quote_untrusted
from errors import PromptOrTuneError, TrainingError
from jobs.remote.hardware import MAX_HOURS

_ERROR_PREFIX = "train: "
_BILLING_URL = "huggingface.co/settings/billing"


@contextmanager
def hf_jobs_errors(namespace: str, action: str) -> Iterator[None]:
    """Whatever the client raises in the block becomes a TrainingError with one sentence."""
    try:
        yield
    except PromptOrTuneError:
        raise
    except Exception as fault:  # the client raises several libraries' errors for one broken line
        raise TrainingError(_error_message(fault, namespace, action)) from fault


def is_hub_unreachable(error: BaseException) -> bool:
    """Whether the Hub may answer the same question a while later: the line broke, or it has trouble of its own."""
    from huggingface_hub.errors import HfHubHTTPError

    status = _http_status(error)
    return (status >= 500 or status == 429) if isinstance(error, HfHubHTTPError) else True


def no_credit_message(namespace: str) -> str:
    """Why nothing is begun without money."""
    return (
        f"Hugging Face Jobs is paid in advance and '{namespace}' has no credit left: add some at {_BILLING_URL}, or train "
        "on this machine."
    )


def failure_message(stage: str, message: str | None, lines: Sequence[str], url: str) -> str:
    """Why a job that is over has no adapter; `lines` are the last ones that it said."""
    if stage in ("CANCELED", "DELETED"):
        return f"The job was cancelled on the Hub ({url}): retry it to begin again."
    if "timeout" in (message or "").casefold().replace(" ", ""):
        return (
            f"The job was ended after {MAX_HOURS} hours, the most that it may take ({url}): choose fewer epochs or a "
            "faster machine."
        )
    said = next((line.strip() for line in reversed(lines) if line.startswith(_ERROR_PREFIX)), "")
    if said:
        return quote_untrusted(said.removeprefix(_ERROR_PREFIX), 500)
    why = quote_untrusted((message or "").strip(" ."), 200) or "the Hub does not say why"
    return f"The job failed on Hugging Face Jobs ({why}): its log is at {url}; retry it to begin again."


def _error_message(error: BaseException, namespace: str, action: str) -> str:
    status = _http_status(error)
    if status == 402:
        return no_credit_message(namespace)
    if status == 403:
        return (
            f"The token of this machine may not use Hugging Face Jobs as '{namespace}' (HTTP 403): give it the right "
            "to run jobs at huggingface.co/settings/tokens."
        )
    return hub_error_message(error, f"{namespace}/jobs", action)


def _http_status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
