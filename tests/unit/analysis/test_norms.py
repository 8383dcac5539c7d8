"""Norms from factors, checked against expanded matrices."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from portllm.analysis import norms
from portllm.errors import InputError
from portllm.transplant import edits
from portllm.weights import adapters
from portllm.weights.checkpoints import Checkpoint


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    rank=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_singular_values_from_factors(rows: int, columns: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator).double()
    right = torch.randn(rank, columns, generator=generator).double()
    exact = torch.linalg.svdvals(left @ right)
    result = norms.singular_values(left, right)
    count = min(len(exact), len(result))
    torch.testing.assert_close(result[:count], exact[:count], rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_largest_singular_value(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    left = torch.randn(rows, 2, generator=generator).double()
    right = torch.randn(2, columns, generator=generator).double()
    exact = torch.linalg.matrix_norm(weight.double() + left @ right, ord=2).item()
    assert norms.largest_singular_value(weight, left, right) == pytest.approx(exact, rel=1e-5)


def test_norms_against_expanded_weights(tmp_path: Path) -> None:
    version = tiny.save_model(tmp_path / "version", max_shard_size="10KB")
    ported = tiny.save_adapter(tmp_path / "ported", version, seed=1)
    # The other patch leaves half of the weights alone and has other scaling.
    native = tiny.save_adapter(tmp_path / "native", version, **tiny.UNLIKE)
    result = norms.norms(version, ported, native)

    def expanded(adapter: Path) -> dict[str, torch.Tensor]:
        deltas = edits.deltas_of(adapters.load(adapter))
        return {
            name: torch.from_numpy(delta.factor * delta.b.astype(float) @ delta.a)
            for name, delta in deltas.items()
        }

    first, second = expanded(ported), expanded(native)
    weights = dict(Checkpoint(version).tensors())
    naive = {name: weights[name].double() + first[name] for name in first}
    left = {name: second.get(name, torch.zeros_like(first[name])) - first[name] for name in first}

    def total(matrices: dict[str, torch.Tensor]) -> float:
        return sum(float((matrix**2).sum()) for matrix in matrices.values()) ** 0.5

    def largest(matrices: dict[str, torch.Tensor]) -> float:
        return max(torch.linalg.matrix_norm(matrix, ord=2).item() for matrix in matrices.values())

    assert result["weights"] == len(first) == 14
    assert result["naive_norm"] == pytest.approx(total(naive))
    assert result["naive_largest"] == pytest.approx(largest(naive), rel=1e-5)
    assert result["residual_norm"] == pytest.approx(total(left))
    assert result["residual_largest"] == pytest.approx(largest(left))
    assert result["relative_residual"] == pytest.approx(total(left) / total(first))
    assert result["native_norm"] == pytest.approx(total(second))


def test_a_patch_has_no_residual_against_itself(tmp_path: Path) -> None:
    version = tiny.save_model(tmp_path / "version")
    patch = tiny.save_adapter(tmp_path / "patch", version)
    assert norms.norms(version, patch, patch)["relative_residual"] < 1e-7


def test_numbers_that_are_not_finite_are_errors(tmp_path: Path) -> None:
    version = tiny.save_model(tmp_path / "version")
    patch = tiny.save_adapter(tmp_path / "patch", version)
    name = tiny.spoil(version, math.inf)
    with pytest.raises(InputError, match=rf"weights of .*/version are not finite \(first: {name}"):
        norms.norms(version, patch, patch)
    spoiled = tiny.save_adapter(tmp_path / "spoiled", version)
    name = tiny.spoil(spoiled)
    with pytest.raises(InputError, match=rf"spoiled/.*{name}: found NaN or infinity"):
        norms.norms(version, patch, spoiled)
