"""Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004, Eq. 13)."""

from __future__ import annotations

import torch
from torch import Tensor

from .pairs import check_pair, separable_valid, working

__all__ = ["SSIM_CONVENTION", "ssim"]

SIZE, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
SSIM_CONVENTION = (
    "RGB, mean over channels; Gaussian window 11×11 σ 1.5, population covariance, K1 .01 K2 .03; "
    "positions where the window fits (valid crop); no downsampling"
)


def ssim(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> Tensor:
    """SSIM per picture, in [−1, 1].

    Args:
        a, b: float (B, 3, H, W), RGB in [0, data_range], sides ≥ 11. data_range: 1.0 or 255.

    Returns:
        (B,), float32 (float64 for float64 input), differentiable. Symmetric; identical pictures give exactly 1. Equals
        scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)` and piq's with
        `downsample=False`.
    """
    check_pair(a, b, data_range=data_range, min_side=SIZE, what="ssim")
    return _ssim(a, b, data_range)


def _ssim(a: Tensor, b: Tensor, data_range: float) -> Tensor:
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    out = []
    for x, y in zip(a, b, strict=True):
        x, y = working(x), working(y)
        # With s = x + y and d = x − y four filtered planes replace five: E[s²] ± E[d²] hold E[x²] + E[y²] and E[xy].
        planes = torch.cat([x + y, x - y])
        mean, mean_sq = separable_valid(torch.cat([planes, planes * planes]), SIZE, SIGMA).chunk(2)
        squared = mean * mean
        variance = mean_sq - squared
        ms, md = squared.chunk(2)
        vs, vd = variance.chunk(2)
        top = ((ms - md) / 2 + c1) * ((vs - vd) / 2 + c2)
        bottom = ((ms + md) / 2 + c1) * ((vs + vd) / 2 + c2)
        out.append((top / bottom).mean())
    return torch.stack(out) if out else working(a).new_zeros(0)
