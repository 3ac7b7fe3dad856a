"""Command line of training: trains an adapter, prints a dry-run report, or publishes an adapter.

    python -m train train/configs/lora.yaml --dataset-name my-pairs.jsonl --adapter-name lora-mine
    python -m train --technique qlora-4bit --dataset-name conala --data-dir ../shared/data --adapter-name lora-conala
    python -m train ... --dry-run          print the data, the settings and the cost; train nothing
    python -m train --adapter-name lora-mine --resume
    python -m train publish lora-mine someone/lora-mine

Every setting is a flag, with dashes or underscores, and a line of the YAML file. A flag overrides the file, the file
overrides the preset. Several GPUs or machines: accelerate launch -m train ... with the same arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common.command import configure_environment, run_command
from train.config import TrainConfig
from train.settings import DRY_RUN, FINISH, RESUME, parse_args

EXIT_INTERRUPTED = 130  # exit status after Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> int:
        if given[:1] == ["publish"]:
            from train.publish import publish_command

            return publish_command(given[1:])
        config, modes = parse_args(given, __doc__ or "")
        configure_environment()
        return _dry_run(config) if DRY_RUN in modes else _run(config, modes)

    return run_command(run, "train", "train: stopped at once; what was saved before is kept, see --resume.")


def _dry_run(config: TrainConfig) -> int:
    from train.estimate import estimate_as_dict
    from train.preflight import render_preflight, run_preflight

    print(render_preflight(run_preflight(config, _print_line, estimate_as_dict)))
    return 0


def _run(config: TrainConfig, modes: set[str]) -> int:
    from train.publish import check_access, check_base_access, publish_folder
    from train.run import TrainingStoppedError, train

    check_base_access(config.base)
    if config.push_to_hub:
        check_access(str(config.hub_model_id), is_full_model=config.technique == "full")
    try:
        folder = train(config, _print_line, RESUME in modes, FINISH in modes)
    except TrainingStoppedError as stop:
        print(f"train: {stop}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if not _is_main_process():
        return 0
    _print_line(f"The {'model' if config.technique == 'full' else 'adapter'} is ready in {folder}.")
    if config.push_to_hub:
        base = None if config.technique == "full" else config.base
        published = publish_folder(
            folder,
            str(config.hub_model_id),
            _print_line,
            private=config.hub_private_repo,
            base=base,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
        )
        _print_line(f"Published as {published.url}.")
    return 0


def _is_main_process() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
