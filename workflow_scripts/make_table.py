"""Write one table as CSV (numbers), Markdown and LaTeX (text)."""

import argparse
import json
from pathlib import Path

from portllm.command_line import run
from portllm.storage import files


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "sources",
        type=Path,
        nargs="+",
        help="scores.csv, result files (with their samples) or measurements, depending on the kind",
    )
    parser.add_argument(
        "--settings",
        type=json.loads,
        required=True,
        help="JSON: kind, arms, recovery, statistics, selection",
    )
    parser.add_argument(
        "--notes", type=Path, nargs="*", default=[], help="files of lines to write under the text"
    )
    parser.add_argument("--output", type=Path, nargs=3, required=True, metavar="FILE")
    arguments = parser.parse_args()
    from portllm.reporting import published_values, registry, table_formats

    kind = registry.load()["tables", arguments.settings["kind"]]
    table = kind.make(arguments.sources, arguments.settings)
    known = arguments.settings.get("published")
    if known and not kind.shows_published:
        table = published_values.with_published(table, Path(known))
    notes = [*table.notes, *(line for file in arguments.notes for line in _lines(file))]
    contents = (
        table.numbers.to_csv(index=False),
        table_formats.to_markdown(table.text, notes),
        table_formats.to_latex(table.text, notes),
    )
    for path, content in zip(arguments.output, contents, strict=True):
        with files.whole_file(path) as partial:
            partial.write_text(content)


if __name__ == "__main__":
    run(main)
