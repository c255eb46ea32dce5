"""Pictures to tensors and back, sizes, batches of one size, and the noise that belongs to each picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F

from isr.errors import UsageError

__all__ = ["batches", "generator_of", "resized", "to_pictures", "to_pixels", "wide"]


def to_pixels(images: Sequence[PIL.Image.Image]) -> torch.Tensor:
    """8-bit RGB pictures of one size → (B, 3, H, W) float32 in [0, 1]."""
    stacked = np.stack([np.asarray(image, dtype=np.uint8) for image in images])
    return torch.from_numpy(stacked.astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()


def to_pictures(x: torch.Tensor) -> list[PIL.Image.Image]:
    """(B, 3, H, W) → 8-bit RGB pictures: clamp to [0, 1], times 255, round half to even."""
    if not torch.isfinite(x).all():
        raise UsageError(
            "the editor produced pixels that are not finite (a half-precision overflow?); use dtype='float32' or 'bfloat16'"
        )
    array = (x.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(picture) for picture in array]


def wide(values: torch.Tensor) -> torch.Tensor:
    """As float32; float64 stays (gradients against finite differences)."""
    return values if values.dtype == torch.float64 else values.float()


def resized(x: torch.Tensor, size: tuple[int, int], *, clamp: bool = True) -> torch.Tensor:
    """Antialiased bicubic to (height, width); overshoot is cut to [0, 1] where `clamp`. Differentiable."""
    if tuple(x.shape[-2:]) == size:
        return x
    y = F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)
    return y.clamp(0, 1) if clamp else y


def batches(sizes: Sequence[tuple[int, int]], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of one picture size each, in order of first appearance."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def generator_of(seed: int) -> torch.Generator:
    """A CPU generator of one picture, so that every device draws the same noise."""
    return torch.Generator().manual_seed(int(seed))
