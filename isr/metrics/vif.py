"""Visual information fidelity in the pixel domain (Sheikh & Bovik 2006; the authors' pixel-domain release)."""

from __future__ import annotations

import torch
from torch import Tensor

from .pairs import check_pair, luminance, separable_valid, working

__all__ = ["VIFP_CONVENTION", "vifp"]

NOISE = 2.0  # σ_n², variance of the visual noise on the 0–255 scale
MIN_SIDE = 41  # the smallest side that leaves one position at the fourth scale
VIFP_CONVENTION = (
    "BT.601 luminance on the 0–255 scale; 4 scales, Gaussian windows 17, 9, 5, 3 with σ = size/5, valid crop; σ_n² = 2; "
    "a is the judged picture, b the reference (not symmetric)"
)
_TINY = 1e-8


def vifp(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> Tensor:
    """VIF-p per picture: information about the reference b left in a, over the information in b. ≥ 0, 1 for identical
    pictures, above 1 where a has more contrast than b. Not symmetric.

    Args:
        a: the judged picture, float (B, 3, H, W), RGB in [0, data_range], sides ≥ 41. b: the reference.
        data_range: 1.0 or 255; values are brought to 0–255 before anything is computed.

    Returns:
        (B,), float32 (float64 for float64 input); NaN where the reference holds no information (constant): 0/0. Equals
        piq's `vif_p` and torchmetrics' on luminance × 255 elsewhere.
    """
    check_pair(a, b, data_range=data_range, min_side=MIN_SIDE, what="vifp")
    return _vifp(a, b, data_range)


def _vifp(a: Tensor, b: Tensor, data_range: float) -> Tensor:
    out = []
    for x, y in zip(a, b, strict=True):
        pair = torch.stack([luminance(working(y)), luminance(working(x))]) * (255 / data_range)
        constant = bool(pair[0].amax() == pair[0].amin())
        out.append(pair.new_tensor(float("nan")) if constant else _one(pair))
    return torch.stack(out) if out else working(a).new_zeros(0)


def _one(pair: Tensor) -> Tensor:
    """pair (2, H, W): reference, judged."""
    top = bottom = pair.new_zeros(())
    for size in (17, 9, 5, 3):
        if size < 17:
            pair = separable_valid(pair, size, size / 5)[:, ::2, ::2]
        planes = torch.cat([pair, pair * pair, (pair[0] * pair[1])[None]])
        mr, md, err, edd, erd = separable_valid(planes, size, size / 5)
        var_r, var_d = (err - mr * mr).clamp_min(0), (edd - md * md).clamp_min(0)
        cov = erd - mr * md
        # Channel model d = g·r + v (Eq. 15 ff. of the paper), with the authors' limits where a variance vanishes or g < 0.
        gain = cov / (var_r + _TINY)
        rest = var_d - gain * cov
        flat = var_r < _TINY
        gain, rest, var_r = gain.masked_fill(flat, 0), torch.where(flat, var_d, rest), var_r.masked_fill(flat, 0)
        dull = var_d < _TINY
        gain, rest = gain.masked_fill(dull, 0), rest.masked_fill(dull, 0)
        against = gain < 0
        rest, gain = torch.where(against, var_d, rest), gain.clamp_min(0)
        rest = rest.clamp_min(_TINY)
        # Both sums in one base; their ratio does not depend on it.
        top = top + torch.log1p(gain * gain * var_r / (rest + NOISE)).sum()
        bottom = bottom + torch.log1p(var_r / NOISE).sum()
    return top / bottom
