"""Benchmark of the app's start: seconds from `python app.py` to the page, and to a loaded model.

    python -m benchmarks.startup [--runs 3]

The base must be converted already: start the app once before. Prints one JSON line with medians in seconds.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the benchmark and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = [measure_startup() for _ in range(parser.parse_args().runs)]
    page, ready = zip(*runs, strict=True)
    medians = {"page_seconds": statistics.median(page), "ready_seconds": statistics.median(ready)}
    print(json.dumps({name: round(value, 1) for name, value in medians.items()} | {"runs": len(runs)}))
    return 0


def measure_startup() -> tuple[float, float]:
    """Return the seconds until the app reports its page, and until it reports that it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.perf_counter()
    command = [sys.executable, "app.py", "--port", str(port)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as app:
        try:
            page = None
            for line in app.stdout or ():
                if "The page is up" in line:
                    page = time.perf_counter() - begin
                elif line.startswith("Ready") and page is not None:
                    return page, time.perf_counter() - begin
        finally:
            app.terminate()
    raise RuntimeError("app.py ended before it was ready")


if __name__ == "__main__":
    sys.exit(main())
