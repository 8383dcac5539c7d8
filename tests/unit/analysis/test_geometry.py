"""Angles between patches and updates, checked against scipy and expanded matrices."""

import math
from pathlib import Path

import numpy
import pytest
import scipy.linalg
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from portllm.analysis import geometry
from portllm.analysis.norms import oriented
from portllm.errors import InputError
from portllm.transplant import edits
from portllm.weights import adapters
from portllm.weights.checkpoints import Checkpoint

SIZES = {"n": st.integers(2, 25), "p": st.integers(1, 6), "q": st.integers(1, 6)}


def draw(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def angles(first: Tensor, second: Tensor) -> Tensor:
    return geometry.principal_angles(geometry.basis(first), geometry.basis(second))


@settings(max_examples=60, deadline=None)
@given(**SIZES, seed=st.integers(0, 2**30))
def test_principal_angles_equal_scipy(n: int, p: int, q: int, seed: int) -> None:
    first, second = draw(n, min(n, p), seed), draw(n, min(n, q), seed + 1)
    # scipy lists them in descending order.
    expected = scipy.linalg.subspace_angles(first.numpy(), second.numpy())[::-1]
    result = angles(first, second)
    # Spaces with p + q > n intersect; the angle 0 comes out as 1e-16 here and 1e-8 in scipy.
    numpy.testing.assert_allclose(result.numpy(), expected, atol=1e-7)
    overlap = torch.linalg.matrix_norm(geometry.basis(first).T @ geometry.basis(second)) ** 2
    share = float(overlap) / min(first.shape[1], second.shape[1])
    assert geometry.similarity(result) == pytest.approx(share, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(4, 25), p=st.integers(1, 3), exponent=st.integers(-12, -3))
def test_small_angles_are_not_lost(n: int, p: int, exponent: int) -> None:
    angle = 10.0**exponent
    frame = torch.linalg.qr(draw(n, p + 1, n)).Q
    turned = frame[:, :p].clone()
    turned[:, 0] = math.cos(angle) * frame[:, 0] + math.sin(angle) * frame[:, p]
    result = geometry.principal_angles(frame[:, :p], turned)
    assert float(result[-1]) == pytest.approx(angle, rel=1e-2, abs=1e-15)
    assert not result[:-1].abs().gt(1e-7).any()


def test_angles_do_not_depend_on_order_or_basis() -> None:
    first, second = draw(12, 3, 1), draw(12, 5, 2)
    mixed = first @ draw(3, 3, 3)
    torch.testing.assert_close(angles(first, second), angles(second, mixed))
    assert angles(first, mixed).abs().max() < 1e-7
    right = torch.linalg.qr(draw(12, 6, 4)).Q
    torch.testing.assert_close(
        geometry.principal_angles(right[:, :3], right[:, 3:]),
        torch.full((3,), math.pi / 2, dtype=torch.float64),
    )


def test_a_basis_has_the_rank_of_its_vectors() -> None:
    vectors = draw(10, 2, 5)
    repeated = torch.cat([vectors, vectors @ draw(2, 3, 6)], dim=1)
    assert geometry.basis(repeated).shape == (10, 2)
    assert geometry.basis(torch.zeros(4, 2, dtype=torch.float64)).shape == (4, 0)


def test_the_similarity_of_random_subspaces_is_as_expected() -> None:
    shares = [
        geometry.similarity(angles(draw(40, 4, seed), draw(40, 8, seed + 999)))
        for seed in range(200)
    ]
    assert numpy.mean(shares) == pytest.approx(8 / 40, abs=0.01)


def test_leading_subspaces_of_a_large_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = draw(60, 4, 7) @ draw(4, 50, 8) * 10 + draw(60, 50, 9) * 0.1
    exact = geometry.leading_subspaces(matrix, 4)
    monkeypatch.setattr(geometry, "EXACT_UP_TO", 10)
    state = torch.random.get_rng_state()
    randomised = geometry.leading_subspaces(matrix, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    for one, other in zip(exact, randomised, strict=True):
        assert one.shape[1] == 4
        assert angles(one, other).max() < 1e-4
    low = draw(60, 2, 7) @ draw(2, 50, 8)
    assert [space.shape[1] for space in geometry.leading_subspaces(low, 4)] == [2, 2]


def dense(delta: edits.Delta) -> Tensor:
    left, right = oriented(delta)
    return left @ right


def cosine(first: Tensor, second: Tensor) -> float:
    return float((first * second).sum() / first.norm() / second.norm())


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, ...]:
    """A base, a version of it, and a patch trained on each."""
    base = tiny.save_model(tmp_path / "base", max_shard_size="10KB")
    version = tiny.save_model(tmp_path / "version", seed=5)
    ported = tiny.save_adapter(tmp_path / "ported", base, seed=1)
    native = tiny.save_adapter(
        tmp_path / "native", version, seed=2, r=4, target_modules=["q_proj", "down_proj"]
    )
    return base, version, ported, native


def test_geometry_against_expanded_matrices(models: tuple[Path, ...]) -> None:
    base, version, ported, native = models
    result = geometry.geometry(*models)
    carried, trained = (edits.deltas_of(adapters.load(path)) for path in (ported, native))
    before, after = (dict(Checkpoint(path).tensors()) for path in (base, version))
    assert [row["weight"] for row in result["weights"]] == sorted(carried)
    inner, squares = 0.0, [0.0, 0.0]
    for row in result["weights"]:
        name = row["weight"]
        patch = dense(carried[name])
        update = after[name].double() - before[name].double()
        inner += float((patch * update).sum())
        squares = [squares[0] + float(patch.norm() ** 2), squares[1] + float(update.norm() ** 2)]
        assert row["update_cosine"] == pytest.approx(cosine(patch, update))
        columns, rows = scipy.linalg.orth(patch.numpy()), scipy.linalg.orth(patch.numpy().T)
        held = numpy.linalg.norm(columns.T @ update.numpy()) / float(update.norm())
        assert row["update_column_energy"] == pytest.approx(held)
        held = numpy.linalg.norm(update.numpy() @ rows) / float(update.norm())
        assert row["update_row_energy"] == pytest.approx(held)
        assert row["update_row_energy_expected"] == pytest.approx(math.sqrt(2 / patch.shape[1]))
        left, _, right = numpy.linalg.svd(update.numpy())
        for side, one, other in (("column", columns, left[:, :2]), ("row", rows, right[:2].T)):
            expected = numpy.degrees(scipy.linalg.subspace_angles(one, other))[::-1]
            numpy.testing.assert_allclose(row[f"update_{side}_angles"], expected, atol=1e-3)
        assert ("native_cosine" in row) == (name in trained)
        if name in trained:
            other = dense(trained[name])
            assert row["native_cosine"] == pytest.approx(cosine(patch, other))
            expected = scipy.linalg.subspace_angles(columns, scipy.linalg.orth(other.numpy()))
            numpy.testing.assert_allclose(
                row["native_column_angles"], numpy.degrees(expected)[::-1], atol=1e-3
            )
            assert len(row["native_row_angles"]) == 2
            assert row["native_row_expected"] == pytest.approx(4 / patch.shape[1])
    assert result["update_cosine"] == pytest.approx(inner / math.sqrt(squares[0] * squares[1]))
    places = {(row["layer"], row["module"]) for row in result["weights"]}
    assert len(places) == 14
    assert (1, "down_proj") in places


def test_a_patch_against_itself_and_a_zero_update(models: tuple[Path, ...]) -> None:
    base, _, ported, _ = models
    result = geometry.geometry(base, base, ported, ported)
    assert result["native_cosine"] == pytest.approx(1.0)
    assert result["update_cosine"] is None
    for row in result["weights"]:
        assert max(row["native_column_angles"]) < 1e-4
        assert row["update_column_energy"] is None
        assert row["update_column_angles"] == []


def test_a_missing_weight_is_an_error(models: tuple[Path, ...]) -> None:
    base, version, ported, native = models
    smaller = tiny.save_model(base.parent / "smaller", num_hidden_layers=1)
    with pytest.raises(InputError, match=r"smaller has no weight model\.layers\.1\."):
        geometry.geometry(smaller, version, ported, native)


@pytest.mark.parametrize("spoiled", ["base", "version"])
def test_a_weight_that_is_not_finite_is_an_error(models: tuple[Path, ...], spoiled: str) -> None:
    directory = models[["base", "version"].index(spoiled)]
    name = tiny.spoil(directory)
    with pytest.raises(
        InputError, match=rf"weights of .*/{spoiled} are not finite \(first: {name}"
    ):
        geometry.geometry(*models)
