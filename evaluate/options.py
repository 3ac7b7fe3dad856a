"""Command-line options of `python -m evaluate` and of the prompt style search, and the engine that they describe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.command import configure_environment
from errors import PromptOrTuneError
from evaluate.generate import DECODING_MODES, EngineProtocol, make_sampling_params
from evaluate.test_runner.reference import ReferenceLimits
from evaluate.test_runner.result import RULES
from serve.engine.config import EngineConfig
from serve.options import add_model_options, parse_model_options
from serve.types import SamplingParams
from tasks.datasets.registry import DATASETS

DEFAULT_BEAMS, DEFAULT_SAMPLES = 10, 5  # as in arXiv 2308.10462
DEFAULT_TEMPERATURE, DEFAULT_TOP_P = 0.6, 0.95
# The engine serves this command only, so a batch of problems may fill it.
_MAX_NUM_SEQS, _MAX_QUEUED_ROWS = 512, 100_000


def build_engine_from_options(options: argparse.Namespace) -> EngineProtocol:
    """Build the engine that the options of `add_base_options` describe; print its progress to stderr."""
    configure_environment()
    from serve.engine.build import build_engine

    def report(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    return build_engine(
        parse_model_options(options),
        report,
        engine_config=EngineConfig(
            max_num_seqs=_MAX_NUM_SEQS, max_num_beam_seqs=_MAX_NUM_SEQS, max_queued=_MAX_QUEUED_ROWS
        ),
    )


def sampling_params_from_options(options: argparse.Namespace) -> SamplingParams:
    """Return the sampling parameters that the options of `run_parser` describe.

    Raises PromptOrTuneError if the options contradict each other.
    """
    mode = options.mode or ("beam" if options.samples is None else "sample")
    option_modes = {"beams": "beam", "samples": "sample", "temperature": "sample", "top_p": "sample"}
    for name, option_mode in option_modes.items():
        if getattr(options, name) is not None and option_mode != mode:
            raise PromptOrTuneError(
                f"--{name.replace('_', '-')} belongs to --mode {option_mode} and the mode is {mode}: leave one out."
            )
    requested, default = (options.samples, DEFAULT_SAMPLES) if mode == "sample" else (options.beams, DEFAULT_BEAMS)
    decoding = make_sampling_params(
        mode,
        default if requested is None else requested,
        options.max_new_tokens,
        options.seed,
        DEFAULT_TEMPERATURE if options.temperature is None else options.temperature,
        DEFAULT_TOP_P if options.top_p is None else options.top_p,
    )
    if decoding.mode == "beam" and options.backend == "openai":
        raise PromptOrTuneError(
            "Another engine has no beam search: add --mode sample for several candidates, or --beams 1 for one."
        )
    return decoding


def add_base_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the base model, the data set and generation."""
    parser.add_argument("--data", required=True, help=f"data set: {', '.join(DATASETS)}, or yours")
    parser.add_argument("--limit", type=int, help="only the first N problems")
    add_model_options(parser)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="problems per batch")
    parser.add_argument(
        "--seed",
        type=int,
        default=42,
        help="seed of samples and of the bootstrap (icl-8@7 sets the seed of the examples)",
    )


def run_parser(description: str) -> argparse.ArgumentParser:
    """Build the parser of `python -m evaluate`."""
    parser = argparse.ArgumentParser(
        "python -m evaluate", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_base_options(parser)
    parser.add_argument("--methods", required=True, help="comma-separated: zero-shot,icl-8,lora-conala+rag-8")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--mode", choices=DECODING_MODES, help="decoding of candidates; beam by default")
    parser.add_argument(
        "--beams", type=int, help=f"beams, and candidates per problem; {DEFAULT_BEAMS} by default, 1 is greedy"
    )
    parser.add_argument(
        "--samples", type=int, help=f"samples per problem; {DEFAULT_SAMPLES} by default, and --mode sample"
    )
    parser.add_argument("--temperature", type=float, help=f"of samples; {DEFAULT_TEMPERATURE} by default")
    parser.add_argument("--top-p", type=float, help=f"of samples; {DEFAULT_TOP_P} by default")
    parser.add_argument(
        "--output", type=Path, required=True, help=".jsonl file for all candidates; a score file is written beside it"
    )
    parser.add_argument("--overwrite", action="store_true", help="start a new run even if the file holds one")
    _add_test_options(parser)
    _add_output_options(parser)
    return parser


def report_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m evaluate report`."""
    parser = argparse.ArgumentParser("python -m evaluate report", description="Prints the tables of finished runs.")
    parser.add_argument("files", nargs="+", type=Path, help="files that `python -m evaluate` wrote")
    _add_output_options(parser)
    return parser


def score_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m evaluate score`."""
    parser = argparse.ArgumentParser(
        "python -m evaluate score",
        description="Scores the candidates in files of `python -m evaluate`, without a model, and prints the tables.",
    )
    parser.add_argument("files", nargs="+", type=Path, help="files that `python -m evaluate` wrote")
    _add_test_options(parser)
    _add_output_options(parser)
    return parser


def _parse_pair(text: str) -> tuple[str, str]:
    left, colon, right = text.partition(":")
    if not (left and colon and right):
        raise argparse.ArgumentTypeError(f"'{text}' does not name two methods: write them as A:B")
    return left, right


def _add_test_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-tests", action="store_true", help="run no generated code: no Pass@k, no tests passed")
    parser.add_argument("--sandbox", metavar="LAYER", help="bubblewrap or landlock; by default the best that works")
    parser.add_argument(
        "--comparison",
        choices=sorted(RULES),
        help="rules by which asserts compare values, stored with the scores; by default those of the data set",
    )
    parser.add_argument(
        "--min-time-limit",
        metavar="SECONDS",
        type=float,
        default=ReferenceLimits.min_seconds,
        help="the least processor time that a call may take whose value is compared with a reference (%(default)s)",
    )
    parser.add_argument(
        "--time-limit-factor",
        metavar="FACTOR",
        type=float,
        default=ReferenceLimits.factor,
        help="how many times the reference's processor time such a call may take (%(default)s)",
    )


def reference_limits_from_options(options: argparse.Namespace) -> ReferenceLimits:
    """Return the limits of calls that are compared with a reference; raises PromptOrTuneError for a bad number."""
    return ReferenceLimits(options.min_time_limit, options.time_limit_factor)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compare",
        metavar="A:B",
        nargs="+",
        type=_parse_pair,
        help="methods to compare; by default each with zero-shot",
    )
    parser.add_argument("--csv", type=Path, help="also write every metric of every method to this file")
    parser.add_argument("--csv-problems", type=Path, help="also write every method's scores problem by problem")
    parser.add_argument("--json", type=Path, help="also write settings, metrics and comparisons to this file")
    parser.add_argument("--png", type=Path, help="also draw the metrics with their intervals, and EM@k over k")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this Markdown file")
