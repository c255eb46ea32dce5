"""What an attack is: an objective to make small, and settings. Everything else is `PGD`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from isr.errors import UsageError
from isr.protocols import Editor, WhiteBoxEditor

from .context import Context, require

__all__ = ["Objective", "unit", "value_and_gradient"]


@dataclass(frozen=True)
class Objective:
    """Base of every objective: a frozen dataclass whose fields are its options; state lives in `context.cache`.

    Subclasses define `__call__` and, where something of the clean picture is to be computed once, `prepare`.

    Class attributes:
        method: its name in errors. needs: the surface it uses (checked before anything runs).
        stochastic: whether two evaluations at the same x may differ.
    """

    method: ClassVar[str] = "attack"
    needs: ClassVar[tuple[str, ...]] = ("latents",)
    stochastic: ClassVar[bool] = True

    def options(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        """The editor, or the error that says why this method is not defined for it."""
        return require(self.method, editor, self.needs)

    def prepare(self, context: Context) -> None:
        """Called once per batch, before the first iteration: cache clean features, draw what stays fixed."""

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """Losses (B,), to be minimised, of pictures x (B, 3, H, W) in [0, 1]; loss i depends on picture i only."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(x, context)")

    def gradient(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """(losses (B,), gradient (B, 3, H, W)) at x, which requires grad. Override only for what is not the gradient of
        one loss (two terms balanced against each other)."""
        losses = self(x, context)
        if losses.shape != (len(x),):
            raise UsageError(
                f"{type(self).__name__} must return losses of shape ({len(x)},), not {tuple(losses.shape)}"
            )
        scale = float(context.cache.get("loss_scale", 1.0))
        (found,) = torch.autograd.grad(losses.sum() * scale, x)
        return losses.detach(), found / scale


def value_and_gradient(objective: Objective, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Losses (B,) and their gradient (B, 3, H, W) with respect to the pixels, both detached."""
    with torch.enable_grad():
        values, gradient = objective.gradient(x.detach().requires_grad_(True), context)
    return values.detach(), gradient.detach()


def unit(gradient: Tensor) -> Tensor:
    """Divided by its L1 norm per picture; 0 stays 0."""
    size = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
    return torch.where(
        size > 0, gradient / size.clamp_min(torch.finfo(gradient.dtype).tiny), torch.zeros_like(gradient)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    settings = getattr(value, "settings", None)
    if callable(settings):
        return _plain(settings())
    # Pictures (targets) are recorded by what they show, as everything else is.
    tobytes = getattr(value, "tobytes", None)
    if callable(tobytes):
        import hashlib

        return f"picture:{hashlib.sha256(tobytes()).hexdigest()[:16]}"
    return repr(value)
