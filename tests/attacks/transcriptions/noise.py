"""The random-noise baseline: δ ~ U(−ε, ε) per pixel and channel, or δ = ε·Rademacher; clipped to pixels and saved in 8 bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def noisy_bytes(clean: Tensor, random: Tensor, kind: str, eps: float) -> Tensor:
    """What the saved file holds.

    Args:
        clean: (3, H, W) bytes as integers. random: (3, H, W): numbers on [0, 1) for "uniform", −1 or +1 for "sign".
        eps: on [0, 1]; with 0.03 at most 7 levels may change, as 8/255 > 0.03.
    """
    out = torch.empty_like(clean)
    most = math.floor(eps * 255 + 1e-9)
    for c in range(clean.shape[0]):
        for i in range(clean.shape[1]):
            for j in range(clean.shape[2]):
                r, old = float(random[c, i, j]), int(clean[c, i, j])
                delta = (2 * r - 1) * eps if kind == "uniform" else r * eps
                level = round(min(1.0, max(0.0, old / 255 + delta)) * 255)
                out[c, i, j] = min(max(level, old - most), old + most)
    return out
