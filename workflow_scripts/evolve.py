"""Evolve a model version into the next one with Axolotl; write a full checkpoint."""

import argparse
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from portllm.command_line import run
from portllm.errors import InputError
from portllm.storage import manifests
from portllm.study.schema import add_options

log = logging.getLogger("evolve")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of the version")
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines")
    parser.add_argument(
        "--recipe",
        type=Path,
        nargs="+",
        required=True,
        help="Axolotl YAMLs; later ones override earlier ones",
    )
    add_options(parser, "evolutions.*", "overrides", "seed")
    parser.add_argument(
        "--prepared", type=Path, nargs="?", help="dataset that --preprocess-only has written"
    )
    parser.add_argument(
        "--preprocess-only", action="store_true", help="write the prepared dataset and do not train"
    )
    parser.add_argument("--work", type=Path, required=True, help="directory for checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    return parser.parse_args()


def complete_recipe(arguments: argparse.Namespace, *, on_gpu: bool) -> dict[str, Any]:
    """Return the recipe with the study's overrides and what the model and the GPU decide."""
    from portllm.study.yaml_files import read_recipe
    from portllm.training import recipe_defaults
    from portllm.weights.checkpoints import Checkpoint

    device = recipe_defaults.current_device() if on_gpu else None
    recipe = {**read_recipe(arguments.recipe), **arguments.overrides}
    return recipe_defaults.complete(recipe, Checkpoint(arguments.model).config, device)


def preprocess(arguments: argparse.Namespace) -> None:
    """Write the dataset as Axolotl prepares it, without training."""
    import yaml

    from portllm.storage import files
    from portllm.training import evolution

    with files.whole_directory(arguments.output) as directory:
        final = evolution.render(
            complete_recipe(arguments, on_gpu=False),
            model=arguments.model,
            corpus=arguments.corpus,
            work=directory,
            prepared=directory,
            seed=arguments.seed,
        )
        rendered = directory / "axolotl.yaml"
        rendered.write_text(yaml.safe_dump(final, sort_keys=False))
        evolution.run("preprocess", rendered, cost_file=directory / "cost.json")


def main() -> None:
    meter = manifests.Meter()
    arguments = parse_arguments()
    if arguments.preprocess_only:
        preprocess(arguments)
    else:
        evolve(arguments, meter)


def evolve(arguments: argparse.Namespace, meter: manifests.Meter) -> None:
    """Train with Axolotl and write its result as a full checkpoint."""
    import yaml

    from portllm.jobs import devices
    from portllm.storage import files
    from portllm.study import axolotl_recipes
    from portllm.training import evolution, finished_results, resuming

    held = devices.pool(os.environ)
    recipe = complete_recipe(arguments, on_gpu=bool(held))
    inputs = {
        "model": manifests.content_hash(arguments.model),
        "corpus": manifests.content_hash(arguments.corpus),
    }
    # The folder is keyed by everything that decides the weights, so that a retried job finds its
    # own checkpoints and no others.
    processes = max(1, len(held))
    sequences = axolotl_recipes.sequences_per_update(recipe, processes)
    log.info("%d sequences an update, on %d devices", sequences, processes)
    key = files.hash_value([evolution.decisive(recipe), arguments.seed, inputs, processes])
    work = arguments.work / key[:16]
    final = evolution.render(
        recipe,
        model=arguments.model,
        corpus=arguments.corpus,
        work=work,
        prepared=arguments.prepared or work / "prepared",
        seed=arguments.seed,
    )
    with resuming.held(work) as lock:
        if finished_results.restore(work, arguments.output):
            return
        rendered = work / "axolotl.yaml"
        rendered.write_text(yaml.safe_dump(final, sort_keys=False))
        cost_file, finished = work / "cost.json", work / evolution.TRAINING
        finished.unlink(missing_ok=True)
        # Axolotl resumes from the last checkpoint. Without one, it may have been killed while it
        # prepared the dataset, and would use the partial dataset.
        if resuming.last_complete(work / "output") is None:
            shutil.rmtree(work / "prepared", ignore_errors=True)
        evolution.run("train", rendered, cost_file=cost_file, devices=len(held), keep_open=lock)
        if not finished.exists():
            raise InputError(f"{rendered}: Axolotl ended before the last training step")
        training = files.read_json(finished)
        peaks = evolution.read_cost(cost_file)
        with files.whole_directory(arguments.output) as directory:
            kind = evolution.collect(arguments.model, work / "output", directory)
            shutil.copyfile(rendered, directory / "axolotl.yaml")
            manifests.write_for_directory(
                directory,
                stage="evolve",
                parameters={"recipe": final, "kind": kind},
                inputs=inputs,
                cost=meter.read(earlier_seconds=training["earlier_seconds"], **peaks),
                packages=("axolotl", "torch", "transformers", "peft", "accelerate", "datasets"),
                training={**training, "sequences_per_update": sequences},
            )
        finished_results.keep(work, arguments.output)


if __name__ == "__main__":
    run(main)
