"""What the commands of this room are asked with, and the engine that their options describe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.command import configure_environment
from errors import PromptOrTuneError
from evaluate.run import DECODING_MODES, EngineProtocol, make_sampling_params
from serve.engine.config import EngineConfig
from serve.options import add_model_options, parse_model_options
from serve.types import SamplingParams

DEFAULT_BEAMS, DEFAULT_SAMPLES = 10, 5  # as in the study
DEFAULT_TEMPERATURE, DEFAULT_TOP_P = 0.6, 0.95
# Nobody else asks this engine: a batch of problems goes in as a whole.
_MAX_NUM_SEQS, _MAX_QUEUED_ROWS = 512, 100_000


def build_engine_from_options(options: argparse.Namespace) -> EngineProtocol:
    """The engine that the options of `add_base_options` describe; its progress goes to standard error."""
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
    """The decoding that the options of `run_parser` ask for; PromptOrTuneError where they contradict one another."""
    mode = options.mode or ("beam" if options.samples is None else "sample")
    meant = {"beams": "beam", "samples": "sample", "temperature": "sample", "top_p": "sample"}
    for name, its_mode in meant.items():
        if getattr(options, name) is not None and its_mode != mode:
            raise PromptOrTuneError(
                f"--{name.replace('_', '-')} belongs to --mode {its_mode} and the mode is {mode}: leave one out."
            )
    wanted, usual = (options.samples, DEFAULT_SAMPLES) if mode == "sample" else (options.beams, DEFAULT_BEAMS)
    decoding = make_sampling_params(
        mode,
        usual if wanted is None else wanted,
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
    """The options that say which base answers, and which data it is asked."""
    parser.add_argument("--data", required=True, help="data set: starter, conala, codealpacapy, mbpp or apps")
    parser.add_argument("--limit", type=int, help="only the first N problems")
    add_model_options(parser)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="problems a batch")
    parser.add_argument(
        "--seed", type=int, default=42, help="of samples and of the bootstrap (icl-8@7 sets that of the examples)"
    )


def run_parser(description: str) -> argparse.ArgumentParser:
    """The options of `python -m evaluate`."""
    parser = argparse.ArgumentParser(
        "python -m evaluate", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_base_options(parser)
    parser.add_argument("--methods", required=True, help="comma-separated: zero-shot,icl-8,lora-conala+rag-8")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--mode", choices=DECODING_MODES, help="how candidates are made; beam by default")
    parser.add_argument(
        "--beams", type=int, help=f"beams, and candidates a problem; {DEFAULT_BEAMS} by default, 1 is greedy"
    )
    parser.add_argument(
        "--samples", type=int, help=f"samples a problem; {DEFAULT_SAMPLES} by default, and --mode sample"
    )
    parser.add_argument("--temperature", type=float, help=f"of samples; {DEFAULT_TEMPERATURE} by default")
    parser.add_argument("--top-p", type=float, help=f"of samples; {DEFAULT_TOP_P} by default")
    parser.add_argument(
        "--output", type=Path, required=True, help=".jsonl file for all candidates; scores lie beside it"
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew where the file holds another run")
    _add_test_options(parser)
    _add_output_options(parser)
    return parser


def report_parser() -> argparse.ArgumentParser:
    """The options of `python -m evaluate report`."""
    parser = argparse.ArgumentParser("python -m evaluate report", description="Prints the tables of finished runs.")
    parser.add_argument("files", nargs="+", type=Path, help="files that `python -m evaluate` wrote")
    _add_output_options(parser)
    return parser


def score_parser() -> argparse.ArgumentParser:
    """The options of `python -m evaluate score`."""
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
        raise argparse.ArgumentTypeError(f"'{text}' names no two methods: write them as A:B")
    return left, right


def _add_test_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-tests", action="store_true", help="run no generated code: no Pass@k, no tests passed")
    parser.add_argument("--sandbox", metavar="LAYER", help="bubblewrap or landlock; by default the best that works")


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
