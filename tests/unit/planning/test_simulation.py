"""The plan's memory against a simulation of one GPU, for the paper's models at their real sizes.

Few layers are simulated and the rest extrapolated: each further layer takes the same.
"""

from collections.abc import Callable
from typing import Any

import pytest
import simulation
from conftest import PROJECT

from portllm.planning import architectures, formulas, known_versions
from portllm.study import yaml_files

KNOWN = known_versions.hub_models(PROJECT / "resources" / "models")
MODELS = [
    "mistralai/Mistral-7B-v0.1",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-3.1-8B",
    "google/gemma-2-9b",
]
FEW, MORE = 2, 4


def recipe(name: str) -> formulas.TrainingMemory:
    """Return the training of one of the project's recipes on OpenOrca's format."""
    files = [PROJECT / "config/axolotl/openorca.yaml", PROJECT / "config/axolotl" / name]
    return formulas.evolution_training(yaml_files.read_recipe(files), gpu=True)


PATCH = formulas.TrainingMemory(4, 256, 2, 2, rank=8, targets="all-linear")
TRAININGS = {
    "patch": PATCH,
    "checkpointed patch": formulas.TrainingMemory(
        4, 256, 2, 2, rank=8, targets="all-linear", checkpointing=True
    ),
    "evolution": recipe("lora.yaml"),
    "all weights": recipe("full.yaml"),
    "all weights in bfloat16": formulas.TrainingMemory(
        2, 2048, 2, 2, checkpointing=True, optimizer_bytes=4, accumulates=True
    ),
}


CASES = [(hub, kind) for kind in ("patch", "evolution") for hub in MODELS]
CASES += [(MODELS[0], kind) for kind in TRAININGS if kind not in ("patch", "evolution")]


def extrapolated(config: dict[str, Any], peaks: Callable[[dict[str, Any]], list[int]]) -> float:
    """Return the peak of a model with all its layers, from those of two shallow ones.

    The peaks of the phases of a training grow differently.
    """
    shallow = [peaks({**config, "num_hidden_layers": layers}) for layers in (FEW, MORE)]
    steps = (config["num_hidden_layers"] - FEW) / (MORE - FEW)
    return max(few + steps * (more - few) for few, more in zip(*shallow, strict=True))


def planned(config: dict[str, Any], parts: Callable[..., dict[str, int]], *settings: Any) -> int:
    return sum(parts(architectures.architecture(config), *settings).values())


@pytest.mark.parametrize(("hub", "kind"), CASES)
def test_trainings_take_what_is_planned(hub: str, kind: str) -> None:
    config, training = KNOWN[hub.lower()], TRAININGS[kind]
    simulated = extrapolated(config, lambda it: simulation.training_peaks(it, training))
    assert planned(config, formulas.training_bytes, training) == pytest.approx(simulated, rel=0.1)


@pytest.mark.parametrize(("batch", "length"), [(16, 256), (16, 1000), (64, 1000)])
@pytest.mark.parametrize("hub", MODELS)
def test_scoring_takes_what_is_planned(hub: str, batch: int, length: int) -> None:
    config = KNOWN[hub.lower()]
    simulated = extrapolated(config, lambda it: simulation.scoring_peaks(it, batch, length))
    parts = planned(config, formulas.scoring_bytes, batch, length, 2)
    assert parts == pytest.approx(simulated, rel=0.1)
