"""Import external result files of lm-eval as scores."""

import argparse
import json
from pathlib import Path

from portllm.command_line import run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="the source's name in the study")
    parser.add_argument(
        "--settings",
        type=json.loads,
        required=True,
        help="JSON: an entry of a study's `imported`, and `seed`",
    )
    parser.add_argument("--scores", type=Path, required=True, help="CSV of scores to write")
    parser.add_argument(
        "--files", type=Path, required=True, help="CSV to write: the status of each file"
    )
    parser.add_argument(
        "--notes", type=Path, required=True, help="text to write: notes below the tables"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    from portllm.comparison import imported
    from portllm.storage import files

    source = imported.collect(arguments.settings, arguments.name)
    notes = imported.notes(source.files, arguments.name, arguments.settings.get("origin"))
    contents = {
        arguments.scores: source.scores.to_csv(index=False),
        arguments.files: source.files.to_csv(index=False),
        arguments.notes: "".join(f"{note}\n" for note in notes),
    }
    for path, content in contents.items():
        with files.whole_file(path) as partial:
            partial.write_text(content)


if __name__ == "__main__":
    run(main)
