"""Blur, noise and bit depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from .base import Generators, Transform, normal, round_ste

__all__ = ["BitDepth", "Blur", "Identity", "Noise", "gaussian_kernel"]


def gaussian_kernel(size: int, sigma: float, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sampled Gaussian of odd length `size` that sums to 1 (size,)."""
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    g = torch.exp(-(x**2) / (2 * sigma**2))
    return (g / g.sum()).to(dtype)


@dataclass(frozen=True)
class Identity(Transform):
    """Nothing; one of the choices of an expectation over transformations."""

    kind: ClassVar[str] = "identity"

    def apply(self, x: Tensor, generator: Generators) -> Tensor:  # noqa: ARG002 - deterministic
        return x


@dataclass(frozen=True)
class Blur(Transform):
    """Normalised Gaussian blur, separable; pixels beyond the border repeat the edge.

    Args:
        sigma: standard deviation in pixels, > 0.
        size: odd kernel length, or None for 2⌈3σ⌉ + 1. EditShield's kernel is size 5, sigma 1.5 (its code leaves it
            unnormalised, which darkens nothing here).
    """

    kind: ClassVar[str] = "blur"
    sigma: float = 1.0
    size: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"sigma must be a positive number of pixels, not {self.sigma!r}")
        if self.size is not None and (self.size < 1 or self.size % 2 == 0):
            raise UsageError(f"size must be an odd number of pixels or None, not {self.size!r}")

    def apply(self, x: Tensor, generator: Generators) -> Tensor:  # noqa: ARG002 - deterministic
        size = self.size if self.size is not None else 2 * math.ceil(3 * self.sigma) + 1
        kernel, r = gaussian_kernel(size, self.sigma).to(x, non_blocking=True), size // 2
        rows = F.conv2d(F.pad(x, (r, r, r, r), mode="replicate").flatten(0, 1)[:, None], kernel.view(1, 1, 1, -1))
        out: Tensor = F.conv2d(rows, kernel.view(1, 1, -1, 1)).reshape(x.shape)
        return out


@dataclass(frozen=True)
class Noise(Transform):
    """Additive Gaussian noise, clamped to [0, 1].

    Args:
        sigma: standard deviation on [0, 1] pixels, ≥ 0 (0.05 as in the literature, 0.1 before upscaling).
        seed: used where the call gives no generator (every image of the batch then gets the same noise); None: the call must give one.
    """

    kind: ClassVar[str] = "noise"
    sigma: float = 0.05
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise UsageError(f"sigma must be a number ≥ 0 on [0, 1] pixels, not {self.sigma!r}")

    def apply(self, x: Tensor, generator: Generators) -> Tensor:
        if generator is None and self.seed is not None:
            drawn = normal((1, *x.shape[1:]), torch.Generator().manual_seed(self.seed), x)
        else:
            drawn = normal(tuple(x.shape), generator, x)
        return (x + self.sigma * drawn).clamp(0, 1)


@dataclass(frozen=True)
class BitDepth(Transform):
    """Round each channel to 2^bits levels; the gradient passes straight through.

    Args:
        bits: 1–8.
    """

    kind: ClassVar[str] = "bit-depth"
    bits: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise UsageError(f"bits must be a whole number from 1 to 8, not {self.bits!r}")

    def apply(self, x: Tensor, generator: Generators) -> Tensor:  # noqa: ARG002 - deterministic
        levels = 2**self.bits - 1
        return round_ste(x.clamp(0, 1) * levels).div(levels)
