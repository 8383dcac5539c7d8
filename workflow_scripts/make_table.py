"""Write one table as CSV (numbers), Markdown and LaTeX (text)."""

import argparse
import json
from pathlib import Path

from portllm import files
from portllm.command_line import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path, nargs="+", help="scores.csv, or measurements")
    parser.add_argument(
        "--settings", type=json.loads, required=True, help="JSON: kind, arms, recovery, selection"
    )
    parser.add_argument("--output", type=Path, nargs=3, required=True, metavar="FILE")
    arguments = parser.parse_args()
    from portllm import tables

    table = tables.KINDS[arguments.settings["kind"]](arguments.sources, arguments.settings)
    contents = (
        table.numbers.to_csv(index=False),
        tables.to_markdown(table.text),
        tables.to_latex(table.text),
    )
    for path, content in zip(arguments.output, contents, strict=True):
        with files.whole_file(path) as partial:
            partial.write_text(content)


if __name__ == "__main__":
    run(main)
