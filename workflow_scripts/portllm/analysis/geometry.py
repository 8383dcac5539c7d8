"""Measure the angles between a ported patch, the model update, and the retrained patch.

For each weight, Δθ is the ported patch and Δθ′ the retrained one, both products of LoRA factors of
rank r. θ′ − θ is the update from the version that the patch was trained on to the version that it
is applied to. Cosines treat matrices as vectors. Principal angles are between column spaces (the
outputs that a change can produce) and between row spaces (the inputs that it reacts to). As the
update has full rank, the singular vectors of its r largest singular values represent it.

Patches with the same seed start from the same random A, so their row spaces are similar whatever
they learn. Their column spaces start from B = 0 and are entirely learned.

One weight is in memory at a time, and low-rank products are never expanded.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from portllm.analysis.norms import oriented
from portllm.errors import InputError
from portllm.transplant import edits
from portllm.transplant.edits import Delta
from portllm.weights import adapters, finite
from portllm.weights.checkpoints import Checkpoint

SEED = 0
# Halko, Martinsson and Tropp (2011) advise 5 to 10 extra columns. Updates have flat spectra, so the
# iterations matter more.
OVERSAMPLING, ITERATIONS = 10, 8
# The full SVD of a matrix whose shorter side is at most this takes less than a second.
EXACT_UP_TO = 512

_LAYER = re.compile(r"\.(\d+)\.")


def basis(vectors: Tensor) -> Tensor:
    """Return an orthonormal basis (n, k) of the span of columns (n, r); k ≤ r is their rank."""
    left, values, _ = torch.linalg.svd(vectors, full_matrices=False)
    return left[:, : _rank(values, vectors.shape)]


def _rank(values: Tensor, shape: torch.Size) -> int:
    # The tolerance of numpy.linalg.matrix_rank.
    if values.numel() == 0:
        return 0
    return int((values > values[0] * max(shape) * torch.finfo(values.dtype).eps).sum())


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the principal angles between the spans of two orthonormal bases.

    The cosines are the singular values of QₐᵀQᵦ (Björck and Golub 1973). They are inaccurate for
    small angles, whose sines are the singular values of Qᵦ − Qₐ(QₐᵀQᵦ). Each angle is taken from
    the more accurate of the two (Knyazev and Argentati 2002).

    Args:
        first: (n, p).
        second: (n, q).

    Returns:
        (min(p, q),) angles in radians, ascending.
    """
    if first.shape[1] < second.shape[1]:
        first, second = second, first
    overlap = first.T @ second
    cosines = torch.linalg.svdvals(overlap).clamp(max=1.0)
    sines = torch.linalg.svdvals(second - first @ overlap).flip(0).clamp(max=1.0)
    return torch.where(cosines**2 < 0.5, torch.acos(cosines), torch.asin(sines))


def similarity(angles: Tensor) -> float:
    """Return the similarity of two subspaces, from 0 to 1: the mean cos² of their angles.

    It equals ‖QₐᵀQᵦ‖²/min(p, q) (Hu et al., LoRA, 2021, section 7.2). Random subspaces of
    dimensions p and q in n dimensions have an expected similarity of max(p, q)/n.
    """
    return float((torch.cos(angles) ** 2).mean())


def leading_subspaces(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the left (m, k) and right (n, k) singular vectors of the largest singular values.

    Exact if the shorter side is at most `EXACT_UP_TO`, else by seeded randomised subspace iteration
    (Halko, Martinsson and Tropp 2011). k is `rank`, or the rank of the matrix if that is lower.
    """
    if min(matrix.shape) <= EXACT_UP_TO:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        right = right.T
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            left, values, right = torch.svd_lowrank(
                matrix, q=min(rank + OVERSAMPLING, *matrix.shape), niter=ITERATIONS
            )
    kept = min(rank, _rank(values, matrix.shape))
    return left[:, :kept], right[:, :kept]


@dataclass(frozen=True)
class _FactoredPatch:
    """A low-rank change of a weight, with orthonormal bases of its column and row spaces."""

    left: Tensor
    right: Tensor
    columns: Tensor
    rows: Tensor
    norm: float


def _patch(delta: Delta) -> _FactoredPatch:
    left, right = oriented(delta)
    # ‖LR‖² = tr(LᵀL·RRᵀ)
    square = float(((left.T @ left) * (right @ right.T)).sum())
    # The column space of L·R is smaller than that of L if R does not have full rank.
    columns = basis(left @ torch.linalg.qr(right.T).R.T)
    rows = basis(right.T @ torch.linalg.qr(left).R.T)
    return _FactoredPatch(left, right, columns, rows, math.sqrt(max(square, 0.0)))


def _degrees(angles: Tensor) -> list[float]:
    return [round(value, 4) for value in torch.rad2deg(angles).tolist()]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _between(kind: str, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Any:
    """Return angles (degrees) and similarity of the column and row spaces of two changes."""
    comparison: dict[str, Any] = {}
    for side, one, other in zip(("column", "row"), first, second, strict=True):
        if min(one.shape[1], other.shape[1]) == 0:
            comparison |= {f"{kind}_{side}_angles": [], f"{kind}_{side}_similarity": None}
            continue
        angles = principal_angles(one, other)
        comparison |= {
            f"{kind}_{side}_angles": _degrees(angles),
            f"{kind}_{side}_similarity": similarity(angles),
            f"{kind}_{side}_expected": max(one.shape[1], other.shape[1]) / one.shape[0],
        }
    return comparison


def against_update(patch: _FactoredPatch, update: Tensor) -> dict[str, Any]:
    """Compare a patch with the update (m, n): cosine, angles, energy in the patch's spaces.

    The column energy is ‖QᵀU‖/‖U‖, where Q is the basis of the patch's column space: the share of
    the update's norm in the space where the patch acts. For a random space of k of m dimensions
    it is √(k/m).
    """
    norm = float(torch.linalg.matrix_norm(update))
    inner = float((patch.left * (update @ patch.right.T)).sum())
    leading = leading_subspaces(update, patch.left.shape[1])
    held = {
        "column": (patch.columns.T @ update, patch.columns),
        "row": (update @ patch.rows, patch.rows),
    }
    energies: dict[str, Any] = {}
    for side, (inside, space) in held.items():
        dimensions, kept = space.shape
        energies |= {
            f"update_{side}_energy": _ratio(float(torch.linalg.matrix_norm(inside)), norm),
            f"update_{side}_energy_expected": math.sqrt(kept / dimensions),
        }
    return {
        "update_norm": norm,
        "update_inner": inner,
        "update_cosine": _ratio(inner, norm * patch.norm),
        **_between("update", (patch.columns, patch.rows), leading),
        **energies,
    }


def against_patch(patch: _FactoredPatch, other: _FactoredPatch) -> dict[str, Any]:
    """Compare two patches: cosine, from ⟨L₁R₁, L₂R₂⟩ = tr(L₁ᵀL₂·R₂R₁ᵀ), and angles."""
    inner = float(((patch.left.T @ other.left) * (patch.right @ other.right.T)).sum())
    return {
        "native_norm": other.norm,
        "native_inner": inner,
        "native_cosine": _ratio(inner, patch.norm * other.norm),
        **_between("native", (patch.columns, patch.rows), (other.columns, other.rows)),
    }


def place_of(weight: str) -> tuple[int | None, str]:
    """Return layer and module: (3, "q_proj") for `model.layers.3.self_attn.q_proj.weight`."""
    layer = _LAYER.search(weight)
    module = weight.removesuffix(".weight").rpartition(".")[2]
    return (int(layer[1]) if layer else None), module


def _total(rows: list[dict[str, Any]], kind: str) -> float | None:
    """Return the cosine over all weights that the patch changes, as one vector."""
    inner = sum(row.get(f"{kind}_inner", 0.0) for row in rows)
    squares = [sum(row.get(name, 0.0) ** 2 for row in rows) for name in ("norm", f"{kind}_norm")]
    return _ratio(inner, math.sqrt(squares[0] * squares[1]))


def geometry(base: Path, version: Path, ported: Path, native: Path) -> dict[str, Any]:
    """Measure every weight that the ported patch changes.

    Args:
        base: directory of the version that `ported` was trained on.
        version: directory of the version that it is applied to.
        ported: directory of the ported patch.
        native: directory of the patch trained on `version`.

    Returns:
        Overall cosines, and one row per weight, sorted by layer and name. Angles are in degrees,
        ascending. Keys with `expected` are the values for a random direction or subspace; 1/√(mn)
        is the standard deviation of a random cosine.

    Raises:
        InputError: one of the versions lacks a weight that the patch changes, or it is not finite.
    """
    carried, trained = (edits.deltas_of(adapters.load(path)) for path in (ported, native))
    before, after = Checkpoint(base), Checkpoint(version)
    rows = []
    for name, delta in carried.items():
        for model in (before, after):
            if name not in model.shard_of:
                raise InputError(f"{model} has no weight {name}, which a patch changes")
            finite.check(
                [(name, model.read(name))],
                f"weights of {model}",
                "fetch or train this version again",
            )
        old, new = before.read(name), after.read(name)
        update = new.double() - old.double()
        patch = _patch(delta)
        layer, module = place_of(name)
        row = {
            "weight": name,
            "layer": layer,
            "module": module,
            "shape": list(update.shape),
            "norm": patch.norm,
            "expected_cosine": 1 / math.sqrt(update.numel()),
            **against_update(patch, update),
        }
        if name in trained:
            row |= against_patch(patch, _patch(trained[name]))
        rows.append(row)
    rows.sort(key=lambda row: (-1 if row["layer"] is None else row["layer"], row["weight"]))
    return {
        "update_cosine": _total(rows, "update"),
        "native_cosine": _total(rows, "native"),
        "weights": rows,
    }
