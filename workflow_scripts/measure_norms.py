"""Measure the norms of a ported patch, of the retrained patch, and of their difference."""

import argparse
from pathlib import Path

from portllm.command_line import add_names, run
from portllm.storage import files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", type=Path, required=True, help="directory of the version")
    parser.add_argument(
        "--ported", type=Path, required=True, help="patch trained on another version"
    )
    parser.add_argument("--native", type=Path, required=True, help="patch trained on the version")
    add_names(parser)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    from portllm.analysis.norms import norms

    measured = norms(arguments.version, arguments.ported, arguments.native)
    files.write_json(arguments.output, {**dict(arguments.names), **measured})


if __name__ == "__main__":
    run(main)
