"""Command line of the adapter store: list, show, verify, export, merge, delete, pull, pack and unpack adapters.

    python -m adapters list
    python -m adapters show lora-starter
    python -m adapters verify lora-starter --base embedded
    python -m adapters export lora-starter ~/vllm-adapters --for vllm --base-name ~/models/base
    python -m adapters merge lora-starter ~/models/merged
    python -m adapters delete lora-mine
    python -m adapters pull user/name@revision
    python -m adapters pack lora-mine lora-mine.zip
    python -m adapters unpack lora-mine.zip

Only `merge`, `export --for merged` and `verify --base` load a base.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adapters.export import EXPORT_TARGETS, export_adapter, vllm_command
from adapters.install import Step
from adapters.store import LIBRARY, Store, user_root
from common.command import run_command
from common.format import format_bytes
from errors import AdapterError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 2 after an error that the user can correct, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    return run_command(
        lambda: int(options.run(options, tuple(options.root or (LIBRARY, user_root())))),
        stopped="Stopped; no adapter was left incomplete.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adapters",
        description="List, show, verify, export, merge, delete, pull, pack and unpack adapters.",
    )
    parser.add_argument(
        "--root",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="a folder with adapters (repeatable; default: those that come with the program, then your own)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="list all adapters, one a line")
    listing.set_defaults(run=_list)
    show = commands.add_parser("show", help="show the facts about one adapter")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(run=_show)
    verify = commands.add_parser("verify", help="check the weights of an adapter and everything that names its base")
    verify.add_argument("target", metavar="NAME|FOLDER")
    _add_base(verify, "also decode two prompts with the adapter on this base")
    verify.add_argument("--quantization", help="of that base: nf4, int8 or none (default: as in training)")
    verify.set_defaults(run=_verify)
    export = commands.add_parser("export", help="write an adapter for another program: vLLM, PEFT, or merged for any")
    export.add_argument("target", metavar="NAME|FOLDER")
    export.add_argument("out", type=Path, metavar="DIR", help="the adapter's folder is made in this one")
    export.add_argument("--for", dest="program", required=True, choices=(*EXPORT_TARGETS, "merged"))
    export.add_argument(
        "--base-name", metavar="BASE", help="the base as that program is given it, folder or Hub id (default: its id)"
    )
    _add_base(export, "for merged, the adapter's base, if its manifest does not name one that can be loaded")
    export.set_defaults(run=_export, device="cpu")
    merge = commands.add_parser("merge", help="write the base with the adapter merged into its weights")
    merge.add_argument("target", metavar="NAME|FOLDER")
    merge.add_argument("out", type=Path, metavar="OUT", help="the folder to create")
    _add_base(merge, "the adapter's base, if its manifest does not name one that can be loaded")
    merge.set_defaults(run=_merge, device="cpu")
    delete = commands.add_parser("delete", help="delete one of your own adapters")
    delete.add_argument("name", metavar="NAME")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    delete.set_defaults(run=_delete)
    pull = commands.add_parser("pull", help="install an adapter from the Hugging Face Hub")
    pull.add_argument("spec", metavar="USER/NAME[@REVISION]")
    pull.add_argument("--name", help="the name of the installed adapter (default: its name on the Hub)")
    pull.add_argument("--overwrite", action="store_true", help="replace the adapter of that name")
    pull.set_defaults(run=_pull)
    _add_zip_commands(commands)
    return parser


def _add_zip_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pack = commands.add_parser("pack", help="write an adapter as one zip")
    pack.add_argument("target", metavar="NAME|FOLDER")
    pack.add_argument("out", type=Path, metavar="FILE.zip", help="the zip to write; an existing one is replaced")
    pack.set_defaults(run=_pack)
    unpack = commands.add_parser("unpack", help="install an adapter from a zip, after all checks")
    unpack.add_argument("archive", type=Path, metavar="FILE.zip")
    unpack.add_argument("--name", help="the name of the installed adapter (default: its folder in the zip)")
    unpack.add_argument("--overwrite", action="store_true", help="replace the adapter of that name")
    unpack.set_defaults(run=_unpack)


def _add_base(parser: argparse.ArgumentParser, purpose: str) -> None:
    parser.add_argument("--base", help=f"embedded, a Hub id[@revision], a folder or a .gguf file: {purpose}")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the base's own code; needs a revision")


def _list(_options: argparse.Namespace, roots: Sequence[Path]) -> int:
    from adapters.verify import format_adapter_list

    print(format_adapter_list(Store(roots)))
    return 0


def _show(options: argparse.Namespace, roots: Sequence[Path]) -> int:
    from adapters.verify import describe_adapter

    print(describe_adapter(Store(roots).inspect(options.name)))
    return 0


def _verify(options: argparse.Namespace, roots: Sequence[Path]) -> int:
    from adapters.verify import find_adapter, verify_adapter

    folder = find_adapter(options.target, Store(roots))
    print(verify_adapter(folder))
    if options.base:
        from train.merge import SmokeTestTarget, smoke_test_adapter

        test_target = SmokeTestTarget(options.base, options.quantization, options.device, options.trust_remote_code)
        print(smoke_test_adapter(folder, test_target, _print_progress))
    return 0


def _export(options: argparse.Namespace, roots: Sequence[Path]) -> int:
    from adapters.verify import find_adapter

    if options.base_name and options.program == "merged":
        raise AdapterError("--base-name is for vllm and peft: say where the base of a merged model is with --base.")
    if options.base and options.program != "merged":
        raise AdapterError(f"--for {options.program} loads no base: say how that program names it with --base-name.")
    folder = find_adapter(options.target, Store(roots))
    if options.program == "merged":
        options.out = options.out.expanduser() / folder.name
        return _merge(options, roots)
    path = export_adapter(folder, options.out, options.program, options.base_name)
    print(f"The adapter is in {path}.")
    base_name = options.base_name or folder.manifest.base_id
    if options.program == "vllm":
        print(f"  {vllm_command(path, folder.config, base_name)}")
    print(f"Ask it in the prompt style {folder.manifest.prompt_style}, in which it was trained.")
    return 0


def _merge(options: argparse.Namespace, roots: Sequence[Path]) -> int:
    from adapters.verify import find_adapter
    from train.merge import merge_adapter

    folder = find_adapter(options.target, Store(roots))
    out = merge_adapter(
        folder,
        options.out,
        _print_progress,
        base=options.base,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    print(f"The merged model is ready: --base {out}")
    return 0


def _delete(options: argparse.Namespace, roots: Sequence[Path]) -> int:
    from adapters.store import delete_adapter, user_adapter_folder

    folder = user_adapter_folder(options.name, roots)
    if not options.yes and not _confirmed(options.name, folder):
        raise AdapterError(f"'{options.name}' was not deleted: type its name to confirm, or add --yes.")
    delete_adapter(folder)
    print(f"Deleted {folder}.")
    return 0


def _confirmed(name: str, folder: Path) -> bool:
    try:
        return input(f"Delete {folder} permanently? Type {name} to confirm: ").strip() == name
    except EOFError:
        return False


def _pull(options: argparse.Namespace, roots: Sequence[Path]) -> int:
    from adapters.install import pull

    # The last root hides adapters of the same name in the others; by default it is the user's own.
    folder = pull(options.spec, roots[-1], _print_progress, name=options.name, overwrite=options.overwrite)
    print(f"The adapter is ready in {folder}.")
    return 0


def _pack(options: argparse.Namespace, roots: Sequence[Path]) -> int:
    from adapters.archive import pack
    from adapters.verify import find_adapter

    out = pack(find_adapter(options.target, Store(roots)).path, options.out)
    print(f"The adapter is packed in {out} ({format_bytes(out.stat().st_size)}).")
    return 0


def _unpack(options: argparse.Namespace, roots: Sequence[Path]) -> int:
    from adapters.archive import unpack

    folder = unpack(options.archive, roots[-1], _print_step, name=options.name, overwrite=options.overwrite)
    print(f"The adapter is ready in {folder}.")
    return 0


def _print_step(step: Step) -> None:
    _print_progress(f"{'passed' if step.ok else 'FAILED'}  {step.name}")


def _print_progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
