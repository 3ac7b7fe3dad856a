"""Pages on the fake engine for manual inspection: python -m tests.browser.serve_fake --port 7861."""

from __future__ import annotations

import argparse
import time

from errors import BaseModelError
from serve.engine.llm_engine import EngineLoader, ProgressFn
from tests.browser.fake_app import make_engine
from tests.fakes import FakeEngine
from ui.app import build_pages, launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=7861)
    parser.add_argument("--load", type=float, default=3.0, help="seconds of simulated loading")
    parser.add_argument("--delay", type=float, default=0.15, help="seconds per word")
    parser.add_argument("--fail", action="store_true", help="fail to load")
    args = parser.parse_args()

    def build(report: ProgressFn) -> FakeEngine:
        for percent in range(0, 100, 5):
            report(f"Converting the embedded base: {percent}%")
            time.sleep(args.load / 20)
        if args.fail:
            raise BaseModelError("No base 'x' on the Hub: check the name, or use --base embedded.")
        engine = make_engine()
        engine.delay = args.delay
        return engine

    launch(build_pages(EngineLoader(build).start()), port=args.port)


if __name__ == "__main__":
    main()
