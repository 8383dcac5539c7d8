"""Trainings record their loss curve, and a loss that is always zero is an error."""

from pathlib import Path

import pytest
import tiny
import torch
from transformers import TrainerState

from portllm.errors import InputError
from portllm.training import interruption, patch_training
from portllm.training.patch_training import LoraSettings


def train(folder: Path, loss_on: str = "completion") -> dict:
    version = tiny.save_model(folder / "model")
    examples = [{"prompt": "is it", "completion": " so"}] * 8
    settings = LoraSettings(max_steps=8, batch_size=1, checkpoint_steps=3, loss_on=loss_on)
    return patch_training.train(version, examples, settings, folder / "work")[1]


def test_the_loss_curve_of_a_patch_is_recorded(tmp_path: Path) -> None:
    losses = train(tmp_path)["losses"]
    assert [step for step, _ in losses] == list(range(1, 9))
    assert all(0 < loss < 10 for _, loss in losses)


def test_a_resumed_training_has_the_losses_of_both_parts(tmp_path: Path) -> None:
    losses = train(tmp_path)["losses"]
    # The last checkpoint is that of step 6.
    assert train(tmp_path)["losses"] == losses


def test_a_loss_of_zero_throughout_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a fused attention does that loses packed samples.
    def zero(self: object, model: torch.nn.Module, *_: object, **__: object) -> torch.Tensor:
        return sum(parameter.sum() for parameter in model.parameters()) * 0.0

    monkeypatch.setattr("transformers.Trainer.compute_loss", zero)
    with pytest.raises(InputError, match=r"^patch training learned nothing: the loss is 0 at eve"):
        train(tmp_path)


def test_a_long_curve_is_thinned_and_ends_with_the_last_step() -> None:
    state = TrainerState(log_history=[{"step": s, "loss": 1 / s} for s in range(1, 1001)])
    losses = interruption.thinned(interruption.logged_losses(state))
    assert 100 < len(losses) <= interruption.POINTS
    assert losses[-1] == [1000, 0.001]
    assert interruption.thinned([]) == []
