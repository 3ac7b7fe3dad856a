"""Process that adds one data set: reads a table, splits its rows and keeps them (tasks/datasets/own.py).

    python -m ui.data.add_process

The request is one JSON object on stdin (`ui.data.add.AddRequest` as a dict), the answer one on stdout: {"info",
"errors"} or {"error"}. A process of its own can be given a limit of memory and of time, as that of the Train page's
preview, and does not slow down the model that answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.hub import HubAccess
from errors import PromptOrTuneError
from tasks.datasets.hub import use_hub_access
from tasks.datasets.own import RowOptions, add_own_dataset
from tasks.datasets.registry import DATASETS
from ui.train.preview_process import OUT_OF_MEMORY, start_process

# Of the rows that were left out so many are named; all of them are counted.
MAX_LISTED_ERRORS = 50


def add(request: Mapping[str, Any]) -> dict[str, Any]:
    """Add the data set of a request; return the answer."""
    from models.embedder import Embedder

    source: str = request["source"]
    access = request["hub_access"]
    try:
        with use_hub_access(HubAccess(access["token"], Path(access["cache"]) if access["cache"] else None)):
            info, errors = add_own_dataset(
                Path(source) if request["is_file"] else source,
                request["name"],
                RowOptions(**request["options"]),
                reserved=DATASETS,
                embed=Embedder(request["embedder"]).embed,
                overwrite=request["overwrite"],
            )
    except PromptOrTuneError as error:
        folder = f"{Path(source).parent}/" if request["is_file"] else ""
        return {"error": str(error).replace(folder, "") if folder else str(error)}
    except MemoryError:
        return {"error": OUT_OF_MEMORY}
    return {"info": asdict(info), "errors": [error.message for error in errors[:MAX_LISTED_ERRORS]]}


def main() -> None:
    """Answer one request."""
    out = start_process()
    out.write(json.dumps(add(json.loads(sys.stdin.read()))))
    out.close()


if __name__ == "__main__":
    main()
