"""What the pairwise metrics share: the input check, luminance, and the separable Gaussian window."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import UsageError

__all__ = ["check_pair", "gaussian", "luminance", "separable_valid", "working"]


def check_pair(a: Tensor, b: Tensor, *, data_range: float, min_side: int, what: str) -> None:
    """Raise unless a and b are float tensors of one shape (B, 3, H, W), sides ≥ min_side, values in [0, data_range].

    A data_range above 1 with pictures that hold only fractions up to 1 raises too: that mistake would give plausible
    numbers (VIF near 1 for anything).
    """
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != 3:
            came = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"{what}: {name} must be a tensor (B, 3, H, W) of RGB pixels, not {came}")
        if not x.is_floating_point():
            raise UsageError(
                f"{what}: {name} must be a float tensor, not {x.dtype}; use x.float() with data_range=255, or x / 255"
            )
    if a.shape != b.shape:
        raise UsageError(
            f"{what}: a and b must have the same shape, not {tuple(a.shape)} and {tuple(b.shape)}; "
            "pictures of different sizes have no pairwise metric, so resize one of them yourself and say so"
        )
    if a.shape[0] and min(a.shape[-2:]) < min_side:
        raise UsageError(
            f"{what} needs pictures of at least {min_side}×{min_side} pixels, not {a.shape[-1]}×{a.shape[-2]}"
        )
    if not (math.isfinite(data_range) and data_range > 0):
        raise UsageError(
            f"{what}: data_range must be the largest possible pixel value (1.0 or 255), not {data_range!r}"
        )
    highest = 0.0
    for name, x in (("a", a), ("b", b)):
        # Picture by picture: each stays in cache for its second pass.
        ends = [torch.aminmax(one.detach()) for one in x]
        low, high = (min((float(e[0]) for e in ends), default=0.0), max((float(e[1]) for e in ends), default=0.0))
        # Written so that NaN fails as well.
        if not all(float(e[0]) >= 0 and float(e[1]) <= data_range for e in ends):
            raise UsageError(
                f"{what}: values of {name} must lie in [0, {data_range:g}] (data_range), but they span {low:g} … {high:g}"
            )
        highest = max(highest, high)
    if data_range > 1 and 0 < highest <= 1 and any(bool((x != x.round()).any()) for x in (a, b)):
        raise UsageError(
            f"{what}: data_range is {data_range:g}, but a and b hold fractions up to {highest:g}; give data_range=1"
        )


def working(x: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def luminance(x: Tensor) -> Tensor:
    """ITU-R BT.601 luma 0.299 R + 0.587 G + 0.114 B: (3, H, W) → (H, W)."""
    return 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]


@lru_cache(maxsize=32)
def gaussian(size: int, sigma: float) -> Tensor:
    """Sampled Gaussian that sums to 1, (size,), float64."""
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    g = torch.exp(-(x**2) / (2 * sigma**2))
    return g / g.sum()


# Rows of a band matrix: many outputs per matrix product, little of it zeros (128 of 138 columns used per 11-tap row block).
_BLOCK = 128


@lru_cache(maxsize=32)
def _band(size: int, sigma: float, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, n + size − 1): row i holds the window at columns i … i + size − 1."""
    g = gaussian(size, sigma)
    band = torch.zeros(n, n + size - 1, dtype=torch.float64)
    for i in range(n):
        band[i, i : i + size] = g
    return band.to(device=device, dtype=dtype)


def separable_valid(x: Tensor, size: int, sigma: float) -> Tensor:
    """Gaussian-filter the last two axes, keeping only positions where the window fits: (N, H, W) → (N, H−size+1, W−size+1).

    Both passes are products with a banded matrix in blocks: on a CPU that is several times faster than a depthwise
    convolution, which in turn beats the two-dimensional window.
    """

    def blocks(n: int) -> list[tuple[int, int]]:
        return [(i, min(_BLOCK, n - i)) for i in range(0, n, _BLOCK)]

    def band(n: int) -> Tensor:
        return _band(size, sigma, n, x.dtype, x.device)

    reach = size - 1
    rows = torch.cat([x[..., i : i + n + reach] @ band(n).T for i, n in blocks(x.shape[-1] - reach)], dim=-1)
    return torch.cat([band(n) @ rows[..., i : i + n + reach, :] for i, n in blocks(x.shape[-2] - reach)], dim=-2)
