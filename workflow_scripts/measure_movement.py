"""Measure how far a version's weights have moved from the base."""

import argparse
from pathlib import Path

from portllm.command_line import add_names, run
from portllm.storage import files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base")
    parser.add_argument("--version", type=Path, required=True, help="directory of the version")
    add_names(parser)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    from portllm.analysis.movement import movement

    measured = movement(arguments.base, arguments.version)
    files.write_json(arguments.output, {**dict(arguments.names), **measured})


if __name__ == "__main__":
    run(main)
