"""API endpoints of the Advise page: `/advise` starts an advice, `/advice` returns its state and its result.

Both have the rights and the limits of the page.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from advise.folder import DEFAULT_MINUTES
from ui.access.guard import action
from ui.advise.events import AdviceActions


def build_endpoints(actions: AdviceActions) -> None:
    """Add both endpoints to the current Blocks."""
    gr.api(advise_endpoint(actions), api_name="advise", concurrency_id="advice-programs")
    gr.api(advice_endpoint(actions), api_name="advice", concurrency_id="advice-programs")


def advise_endpoint(actions: AdviceActions) -> Any:
    """Return the function behind `/advise`."""

    @action("train")
    def advise(
        request: gr.Request, data: str, minutes: float = DEFAULT_MINUTES, seed: int = 42, memory_gb: float = 0.0
    ) -> str:
        """Queues an advice about a data set, and returns its id for /advice.

        `data` is the name of a data set: house, starter, or one of your own. `minutes` is the budget for everything,
        `memory_gb` the most memory of a training, 0 for all that is free.
        """
        return actions.start(request, data, minutes, seed, memory_gb).id

    return advise


def advice_endpoint(actions: AdviceActions) -> Any:
    """Return the function behind `/advice`."""

    @action("see a job")
    def advice(request: gr.Request, id: str) -> dict[str, Any]:
        """Returns an advice of yours as {"state", "message", "progress", "result"}.

        `state` is queued, running, stopping, stopped, failed or done. `result` is None before the first one, and
        complete where its `finished` is true.
        """
        return actions.status(request, str(id))

    return advice
