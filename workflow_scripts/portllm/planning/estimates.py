"""What a study will cost, worked out before anything runs, without network.

Snakemake's own summary says which jobs there are and which it would run;
`portllm.planning.formulas` prices them. What cannot be known offline is said to be unknown
(`UnknownError`), never guessed.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portllm.planning import formulas
from portllm.planning.formulas import Architecture, TrainingMemory, UnknownError
from portllm.planning.jobs import PlannedJob, files_bytes
from portllm.storage.files import read_json
from portllm.study import matrix, stage_settings
from portllm.study.matrix import Config, Patch
from portllm.transplant import methods

# Of the demo's scores: 430 bytes a row of samples. The number of items is known with `limit` only.
SAMPLE_BYTES = 450
ITEMS_ASSUMED = 2000


@dataclass(frozen=True)
class Version:
    """A version of a model: its architecture, where that is known from, what its files take."""

    architecture: Architecture
    origin: str
    checkpoint_bytes: int
    linked: bool = False


def hub_models(directory: Path) -> dict[str, dict[str, Any]]:
    """Architectures that the repository knows, by hub id."""
    known = (read_json(path) for path in sorted(directory.glob("*.json")))
    return {config["hub"].lower(): config for config in known}


def _config_of(
    source: dict[str, Any], built: Path, known: dict[str, dict[str, Any]], mirror: str | None
) -> tuple[dict[str, Any], str, Path | None]:
    """Configuration of an obtained version, where it comes from, and where its weights lie."""
    if (built / "config.json").is_file():
        return read_json(built / "config.json"), str(built), built
    if "from_scratch" in source:
        scratch = source["from_scratch"]
        config = {**scratch["config"], "vocab_size": scratch["vocabulary_size"]}
        return {**config, "dtype": "float32"}, "the study's from_scratch", None
    local = source.get("path") or (mirror and str(Path(mirror, source["hub"])))
    if local and Path(local, "config.json").is_file():
        return read_json(Path(local, "config.json")), local, Path(local)
    if source.get("hub", "").lower() in known:
        return known[source["hub"].lower()], "resources/models", None
    raise UnknownError(
        f"{source.get('hub', local)}: its architecture is in no file here; it will be known once "
        "it is fetched, or from a file in resources/models"
    )


def obtained_version(
    source: dict[str, Any], built: Path, known: dict[str, dict[str, Any]], mirror: str | None
) -> Version:
    """A base or a release; UnknownError where its architecture cannot be known offline."""
    config, origin, weights = _config_of(source, built, known, mirror)
    found = formulas.architecture(config)
    shards = [path.stat().st_size for path in weights.glob("*.safetensors")] if weights else []
    return Version(
        found,
        origin,
        checkpoint_bytes=sum(shards) or formulas.parameters(found) * found.dtype_bytes,
        linked="path" in source or ("hub" in source and mirror is not None),
    )


def evolved_version(parent: Version, recipe: dict[str, Any], *, gpu: bool) -> Version:
    """An evolution's outcome: merged LoRA keeps the parent's dtype, full training saves its own."""
    width = parent.architecture.dtype_bytes
    if not recipe.get("adapter"):
        width = formulas.evolution_training(recipe, gpu=gpu).width
    size = formulas.parameters(parent.architecture) * width
    model = replace(parent.architecture, dtype_bytes=width)
    return Version(model, parent.origin, size)


@dataclass(frozen=True)
class Estimate:
    """Memory of one job: on the device, and on the host with a GPU and without one."""

    device: int | None
    host: int
    host_alone: int


class PricedStudy:
    """A study with the architectures that can be known of it, priced job by job."""

    def __init__(
        self,
        config: Config,
        *,
        results: Path,
        known: dict[str, dict[str, Any]],
        recipes: dict[str, dict[str, Any]],
    ) -> None:
        self.config, self.results, self.recipes = config, results, recipes
        self.cells = matrix.cells_by_job(config)
        self.unknown: dict[str, str] = {}
        self.versions: dict[tuple[str, str], Version] = {}
        for model in matrix.chosen(config, "models"):
            self._add_model(model, known)

    def _add_model(self, model: str, known: dict[str, dict[str, Any]]) -> None:
        mirror = self.config["hub_mirror"]
        for version, source in matrix.sources(self.config, model).items():
            built = self.results / "models" / model / version
            try:
                self.versions[model, version] = obtained_version(source, built, known, mirror)
            except UnknownError as error:
                self.unknown[f"{model}/{version}"] = str(error)
        for version in matrix.evolutions(self.config, model):
            parent = self.versions.get((model, self.config["evolutions"][version]["from"]))
            if parent is not None:
                recipe = self.recipes[version]
                gpu = self._asks("evolve", "gpu") != 0
                self.versions[model, version] = evolved_version(parent, recipe, gpu=gpu)

    def _asks(self, stage: str, name: str) -> int | None:
        return self.config["resources"].get(stage, {}).get(name)

    def version(self, model: str, version: str) -> Version:
        """A version; UnknownError where its architecture is not known."""
        try:
            return self.versions[model, version]
        except KeyError:
            raise UnknownError(f"{model}/{version}: architecture unknown") from None

    def adapter_bytes(self, patch: Patch) -> int:
        """Disk of a patch or port: its factors in float32 (PEFT keeps them so)."""
        brought = matrix.existing_patches(self.config).get(patch)
        if brought is not None:
            file = Path(brought.get("path", ""), "adapter_model.safetensors")
            if "path" not in brought or not file.is_file():
                raise UnknownError(f"{brought.get('hub', file)}: a patch of unknown rank")
            return file.stat().st_size
        settings = stage_settings.patch_settings(self.config, patch.task)
        model = self.version(patch.model, patch.trained_on).architecture
        return formulas.FLOAT32 * formulas.lora_parameters(
            model, settings["rank"], settings["target_modules"]
        )

    def disk(self, job: PlannedJob) -> int:
        """Disk that a job's outputs take: measured where they are there, else estimated.

        Text of corpora and tasks, tables and figures count nothing before they are there.
        """
        if job.cached:
            return sum(files_bytes(Path(path)) for path in job.outputs)
        names = dict(job.wildcards)
        match job.rule:
            case "pretrain" | "fetch_model" | "evolve":
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
            case "score":
                return self._score_bytes(names)
        return 0

    def _score_bytes(self, names: dict[str, str]) -> int:
        limit = self.config["tasks"][names["task"]]["limit"]
        wanted = names["model"], names["applied_to"], names["task"]
        return len(self.cells[wanted]) * (limit or ITEMS_ASSUMED) * SAMPLE_BYTES

    def work(self, job: PlannedJob) -> int:
        """Disk that a job needs beside its outputs, only while it runs."""
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
        """What decides a job's memory, in words, and the estimate; None where it is small."""
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
                return _training("evolve", model, *both)
            case "score" | "measure_loss_slice":
                return self._scoring(names)
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

    def _scoring(self, names: dict[str, str]) -> tuple[str, Estimate]:
        model = self.version(names["model"], names["applied_to"]).architecture
        settings = stage_settings.scoring_settings(self.config, names["task"])
        width = formulas.DTYPES.get(settings["dtype"], model.dtype_bytes)
        # How long prompts are is not known before the task data is made; those of the patch's
        # training are, and every example in the prompt is about as long again.
        longest = stage_settings.patch_settings(self.config, names["task"])["max_length"]
        length = settings["max_length"] or longest * (1 + settings["few_shot"])
        length = min(length, model.context)
        batch = settings["batch_size"]
        total = sum(formulas.scoring_bytes(model, batch, length, width).values())
        host = formulas.IMPORTS["score"] + formulas.parameters(model) * width
        words = f"batch {batch} x {length} tokens, {8 * width} bit"
        return words, Estimate(total, host, formulas.IMPORTS["score"] + total)


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
    host = formulas.IMPORTS[rule] + formulas.parameters(model) * with_gpu.width
    return words, Estimate(
        device, host, formulas.IMPORTS[rule] + sum(formulas.training_bytes(model, alone).values())
    )
