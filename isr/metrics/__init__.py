"""Image metrics: between the edit of an immunized image and the control edit, or between the immunized image and the original.

PSNR, SSIM, VIFp and FSIM are computed here in plain torch; LPIPS, FID, generative precision and the CLIP score need weights
that must already lie in the user's caches, and are `NotAvailable` with the reason otherwise. Needs torch.

>>> from isr.metrics import compute
>>> result = compute(["psnr", "ssim"], edits, control_edits)       # doctest: +SKIP
>>> result["ssim"].values, result["ssim"].convention               # doctest: +SKIP
"""

from __future__ import annotations

from .compute import METRICS, Metric, compute, metric_names
from .features import frechet_distance, precision
from .fsim import fsim, fsimc
from .psnr import psnr
from .result import MetricResult, NotAvailable
from .ssim import ssim
from .vif import vifp

__all__ = [
    "METRICS",
    "Metric",
    "MetricResult",
    "NotAvailable",
    "compute",
    "frechet_distance",
    "fsim",
    "fsimc",
    "metric_names",
    "precision",
    "psnr",
    "ssim",
    "vifp",
]
