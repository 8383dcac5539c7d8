"""Obtain a model: fetch it from the hub, or link one that lies in a local directory."""

import argparse
from pathlib import Path

from portllm import checkpoints, files, manifest, models
from portllm.command_line import run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--hub", help="a model id on the hub")
    source.add_argument("--path", type=Path, help="a local directory")
    parser.add_argument("--revision", help="commit, branch or tag on the hub")
    parser.add_argument("--hub-mirror", help="directory laid out like the hub that replaces it")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    meter = manifest.Meter()
    local = arguments.path
    if local is None and arguments.hub_mirror:
        local = models.in_mirror(arguments.hub_mirror, arguments.hub)
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
            parameters={
                "hub": arguments.hub,
                "revision": arguments.revision,
                "path": str(local) if local else None,
            },
            inputs={},
            cost=meter.read(),
            packages=("huggingface_hub",),
            revision=commit,
        )


if __name__ == "__main__":
    run(main, hub=True)
