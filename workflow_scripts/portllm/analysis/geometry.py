"""Angles between a patch, the update that it is carried over, and the patch trained anew on it.

Of each weight: Δθ is the carried patch and Δθ′ the re-trained one, both products of LoRA factors of
rank r; θ′ − θ is the update, from the version that the patch was trained on to the one that it is
applied to. Cosines are those of the whole matrices, taken as vectors; principal angles are between
their column spaces (what a change can put out) and between their row spaces (what it reacts to).
The update has full rank, so the subspaces of its r largest singular values stand for it.

Two patches of one seed have started from the same random A, so their row spaces are alike whatever
they have learnt; their column spaces, which start from B = 0, are learnt alone.

One weight is in memory at a time, and no low-rank product is ever expanded.
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
from portllm.weights import adapters
from portllm.weights.checkpoints import Checkpoint

SEED = 0
# Halko, Martinsson and Tropp (2011) advise five to ten columns more than are wanted; the spectra of
# updates are flat, so that the iterations matter more.
OVERSAMPLING, ITERATIONS = 10, 8
# The full decomposition of a matrix with a side no longer than this takes less than a second.
EXACT_UP_TO = 512

_LAYER = re.compile(r"\.(\d+)\.")


def basis(vectors: Tensor) -> Tensor:
    """Orthonormal basis (n, k) of the span of columns (n, r); k ≤ r is their rank."""
    left, values, _ = torch.linalg.svd(vectors, full_matrices=False)
    return left[:, : _rank(values, vectors.shape)]


def _rank(values: Tensor, shape: torch.Size) -> int:
    # The tolerance of numpy.linalg.matrix_rank.
    if values.numel() == 0:
        return 0
    return int((values > values[0] * max(shape) * torch.finfo(values.dtype).eps).sum())


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Principal angles in radians, ascending, between the spans of two orthonormal bases.

    `first` is (n, p) and `second` (n, q); there are min(p, q) angles. Björck and Golub (1973): the
    singular values of QₐᵀQᵦ are the cosines. They say little of small angles, whose sines are
    the singular values of Qᵦ − Qₐ(QₐᵀQᵦ); each angle is taken from the better of the two, as
    Knyazev and Argentati (2002) advise.
    """
    if first.shape[1] < second.shape[1]:
        first, second = second, first
    overlap = first.T @ second
    cosines = torch.linalg.svdvals(overlap).clamp(max=1.0)
    sines = torch.linalg.svdvals(second - first @ overlap).flip(0).clamp(max=1.0)
    return torch.where(cosines**2 < 0.5, torch.acos(cosines), torch.asin(sines))


def similarity(angles: Tensor) -> float:
    """Share of the smaller subspace that lies in the other, from 0 to 1: mean cos² of the angles.

    It is ‖QₐᵀQᵦ‖²/min(p, q) (Hu et al., LoRA, 2021, section 7.2). Random subspaces of dimensions p
    and q of n dimensions have max(p, q)/n on average.
    """
    return float((torch.cos(angles) ** 2).mean())


def leading_subspaces(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Left (m, k) and right (n, k) singular vectors of the `rank` largest singular values.

    Exact for a matrix with a short side; else by randomised subspace iteration (Halko, Martinsson
    and Tropp 2011), seeded. k is less than `rank` where the matrix has a lower rank.
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
    """A weight's change as factors, and orthonormal bases of its column and row space."""

    left: Tensor
    right: Tensor
    columns: Tensor
    rows: Tensor
    norm: float


def _patch(delta: Delta) -> _FactoredPatch:
    left, right = oriented(delta)
    # ‖LR‖² = tr(LᵀL·RRᵀ)
    square = float(((left.T @ left) * (right @ right.T)).sum())
    # The column space of L·R is that of L where R has full rank; else it is smaller.
    columns = basis(left @ torch.linalg.qr(right.T).R.T)
    rows = basis(right.T @ torch.linalg.qr(left).R.T)
    return _FactoredPatch(left, right, columns, rows, math.sqrt(max(square, 0.0)))


def _degrees(angles: Tensor) -> list[float]:
    return [round(value, 4) for value in torch.rad2deg(angles).tolist()]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _between(kind: str, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Any:
    """Angles of column and row spaces of two changes, and how alike these are."""
    found: dict[str, Any] = {}
    for side, one, other in zip(("column", "row"), first, second, strict=True):
        if min(one.shape[1], other.shape[1]) == 0:
            found |= {f"{kind}_{side}_angles": [], f"{kind}_{side}_similarity": None}
            continue
        angles = principal_angles(one, other)
        found |= {
            f"{kind}_{side}_angles": _degrees(angles),
            f"{kind}_{side}_similarity": similarity(angles),
            f"{kind}_{side}_expected": max(one.shape[1], other.shape[1]) / one.shape[0],
        }
    return found


def against_update(patch: _FactoredPatch, update: Tensor) -> dict[str, Any]:
    """Cosine and angles of a patch against the update (m, n), and its energy in the patch's spaces.

    The column energy is ‖QᵀU‖/‖U‖ with Q the basis of the patch's columns, the share of the
    update's norm that falls into the space where the patch acts; a random space of k of m
    dimensions would hold √(k/m) of it.
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
    """Cosine and angles of two patches: ⟨L₁R₁, L₂R₂⟩ = tr(L₁ᵀL₂·R₂R₁ᵀ), from the factors alone."""
    inner = float(((patch.left.T @ other.left) * (patch.right @ other.right.T)).sum())
    return {
        "native_norm": other.norm,
        "native_inner": inner,
        "native_cosine": _ratio(inner, patch.norm * other.norm),
        **_between("native", (patch.columns, patch.rows), (other.columns, other.rows)),
    }


def place_of(weight: str) -> tuple[int | None, str]:
    """Layer and module of a weight: `model.layers.3.self_attn.q_proj.weight` is (3, "q_proj")."""
    layer = _LAYER.search(weight)
    module = weight.removesuffix(".weight").rpartition(".")[2]
    return (int(layer[1]) if layer else None), module


def _total(rows: list[dict[str, Any]], kind: str) -> float | None:
    """Cosine of all weights that the patch changes, as one vector."""
    inner = sum(row.get(f"{kind}_inner", 0.0) for row in rows)
    squares = [sum(row.get(name, 0.0) ** 2 for row in rows) for name in ("norm", f"{kind}_norm")]
    return _ratio(inner, math.sqrt(squares[0] * squares[1]))


def geometry(base: Path, version: Path, ported: Path, native: Path) -> dict[str, Any]:
    """Angles of every weight that the carried patch changes, in the order of layers and names.

    `base` is the version that `ported` was trained on, `version` the one that it is applied to and
    that `native` was trained on. Angles are in degrees, ascending. `expected` is what a random
    direction or subspace would give: 1/√(mn) is the standard deviation of its cosine. Raises
    InputError for a weight that one of the versions does not have.
    """
    carried, trained = (edits.deltas_of(adapters.load(path)) for path in (ported, native))
    before, after = Checkpoint(base), Checkpoint(version)
    rows = []
    for name, delta in carried.items():
        for model in (before, after):
            if name not in model.shard_of:
                raise InputError(f"{model} has no weight {name}, which a patch changes")
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
