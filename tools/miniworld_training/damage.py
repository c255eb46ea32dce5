"""How damaged an edit is, where its exact target is known: the training target of the referees' degradation heads.

An edit mixes the picture before and the picture asked for; whatever looks like neither is damage. Structure alone counts
(the contrast-structure term of SSIM, Wang et al. 2004), so that an edit that was not followed is not damaged for that.
Only training sees targets: a referee reads the edit and its original.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from isr.metrics.pairs import luminance
from isr.transforms.pixel import gaussian_kernel

__all__ = ["MEASURES", "Measure", "severity"]


@dataclass(frozen=True)
class Measure:
    """sigma: of the window, in pixels. floor: contrast (of 0 to 1) below which differences stop counting. gray: luminance alone."""

    sigma: float
    floor: float
    gray: bool = False


#: Each referee learns another measure of the same thing.
MEASURES = {"a": Measure(2.5, 0.1), "b": Measure(1.0, 0.05, gray=True), "c": Measure(1.5, 0.05)}


@lru_cache
def _blurring(size: int, sigma: float) -> torch.Tensor:
    """(size, size): the matrix that blurs a line, reflected at its ends. A convolution of one channel is far slower."""
    radius = int(3 * sigma + 0.5)
    line = gaussian_kernel(2 * radius + 1, sigma)
    rows = F.pad(torch.eye(size)[:, None], (radius, radius), mode="reflect")
    return F.conv1d(rows, line.to(rows).view(1, 1, -1))[:, 0].T.contiguous()


def _blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    down, across = (_blurring(n, sigma).to(x) for n in x.shape[-2:])
    return down @ x @ across.T


def _apart(x: torch.Tensor, y: torch.Tensor, measure: Measure) -> torch.Tensor:
    """1 − contrast-structure similarity at every pixel, mean over channels: (B, 1, H, W), 0 to 2."""
    mean_x, mean_y = _blur(x, measure.sigma), _blur(y, measure.sigma)
    var_x, var_y = _blur(x * x, measure.sigma) - mean_x**2, _blur(y * y, measure.sigma) - mean_y**2
    both = _blur(x * y, measure.sigma) - mean_x * mean_y
    c = measure.floor**2
    return (1 - (2 * both + c) / (var_x + var_y + c)).mean(1, keepdim=True).clamp(min=0)


def severity(seen: torch.Tensor, before: torch.Tensor, asked: torch.Tensor, measure: Measure) -> torch.Tensor:
    """Damage of every 4×4 pixels, (B, 16, 16): how far the structure is from the nearer of the two true pictures.

    Args:
        seen, before, asked: the edit, its source and its target, (B, 3, 64, 64) in [−1, 1].
    """
    parts = [(x + 1) / 2 for x in (seen, before, asked)]
    y, source, target = [luminance(x.movedim(1, 0))[:, None] for x in parts] if measure.gray else parts
    apart = torch.minimum(_apart(y, source, measure), _apart(y, target, measure))
    return F.avg_pool2d(apart, 4)[:, 0]
