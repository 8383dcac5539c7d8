"""Measure the loss along the line from a ported patch to the retrained patch."""

import argparse
from pathlib import Path

from portllm.command_line import add_names, run
from portllm.storage import manifests
from portllm.study.schema import add_options


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", type=Path, required=True, help="directory of the version")
    parser.add_argument(
        "--carried", type=Path, required=True, help="patch trained on another version"
    )
    parser.add_argument("--native", type=Path, required=True, help="patch trained on the version")
    parser.add_argument("--task", type=Path, required=True, help="directory of the task data")
    parser.add_argument("--lm-eval", required=True, help="the task's name in lm-eval")
    parser.add_argument("--include", help="folder of local task YAMLs")
    add_options(parser, "tasks.*", "allow_unsafe_code")
    add_options(parser, "loss_slices")
    add_options(parser, "scoring", "batch_size", "dtype")
    add_options(parser, "patch", "max_length")
    add_names(parser)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    return parser.parse_args()


def main() -> None:
    meter = manifests.Meter()
    arguments = parse_arguments()
    from portllm.jobs import torch_devices

    torch_devices.check(single=True)
    from portllm.analysis import loss_slices
    from portllm.data import task_files, tasks
    from portllm.scoring import hf
    from portllm.storage import files

    task = tasks.load(
        arguments.lm_eval,
        include=arguments.include,
        dataset=(arguments.task / task_files.DATASET).absolute(),
        allow_unsafe_code=arguments.allow_unsafe_code,
    )
    model, tokenizer = hf.load_version(arguments.version, arguments.dtype)
    examples = loss_slices.held_out(task, arguments.items)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    measured = loss_slices.loss_slice(
        model,
        loss_slices.encode(tokenizer, examples, arguments.max_length),
        carried=arguments.carried,
        retrained=arguments.native,
        at=loss_slices.positions(arguments.first, arguments.last, arguments.points),
        padding=padding,
        batch_size=arguments.batch_size,
    )
    cost = meter.read()
    files.write_json(
        arguments.output,
        {
            **dict(arguments.names),
            **measured,
            "device": cost.device,
            "wall_seconds": cost.wall_seconds,
        },
    )


if __name__ == "__main__":
    run(main)
