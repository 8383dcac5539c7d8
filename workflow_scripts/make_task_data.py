"""Write a task's training text, with lm-eval's prompts, and the dataset for offline scoring."""

import argparse
import os
from pathlib import Path

from portllm.command_line import run
from portllm.storage import manifests
from portllm.study.schema import add_options


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lm-eval", required=True, help="the task's name in lm-eval")
    parser.add_argument("--include", help="folder of local task YAMLs")
    add_options(parser, "tasks.*", "allow_unsafe_code", "training_limit")
    parser.add_argument("--no-training", action="store_true", help="write no training text")
    add_options(parser, "", "hub_mirror")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    return parser.parse_args()


def main() -> None:
    meter = manifests.Meter()
    arguments = parse_arguments()
    if arguments.hub_mirror:
        os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    from portllm.data import hub, task_files, tasks
    from portllm.storage import files
    from portllm.weights import loading

    with hub.explained("dataset", f"of task {arguments.lm_eval}"):
        task = tasks.load(
            arguments.lm_eval,
            include=arguments.include,
            hub_mirror=arguments.hub_mirror,
            allow_unsafe_code=arguments.allow_unsafe_code,
        )
    # The task's own functions and templates, too.
    explained = loading.explained(f"task {arguments.lm_eval}", "write its data")
    with explained, files.whole_directory(arguments.output) as directory:
        count = 0
        if not arguments.no_training:
            examples = tasks.training_examples(task, limit=arguments.training_limit)
            count = files.write_json_lines(directory / "train.jsonl", examples)
        tasks.save_dataset(task, directory / task_files.DATASET)
        manifests.write_for_directory(
            directory,
            stage="task_data",
            parameters={
                "lm_eval": arguments.lm_eval,
                "task_version": task.VERSION,
                "output_type": task.OUTPUT_TYPE,
                "training_examples": count,
                "training_limit": arguments.training_limit,
                "few_shot": task.config.num_fewshot or 0,
                **tasks.request_lengths(task),
            },
            inputs={},
            cost=meter.read(),
            packages=("lm_eval", "datasets"),
            revision=(task.config.dataset_kwargs or {}).get("revision"),
        )


if __name__ == "__main__":
    run(main, hub=True)
