"""Transplant a patch onto another version of its model: as an adapter, merged, or both."""

import argparse
import logging
import re
import sys
from pathlib import Path

from portllm import adapters, hub, manifest, methods
from portllm.command_line import add_names, run
from portllm.errors import InputError

log = logging.getLogger("transplant")


def parameter(text: str) -> tuple[str, float | int]:
    """Parse `name=value`, the value a whole number where it is written as one."""
    name, _, value = text.partition("=")
    return name, int(value) if re.fullmatch(r"[+-]?\d+", value) else float(value)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--patch", type=Path, required=True, help="directory of a PEFT LoRA adapter"
    )
    parser.add_argument(
        "--version", "--base", type=Path, required=True, help="directory of the new model"
    )
    parser.add_argument("--method", default="direct", help="a transplant method")
    parser.add_argument(
        "--parameter",
        type=parameter,
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="parameters of the method",
    )
    parser.add_argument("--adapter", type=Path, help="adapter directory to write")
    parser.add_argument("--merged", "--output", type=Path, help="checkpoint directory to write")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the checkpoint there")
    parser.add_argument("--check", action="store_true", help="only say whether the patch fits")
    parser.add_argument("--allow-other-tokenizer", action="store_true")
    add_names(parser)
    return parser.parse_args()


def push(directory: Path, name: str) -> None:
    """Upload a checkpoint; huggingface_hub finds the token in the environment."""
    from huggingface_hub import HfApi

    with hub.explained("model", name):
        HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=directory)
    log.info("uploaded to %s", name)


def main() -> None:
    meter = manifest.Meter()
    arguments = parse_arguments()
    if not (arguments.check or arguments.adapter or arguments.merged):
        raise InputError("nothing to do: give --adapter, --merged or --check")
    if arguments.push_to_hub and not arguments.merged:
        raise InputError("--push-to-hub uploads the checkpoint that --merged writes: give that too")
    adapters.check_fit(
        arguments.patch,
        arguments.version,
        allow_other_tokenizer=arguments.allow_other_tokenizer,
    )
    log.info("%s fits %s", arguments.patch, arguments.version)
    if arguments.check:
        return
    from portllm import files, merging

    parameters = methods.check(arguments.method, dict(arguments.parameter))
    adapter = adapters.transplanted(adapters.load(arguments.patch), arguments.method, parameters)
    about = {
        "stage": "transplant",
        "parameters": {"method": arguments.method, **parameters},
        "inputs": {
            "patch": manifest.content_hash(arguments.patch),
            "version": manifest.content_hash(arguments.version),
        },
        "packages": ("torch", "safetensors"),
        "trainable_parameters": 0,
        "names": dict(arguments.names),
    }
    if arguments.adapter:
        with files.whole_directory(arguments.adapter) as directory:
            adapters.save(adapter, directory, base=arguments.version)
            manifest.write_for_directory(directory, cost=meter.read(), **about)
    if arguments.merged:
        with files.whole_directory(arguments.merged) as directory:
            merging.merge(arguments.version, adapter, directory)
            manifest.write_for_directory(directory, cost=meter.read(), **about)
    if arguments.push_to_hub:
        push(arguments.merged, arguments.push_to_hub)


if __name__ == "__main__":
    run(main, hub="--push-to-hub" in sys.argv)
