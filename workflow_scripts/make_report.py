"""Write the report: one HTML file with every table and figure of the study, which opens offline."""

import argparse
import json
from pathlib import Path

from portllm.command_line import run
from portllm.storage import files


def by_name(paths: list[Path], kinds: dict[str, str]) -> dict[str, tuple[str, Path]]:
    """Kind and file of each table or figure, by its name, which is the file's."""
    return {path.stem: (kinds[path.stem], path) for path in paths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tables", type=Path, nargs="*", default=[], help="*.md, with *.csv beside"
    )
    parser.add_argument("--figures", type=Path, nargs="*", default=[], help="*.svg, others beside")
    parser.add_argument(
        "--imported", type=Path, nargs="*", default=[], help="imported scores, SOURCE.csv"
    )
    parser.add_argument(
        "--settings", type=json.loads, required=True, help="JSON: study, tables, figures"
    )
    parser.add_argument("--sections", type=Path, required=True, help="YAML: the report's story")
    parser.add_argument("--template", type=Path, required=True, help="Jinja template of the page")
    parser.add_argument("--output", type=Path, required=True, help="HTML to write")
    arguments = parser.parse_args()
    from portllm.reporting import html_report

    study = arguments.settings["study"]
    page = html_report.write(
        arguments.template,
        html_report.read_sections(arguments.sections),
        tables=by_name(arguments.tables, arguments.settings["tables"]),
        figures=by_name(arguments.figures, arguments.settings["figures"]),
        study={**study, "parts": html_report.with_imported(study["parts"], arguments.imported)},
    )
    with files.whole_file(arguments.output) as partial:
        partial.write_text(page)


if __name__ == "__main__":
    run(main)
