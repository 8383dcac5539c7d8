"""Train a patch: LoRA on one version of a model for one task, saved as a PEFT adapter."""

import argparse
import logging
import shutil
from dataclasses import asdict, fields
from pathlib import Path

from portllm import manifest
from portllm.command_line import add_names, run

log = logging.getLogger("train_patch")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of the version")
    parser.add_argument("--task", type=Path, required=True, help="directory of the task data")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--target-modules", nargs="+", default=["all-linear"])
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--max-steps", type=int, help="stop here, whatever --epochs says")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--gradient-accumulation", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=256, help="tokens")
    parser.add_argument("--loss-on", choices=["completion", "everything"], default="completion")
    parser.add_argument("--scheduler", default="linear", help="transformers' name of it")
    parser.add_argument("--warmup-ratio", type=float, default=0.0, help="of the steps")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--checkpoint-steps", type=int, default=200, help="0 saves none")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints are kept")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    add_names(parser)
    return parser.parse_args()


def main() -> None:
    meter = manifest.Meter()
    arguments = parse_arguments()
    from portllm import adapters, files, fine_tuning

    values = {field.name: getattr(arguments, field.name) for field in fields(fine_tuning.Settings)}
    targets = arguments.target_modules
    values["target_modules"] = targets[0] if targets == ["all-linear"] else tuple(targets)
    settings = fine_tuning.Settings(**values)
    inputs = {
        "model": manifest.content_hash(arguments.model),
        "task": manifest.content_hash(arguments.task),
    }
    # Keyed by all that decides the weights: a retried job finds its own checkpoints, no other's.
    work = arguments.work / files.hash_value([asdict(settings), inputs])[:16]
    examples = list(files.read_json_lines(arguments.task / "train.jsonl"))
    model, metrics = fine_tuning.train(arguments.model, examples, settings, work)
    with files.whole_directory(arguments.output) as directory:
        model.save_pretrained(directory, safe_serialization=True)
        manifest.write_for_directory(
            directory,
            stage="patch",
            parameters=asdict(settings),
            inputs=inputs,
            cost=meter.read(),
            packages=("torch", "transformers", "peft", "accelerate"),
            fingerprint=adapters.fingerprint(
                adapters.directory_changes(directory), arguments.model
            ),
            trainable_parameters=model.get_nb_trainable_parameters()[0],
            names=dict(arguments.names),
            training={name: round(value, 6) for name, value in metrics.items()},
        )
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    run(main)
