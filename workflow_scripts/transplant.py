"""Transplant patches onto another version of their model: as an adapter, merged, or both."""

import argparse
import logging
import re
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from portllm.command_line import add_names, run
from portllm.data import hub
from portllm.errors import InputError
from portllm.storage import files, manifests
from portllm.transplant import ports
from portllm.weights import adapters
from portllm.weights.checkpoints import Checkpoint

log = logging.getLogger("transplant")


def parameter(text: str) -> tuple[str, float | int]:
    """Parse `name=value`, the value a whole number where it is written as one."""
    name, _, value = text.partition("=")
    return name, int(value) if re.fullmatch(r"[+-]?\d+", value) else float(value)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Several patches and one --merged make one checkpoint with their weighted sum; as "
        "many --merged as patches make one checkpoint each, in one pass over the version. "
        "--unmerge takes back what was merged, to within two roundings: of weights W with the "
        "change D, stored with unit roundoff u (bfloat16 2^-8, float16 2^-11, float32 2^-24), each "
        "number comes back to within u·(|W + D| + |W|), to first order in u.",
    )
    parser.add_argument(
        "--patch",
        type=Path,
        nargs="+",
        required=True,
        help="directories of PEFT LoRA adapters, or of one port",
    )
    parser.add_argument(
        "--weight", type=float, nargs="+", help="factor of each patch; absent means one"
    )
    parser.add_argument(
        "--version", "--base", type=Path, required=True, help="directory of the new model"
    )
    parser.add_argument("--method", default="direct", help="a transplant method")
    parser.add_argument(
        "--parameter",
        type=parameter,
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="parameters of the method",
    )
    parser.add_argument(
        "--adapter", type=Path, help="port to write: an adapter, where the method makes one"
    )
    parser.add_argument(
        "--merged", "--output", type=Path, nargs="+", default=[], help="checkpoints to write"
    )
    parser.add_argument("--unmerge", action="store_true", help="subtract, not add, the patches")
    parser.add_argument(
        "--threads",
        type=int,
        help="threads that merge; absent means OMP_NUM_THREADS, else all cores (at most four)",
    )
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the checkpoint there")
    parser.add_argument("--check", action="store_true", help="only say whether the patches fit")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be written, and if it has room"
    )
    parser.add_argument("--allow-other-tokenizer", action="store_true")
    add_names(parser)
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise InputError for options that contradict each other or outputs that would lose data."""
    if not (arguments.check or arguments.adapter or arguments.merged):
        raise InputError("nothing to do: give --adapter, --merged or --check")
    if arguments.push_to_hub and len(arguments.merged) != 1:
        raise InputError(
            "--push-to-hub uploads the one checkpoint that --merged writes: give that too"
        )
    patches, weights, merged = (
        len(some or []) for some in (arguments.patch, arguments.weight, arguments.merged)
    )
    if arguments.weight and weights != patches:
        raise InputError(f"--weight: {weights} given, expected one for each of {patches} patches")
    if merged > 1 and merged != patches:
        raise InputError(
            f"--merged: {merged} given, expected one (the sum of all patches) or one for each of "
            f"{patches} patches"
        )
    if arguments.unmerge and arguments.adapter:
        raise InputError("--unmerge gives a checkpoint (--merged), no --adapter")
    if arguments.threads is not None and arguments.threads < 1:
        raise InputError(f"--threads: found {arguments.threads}, expected one or more")
    inputs = {path.resolve() for path in (arguments.version, *arguments.patch)}
    outputs = [path for path in (*arguments.merged, arguments.adapter) if path]
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise InputError("two outputs are the same directory")
    for output in outputs:
        place = output.resolve()
        if any(place == path or place in path.parents for path in inputs):
            raise InputError(f"{output}: holds what is read; expected another directory")
        if output.exists() and not (output.is_dir() and replaceable(output)):
            raise InputError(f"{output}: is there and is no artefact of this program's making")


def replaceable(directory: Path) -> bool:
    """Whether a directory is empty or holds what this program wrote."""
    return (directory / manifests.NAME).exists() or not any(directory.iterdir())


def push(directory: Path, name: str) -> None:
    """Upload a checkpoint; huggingface_hub finds the token in the environment."""
    from huggingface_hub import HfApi

    with hub.explained("model", name):
        HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=directory)
    log.info("uploaded to %s", name)


def check_fit(port: ports.Port, version: Checkpoint, arguments: argparse.Namespace) -> None:
    for patch in port.patches:
        adapters.check_fit(
            patch.adapter,
            version,
            allow_other_tokenizer=arguments.allow_other_tokenizer,
        )
        log.info("%s fits %s", patch.adapter, version)


def about(port: ports.Port, arguments: argparse.Namespace, version: str) -> dict[str, Any]:
    """What the manifest of an output says of how it was made."""
    hashes = [manifests.content_hash(patch.adapter.directory) for patch in port.patches]
    weights = [patch.weight for patch in port.patches]
    # A single patch as it is needs no weight to be told.
    told = {} if weights == [1.0] else {"weights": weights}
    names = ["patch"] if len(hashes) == 1 else [f"patch_{index}" for index in range(len(hashes))]
    return {
        "stage": "transplant",
        "parameters": {"method": port.method, **(port.parameters or {}), **told},
        "inputs": {**dict(zip(names, hashes, strict=True)), "version": version},
        "packages": ("torch", "numpy", "safetensors"),
        "trainable_parameters": 0,
        "names": dict(arguments.names),
    }


def show_plan(merged: dict[Path, ports.Port], version: Checkpoint) -> None:
    """Print what each checkpoint would be made of; InputError where there is no room for all."""
    from portllm.transplant import edits, merging, streaming

    plans = {
        directory: merging.plan(version, edits.edits_of_port(port))
        for directory, port in merged.items()
    }
    for directory, plan in plans.items():
        print(
            f"{directory}: {plan.bytes / 1e9:.3f} GB in {plan.shards} shards; {plan.edited} "
            f"weights ({plan.edited_bytes / 1e9:.3f} GB) changed, the rest copied"
        )
    streaming.check_space({directory: plan.bytes for directory, plan in plans.items()})


def merge(
    merged: dict[Path, ports.Port], model: Checkpoint, arguments: argparse.Namespace, meter: Any
) -> None:
    """Write every checkpoint in one pass over the version, each with its manifest."""
    from portllm.transplant import edits, merging

    known = (arguments.version / manifests.NAME).exists()
    with ExitStack() as stack:
        places = {
            directory: stack.enter_context(files.whole_directory(directory)) for directory in merged
        }
        changes = {places[where]: edits.edits_of_port(port) for where, port in merged.items()}
        written = merging.merge_many(
            model, changes, threads=arguments.threads, source_hashed=not known
        )
        version = manifests.content_hash(arguments.version, known=written.source)
        for directory, port in merged.items():
            manifests.write_for_directory(
                places[directory],
                known=written.content[places[directory]],
                cost=meter.read(),
                **about(port, arguments, version),
            )
            files.flush_directory(places[directory])


def main() -> None:
    meter = manifests.Meter()
    arguments = parse_arguments()
    check_arguments(arguments)
    sign = -1.0 if arguments.unmerge else 1.0
    weights = [sign * weight for weight in arguments.weight or [1.0] * len(arguments.patch)]
    made_by = arguments.method, dict(arguments.parameter)
    port = ports.open_port(arguments.patch, weights, *made_by)
    model = Checkpoint.open(arguments.version)
    check_fit(port, model, arguments)
    if arguments.check:
        return
    if len(arguments.merged) > 1:
        single = zip(arguments.merged, port.patches, strict=True)
        merged = {place: replace(port, patches=(patch,)) for place, patch in single}
    else:
        merged = dict.fromkeys(arguments.merged, port)
    if arguments.dry_run:
        show_plan(merged, model)
        return
    if arguments.adapter:
        with files.whole_directory(arguments.adapter) as directory:
            ports.write(port, directory, base=arguments.version)
            version = manifests.content_hash(arguments.version)
            parts = about(port, arguments, version)
            manifests.write_for_directory(directory, cost=meter.read(), **parts)
    if merged:
        merge(merged, model, arguments, meter)
    if arguments.push_to_hub:
        push(arguments.merged[0], arguments.push_to_hub)


if __name__ == "__main__":
    run(main, hub="--push-to-hub" in sys.argv)
