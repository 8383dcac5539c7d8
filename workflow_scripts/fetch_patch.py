"""Fetch an existing adapter from the hub, or link an adapter in a local directory."""

import argparse
from pathlib import Path

from portllm.command_line import add_names, run
from portllm.data import fetching
from portllm.storage import files, manifests
from portllm.weights import adapters
from portllm.weights.adapters import StoredAdapter


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    fetching.add_source(parser, "an adapter")
    add_names(parser)
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    return parser.parse_args()


def main() -> None:
    meter = manifests.Meter()
    arguments = parse_arguments()
    local = fetching.local_directory(arguments)
    revision = None
    with files.whole_directory(arguments.output) as directory:
        if local is not None:
            adapters.link(local, directory)
        else:
            revision = fetching.download_adapter(arguments.hub, arguments.revision, directory)
        StoredAdapter(directory)  # raises for an unusable adapter
        manifests.write_for_directory(
            directory,
            stage="patch",
            parameters=fetching.source_parameters(arguments),
            inputs={},
            cost=meter.read(),
            packages=("huggingface_hub",),
            revision=revision,
            names=dict(arguments.names),
            fingerprint=StoredAdapter(local or directory).fingerprint(),
            trainable_parameters=0,
        )


if __name__ == "__main__":
    run(main, hub=True)
