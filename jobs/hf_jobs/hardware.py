"""Machines of Hugging Face Jobs with their prices, and the messages for errors of its client."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from common.format import quote_untrusted
from common.hub import hub_errors
from errors import TrainingError, unknown_name_error

DEFAULT_HARDWARE = "a10g-small"
# The Hub ends a job after this many hours, so a job costs at most this many hours of its machine.
MAX_HOURS = 6
_ERROR_PREFIX = "train: "
_BILLING_URL = "huggingface.co/settings/billing"


@dataclass(frozen=True)
class RemoteHardware:
    """One machine. `price_per_hour` is in US dollars, None when the Hub was not asked."""

    name: str
    title: str
    memory: str = ""
    price_per_hour: float | None = None

    @property
    def label(self) -> str:
        """The machine's entry in a list: title, memory and price."""
        price = "" if self.price_per_hour is None else f"${self.price_per_hour:.2f} an hour"
        return " · ".join(part for part in (self.title, self.memory, price) if part)


def hardware_names() -> list[str]:
    """Return the names of all machines that the installed client knows, in its order."""
    from huggingface_hub import JobHardware

    return [hardware.value for hardware in JobHardware]


def check_hardware(name: str) -> None:
    """Raise UnknownNameError, with the nearest name, for a machine that does not exist."""
    if name not in hardware_names():
        raise unknown_name_error("machine of Hugging Face Jobs", name, hardware_names())


def list_hardware() -> list[RemoteHardware]:
    """Return all machines without prices; sends no request."""
    return [RemoteHardware(name, name) for name in hardware_names()]


def list_hardware_with_prices(token: str) -> list[RemoteHardware]:
    """Return all machines with prices as the Hub lists them now; TrainingError when the Hub does not answer."""
    from huggingface_hub import HfApi

    with hub_errors("the list of machines", "asking for", error=TrainingError):
        found = HfApi(token=token).list_jobs_hardware()
    factors = {"second": 3600.0, "minute": 60.0, "hour": 1.0}
    return [
        RemoteHardware(
            hardware.name,
            hardware.pretty_name,
            f"{hardware.accelerator.vram} GPU" if hardware.accelerator else f"{hardware.ram}, no GPU",
            hardware.unit_cost_usd * factors[hardware.unit_label] if hardware.unit_label in factors else None,
        )
        for hardware in found
    ]


def hf_jobs_errors(namespace: str, action: str) -> AbstractContextManager[None]:
    """Return a context that turns any exception of the client in its block into a TrainingError with one message."""
    forbidden = (
        f"The token of this machine may not use Hugging Face Jobs as '{namespace}' (HTTP 403): give it the right "
        "to run jobs at huggingface.co/settings/tokens."
    )
    messages = {402: no_credit_message(namespace), 403: forbidden}
    return hub_errors(f"{namespace}/jobs", action, error=TrainingError, status_messages=messages)


def no_credit_message(namespace: str) -> str:
    """Return the message for an account without credit."""
    return (
        f"Hugging Face Jobs is paid in advance and '{namespace}' has no credit left: add some at {_BILLING_URL}, or "
        "train on this machine."
    )


def failure_message(stage: str, message: str | None, lines: Sequence[str], url: str) -> str:
    """Return why an ended job has no adapter. `lines` are the last lines of its log."""
    if stage in ("CANCELED", "DELETED"):
        return f"The job was cancelled on the Hub ({url}): retry it to begin again."
    if "timeout" in (message or "").casefold().replace(" ", ""):
        return (
            f"The job was ended after {MAX_HOURS} hours, the most that it may take ({url}): choose fewer epochs or a "
            "faster machine."
        )
    error_line = next((line.strip() for line in reversed(lines) if line.startswith(_ERROR_PREFIX)), "")
    if error_line:
        return quote_untrusted(error_line.removeprefix(_ERROR_PREFIX), 500)
    reason = quote_untrusted((message or "").strip(" ."), 200) or "the Hub gives no reason"
    return f"The job failed on Hugging Face Jobs ({reason}): its log is at {url}; retry it to begin again."
