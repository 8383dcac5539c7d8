"""Fetch a model from the hub, or link a model in a local directory."""

import argparse
from pathlib import Path

from portllm.command_line import run
from portllm.data import fetching
from portllm.storage import files, manifests
from portllm.weights.checkpoints import Checkpoint


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    fetching.add_source(parser, "a model")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    return parser.parse_args()


def main() -> None:
    meter = manifests.Meter()
    arguments = parse_arguments()
    local = fetching.local_directory(arguments)
    with files.whole_directory(arguments.output) as directory:
        if local is not None:
            fetching.link(local, directory, from_mirror=arguments.path is None)
            commit = None
        else:
            commit = fetching.download(
                arguments.hub,
                arguments.revision,
                directory,
                fetching.MODEL,
                subfolder=arguments.subfolder,
            )
        _ = Checkpoint(directory).shapes  # raises for truncated weights
        manifests.write_for_directory(
            directory,
            stage="base",
            parameters=fetching.source_parameters(arguments),
            inputs={},
            cost=meter.read(),
            packages=("huggingface_hub",),
            revision=commit,
        )


if __name__ == "__main__":
    run(main, hub=True)
