"""Differentiable transforms that attacks (expectation over transformations) and purifiers share.

Each is a callable on float tensors (B, 3, H, W), RGB in [0, 1], with an optional `torch.Generator` (or one per image), and
returns the same shape. Needs torch.
"""

from __future__ import annotations

from .base import Generators, Transform
from .eot import EOT, PerImage, Random, editshield_eot, standard_eot
from .geometry import CropResize, Resize, Rotation, resize_to
from .jpeg import JPEG, quantisation_tables
from .pixel import BitDepth, Blur, Identity, Noise, gaussian_kernel

__all__ = [
    "EOT",
    "JPEG",
    "BitDepth",
    "Blur",
    "CropResize",
    "Generators",
    "Identity",
    "Noise",
    "PerImage",
    "Random",
    "Resize",
    "Rotation",
    "Transform",
    "editshield_eot",
    "gaussian_kernel",
    "quantisation_tables",
    "resize_to",
    "standard_eot",
]
