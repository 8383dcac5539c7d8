"""Fetch an existing adapter from the hub, or link an adapter in a local directory."""

import argparse
from pathlib import Path

from portllm.command_line import add_names, run
from portllm.data import fetching
from portllm.storage import files, manifests
from portllm.weights import adapters, fit
from portllm.weights.adapters import StoredAdapter
from portllm.weights.checkpoints import Checkpoint


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    fetching.add_source(parser, "an adapter")
    parser.add_argument(
        "--base",
        type=Path,
        nargs="?",
        help="the version that it was trained on, whose tokenizer is recorded",
    )
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
            revision = fetching.download(
                arguments.hub,
                arguments.revision,
                directory,
                fetching.ADAPTER,
                subfolder=arguments.subfolder,
            )
        adapter = StoredAdapter(local or directory)
        base = Checkpoint(arguments.base) if arguments.base else None
        if base is not None:
            fit.check(adapter, base)
        manifests.write_for_directory(
            directory,
            stage="patch",
            parameters=fetching.source_parameters(arguments),
            inputs={},
            cost=meter.read(),
            packages=("huggingface_hub",),
            revision=revision,
            names=dict(arguments.names),
            fingerprint=adapter.fingerprint(base),
            trainable_parameters=0,
        )


if __name__ == "__main__":
    run(main, hub=True)
