"""What every transform shares: the callable, its settings, the input check, and random draws that do not depend on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UsageError

__all__ = ["Generators", "Transform", "check_pixels", "normal", "round_ste"]

#: One generator for the batch, or one per image (then image i is the same alone and in any batch), or None.
Generators = torch.Generator | Sequence[torch.Generator] | None


def check_pixels(x: Tensor, what: str = "x") -> None:
    """Raise unless `x` is a float tensor (B, 3, H, W) with at least one pixel. The range [0, 1] is the caller's promise: an
    optimiser's iterate may leave it by rounding, and a check of every value would cost a synchronisation per call."""
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != 3 or x.shape[2] < 1 or x.shape[3] < 1:
        came = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(f"{what} must be a tensor (B, 3, H, W) of RGB pixels, not {came}")
    if not x.is_floating_point():
        raise UsageError(
            f"{what} must be a float tensor with values in [0, 1], not {x.dtype}; divide 8-bit pixels by 255"
        )


def round_ste(x: Tensor, bias: float | Tensor = 0.5) -> Tensor:
    """floor(x + bias) forward, the identity backward (straight-through). The default bias rounds halves up."""
    return x + (torch.floor(x + bias) - x).detach()


def normal(shape: tuple[int, ...], generator: Generators, like: Tensor) -> Tensor:
    """Standard normal numbers of `shape`, drawn on the CPU in float32 so that every device gets the same ones.

    With a sequence of generators, generator i fills item i; its length must be shape[0].
    """
    if generator is None:
        raise UsageError(
            "this transform draws random numbers: give generator=torch.Generator().manual_seed(…) or seed="
        )
    if isinstance(generator, torch.Generator):
        drawn = torch.randn(shape, generator=generator, device=generator.device)
    else:
        if len(generator) != shape[0]:
            raise UsageError(
                f"generator must hold one generator per image: {shape[0]} images, {len(generator)} generators"
            )
        drawn = torch.stack([torch.randn(shape[1:], generator=g, device=g.device).to("cpu") for g in generator])
    return drawn.to(device=like.device, dtype=like.dtype, non_blocking=True)


@dataclass(frozen=True)
class Transform:
    """A picture-to-picture map on float tensors (B, 3, H, W), RGB in [0, 1], same shape out; differentiable in x.

    Subclasses are frozen dataclasses (their fields are the settings) and define `apply`. The same object on the same
    input with generators in the same state gives the same output.
    """

    kind: ClassVar[str] = "transform"

    def __call__(self, x: Tensor, generator: Generators = None) -> Tensor:
        """Apply to x (B, 3, H, W). `generator` is used only by transforms that draw random numbers."""
        check_pixels(x)
        return self.apply(x, generator)

    def apply(self, x: Tensor, generator: Generators) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define apply(x, generator)")

    def settings(self) -> dict[str, Any]:
        """JSON-able: the kind and every field."""
        return {"transform": self.kind, **{f.name: getattr(self, f.name) for f in fields(self)}}
