"""Differentiable JPEG: the steps of the standard (ITU-T T.81, JFIF) in torch, with libjpeg's conventions.

The forward pass with `rounding="ste"` follows what libjpeg(-turbo) does to 8-bit pixels, every integer rounding included:
RGB → YCbCr, chroma averaged over 2×2 (4:2:0), 8×8 DCT, division by the scaled tables of Annex K, rounding, and the way
back with the triangle ("fancy") chroma upsampling. Compared with Pillow in tests/transforms/test_transforms_jpeg.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from .base import Generators, Transform, round_ste

__all__ = ["JPEG", "Rounding", "Subsampling", "quantisation_tables"]

Rounding = Literal["ste", "cubic"]
Subsampling = Literal["4:2:0", "4:4:4"]

# T.81 Annex K, tables K.1 (luminance) and K.2 (chrominance), row-major.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)  # fmt: skip


def quantisation_tables(quality: int) -> tuple[Tensor, Tensor]:
    """Luminance and chrominance tables (8, 8) at a libjpeg quality 1–100: (base · s + 50) // 100 in [1, 255], with
    s = 5000 // q below 50 and 200 − 2q from 50 on."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(  # type: ignore[return-value]
        torch.tensor([min(255, max(1, (v * scale + 50) // 100)) for v in base], dtype=torch.float32).reshape(8, 8)
        for base in (_LUMINANCE, _CHROMINANCE)
    )


@cache
def _dct() -> Tensor:
    """Orthonormal DCT-II matrix (8, 8): T.81 A.3.3 is D X Dᵀ."""
    n = torch.arange(8, dtype=torch.float64)
    d = torch.cos((2 * n[None, :] + 1) * n[:, None] * math.pi / 16) / 2
    d[0] /= math.sqrt(2)
    return d.float()


def _quantise(coefficients: Tensor, table: Tensor, rounding: Rounding) -> Tensor:
    """Coefficients after division by the table, rounding and multiplication back."""
    if rounding == "ste":
        # The codec's integer DCT yields eighths, so ties are common; it rounds them away from zero.
        coefficients = round_ste(coefficients * 8) / 8
    scaled = coefficients / table
    nearest = (scaled.abs() + 0.5).floor().mul(scaled.sign()).detach()
    if rounding == "ste":
        return (scaled + (nearest - scaled).detach()) * table
    # Shin & Song 2017: the nearest integer plus the cube of what is left; its slope vanishes only at the integers.
    return (nearest + (scaled - nearest) ** 3) * table


def _code(plane: Tensor, table: Tensor, rounding: Rounding) -> Tensor:
    """One component (B, H, W), sides multiples of 8, values 0–255, through DCT and quantisation and back, not clamped."""
    b, h, w = plane.shape
    d, table = _dct().to(plane), table.to(plane)
    blocks = (plane - 128).reshape(b, h // 8, 8, w // 8, 8).transpose(2, 3)
    back = d.T @ _quantise(d @ blocks @ d.T, table, rounding) @ d
    return back.transpose(2, 3).reshape(b, h, w) + 128


def _pad(x: Tensor, right: int, bottom: int) -> Tensor:
    """Repeat the last column and row; x is (B, C, H, W)."""
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if right or bottom else x


@dataclass(frozen=True)
class JPEG(Transform):
    """Baseline JPEG at a libjpeg quality, in and out as RGB in [0, 1] (values outside are clamped).

    Args:
        quality: 1–100, as in Pillow's `save(quality=)`.
        rounding: "ste" rounds exactly as the codec does and passes the gradient straight through every rounding; "cubic"
            replaces the coefficient rounding by round(x) + (x − round(x))³ and leaves all 8-bit roundings out (smooth,
            but not what a file holds).
        subsampling: "4:2:0" (Pillow's default) or "4:4:4".

    Gradient: zero where a value is clamped; half precision is computed in float32.
    """

    kind: ClassVar[str] = "jpeg"
    quality: int = 75
    rounding: Rounding = "ste"
    subsampling: Subsampling = "4:2:0"

    def __post_init__(self) -> None:
        if isinstance(self.quality, bool) or not isinstance(self.quality, int) or not 1 <= self.quality <= 100:
            raise UsageError(f"quality must be a whole number from 1 to 100, not {self.quality!r}")
        if self.rounding not in get_args(Rounding):
            raise UsageError(f"rounding must be 'ste' or 'cubic', not {self.rounding!r}")
        if self.subsampling not in get_args(Subsampling):
            raise UsageError(f"subsampling must be '4:2:0' or '4:4:4', not {self.subsampling!r}")

    def _integer(self, x: Tensor, bias: float | Tensor = 0.5) -> Tensor:
        return round_ste(x, bias) if self.rounding == "ste" else x

    def _chroma_down(self, planes: Tensor) -> Tensor:
        """2×2 means (B, 2, h, w); the codec rounds them with biases 1, 2, 1, 2 … quarters along a row."""
        means = F.avg_pool2d(planes, 2)
        bias = torch.tensor([0.25, 0.5], device=planes.device).repeat((means.shape[-1] + 1) // 2)[: means.shape[-1]]
        return self._integer(means, bias.to(means))

    def _chroma_up(self, planes: Tensor) -> Tensor:
        """Triangle filter, weights 9/16, 3/16, 3/16, 1/16; sixteenths are rounded with biases 8, 7, 8, 7 … along a row."""
        grown = F.interpolate(planes, scale_factor=2, mode="bilinear", align_corners=False)
        bias = torch.tensor([8 / 16, 7 / 16], device=planes.device).repeat(grown.shape[-1] // 2)
        return self._integer(grown, bias.to(grown))

    def apply(self, x: Tensor, generator: Generators) -> Tensor:  # noqa: ARG002 - deterministic
        dtype = x.dtype
        if dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        h, w = x.shape[-2:]
        halved = self.subsampling == "4:2:0"
        unit = 16 if halved else 8
        rgb = self._integer(x.clamp(0, 1) * 255)
        # libjpeg widens rows at full resolution and lengthens columns after the subsampling.
        rgb = _pad(rgb, -w % unit, h % 2 if halved else 0)
        r, g, bl = rgb.unbind(1)
        y = self._integer(0.299 * r + 0.587 * g + 0.114 * bl)
        chroma = self._integer(
            torch.stack(
                [
                    128 - 0.168735892 * r - 0.331264108 * g + 0.5 * bl,
                    128 + 0.5 * r - 0.418687589 * g - 0.081312411 * bl,
                ],
                dim=1,
            )
        )
        if halved:
            chroma = self._chroma_down(chroma)
        luma_table, chroma_table = quantisation_tables(self.quality)
        y = _pad(y[:, None], 0, -y.shape[-2] % 8)
        ch, cw = (-(-h // 2), -(-w // 2)) if halved else (h, w)
        chroma = _pad(chroma, 0, -chroma.shape[-2] % 8)
        y = self._integer(_code(y[:, 0], luma_table, self.rounding)).clamp(0, 255)[:, :h, :w]
        coded = _code(chroma.flatten(0, 1), chroma_table, self.rounding).reshape(chroma.shape)
        chroma = self._integer(coded).clamp(0, 255)[..., :ch, :cw]
        if halved:
            chroma = self._chroma_up(chroma)[..., :h, :w]
        cb, cr = (chroma - 128).unbind(1)
        out = torch.stack(
            [
                y + self._integer(1.402 * cr),
                y + self._integer(-0.344136286 * cb - 0.714136286 * cr),
                y + self._integer(1.772 * cb),
            ],
            dim=1,
        )
        return (out.clamp(0, 255) / 255).to(dtype)
