"""Whether an adapter fits a checkpoint: its weights, architecture and tokenizer."""

from portllm.errors import InputError, nearest
from portllm.weights import checkpoints
from portllm.weights.adapters import StoredAdapter
from portllm.weights.checkpoints import Checkpoint


def _check_shapes(adapter: StoredAdapter, model: Checkpoint) -> None:
    available = dict(model.shapes)
    if model.tied_embedding is not None:
        available[checkpoints.HEAD] = available[model.tied_embedding]
    for weight, shape in adapter.changed_shapes.items():
        if weight not in available:
            raise InputError(
                f"{adapter} does not fit {model}: it changes {weight}, which the model does not "
                f"have; {nearest(weight, available)}"
            )
        if available[weight] != shape:
            raise InputError(
                f"{adapter} does not fit {model}: it changes {weight} of shape {list(shape)}, "
                f"which has shape {list(available[weight])} there"
            )


def check(
    adapter: StoredAdapter, model: Checkpoint, *, allow_other_tokenizer: bool = False
) -> bool:
    """Raise InputError, naming the first mismatch, unless the adapter fits the checkpoint.

    Only headers and small JSON files are read. The architecture is compared where the adapter's
    manifest says what it was trained on, the tokenizer's vocabulary where it is known of both.

    Returns:
        Whether the vocabularies were compared, or another one is allowed.
    """
    trained_on = adapter.known_fingerprint
    expected = trained_on.get("architecture", model.architecture)
    if expected != model.architecture:
        raise InputError(
            f"{adapter} does not fit {model}: trained on {expected}, found {model.architecture}"
        )
    _check_shapes(adapter, model)
    if allow_other_tokenizer:
        return True
    vocabularies = [adapter.tokenizer_hash, model.tokenizer_hash]
    kinds = {known and known.rpartition(":")[0] for known in vocabularies}
    if None in kinds or len(kinds) > 1:
        return False
    if len(set(vocabularies)) > 1:
        raise InputError(
            f"{adapter} does not fit {model}: the vocabularies of their tokenizers differ "
            "(--allow-other-tokenizer accepts this)"
        )
    return True


def unchecked_tokenizer(adapter: StoredAdapter, model: Checkpoint) -> str:
    """Say why the tokenizers of an adapter and a model could not be compared."""
    if model.tokenizer_hash is None:
        return f"{model} has no tokenizer"
    if adapter.tokenizer_hash is not None:
        return f"the vocabularies of {adapter} and {model} are in different formats"
    base = adapter.config.get("base_model_name_or_path")
    return (
        f"{adapter} has no manifest and no tokenizer.json, and its base model "
        f"({base or 'unnamed'}) is not a directory here"
    )
