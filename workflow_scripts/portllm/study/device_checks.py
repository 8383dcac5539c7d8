"""Check the GPUs that a study requests under `resources`."""

from portllm.errors import InputError
from portllm.study import matrix, stage_settings
from portllm.study.matrix import Config
from portllm.study.yaml_files import KeyOrigins


def check(config: Config, limit: int | None, origins: KeyOrigins) -> None:
    """Check that each stage can use its GPUs, and that the run may use as many.

    Raises:
        InputError: a stage uses fewer GPUs, cannot divide its batch, or the run may use fewer.
    """
    requests = {("resources", stage): of_stage for stage, of_stage in config["resources"].items()}
    for name in matrix.chosen(config, "evolutions"):
        requests["evolutions", name, "resources"] = config["evolutions"][name]["resources"]
    for key, resources in requests.items():
        gpus, place = resources.get("gpu", 0), origins.at(*key, "gpu")
        if key == ("resources", "base") and gpus > 1:
            raise InputError(f"{place}: found {gpus}, but this stage uses one device (gpu: 1)")
        if key == ("resources", "patch") and gpus > 1:
            _check_batches(config, gpus, place)
        # Snakemake would silently lower the number.
        if limit is not None and gpus > limit:
            raise InputError(
                f"{place}: found {gpus}, but the run may use {limit} (--resources gpu={limit})"
            )


def _check_batches(config: Config, gpus: int, place: str) -> None:
    """Raise InputError for a patch whose batch cannot be divided evenly between GPUs."""
    for task in sorted(matrix.trained_tasks(config)):
        settings = stage_settings.patch_settings(config, task)
        batches = settings["batch_size"], settings["gradient_accumulation"]
        try:
            stage_settings.batches_per_device(*batches, gpus)
        except InputError as error:
            raise InputError(f"{place}: task {task}: {error}") from None
