"""The loss between two patches, checked against merged checkpoints and by hand."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from portllm.analysis import loss_slices
from portllm.errors import InputError
from portllm.training import patch_training
from portllm.transplant import edits
from portllm.weights import adapters

EXAMPLES = [
    {"prompt": "Question: is it so? Answer:", "completion": " yes, it is so"},
    {"prompt": "the cat sat on", "completion": " the mat"},
    {"prompt": "the dog lay by", "completion": " the door and the cat sat"},
]


def test_positions_include_both_ends_of_the_line() -> None:
    assert loss_slices.positions(-0.25, 1.25, 4) == [-0.25, 0.0, 0.25, 0.75, 1.0, 1.25]
    assert loss_slices.positions(-0.25, 1.25, 13)[2:5] == [0.0, 0.125, 0.25]
    assert loss_slices.positions(0, 1, 2) == [0.0, 1.0]


def test_item_losses_by_hand() -> None:
    # A vocabulary of two tokens. The first item has two labelled tokens, the second one.
    logits = torch.log(torch.tensor([0.5, 0.5, 0.25, 0.75] * 3).reshape(2, 3, 2))
    ignored = patch_training.IGNORED
    labels = torch.tensor([[ignored, 0, 1], [0, ignored, 1]])
    result = loss_slices.item_losses(logits, labels)
    first = (-math.log(logits.exp()[0, 0, 0]) - math.log(logits.exp()[0, 1, 1])) / 2
    second = -math.log(logits.exp()[1, 1, 1])
    assert result.tolist() == pytest.approx([first, second])


@pytest.fixture
def line(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A version and two patches on it, of different rank, scaling and target modules."""
    version = tiny.save_model(tmp_path / "version")
    carried = tiny.save_adapter(tmp_path / "carried", version, seed=1)
    native = tiny.save_adapter(tmp_path / "native", version, **tiny.UNLIKE)
    return version, carried, native


def mean_loss(model: object, version: Path, batch_size: int = 2) -> loss_slices.Loss:
    tokenizer = AutoTokenizer.from_pretrained(version)
    encoded = loss_slices.encode(tokenizer, EXAMPLES, 64)
    return loss_slices.mean_loss(model, encoded, tokenizer.eos_token_id, batch_size)


def merged(version: Path, parts: dict[Path, float]) -> object:
    """The version with a share of each patch added to its weights."""
    model = AutoModelForCausalLM.from_pretrained(version, dtype=torch.float32)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for patch, share in parts.items():
            for name, delta in edits.deltas_of(adapters.load(patch)).items():
                whole = torch.from_numpy(delta.b @ delta.a) * delta.factor
                weights[name] += share * whole
    return model


@pytest.mark.parametrize("t", [-0.25, 0.0, 0.4, 1.0, 1.25])
def test_a_point_equals_the_merged_weights_at_t(line: tuple[Path, Path, Path], t: float) -> None:
    version, carried, native = line
    model = AutoModelForCausalLM.from_pretrained(version, dtype=torch.float32)
    with loss_slices.between(model, carried, native) as set_to:
        set_to(0.77)
        result = mean_loss(set_to(t), version)
    expected = mean_loss(merged(version, {carried: 1 - t, native: t}), version)
    assert result.loss == pytest.approx(expected.loss, abs=1e-5)
    assert result.stderr == pytest.approx(expected.stderr, abs=1e-5)
    assert result.n == 3


def test_a_slice_has_all_points_and_leaves_the_model_unchanged(
    line: tuple[Path, Path, Path],
) -> None:
    version, carried, native = line
    model = AutoModelForCausalLM.from_pretrained(version, dtype=torch.float32)
    before = mean_loss(model, version)
    tokenizer = AutoTokenizer.from_pretrained(version)
    result = loss_slices.loss_slice(
        model,
        loss_slices.encode(tokenizer, EXAMPLES, 64),
        carried=carried,
        retrained=native,
        at=[0.0, 0.5, 1.0],
        padding=tokenizer.eos_token_id,
        batch_size=3,
    )
    assert mean_loss(model, version).loss == pytest.approx(before.loss)
    assert result["un_patched"]["loss"] == pytest.approx(before.loss)
    assert [point["t"] for point in result["points"]] == [0.0, 0.5, 1.0]
    assert result["barrier"] == loss_slices.barrier(result["points"])


def test_the_batch_size_does_not_change_the_loss(line: tuple[Path, Path, Path]) -> None:
    version, *_ = line
    model = AutoModelForCausalLM.from_pretrained(version, dtype=torch.float32)
    alone, together = (mean_loss(model, version, batch_size=size).loss for size in (1, 3))
    assert alone == pytest.approx(together, abs=1e-5)


def test_the_barrier_is_measured_from_the_line_between_the_ends() -> None:
    losses = {-0.5: 9.0, 0.0: 1.0, 0.5: 3.0, 1.0: 2.0, 1.5: 9.0}
    points = [{"t": t, "loss": loss} for t, loss in losses.items()]
    assert loss_slices.barrier(points) == pytest.approx(1.5)
    sagging = [{**point, "loss": point["loss"] - 2 * (point["t"] == 0.5)} for point in points]
    assert loss_slices.barrier(sagging) == 0.0


def test_a_task_without_documents_is_an_error(line: tuple[Path, Path, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(line[0])
    with pytest.raises(InputError, match="no documents"):
        loss_slices.encode(tokenizer, [], 64)


def test_a_loss_that_is_not_finite_is_an_error(line: tuple[Path, Path, Path]) -> None:
    version, carried, native = line
    model = AutoModelForCausalLM.from_pretrained(version, dtype=torch.float32)
    tiny.spoil(native)
    tokenizer = AutoTokenizer.from_pretrained(version)
    message = r"^.*/carried to .*/native, t = 1: the loss of 3 of 3 items is not finite; "
    with pytest.raises(InputError, match=message):
        loss_slices.loss_slice(
            model,
            loss_slices.encode(tokenizer, EXAMPLES, 64),
            carried=carried,
            retrained=native,
            at=[1.0],
            padding=tokenizer.eos_token_id,
            batch_size=3,
        )
