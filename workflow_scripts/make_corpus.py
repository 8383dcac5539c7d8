"""Write a corpus as JSON lines, with a manifest next to it."""

import argparse
import json
import os
from pathlib import Path

from portllm.command_line import run
from portllm.data import corpora
from portllm.storage import files, manifests
from portllm.study.schema import add_options


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--definition",
        type=json.loads,
        required=True,
        help="JSON as under `corpora` in a study: sources, limit, seed",
    )
    add_options(parser, "", "hub_mirror")
    parser.add_argument("--output", type=Path, required=True, help="JSON-lines file to write")
    return parser.parse_args()


def main() -> None:
    meter = manifests.Meter()
    arguments = parse_arguments()
    if arguments.hub_mirror:
        os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    definition = arguments.definition
    if not arguments.hub_mirror:
        definition = corpora.pinned(definition)
    rows = corpora.rows_of_corpus(definition, arguments.hub_mirror)
    files.write_json_lines(arguments.output, rows)
    manifests.write_for_file(
        arguments.output,
        stage="corpus",
        parameters={**arguments.definition, "rows": len(rows)},
        inputs={
            source["generator"]: files.hash_file(Path(source["generator"].rpartition(":")[0]))
            for source in arguments.definition["sources"]
            if "generator" in source
        },
        cost=meter.read(),
        packages=("datasets",),
        revisions=[] if arguments.hub_mirror else corpora.commits(definition),
    )


if __name__ == "__main__":
    run(main, hub=True)
