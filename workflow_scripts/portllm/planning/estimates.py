"""Estimate the memory and disk of a study's jobs before anything runs, without network.

Snakemake's summary lists the jobs, and `portllm.planning.formulas` has the formulas. What cannot be
known offline raises `UnknownError`; nothing is guessed.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portllm.data import fetching
from portllm.errors import InputError
from portllm.planning import architectures, formulas
from portllm.planning.architectures import Architecture, UnknownError
from portllm.planning.formulas import TrainingMemory
from portllm.planning.known_versions import Version, evolved_version, obtained_version
from portllm.planning.planned_jobs import PlannedJob, files_bytes
from portllm.storage import manifests
from portllm.storage.files import read_json
from portllm.study import matrix, stage_settings
from portllm.study.matrix import Config, Patch
from portllm.transplant import methods
from portllm.weights import adapters

# The demo's samples take 430 bytes per row. The number of items is only known if `limit` is set.
SAMPLE_BYTES = 450
ITEMS_ASSUMED = 2000
# Longest request of a task before its data exists; that of BoolQ takes about 1,000 tokens.
LENGTH_ASSUMED = 1024
# Memory per device that a sharded training may fill: that of an 80 GB device.
DEVICE_BYTES = 80_000_000_000
# English text has four to five; numbers and names have fewer.
CHARACTERS_PER_TOKEN = 3.5


def read_manifest(artefact: Path) -> dict[str, Any]:
    """Return the manifest of an artefact; empty without one, or if it is damaged."""
    path = manifests.manifest_path(artefact)
    try:
        return read_json(path) if path.is_file() else {}
    except InputError:
        return {}  # the run makes it again


@dataclass(frozen=True)
class Estimate:
    """Memory of one job in bytes: on the device, and on the host with and without a GPU."""

    device: int | None
    host: int
    host_alone: int


class PricedStudy:
    """A study with its known architectures, which estimates memory and disk of each job."""

    def __init__(
        self,
        config: Config,
        *,
        results: Path,
        known: dict[str, dict[str, Any]],
        recipes: dict[str, dict[str, Any]],
        known_tasks: dict[str, dict[str, int]] | None = None,
        has_devices: bool = True,
    ) -> None:
        """Look up the study's models.

        Args:
            config: the study.
            results: the directory of its results.
            known: configurations of models by lower-case hub id.
            recipes: the recipe of each evolution.
            known_tasks: sizes of tasks by their name in lm-eval, as their manifests have them.
            has_devices: whether the run has GPUs; without, its jobs compute on the CPU.
        """
        self.config, self.results, self.recipes = config, results, recipes
        self.has_devices = has_devices
        self._known_tasks = known_tasks or {}
        self.cells = matrix.cells_by_job(config)
        self.known = known
        self.unknown: dict[str, str] = {}
        self.versions: dict[tuple[str, str], Version] = {}
        for model in matrix.chosen(config, "models"):
            self._add_model(model)

    def _add_model(self, model: str) -> None:
        mirror = self.config["hub_mirror"]
        for version, source in matrix.sources(self.config, model).items():
            if "adapter" in source:
                continue
            built = self.results / "models" / model / version
            self.unknown.pop(f"{model}/{version}", None)
            try:
                self.versions[model, version] = obtained_version(source, built, self.known, mirror)
            except UnknownError as error:
                self.unknown[f"{model}/{version}"] = str(error)
        for version, parent_name in matrix.parents(self.config, model).items():
            parent = self.versions.get((model, parent_name))
            if parent is None:
                continue
            if version in self.config["evolutions"]:
                gpu = self.uses_gpu("evolve", version)
                made = evolved_version(parent, self.recipes[version], gpu=gpu)
            else:
                made = replace(parent, linked=False)  # merged
            self.versions[model, version] = made

    def uses_gpu(self, stage: str, version: str | None = None) -> bool:
        """Return whether the jobs of a stage, a key under `resources`, compute on a GPU.

        `version` is that of an evolution, which may have resources of its own.
        """
        asked = stage_settings.resources(self.config, stage, version)
        return self.has_devices and asked.get("gpu") != 0

    def warnings(self) -> list[str]:
        """Return what is unknown or assumed of the models, one line for each model."""
        guesses = {
            f"{model}: {version.architecture.guess}; memory and time are a guess"
            for (model, _), version in self.versions.items()
            if version.architecture.guess
        }
        unknown = [
            f"{reason}; its jobs ask for the defaults of their rules until it is fetched"
            for reason in self.unknown.values()
        ]
        return [*unknown, *sorted(guesses)]

    def version(self, model: str, version: str) -> Version:
        """Return a version; one that was unknown is looked up again, as it may be fetched by now.

        Raises:
            UnknownError: its architecture is unknown.
        """
        if (model, version) not in self.versions and self.unknown:
            self._add_model(model)
        try:
            return self.versions[model, version]
        except KeyError:
            raise UnknownError(f"{model}/{version}: architecture unknown") from None

    def adapter_bytes(self, patch: Patch) -> int:
        """Return the file size of a patch or port, whose factors are float32 in PEFT."""
        existing = matrix.existing_patches(self.config).get(patch)
        if existing is not None:
            return self._adapter_source_bytes(existing)
        settings = stage_settings.patch_settings(self.config, patch.task)
        model = self.version(patch.model, patch.trained_on).architecture
        return architectures.FLOAT32 * architectures.lora_parameters(
            model, settings["rank"], settings["target_modules"]
        )

    def _update_bytes(self, names: dict[str, str]) -> int:
        model, version = names["model"], names["version"]
        fetched = self.results / "updates" / model / version / adapters.WEIGHTS
        if fetched.is_file():
            return fetched.stat().st_size
        source = matrix.adapter_releases(self.config)[model, version]["adapter"]
        return self._adapter_source_bytes(source)

    def _adapter_source_bytes(self, source: dict[str, Any]) -> int:
        directory = fetching.source_directory(source, self.config["hub_mirror"])
        file = directory / adapters.WEIGHTS if directory else None
        if file is None or not file.is_file():
            raise UnknownError(f"{source.get('hub', directory)}: a patch of unknown rank")
        return file.stat().st_size

    def disk(self, job: PlannedJob) -> int:
        """Return the bytes of a job's outputs: measured if they exist, else estimated.

        The estimate for corpora, task data, tables and figures is 0.
        """
        if job.cached:
            return sum(files_bytes(Path(path)) for path in job.outputs)
        names = dict(job.wildcards)
        match job.rule:
            case "pretrain" | "fetch_model" | "merge_release" | "evolve":
                version = self.version(names["model"], names.get("version", matrix.BASE))
                return 0 if version.linked else version.checkpoint_bytes
            case "merge":
                return self.version(names["model"], names["applied_to"]).checkpoint_bytes
            case "train_patch" | "transplant":
                return self.adapter_bytes(_patch_of(names))
            case "fetch_patch":
                model, trained_on, task, seed = names["existing"].split("/")
                patch = Patch(model, trained_on, task, int(seed.removeprefix("seed")))
                linked = "path" in matrix.existing_patches(self.config)[patch]
                return 0 if linked else self.adapter_bytes(patch)
            case "fetch_update":
                source = matrix.adapter_releases(self.config)[names["model"], names["version"]]
                return 0 if "path" in source["adapter"] else self._update_bytes(names)
            case "score":
                return self._score_bytes(names)
        return 0

    def _score_bytes(self, names: dict[str, str]) -> int:
        limit = self.config["tasks"][names["task"]]["limit"]
        cells = self.cells[names["model"], names["applied_to"], names["task"]]
        return len(cells) * (limit or ITEMS_ASSUMED) * SAMPLE_BYTES

    def work(self, job: PlannedJob) -> int:
        """Return the bytes that a job needs in addition to its outputs while it runs."""
        names = dict(job.wildcards)
        if job.rule == "train_patch":
            settings = stage_settings.patch_settings(self.config, names["task"])
            if settings["checkpoint_steps"] == 0:
                return 0
            model = self.version(names["model"], names["trained_on"]).architecture
            training = formulas.patch_training(settings, gpu=True)
            return formulas.trainer_checkpoint_bytes(model, training, kept=1)
        if job.rule == "evolve":
            model = self.version(names["model"], names["version"]).architecture
            return formulas.evolution_work_bytes(model, self.recipes[names["version"]], gpu=True)
        return 0

    def memory(self, job: PlannedJob) -> tuple[str, Estimate] | None:
        """Estimate a job's memory, and describe what it depends on; None if it is small."""
        names = dict(job.wildcards)
        match job.rule:
            case "pretrain":
                model = self.version(names["model"], matrix.BASE).architecture
                scratch = self.config["models"][names["model"]]["base"]["from_scratch"]
                training = formulas.pretraining(scratch)
                return _training("pretrain", model, training, training)
            case "train_patch":
                model = self.version(names["model"], names["trained_on"]).architecture
                settings = stage_settings.patch_settings(self.config, names["task"])
                both = (formulas.patch_training(settings, gpu=gpu) for gpu in (True, False))
                return _training("patch", model, *both)
            case "evolve":
                model = self.version(names["model"], names["version"]).architecture
                recipe = self.recipes[names["version"]]
                both = (formulas.evolution_training(recipe, gpu=gpu) for gpu in (True, False))
                words, estimate = _training("evolve", model, *both)
                devices = self.evolution_devices(names["model"], names["version"]) or 1
                if devices > 1 and formulas.is_sharded(recipe):
                    training = formulas.evolution_training(recipe, gpu=True)
                    shared, own = formulas.sharded(formulas.training_bytes(model, training))
                    words += f", on {devices} GPUs"
                    estimate = replace(estimate, device=shared // devices + own)
                # Each process loads the model before it is shared.
                return words, replace(estimate, host=devices * estimate.host)
            case "score" | "measure_loss_slice":
                return self._scoring(job.rule, names)
            case "transplant":
                size = formulas.transplant_host_bytes(self.adapter_bytes(_patch_of(names)))
                return "one adapter", Estimate(None, size, size)
            case "merge":
                version = self.version(names["model"], names["applied_to"])
                kind = self.config["methods"][names["method"]]["kind"]
                size = formulas.merge_host_bytes(
                    version.architecture,
                    self.adapter_bytes(_patch_of(names)),
                    dense=methods.get(kind).dense,
                )
                return "blocks of weights", Estimate(None, size, size)
            case "merge_release":
                model = self.version(names["model"], names["version"]).architecture
                size = formulas.merge_host_bytes(model, self._update_bytes(names), dense=False)
                return "blocks of weights", Estimate(None, size, size)
            case "measure_geometry" | "measure_norms":
                version = self.version(names["model"], names["applied_to"])
                adapter = self.adapter_bytes(_patch_of(names))
                size = formulas.projection_host_bytes(version.architecture, adapter)
                return "largest projection", Estimate(None, size, size)
            case "measure_movement":
                version = self.version(names["model"], names["version"])
                size = formulas.movement_host_bytes(version.architecture)
                return "largest weight", Estimate(None, size, size)
        return None

    def _scoring(self, rule: str, names: dict[str, str]) -> tuple[str, Estimate]:
        model = self.version(names["model"], names["applied_to"]).architecture
        settings = stage_settings.scoring_settings(self.config, names["task"])
        width = architectures.DTYPES.get(settings["dtype"], model.dtype_bytes)
        batch, length = settings["batch_size"], self._scored_length(names["task"], model)
        count = formulas.scoring_bytes
        if rule == "measure_loss_slice":
            length = stage_settings.patch_settings(self.config, names["task"])["max_length"]
            count = formulas.loss_bytes
        total = sum(count(model, batch, length, width).values())
        # Each GPU has a process, which loads straight to it; all map the same checkpoint's pages.
        gpus = stage_settings.resources(self.config, "score").get("gpu", 1)
        processes = max(1, gpus) if rule == "score" else 1
        checkpoint = architectures.parameters(model) * model.dtype_bytes
        host = processes * formulas.IMPORTS["score"] + checkpoint
        words = f"batch {batch} x {length} tokens, {8 * width} bit"
        return words, Estimate(total, host, formulas.IMPORTS["score"] + total)

    def task_sizes(self, task: str) -> dict[str, int]:
        """Return the number of a task's examples and the size of its requests; empty if unknown."""
        if recorded := read_manifest(self.results / "tasks" / task).get("parameters"):
            return recorded
        definition = self.config["tasks"][task]
        name = definition.get("lm_eval", task)
        return {} if "include" in definition else self._known_tasks.get(name, {})

    def evolution_devices(self, model: str, version: str) -> int | None:
        """Return how many devices an evolution is set to use, or needs if its recipe shards it.

        None if neither decides it.
        """
        asked = stage_settings.resources(self.config, "evolve", version).get("gpu")
        recipe = self.recipes[version]
        if asked is not None or not formulas.is_sharded(recipe):
            return asked
        training = formulas.evolution_training(recipe, gpu=True)
        parts = formulas.training_bytes(self.version(model, version).architecture, training)
        shared, own = formulas.sharded(parts)
        return max(1, -(-shared // max(1, DEVICE_BYTES - own)))

    def _scored_length(self, task: str, model: Architecture) -> int:
        """Return the tokens of a task's longest request, or what is assumed before it is known."""
        settings = stage_settings.scoring_settings(self.config, task)
        limit = min(settings["max_length"] or model.context, model.context)
        data = self.task_sizes(task)
        if "longest_request" not in data:
            return min(limit, LENGTH_ASSUMED)
        few_shot = settings["few_shot"]
        few_shot = data.get("few_shot", 0) if few_shot is None else few_shot
        characters = data["longest_request"] + few_shot * data["mean_request"]
        characters += len(settings["system_instruction"] or "")
        return min(limit, int(characters / CHARACTERS_PER_TOKEN) + 1)


def _patch_of(names: dict[str, str]) -> Patch:
    return Patch(names["model"], names["trained_on"], names["task"], int(names["seed"]))


def _training(
    rule: str, model: Architecture, with_gpu: TrainingMemory, alone: TrainingMemory
) -> tuple[str, Estimate]:
    kind = f"LoRA r={with_gpu.rank}" if with_gpu.targets is not None else "all weights"
    words = f"{kind}, batch {with_gpu.batch} x {with_gpu.length}, {8 * with_gpu.width} bit"
    words += ", 4-bit base" if with_gpu.weight_bytes == 0.5 else ""
    words += ", checkpointing" if with_gpu.checkpointing else ""
    device = sum(formulas.training_bytes(model, with_gpu).values())
    host = formulas.IMPORTS[rule] + int(architectures.parameters(model) * with_gpu.weight_bytes)
    return words, Estimate(
        device, host, formulas.IMPORTS[rule] + sum(formulas.training_bytes(model, alone).values())
    )
