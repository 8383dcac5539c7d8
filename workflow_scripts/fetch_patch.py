"""Obtain a patch that exists: fetch it from the hub, or link one that lies in a local directory."""

import argparse
from pathlib import Path

from portllm import adapters, files, manifest, models
from portllm.command_line import add_names, run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    models.add_source(parser, "an adapter")
    add_names(parser)
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    return parser.parse_args()


def main() -> None:
    meter = manifest.Meter()
    arguments = parse_arguments()
    local = models.local_directory(arguments)
    revision = None
    with files.whole_directory(arguments.output) as directory:
        if local is not None:
            adapters.link(local, directory)
        else:
            revision = models.download_adapter(arguments.hub, arguments.revision, directory)
        adapters.check_directory(directory)
        manifest.write_for_directory(
            directory,
            stage="patch",
            parameters=models.asked_for(arguments),
            inputs={},
            cost=meter.read(),
            packages=("huggingface_hub",),
            revision=revision,
            names=dict(arguments.names),
            fingerprint=adapters.known_fingerprint(local or directory),
            trainable_parameters=0,
        )


if __name__ == "__main__":
    run(main, hub=True)
