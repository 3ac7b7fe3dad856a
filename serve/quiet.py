"""Makes libraries behave: what they print and a person can do nothing about, and how their threads wait.

Called once by a program, before it imports them.
"""

from __future__ import annotations

import logging
import os
import warnings


def configure_environment() -> None:
    """Keeps the console for our own progress and for errors, and the cores for work."""
    # How long threads of torch spin before they sleep. Hundreds of kernels a step follow one another within
    # microseconds, and waking a thread takes longer than most of them. Threads that spin for milliseconds, as is
    # libgomp's way, slow everything down as soon as another program wants one of the cores. This is about as long as
    # the gap between two kernels; `OMP_WAIT_POLICY=passive` is best where other programs keep the cores busy.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("bitsandbytes", "httpx", "sentence_transformers", "transformers", "huggingface_hub", "faiss", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning)
    # bitsandbytes looks for an optional kernel package and warns that it is not there.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.CRITICAL)
