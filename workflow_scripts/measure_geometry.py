"""Measure the angles between a ported patch, the model update, and the retrained patch."""

import argparse
from pathlib import Path

from portllm.command_line import add_names, run
from portllm.storage import files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--base", type=Path, required=True, help="version that the patch was trained on"
    )
    parser.add_argument("--version", type=Path, required=True, help="directory of the version")
    parser.add_argument("--ported", type=Path, required=True, help="patch trained on the base")
    parser.add_argument("--native", type=Path, required=True, help="patch trained on the version")
    add_names(parser)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    from portllm.analysis.geometry import geometry

    measured = geometry(arguments.base, arguments.version, arguments.ported, arguments.native)
    files.write_json(arguments.output, {**dict(arguments.names), **measured})


if __name__ == "__main__":
    run(main)
