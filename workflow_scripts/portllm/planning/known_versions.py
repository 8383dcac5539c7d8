"""The versions of a study's models as far as they are known before anything is fetched or made."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portllm.data import fetching
from portllm.errors import InputError
from portllm.planning import architectures, formulas
from portllm.planning.architectures import Architecture, UnknownError
from portllm.storage import manifests
from portllm.storage.files import read_json, read_object
from portllm.weights.checkpoints import Checkpoint


@dataclass(frozen=True)
class Version:
    """A version of a model: its architecture, the source of that, the size of its checkpoint."""

    architecture: Architecture
    origin: str
    checkpoint_bytes: int
    linked: bool = False


def hub_models(directory: Path) -> dict[str, dict[str, Any]]:
    """Read the known model configurations of the repository, by lower-case hub id."""
    known = (read_json(path) for path in sorted(directory.glob("*.json")))
    return {config["hub"].lower(): config for config in known}


def _config_of(
    source: dict[str, Any], built: Path, known: dict[str, dict[str, Any]], mirror: str | None
) -> tuple[dict[str, Any], str, Path | None]:
    """Return the configuration of an obtained version, its source, and its weights' directory."""
    # A damaged one is made again, so it says nothing.
    if (built / "config.json").is_file() and manifests.is_recorded(built / "config.json"):
        return read_object(built / "config.json"), str(built), built
    if "from_scratch" in source:
        scratch = source["from_scratch"]
        config = {**scratch["config"], "vocab_size": scratch["vocabulary_size"]}
        return {**config, "dtype": "float32"}, "the study's from_scratch", None
    local = fetching.source_directory(source, mirror)
    if local and (local / "config.json").is_file():
        return read_object(local / "config.json"), str(local), local
    if source.get("hub", "").lower() in known and "subfolder" not in source:
        return known[source["hub"].lower()], "resources/models", None
    raise UnknownError(
        f"{source.get('hub', local)}: unknown architecture; fetch the model, or add its "
        "configuration to resources/models"
    )


def _shapes(weights: Path | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes in the headers of a checkpoint; none if it cannot be read yet."""
    try:
        return dict(Checkpoint(weights).shapes) if weights else {}
    except (InputError, OSError):
        return {}  # the job that fetches the checkpoint reports this


def obtained_version(
    source: dict[str, Any], built: Path, known: dict[str, dict[str, Any]], mirror: str | None
) -> Version:
    """Return a base or release; raises UnknownError if its architecture is unknown offline."""
    config, origin, weights = _config_of(source, built, known, mirror)
    model = architectures.architecture(config, _shapes(weights))
    shards = [path.stat().st_size for path in weights.glob("*.safetensors")] if weights else []
    return Version(
        model,
        origin,
        checkpoint_bytes=sum(shards) or architectures.parameters(model) * model.dtype_bytes,
        linked="path" in source or ("hub" in source and mirror is not None),
    )


def evolved_version(parent: Version, recipe: dict[str, Any], *, gpu: bool) -> Version:
    """Return an evolution's result: merged LoRA keeps the parent's dtype, full training may not."""
    width = parent.architecture.dtype_bytes
    if not recipe.get("adapter"):
        width = int(formulas.evolution_training(recipe, gpu=gpu).weight_bytes)
    size = architectures.parameters(parent.architecture) * width
    model = replace(parent.architecture, dtype_bytes=width)
    return Version(model, parent.origin, size)
