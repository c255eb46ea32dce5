"""Resize, crop-resize and rotation; all return the size they were given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from .base import Generators, Transform

__all__ = ["CropResize", "Mode", "Resize", "Rotation", "resize_to"]

Mode = Literal["bilinear", "bicubic", "area"]
Border = Literal["reflection", "border", "zeros"]


def _check_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise UsageError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")


def resize_to(x: Tensor, size: tuple[int, int], mode: Mode = "bilinear") -> Tensor:
    """x (B, C, H, W) at size (height, width), antialiased when it shrinks, clamped to [0, 1] (bicubic overshoots)."""
    if mode == "area":
        return F.interpolate(x, size=size, mode="area")
    out = F.interpolate(x, size=size, mode=mode, antialias=True, align_corners=False)
    return out.clamp(0, 1) if mode == "bicubic" else out


@dataclass(frozen=True)
class Resize(Transform):
    """Down by `scale` and back to the size it came in.

    Args:
        scale: 0 < scale; the intermediate sides are round(scale · side), at least 1. 0.5 is the usual attack, 0.75 the mild one.
        mode: of both steps: "bilinear", "bicubic" (antialiased) or "area" (the way back is then nearest-like).
    """

    kind: ClassVar[str] = "resize"
    scale: float = 0.5
    mode: Mode = "bilinear"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise UsageError(f"scale must be a positive number, not {self.scale!r}")
        _check_mode(self.mode)

    def apply(self, x: Tensor, generator: Generators) -> Tensor:  # noqa: ARG002 - deterministic
        h, w = x.shape[-2:]
        small = resize_to(x, (max(1, round(h * self.scale)), max(1, round(w * self.scale))), self.mode)
        return resize_to(small, (h, w), self.mode)


@dataclass(frozen=True)
class CropResize(Transform):
    """Keep a window of `fraction` of each side and enlarge it to the size it came in.

    Args:
        fraction: in (0, 1]; 0.75 is 512 → 384 (Mist's post-processing).
        mode: of the enlargement; bicubic there.
        top, left: where the free margin goes, in [0, 1]; 0.5, 0.5 is the centre.
    """

    kind: ClassVar[str] = "crop-resize"
    fraction: float = 0.75
    mode: Mode = "bicubic"
    top: float = 0.5
    left: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UsageError(f"fraction must be in (0, 1], not {self.fraction!r}")
        for name in ("top", "left"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be in [0, 1], not {getattr(self, name)!r}")
        _check_mode(self.mode)

    def apply(self, x: Tensor, generator: Generators) -> Tensor:  # noqa: ARG002 - deterministic
        h, w = x.shape[-2:]
        ch, cw = max(1, round(h * self.fraction)), max(1, round(w * self.fraction))
        i, j = round((h - ch) * self.top), round((w - cw) * self.left)
        return resize_to(x[..., i : i + ch, j : j + cw], (h, w), self.mode)


@dataclass(frozen=True)
class Rotation(Transform):
    """Rotate about the centre, bilinear, counter-clockwise for positive degrees (as Pillow).

    Args:
        degrees: EditShield uses 5.
        border: what fills the corners: "reflection", "border" (the nearest pixel) or "zeros" (black).
        back: rotate back afterwards (two resamplings, picture upright again).
    """

    kind: ClassVar[str] = "rotation"
    degrees: float = 5.0
    border: Border = "reflection"
    back: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.degrees):
            raise UsageError(f"degrees must be a finite number, not {self.degrees!r}")
        if self.border not in get_args(Border):
            raise UsageError(f"border must be one of {', '.join(get_args(Border))}, not {self.border!r}")

    def _turn(self, x: Tensor, degrees: float) -> Tensor:
        b, _, h, w = x.shape
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        # Output → input in normalised coordinates; h/w keep the angle right on pictures that are not square.
        theta = torch.tensor([[c, -s * h / w, 0.0], [s * w / h, c, 0.0]], dtype=x.dtype)
        grid = F.affine_grid(theta.to(x.device, non_blocking=True).expand(b, 2, 3), [b, 3, h, w], align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode=self.border, align_corners=False)

    def apply(self, x: Tensor, generator: Generators) -> Tensor:  # noqa: ARG002 - deterministic
        turned = self._turn(x, self.degrees)
        return self._turn(turned, -self.degrees) if self.back else turned
