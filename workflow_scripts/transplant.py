"""Transplant a patch onto another version of its model: as an adapter, merged, or both."""

import argparse
import logging
from pathlib import Path

from portllm import adapters, manifest, methods
from portllm.command_line import run
from portllm.errors import InputError

log = logging.getLogger("transplant")


def parameter(text: str) -> tuple[str, float]:
    """Parse `name=value`."""
    name, _, value = text.partition("=")
    return name, float(value)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--patch", type=Path, required=True, help="directory of a PEFT LoRA adapter"
    )
    parser.add_argument("--version", type=Path, required=True, help="directory of the version")
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
    parser.add_argument("--merged", type=Path, help="checkpoint directory to write")
    parser.add_argument("--check", action="store_true", help="only say whether the patch fits")
    parser.add_argument("--allow-other-tokenizer", action="store_true")
    return parser.parse_args()


def main() -> None:
    meter = manifest.Meter()
    arguments = parse_arguments()
    if not (arguments.check or arguments.adapter or arguments.merged):
        raise InputError("nothing to do: give --adapter, --merged or --check")
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
    }
    if arguments.adapter:
        with files.whole_directory(arguments.adapter) as directory:
            adapters.save(adapter, directory, base=arguments.version)
            manifest.write_for_directory(directory, cost=meter.read(), **about)
    if arguments.merged:
        with files.whole_directory(arguments.merged) as directory:
            merging.merge(arguments.version, adapter, directory)
            manifest.write_for_directory(directory, cost=meter.read(), **about)


if __name__ == "__main__":
    run(main)
