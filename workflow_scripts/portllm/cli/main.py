"""The `portllm` command.

A subcommand imports what it needs when it runs, so that `portllm --help` is quick.
"""

import argparse

import portllm
from portllm.cli import options

EPILOG = """\
examples:
  portllm check --patch my_adapter --base owner/new-model
  portllm port --patch my_adapter --base new_model --output ported
  portllm merge --patch one two --weight 0.7 0.3 --base new_model --output merged
  portllm unmerge --patch my_adapter --base merged --output original

A model or an adapter is a directory, or an id on the Hugging Face Hub: owner/name, with
@revision and :subfolder where needed. Files are fetched into the hub's cache (safetensors only).
"""


def _subcommand(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, description: str
) -> argparse.ArgumentParser:
    # Without abbreviations, as --config of Snakemake would be taken for --configfile.
    return commands.add_parser(
        name, help=description, description=f"{description}.", allow_abbrev=False
    )


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command and its subcommands."""
    parser = argparse.ArgumentParser(
        prog="portllm",
        description="Move LoRA patches to a new version of their model, without training.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"portllm {portllm.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    check = _subcommand(commands, "check", "Check whether patches fit a model")
    options.add_patches_and_base(check, base_help="the new version of the model")

    port = _subcommand(commands, "port", "Write a patch as an adapter for a new model")
    options.add_patches_and_base(port, base_help="the new version of the model")
    options.add_method(port)
    port.add_argument("--output", required=True, metavar="DIR", help="port to write")

    merge = _subcommand(commands, "merge", "Merge patches into full checkpoints")
    options.add_patches_and_base(merge, base_help="the new version of the model")
    options.add_method(merge)
    merge.add_argument(
        "--output",
        nargs="+",
        required=True,
        metavar="DIR",
        help="checkpoint to write: one with the weighted sum of all patches, or one per patch",
    )
    options.add_merging(merge)

    unmerge = _subcommand(commands, "unmerge", "Subtract merged patches from a checkpoint")
    unmerge.epilog = options.ROUNDING
    options.add_patches_and_base(unmerge, base_help="the merged checkpoint")
    options.add_method(unmerge)
    unmerge.add_argument("--output", required=True, metavar="DIR", help="checkpoint to write")
    options.add_merging(unmerge)

    options.add_plan(
        _subcommand(commands, "plan", "Show the jobs, disk and memory of the workflow's study")
    )
    return parser


def main() -> None:
    """Run the command."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command != "plan":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # Imported here, so that --help and wrong usage are answered at once.
    from portllm.command_line import run

    if arguments.command == "plan":
        from portllm.cli import plan

        run(lambda: plan.show(arguments.configfile, rest))
        return

    from pathlib import Path

    from portllm.cli import transplant
    from portllm.cli.request import Request

    if arguments.command == "check":
        request = Request.of(arguments)
        run(lambda: transplant.check_patches(request), hub=request.needs_hub)
        return
    if arguments.command == "port":
        request = Request.of(arguments, adapter=Path(arguments.output))
    elif arguments.command == "merge":
        request = Request.of(arguments, checkpoints=[*map(Path, arguments.output)])
    else:
        request = Request.of(arguments, checkpoints=[Path(arguments.output)], unmerge=True)
    run(lambda: transplant.execute(request), hub=request.needs_hub)


if __name__ == "__main__":
    main()
