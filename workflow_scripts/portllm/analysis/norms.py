"""Compute norms of patched weights, of patches, and of the difference of two patches.

The naive update of PortLLM (arXiv 2410.10870, section 3) is θ′ + Δθ; its residual against
re-fine-tuning is Δθ′ − Δθ. A difference of low-rank products is low-rank, so its norms come from a
QR decomposition of stacked factors, and no product is expanded.
"""

import math
from pathlib import Path

import numpy
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from portllm.errors import InputError
from portllm.transplant import edits
from portllm.transplant.edits import Delta
from portllm.weights import adapters, finite
from portllm.weights.checkpoints import Checkpoint

SEED = 0
TOLERANCE = 1e-6


def oriented(delta: Delta) -> tuple[Tensor, Tensor]:
    """Return float64 factors (out, rank) and (rank, in) whose product is the weight's change."""
    left = torch.from_numpy(delta.b).double() * delta.factor
    right = torch.from_numpy(delta.a).double()
    return (right.T, left.T) if delta.transposed else (left, right)


def singular_values(left: Tensor, right: Tensor) -> Tensor:
    """Return the singular values of left @ right, (out, rank) @ (rank, in), from their QR.

    With left = Q₁R₁ and rightᵀ = Q₂R₂, the product is Q₁(R₁R₂ᵀ)Q₂ᵀ, and orthogonal factors do not
    change singular values (Golub and Van Loan, Matrix Computations, section 5.2).
    """
    small = torch.linalg.qr(left).R @ torch.linalg.qr(right.T).R.T
    return torch.linalg.svdvals(small)


def residual(first: Delta | None, second: Delta | None) -> tuple[Tensor, Tensor]:
    """Return factors of second − first; None stands for a patch that does not change the weight."""
    pieces = [(1.0, second), (-1.0, first)]
    parts = [(sign, oriented(delta)) for sign, delta in pieces if delta is not None]
    left = torch.cat([sign * factors[0] for sign, factors in parts], dim=1)
    right = torch.cat([factors[1] for _, factors in parts], dim=0)
    return left, right


def largest_singular_value(weight: Tensor, left: Tensor, right: Tensor) -> float:
    """Return the largest singular value of weight + left @ right, by Lanczos iteration (ARPACK)."""
    base, b, a = weight.double().numpy(), left.numpy(), right.numpy()
    if min(base.shape) <= 2:
        return float(numpy.linalg.svd(base + b @ a, compute_uv=False)[0])
    operator = LinearOperator(
        base.shape,
        matvec=lambda vector: base @ vector + b @ (a @ vector),
        rmatvec=lambda vector: base.T @ vector + a.T @ (b.T @ vector),
        dtype=numpy.float64,
    )
    start = numpy.random.default_rng(SEED).standard_normal(min(base.shape))
    values = svds(operator, k=1, v0=start, tol=TOLERANCE, return_singular_vectors=False)
    return float(values[0])


def _updated_square(weight: Tensor, left: Tensor, right: Tensor) -> float:
    """Return ‖W + LR‖² = ‖W‖² + 2⟨W, LR⟩ + ‖LR‖² without expanding LR."""
    base = weight.double()
    inner = float((left * (base @ right.T)).sum())
    product = float((singular_values(left, right) ** 2).sum())
    return float((base**2).sum()) + 2 * inner + product


def norms(version: Path, ported: Path, native: Path) -> dict[str, float | int]:
    """Measure norms over the weights that either patch changes, one weight at a time.

    Args:
        version: directory of θ′.
        ported: directory of Δθ, trained on another version.
        native: directory of Δθ′, trained on `version`.

    Returns:
        Frobenius norms over all these weights, and the largest singular value of any weight, of
        the naive update θ′ + Δθ and the residual Δθ′ − Δθ.

    Raises:
        InputError: the version lacks a weight that a patch changes, or it is not finite.
    """
    first = edits.deltas_of(adapters.load(ported))
    second = edits.deltas_of(adapters.load(native))
    model = Checkpoint(version)
    squares = {"naive": 0.0, "residual": 0.0, "patch": 0.0, "native": 0.0}
    largest = {"naive": 0.0, "residual": 0.0}
    names = sorted(first.keys() | second.keys())
    for name in names:
        if name not in model.shard_of:
            raise InputError(f"{version} has no weight {name}, which a patch changes")
        weight = model.read(name)
        finite.check([(name, weight)], f"weights of {version}", "fetch or train this version again")
        change = residual(None, first[name]) if name in first else None
        zero = torch.zeros(weight.shape[0], 1).double(), torch.zeros(1, weight.shape[1]).double()
        left, right = change or zero
        squares["naive"] += _updated_square(weight, left, right)
        largest["naive"] = max(largest["naive"], largest_singular_value(weight, left, right))
        difference = singular_values(*residual(first.get(name), second.get(name)))
        squares["residual"] += float((difference**2).sum())
        largest["residual"] = max(largest["residual"], float(difference[0]))
        for kind, deltas in (("patch", first), ("native", second)):
            if name in deltas:
                values = singular_values(*oriented(deltas[name]))
                squares[kind] += float((values**2).sum())
    return {
        "weights": len(names),
        "naive_norm": math.sqrt(squares["naive"]),
        "naive_largest": largest["naive"],
        "residual_norm": math.sqrt(squares["residual"]),
        "residual_largest": largest["residual"],
        "patch_norm": math.sqrt(squares["patch"]),
        "native_norm": math.sqrt(squares["native"]),
        "relative_residual": math.sqrt(squares["residual"] / squares["patch"]),
    }
