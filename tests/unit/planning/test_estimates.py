"""The plan's formulas, checked by hand and against PyTorch, transformers and PEFT."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import PROJECT
from exhibit_making import KINDS
from transformers import AutoConfig, AutoModelForCausalLM

from portllm.planning import architectures, formulas, known_versions
from portllm.planning.architectures import UnknownError
from portllm.planning.formulas import TrainingMemory
from portllm.study import config as configuration
from portllm.study import yaml_files
from portllm.training import patch_training

MISTRAL = architectures.architecture(
    known_versions.hub_models(PROJECT / "resources" / "models")["mistralai/mistral-7b-v0.1"]
)
# Real models' proportions; large enough that what is counted outweighs what is not.
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 896,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 1000,
}


def test_parts_of_a_training_by_hand() -> None:
    training = TrainingMemory(
        4, 256, weight_bytes=2, width=2, rank=8, targets="all-linear", accumulates=True
    )
    parts = formulas.training_bytes(MISTRAL, training)
    assert parts["weights"] == 7_241_732_096 * 2 + 20_971_520 * 4
    assert parts["gradients"] == 20_971_520 * 4
    assert parts["optimiser"] == 20_971_520 * 8
    assert parts["logits"] == 4 * 256 * 32000 * 10
    # Norms 8·4096; attention 4·(4096 + 1024); MLP 6·14336; adapted inputs 3·(6·4096 + 14336).
    layer = 8 * 4096 + 4 * 5120 + 6 * 14336 + 3 * (6 * 4096 + 14336)
    assert parts["activations"] == 32 * 4 * 256 * layer


def test_gradient_checkpointing_keeps_layer_inputs_and_one_layer() -> None:
    training = TrainingMemory(1, 128, 2, 2, checkpointing=True)
    layer = 128 * formulas.activations_of_layer(MISTRAL, 2)
    expected = 2 * 128 * 4096 * 32 + layer
    assert formulas.training_bytes(MISTRAL, training)["activations"] == expected


def test_full_training_in_sixteen_bits() -> None:
    parts = formulas.training_bytes(MISTRAL, TrainingMemory(1, 1, 2, 2))
    assert parts["weights"] == parts["gradients"] == 7_241_732_096 * 2
    assert parts["optimiser"] == 7_241_732_096 * 8


def test_parts_of_a_scoring_by_hand() -> None:
    parts = formulas.scoring_bytes(MISTRAL, 16, 256, 2)
    assert parts["weights"] == 7_241_732_096 * 2
    assert parts["cache"] == 16 * 256 * 2 * 32 * 8 * 128 * 2
    assert parts["logits"] == 16 * 256 * 2 * 32000 * 2


def saved_bytes(model_type: str, dtype: torch.dtype, *, lora: bool) -> float:
    """Return the bytes per token and layer that autograd keeps, without parameters and logits."""
    batch, length = 2, 64
    config = AutoConfig.for_model(model_type, **SHAPE, use_cache=False)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if lora:
        model = patch_training.add_lora(model, patch_training.LoraSettings())
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own and SHAPE["vocab_size"] not in tensor.shape:
            kept[pointer] = tensor
        return tensor

    tokens = torch.zeros(batch, length, dtype=torch.long)
    # The Trainer computes in mixed precision, which decides what LoRA's float32 factors keep.
    mixed = torch.autocast("cpu", dtype, enabled=lora and dtype == torch.bfloat16)
    with mixed, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(input_ids=tokens, labels=tokens)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return total / (batch * length * SHAPE["num_hidden_layers"])


@pytest.mark.parametrize("model_type", ["mistral", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_activations_equal_what_autograd_keeps(
    model_type: str, dtype: torch.dtype, lora: bool
) -> None:
    known = architectures.architecture({"model_type": model_type, **SHAPE})
    targets = "all-linear" if lora else None
    # On a CPU, dropout keeps its mask in float32.
    counted = formulas.activations_of_layer(known, dtype.itemsize, targets, mask_bytes=4)
    assert counted == pytest.approx(saved_bytes(model_type, dtype, lora=lora), rel=0.05)


def test_the_demo_patch_matches_the_measured_memory() -> None:
    """The default study's patches peaked at 774 to 788 MB on two cores, without a GPU."""
    study = configuration.load(
        yaml_files.read_yaml(PROJECT / "config.yaml", what="config.yaml"),
        schema=PROJECT / "config" / "schema.yaml",
        exhibits=KINDS,
    )
    scratch = study["models"]["demo"]["base"]["from_scratch"]
    known = architectures.architecture({**scratch["config"], "vocab_size": 900})
    assert architectures.parameters(known) == 558_464  # that of results/models/demo/base
    training = formulas.patch_training(study["patch"], gpu=False)
    estimate = formulas.IMPORTS["patch"] + sum(formulas.training_bytes(known, training).values())
    # At most: the estimate is for batches of the full length, the demo's prompts are shorter.
    assert 788e6 < estimate < 1.25 * 788e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoint_bytes_equal_file_sizes(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny.save_model(tmp_path / "model", dtype=dtype, hidden_size=256, intermediate_size=512)
    version = known_versions.obtained_version(
        {"path": str(tmp_path / "model")}, tmp_path / "none", {}, None
    )
    known = version.architecture
    estimate = architectures.parameters(known) * known.dtype_bytes
    assert estimate == pytest.approx(version.checkpoint_bytes, rel=0.02)
    assert version.linked


def test_adapter_bytes_equal_file_sizes(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", hidden_size=256, intermediate_size=512)
    adapter = tiny.save_adapter(tmp_path / "adapter", model, r=8)
    known = known_versions.obtained_version(
        {"path": str(model)}, tmp_path / "none", {}, None
    ).architecture
    file = adapter / "adapter_model.safetensors"
    assert 4 * architectures.lora_parameters(known, 8) == pytest.approx(
        file.stat().st_size, rel=0.05
    )


def test_sizes_are_read_from_a_checkpoint_of_any_architecture(tmp_path: Path) -> None:
    words = {"hidden_size": 256, "intermediate_size": 512, "partial_rotary_factor": 0.5}
    model = tiny.save_model(tmp_path / "model", model_type="phi3", **words)
    adapter = tiny.save_adapter(tmp_path / "adapter", model, r=8)
    found = known_versions.obtained_version({"path": str(model)}, tmp_path / "none", {}, None)
    known = found.architecture
    assert {"qkv_proj", "gate_up_proj"} <= {name for name, *_ in architectures.projections(known)}
    weights = model / "model.safetensors"
    assert 4 * architectures.parameters(known) == pytest.approx(weights.stat().st_size, rel=0.02)
    factors = (adapter / "adapter_model.safetensors").stat().st_size
    assert 4 * architectures.lora_parameters(known, 8) == pytest.approx(factors, rel=0.05)
    assert "phi3 has no formulas" in known.guess


def test_unknown_sizes_are_reported() -> None:
    with pytest.raises(UnknownError, match="someone/model"):
        known_versions.obtained_version({"hub": "someone/model"}, Path("none"), {}, None)
    with pytest.raises(UnknownError, match="model_type mamba"):
        architectures.architecture({"model_type": "mamba"})
    with pytest.raises(UnknownError, match="lm_head"):
        architectures.lora_parameters(MISTRAL, 8, ["q_proj", "lm_head"])


def recipe(**more: Any) -> dict[str, Any]:
    return {"micro_batch_size": 2, "sequence_len": 512, "bf16": "auto", **more}


def test_an_evolution_is_estimated_from_its_recipe() -> None:
    full = formulas.evolution_training(recipe(gradient_checkpointing=True), gpu=True)
    assert (full.batch, full.length, full.width, full.targets) == (2, 512, 2, None)
    assert full.checkpointing
    assert formulas.evolution_training(recipe(), gpu=False).width == 4
    lora = {"adapter": "qlora", "lora_r": 16, "lora_target_linear": True, "load_in_4bit": True}
    quantised = formulas.evolution_training(recipe(**lora, optimizer="paged_adamw_8bit"), gpu=True)
    assert (quantised.rank, quantised.targets) == (16, "all-linear")
    assert (quantised.weight_bytes, quantised.optimizer_bytes) == (0.5, 2)


def test_disk_usage_of_a_running_evolution() -> None:
    total = 7_241_732_096
    none = recipe(save_strategy="no")
    assert formulas.evolution_work_bytes(MISTRAL, none, gpu=True) == 0
    saves = recipe(save_total_limit=1)
    # The checkpoint and the next one while it is written: float32 weights, AdamW's 8 bytes.
    assert formulas.evolution_work_bytes(MISTRAL, saves, gpu=True) == 2 * total * (4 + 8)


def test_an_evolution_keeps_or_changes_the_dtype() -> None:
    parent = known_versions.Version(MISTRAL, "test", 0)
    merged = known_versions.evolved_version(parent, recipe(adapter="lora", bf16=False), gpu=True)
    assert merged.checkpoint_bytes == 7_241_732_096 * 2
    trained = known_versions.evolved_version(parent, recipe(bf16=False), gpu=True)
    assert trained.checkpoint_bytes == 7_241_732_096 * 4
