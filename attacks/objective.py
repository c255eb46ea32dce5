"""What an attack is: an objective to make small, and settings. Everything else is `PGD`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from isr.errors import UsageError
from isr.protocols import Editor, WhiteBoxEditor

from .context import Context, require
from .record import plain
from .validation import check_types, own_numbers

__all__ = ["Objective", "unit", "value_and_gradient"]


@dataclass(frozen=True)
class Objective:
    """Base of every objective: a frozen dataclass whose fields are its options; state lives in `context.cache`.

    Subclasses define `__call__` and, where something of the clean picture is to be computed once, `prepare`.

    Class attributes:
        method: its name in errors. needs: the surface it uses, whatever its options (checked before anything runs).
        unrecorded: options that decide time and memory alone, so that records and checkpoints do not depend on them.

    A subclass's `__post_init__` calls `super().__post_init__()`.
    """

    method: ClassVar[str] = "attack"
    needs: ClassVar[tuple[str, ...]] = ("latents",)
    unrecorded: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        own_numbers(self)
        check_types(type(self), {f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @property
    def stochastic(self) -> bool:
        """Whether two evaluations at the same x may differ; `patience` then compares means. (A class attribute will do.)"""
        return True

    @property
    def cycle(self) -> int:
        """Iterations after which it asks the same again (a pool of prompts in turn); 1: every iteration asks the same."""
        return 1

    def options(self) -> dict[str, Any]:
        """The fields but `unrecorded` ones, JSON-able (see `isr.attacks.record`)."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in self.unrecorded]
        return {name: plain(getattr(self, name)) for name in names}

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        """The editor, or the error that says why this method, with these options, is not defined for it."""
        return require(self.method, editor, self.needs)

    def check_prompts(self, editor: WhiteBoxEditor, prompts: Sequence[str]) -> None:
        """Raises UsageError for a prompt that this method, with these options, cannot use. Asked for all prompts before anything is made."""

    def members(self, editor: WhiteBoxEditor) -> Sequence[WhiteBoxEditor]:
        """Every editor that will see the pictures, the given one first."""
        return (editor,)

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
        (found,) = torch.autograd.grad(losses.sum() * context.loss_scale, x)
        return losses.detach(), found / context.loss_scale


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
