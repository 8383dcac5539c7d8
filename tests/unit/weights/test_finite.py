"""Any number that is not finite is found, whatever the dtype, shape and place."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from portllm.errors import InputError
from portllm.weights import finite

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=0, max_size=3),
    dtype=st.sampled_from(DTYPES),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    place=st.floats(0, 1, exclude_max=True),
)
def test_one_number_is_enough(
    shape: list[int], dtype: torch.dtype, value: float, place: float
) -> None:
    tensor = torch.full(shape, torch.finfo(dtype).max, dtype=dtype)
    tensor.view(-1)[0] = torch.finfo(dtype).min
    assert finite.is_finite(tensor)
    tensor.view(-1)[int(place * tensor.numel())] = value
    assert not finite.is_finite(tensor)
    # Transposed weights and parts of a tensor are not contiguous.
    if tensor.dim() == 2:
        assert not finite.is_finite(tensor.T)


def test_eight_bit_floats_integers_and_empty_tensors() -> None:
    small = torch.ones(4).to(torch.float8_e4m3fn)
    assert finite.is_finite(small)
    assert not finite.is_finite(torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn))
    assert finite.is_finite(torch.tensor([1, 2]))
    assert finite.is_finite(torch.empty(0, 3))


def test_tensors_of_a_file_are_counted(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    path = model / "model.safetensors"
    assert finite.problem(finite.stored(path), "weights") is None
    name = tiny.spoil(model)
    tiny.spoil(model, math.inf, weight="down_proj")
    with pytest.raises(InputError) as caught:
        finite.check(finite.stored(path), "weights", "train it again")
    text = str(caught.value)
    assert text.startswith("2 of 21 weights are not finite (first: model.layers.0.mlp.down_proj.")
    assert text.endswith("); train it again")
    assert name not in text
