"""Collect the results of all scoring jobs into one tidy CSV."""

import argparse
from pathlib import Path

from portllm.command_line import run
from portllm.storage import files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="*", help="JSON files of scoring jobs")
    parser.add_argument(
        "--imported", type=Path, nargs="*", default=[], help="CSV files of imported scores"
    )
    parser.add_argument("--output", type=Path, required=True, help="CSV to write")
    arguments = parser.parse_args()
    from portllm.comparison import score_table

    table = score_table.collect(arguments.results, arguments.imported)
    with files.whole_file(arguments.output) as partial:
        table.to_csv(partial, index=False)


if __name__ == "__main__":
    run(main)
