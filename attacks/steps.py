"""The arithmetic of one PGD step, as pure functions on perturbations δ (B, 3, H, W), float."""

from __future__ import annotations

import torch
from torch import Tensor

from .context import Draws
from .settings import PGDSettings

__all__ = ["Moments", "clip_pixels", "descend", "first_delta", "norms", "project"]

#: Adam's running moments: (first, second), each (B, 3, H, W).
Moments = tuple[Tensor, Tensor]
_BETA1, _BETA2, _ADAM_EPS = 0.9, 0.999, 1e-8


def norms(delta: Tensor) -> Tensor:
    """Euclidean norm per picture, (B, 1, 1, 1)."""
    size: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
    return size


def project(delta: Tensor, settings: PGDSettings) -> Tensor:
    """Onto the ball: clip to ±ε (L∞), or shorten to length ε (L2)."""
    if settings.norm == "linf":
        return delta.clamp(-settings.eps, settings.eps)
    size = norms(delta)
    return torch.where(size > settings.eps, delta * (settings.eps / size.clamp_min(1e-30)), delta)


def clip_pixels(delta: Tensor, clean: Tensor, settings: PGDSettings) -> tuple[Tensor, Tensor]:
    """(δ, x): x = clip₀₁(clean + δ); with `reclip`, δ is first put to what the clipped pixels differ by.

    x is always computed from the returned δ, so that a resumed run sees the same bits.
    """
    if settings.reclip:
        delta = (clean + delta).clamp(0, 1) - clean
    return delta, (clean + delta).clamp(0, 1)


def first_delta(clean: Tensor, settings: PGDSettings, draws: Draws) -> Tensor:
    """Where the walk starts; draws "start" (uniform on [−1, 1), or normal for an L2 ball) unless it is zero."""
    shape = clean.shape[1:]
    if settings.start == "zero":
        return torch.zeros_like(clean)
    if settings.start == "small":
        return project(settings.start_radius * draws.uniform("start", shape, clean, -1.0, 1.0), settings)
    if settings.norm == "linf":
        return settings.eps * draws.uniform("start", shape, clean, -1.0, 1.0)
    direction = draws.normal("start", shape, clean)
    length = draws.uniform("start_radius", (1, 1, 1), clean).to(torch.float64) ** (1.0 / direction[0].numel())
    return direction / norms(direction) * settings.eps * length.to(clean.dtype)


def descend(
    delta: Tensor, gradient: Tensor, settings: PGDSettings, iteration: int, moments: Moments | None = None
) -> tuple[Tensor, Moments | None]:
    """One step against the gradient, before projection. A zero gradient moves nothing.

    Returns:
        (new δ, Adam's moments or None).
    """
    rate = settings.rate(iteration)
    if settings.step == "sign":
        return delta - rate * gradient.sign(), None
    if settings.step == "normalised":
        return delta - rate * gradient / norms(gradient).clamp_min(1e-30), None
    first, second = moments if moments is not None else (torch.zeros_like(delta), torch.zeros_like(delta))
    first = _BETA1 * first + (1 - _BETA1) * gradient
    second = _BETA2 * second + (1 - _BETA2) * gradient.square()
    done = iteration + 1
    update = (first / (1 - _BETA1**done)) / ((second / (1 - _BETA2**done)).sqrt() + _ADAM_EPS)
    return delta - rate * update, (first, second)
