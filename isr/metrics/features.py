"""Metrics of sets of pictures from feature vectors: generative precision and the Fréchet distance. Pure functions; where the
features come from is another matter (isr/metrics/inception.py, or a user's own)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError

__all__ = ["frechet_distance", "precision"]


def _check(a: Tensor, b: Tensor, what: str, least: int) -> tuple[Tensor, Tensor]:
    for name, x in (("a", a), ("b", b)):
        if x.ndim != 2:
            raise UsageError(f"{what}: features of {name} must be (N, D), not shape {tuple(x.shape)}")
        if len(x) < least:
            raise UsageError(f"{what} needs at least {least} pictures in {name}, not {len(x)}")
        if not bool(torch.isfinite(x).all()):
            raise UsageError(f"{what}: features of {name} must be finite")
    if a.shape[1] != b.shape[1]:
        raise UsageError(f"{what}: a and b must have features of one width, not {a.shape[1]} and {b.shape[1]}")
    return a.double(), b.double()


def precision(a: Tensor, b: Tensor, *, k: int = 5) -> float:
    """Share of a's features that lie inside the manifold of b's (Kynkäänniemi et al. 2019, Eqs. 1–2): within the distance of
    some b to its k-th nearest other b.

    Args:
        a: features of the judged set (N, D): the immunized edits. b: of the reference set (M, D), M > k: the clean edits.
        k: neighbours; 5 as in the `prdc` and piq packages (the paper uses 3).

    Returns:
        In [0, 1]. Not symmetric (the other way round is recall).
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, not {k}")
    x, y = _check(a, b, "precision", 1)
    if len(y) <= k:
        raise UsageError(
            f"precision with k={k} neighbours needs at least {k + 1} reference pictures in b, not {len(y)}"
        )
    # Differences, not the Gram matrix: equal vectors must be at distance exactly 0.
    mode = "donot_use_mm_for_euclid_dist"
    among = torch.cdist(y, y, compute_mode=mode).fill_diagonal_(0.0)
    radius = among.kthvalue(k + 1, dim=1).values  # the nearest is the point itself
    return float((torch.cdist(x, y, compute_mode=mode) <= radius).any(dim=1).double().mean())


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two Gaussians fitted to features (Heusel et al. 2017, Eq. 6): ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½).

    Args:
        a, b: features (N, D) and (M, D), N, M ≥ 2. Covariances divide by n − 1; float64.

    Returns:
        ≥ 0 up to rounding, symmetric. Biased upwards on few pictures (N below D gives singular covariances): compare only
        sets of the same size.
    """
    x, y = _check(a, b, "the Fréchet distance", 2)
    dx, dy = x - x.mean(0), y - y.mean(0)
    dx, dy = dx / (len(x) - 1) ** 0.5, dy / (len(y) - 1) ** 0.5
    # tr (Σ₁Σ₂)^½ is the sum of the singular values of Dx Dyᵀ (N × M): exact, also where the covariances are singular.
    cross = torch.linalg.svdvals(dx @ dy.T).sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + dx.square().sum() + dy.square().sum() - 2 * cross)
