"""Flavours, prices, errors.

The machines of Hugging Face Jobs: their names, and what they cost as the Hub states it.

What can go wrong between this machine and Hugging Face Jobs, as one sentence each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from common.format import quote_untrusted
from common.hub import hub_error_message
from errors import PromptOrTuneError, TrainingError, unknown_name_error

DEFAULT_HARDWARE = "a10g-small"
# Hours until the Hub ends a job by itself: what a job can cost at most is this many hours of its machine.
MAX_HOURS = 6


@dataclass(frozen=True)
class RemoteHardware:
    """One machine. `dollars_an_hour` is None where the Hub was not asked."""

    name: str
    title: str
    memory: str = ""
    price_per_hour: float | None = None

    @property
    def label(self) -> str:
        """For a list to choose from."""
        price = "" if self.price_per_hour is None else f"${self.price_per_hour:.2f} an hour"
        return " · ".join(part for part in (self.title, self.memory, price) if part)


def hardware_names() -> list[str]:
    """All machines that the client knows, as it lists them."""
    from huggingface_hub import JobHardware

    return [each.value for each in JobHardware]


def check_hardware(name: str) -> None:
    """UnknownNameError with the nearest name for a machine that does not exist."""
    if name not in hardware_names():
        raise unknown_name_error("machine of Hugging Face Jobs", name, hardware_names())


def list_hardware() -> list[RemoteHardware]:
    """All machines without their prices; asks nobody."""
    return [RemoteHardware(name, name) for name in hardware_names()]


def list_hardware_with_prices(token: str) -> list[RemoteHardware]:
    """All machines as the Hub lists them now, with prices; TrainingError in one sentence where it does not answer."""
    from huggingface_hub import HfApi

    from common.hub import hub_errors

    with hub_errors("the list of machines", "asking for", error=TrainingError):
        found = HfApi(token=token).list_jobs_hardware()
    factors = {"second": 3600.0, "minute": 60.0, "hour": 1.0}
    return [
        RemoteHardware(
            each.name,
            each.pretty_name,
            f"{each.accelerator.vram} GPU" if each.accelerator else f"{each.ram}, no GPU",
            each.unit_cost_usd * factors[each.unit_label] if each.unit_label in factors else None,
        )
        for each in found
    ]


_ERROR_PREFIX = "train: "
_BILLING_URL = "huggingface.co/settings/billing"


@contextmanager
def hf_jobs_errors(namespace: str, action: str) -> Iterator[None]:
    """Whatever the client raises in the block becomes a TrainingError with one sentence."""
    try:
        yield
    except PromptOrTuneError:
        raise
    except Exception as error:  # the client raises several libraries' errors for one broken line
        raise TrainingError(_error_message(error, namespace, action)) from error


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
