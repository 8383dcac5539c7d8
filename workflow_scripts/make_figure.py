"""Draw one figure as SVG and PNG, and write the numbers that it shows as CSV."""

import argparse
import json
from pathlib import Path

from portllm.command_line import run
from portllm.storage import files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "sources", type=Path, nargs="+", help="scores.csv, then result files (with their samples)"
    )
    parser.add_argument(
        "--settings",
        type=json.loads,
        required=True,
        help="JSON: kind, arms, recovery, statistics, size",
    )
    parser.add_argument("--output", type=Path, nargs="+", required=True, metavar="FILE")
    arguments = parser.parse_args()
    from portllm.reporting import registry

    kind = registry.load()["figures", arguments.settings["kind"]]
    drawing = kind.make(arguments.sources, arguments.settings)
    for path in arguments.output:
        with files.whole_file(path) as partial:
            kind = path.suffix.lstrip(".")
            if kind == "csv":
                drawing.numbers.to_csv(partial, index=False)
                continue
            # An SVG would carry the time of day.
            metadata = {"Date": None} if kind == "svg" else None
            drawing.figure.savefig(partial, format=kind, dpi=150, metadata=metadata)


if __name__ == "__main__":
    run(main)
