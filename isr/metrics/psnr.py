"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from .pairs import check_pair, working

__all__ = ["PSNR_CONVENTION", "psnr"]

PSNR_CONVENTION = "RGB, one MSE over all pixels and channels, 10·log10(range²/MSE) in dB; identical pictures: inf"


def psnr(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> Tensor:
    """PSNR in dB per picture.

    Args:
        a, b: float (B, 3, H, W), RGB in [0, data_range]. data_range: 1.0 or 255.

    Returns:
        (B,), float32 (float64 for float64 input); inf for identical pictures. Symmetric. Equals scikit-image's
        `peak_signal_noise_ratio`, torchmetrics' and piq's (piq saturates near 80 dB, this does not).
    """
    check_pair(a, b, data_range=data_range, min_side=1, what="psnr")
    return _psnr(a, b, data_range)


def _psnr(a: Tensor, b: Tensor, data_range: float) -> Tensor:
    graph = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    scratch = None if graph or not len(a) else torch.empty_like(working(a[0]))
    out = []
    for x, y in zip(a, b, strict=True):
        # One buffer for all differences: fresh pages for each would cost more than the arithmetic.
        d = torch.sub(working(x), working(y), out=scratch).reshape(-1)
        out.append(torch.dot(d, d) / d.numel())
    mse = torch.stack(out) if out else working(a).new_zeros(0)
    return 10 * torch.log10(data_range**2 / mse)
