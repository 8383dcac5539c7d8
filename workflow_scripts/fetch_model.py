"""Obtain a model: fetch it from the hub, or link one that lies in a local directory."""

import argparse
from pathlib import Path

from portllm import checkpoints, files, manifest, models
from portllm.command_line import run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    models.add_source(parser, "a model")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    return parser.parse_args()


def main() -> None:
    meter = manifest.Meter()
    arguments = parse_arguments()
    local = models.local_directory(arguments)
    with files.whole_directory(arguments.output) as directory:
        if local is not None:
            models.link(local, directory)
            commit = None
        else:
            commit = models.download(arguments.hub, arguments.revision, directory)
        checkpoints.shapes(directory)  # refuses weights that are cut off
        manifest.write_for_directory(
            directory,
            stage="base",
            parameters=models.asked_for(arguments),
            inputs={},
            cost=meter.read(),
            packages=("huggingface_hub",),
            revision=commit,
        )


if __name__ == "__main__":
    run(main, hub=True)
