"""Obtain a patch that exists: fetch it from the hub, or link one that lies in a local directory."""

import argparse
from pathlib import Path

from portllm import adapters, files, manifest, models
from portllm.command_line import add_names, run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--hub", help="an adapter's id on the hub")
    source.add_argument("--path", type=Path, help="a local directory")
    parser.add_argument("--revision", help="commit, branch or tag on the hub")
    parser.add_argument("--hub-mirror", help="directory laid out like the hub that replaces it")
    add_names(parser)
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    return parser.parse_args()


def main() -> None:
    meter = manifest.Meter()
    arguments = parse_arguments()
    local = arguments.path
    if local is None and arguments.hub_mirror:
        local = models.in_mirror(arguments.hub_mirror, arguments.hub)
    revision = None
    with files.whole_directory(arguments.output) as directory:
        if local is not None:
            adapters.link(local, directory)
        else:
            revision = models.download_adapter(arguments.hub, arguments.revision, directory)
        adapters.check_directory(directory)
        shapes = adapters.adapter_shapes(directory)
        manifest.write_for_directory(
            directory,
            stage="patch",
            parameters={
                "hub": arguments.hub,
                "revision": arguments.revision,
                "path": str(local) if local else None,
            },
            inputs={},
            cost=meter.read(),
            packages=("huggingface_hub",),
            revision=revision,
            names=dict(arguments.names),
            fingerprint=adapters.known_fingerprint(local or directory, shapes),
            trainable_parameters=0,
        )


if __name__ == "__main__":
    run(main, hub=True)
