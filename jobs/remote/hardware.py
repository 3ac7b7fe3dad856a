"""The machines of Hugging Face Jobs: their names, and what they cost as the Hub states it."""

from __future__ import annotations

from dataclasses import dataclass

from errors import TrainingError, unknown_name_error

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

    from adapters.hub_errors import hub_errors

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
