"""Train a patch: LoRA on one model version for one task, saved as a PEFT adapter."""

import argparse
import logging
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from portllm import lazy_imports
from portllm.command_line import add_names, run
from portllm.jobs import data_parallel
from portllm.storage import manifests
from portllm.study import schema

log = logging.getLogger("train_patch")

MEMORY_ADVICE = (
    "a smaller patch.batch_size with more patch.gradient_accumulation, a smaller "
    "patch.max_length, patch.gradient_checkpointing: true"
)
"""How to reduce GPU memory, for out-of-memory errors."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of the version")
    parser.add_argument("--task", type=Path, required=True, help="directory of the task data")
    schema.add_options(parser, "patch")
    parser.add_argument(
        "--seed",
        type=int,
        default=schema.defaults("study")["seeds"][0],
        help="seed of the initial factors and of the order of examples (default: %(default)s)",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        default=1,
        help="most GPUs that share each batch, of those that are visible (default: %(default)s)",
    )
    parser.add_argument("--work", type=Path, required=True, help="directory for checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    add_names(parser)
    return parser.parse_args()


def main() -> None:
    meter = manifests.Meter()
    arguments = parse_arguments()
    if arguments.gpus > 1 and not data_parallel.launched():
        gpus = min(arguments.gpus, len(data_parallel.visible_gpus()))
        if gpus > 1:
            data_parallel.launch(gpus)
    lazy_imports.hide(*lazy_imports.unused_in_training(arguments.model))
    from portllm.jobs import torch_devices

    torch_devices.check(single=True)
    from portllm.storage import files
    from portllm.training import finished_results, patch_training, resuming

    values = {
        field.name: getattr(arguments, field.name) for field in fields(patch_training.LoraSettings)
    }
    targets = arguments.target_modules
    every_layer = targets in ("all-linear", ["all-linear"])
    values["target_modules"] = "all-linear" if every_layer else tuple(targets)
    lora = patch_training.LoraSettings(**values)
    inputs = {
        "model": manifests.content_hash(arguments.model),
        "task": manifests.content_hash(arguments.task),
    }
    # The folder is keyed by everything that decides the weights, so that a retried job finds its
    # own checkpoints and no others.
    decisive = {**asdict(lora), "checkpoint_steps": None}
    processes = [data_parallel.launched()] if data_parallel.launched() else []
    work = arguments.work / files.hash_value([decisive, inputs, *processes])[:16]
    examples = patch_training.read_examples(arguments.task / "train.jsonl")
    first = data_parallel.is_first()
    if data_parallel.launched():
        data_parallel.join()
    if not first:
        logging.disable(logging.INFO)
    with resuming.held(work) if first else nullcontext():
        if data_parallel.decided_by_first(lambda: finished_results.restore(work, arguments.output)):
            return
        model, training = patch_training.train(
            arguments.model, examples, lora, work, seconds=meter.seconds
        )
        cost = meter.read(earlier_seconds=training["earlier_seconds"], **data_parallel.leave())
        if first:
            write(arguments, asdict(lora), inputs, model, training, cost)
            finished_results.keep(work, arguments.output)


def write(
    arguments: argparse.Namespace,
    parameters: dict[str, Any],
    inputs: dict[str, str],
    model: Any,
    training: dict[str, Any],
    cost: manifests.Cost,
) -> None:
    """Write the adapter and its manifest."""
    from portllm.storage import files
    from portllm.weights import adapters, attention
    from portllm.weights.adapters import StoredAdapter
    from portllm.weights.checkpoints import Checkpoint

    with files.whole_directory(arguments.output) as directory:
        model.save_pretrained(directory, safe_serialization=True)
        adapters.sort_targets(directory)
        manifests.write_for_directory(
            directory,
            stage="patch",
            parameters=parameters,
            inputs=inputs,
            cost=cost,
            packages=("torch", "transformers", "peft", "accelerate"),
            fingerprint=StoredAdapter(directory).fingerprint(Checkpoint(arguments.model)),
            trainable_parameters=model.get_nb_trainable_parameters()[0],
            names=dict(arguments.names),
            attention=attention.implementation(Checkpoint(arguments.model).config),
            training={
                name: round(value, 6) if isinstance(value, float) else value
                for name, value in training.items()
            },
        )


if __name__ == "__main__":
    run(main, memory_advice=MEMORY_ADVICE)
