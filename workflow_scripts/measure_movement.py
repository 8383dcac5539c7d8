"""Measure how far a version's weights lie from its base's."""

import argparse
from pathlib import Path

from portllm import files
from portllm.command_line import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base")
    parser.add_argument("--version", type=Path, required=True, help="directory of the version")
    parser.add_argument("--model-name", default="model", help="name in the results")
    parser.add_argument("--version-name", default="version", help="name in the results")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    from portllm.movement import movement

    names = {"model": arguments.model_name, "version": arguments.version_name}
    measured = movement(arguments.base, arguments.version)
    files.write_json(arguments.output, {**names, **measured})


if __name__ == "__main__":
    run(main)
