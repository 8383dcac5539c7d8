"""Write the report: one HTML file with every table and figure of the study, which opens offline."""

import argparse
import json
from pathlib import Path

from portllm.command_line import run
from portllm.storage import files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tables", type=Path, nargs="*", default=[], help="*.md, each with a *.csv and *.tex"
    )
    parser.add_argument(
        "--figures", type=Path, nargs="*", default=[], help="*.svg, each with *.csv, *.png"
    )
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
    from portllm.reporting import html_report, registry

    study = arguments.settings["study"]
    parts = html_report.with_imported(study["parts"], arguments.imported)
    page = html_report.write(
        arguments.template,
        html_report.read_sections(arguments.sections),
        registry.load(),
        settings={**arguments.settings, "study": {**study, "parts": parts}},
        files={
            "tables": {path.stem: path for path in arguments.tables},
            "figures": {path.stem: path for path in arguments.figures},
        },
    )
    with files.whole_file(arguments.output) as partial:
        partial.write_text(page)


if __name__ == "__main__":
    run(main)
