"""Wrappers around any method: transformations (EOT), pools of prompts, ensembles of editors. Each is an objective itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from isr.errors import UsageError
from isr.protocols import Editor, WhiteBoxEditor
from isr.transforms import standard_eot

from .context import Context
from .objective import Objective, unit
from .pgd import PGD

__all__ = ["EOT", "EditorEnsemble", "PromptPool", "with_editors", "with_eot", "with_prompts"]


class _Wrapper(Objective):
    """Shared by wrappers: the inner objective decides what is needed and how a gradient is taken."""

    inner: Objective

    def options(self) -> dict[str, Any]:
        return {**super().options(), "inner": {"objective": type(self.inner).__name__, **self.inner.options()}}

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        return self.inner.check(editor)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} gives gradients, not one loss; call gradient(x, context)")


@dataclass(frozen=True)
class EOT(_Wrapper):
    """Expectation over transformations (Athalye et al. 2018): the gradient through τ(x), averaged over `samples` draws.

    Each draw and picture has its own τ. Clean features stay those of the untransformed picture. Cost: `samples` × the inner
    method. (EditShield draws its own transformations; do not wrap it.)

    Options:
        transforms: a distribution of `isr.transforms` (sample_each), or any callable (pixels (1, 3, H, W), generator) →
            pixels of the same shape; None: `standard_eot()`. samples: draws per iteration.
    """

    method: ClassVar[str] = "eot"

    inner: Objective = field(default_factory=Objective)
    transforms: Any = None
    samples: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"samples must be at least 1, not {self.samples!r}")

    def prepare(self, context: Context) -> None:
        self.inner.prepare(context)

    def gradient(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        total_loss, total = torch.zeros(len(x), device=x.device, dtype=x.dtype), torch.zeros_like(x)
        for _ in range(self.samples):
            y = self._transform(x, context)
            losses, outer = self.inner.gradient(y.detach().requires_grad_(True), context)
            (pulled,) = torch.autograd.grad(y, x, outer.to(y.dtype))
            total_loss, total = total_loss + losses, total + pulled
        return total_loss / self.samples, total / self.samples

    def _transform(self, x: Tensor, context: Context) -> Tensor:
        chosen, generators = self.transforms or standard_eot(), context.draws.generators
        if hasattr(chosen, "sample_each"):
            y = chosen.sample_each(generators)(x, generators)
        else:
            y = torch.cat([chosen(x[i : i + 1], g) for i, g in enumerate(generators)])
        if y.shape != x.shape:
            raise UsageError(f"an EOT transform must keep the shape {tuple(x.shape)}, but gave {tuple(y.shape)}")
        # y must hang on x even if the identity was drawn.
        return y + 0 * x


class _Members(_Wrapper):
    """Several child contexts, each with clean features of its own."""

    def _children(self, context: Context) -> list[Context]:
        raise NotImplementedError

    def prepare(self, context: Context) -> None:
        children = self._children(context)
        for child in children:
            child.cache["loss_scale"] = context.cache.get("loss_scale", 1.0)
            self.inner.prepare(child)
        context.cache["children"] = children

    def _of(self, child: Context, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        child.iteration, child.iterations = context.iteration, context.iterations
        at = x.detach().to(child.editor.device).requires_grad_(True)
        losses, gradient = self.inner.gradient(at, child)
        return losses.to(x.device), gradient.to(x)


@dataclass(frozen=True)
class PromptPool(_Members):
    """Several prompts instead of one, for protection against prompts that were not foreseen.

    Options:
        prompts: the pool, for every picture; "" is no prompt. own: the picture's own prompt is in the pool too.
        mode: "cycle" (one prompt per iteration, in turn: costs nothing extra) or "all" (mean gradient over the pool).
    """

    method: ClassVar[str] = "prompt-pool"

    inner: Objective = field(default_factory=Objective)
    prompts: Sequence[str] = ()
    own: bool = True
    mode: Literal["cycle", "all"] = "cycle"

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or (not self.prompts and not self.own):
            raise UsageError(f"prompts must be a list of at least one prompt ('' for none), not {self.prompts!r}")
        if self.mode not in ("cycle", "all"):
            raise UsageError(f"mode must be 'cycle' or 'all', not {self.mode!r}")

    def _children(self, context: Context) -> list[Context]:
        own = [context.child()] if self.own else []
        return own + [context.child(prompts=[prompt] * len(context)) for prompt in self.prompts]

    def gradient(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        children: list[Context] = context.cache["children"]
        if self.mode == "cycle":
            return self._of(children[context.iteration % len(children)], x, context)
        found = [self._of(child, x, context) for child in children]
        return torch.stack([f[0] for f in found]).mean(dim=0), torch.stack([f[1] for f in found]).mean(dim=0)


@dataclass(frozen=True)
class EditorEnsemble(_Members):
    """One perturbation for several editors, for transfer: the mean of their gradients.

    The editor given to the optimiser is the first member; the others must take its working size.

    Options:
        editors: further white-box editors. balance: divide each picture's gradient by its L1 norm first, so that no editor
            drowns the others by the scale of its loss.
    """

    method: ClassVar[str] = "ensemble"

    inner: Objective = field(default_factory=Objective)
    editors: Sequence[WhiteBoxEditor] = ()
    balance: bool = True

    def __post_init__(self) -> None:
        if not self.editors:
            raise UsageError("editors must hold at least one further white-box editor")

    def options(self) -> dict[str, Any]:
        inner = {"objective": type(self.inner).__name__, **self.inner.options()}
        others = [{"name": editor.name, **editor.settings()} for editor in self.editors]
        return {"editors": others, "balance": self.balance, "inner": inner}

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        for other in self.editors:
            self.inner.check(other)
        return self.inner.check(editor)

    def _children(self, context: Context) -> list[Context]:
        return [context.child(), *(context.child(editor=other) for other in self.editors)]

    def gradient(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        found = [self._of(child, x, context) for child in context.cache["children"]]
        gradients = [unit(g) if self.balance else g for _, g in found]
        return torch.stack([f[0] for f in found]).mean(dim=0), torch.stack(gradients).mean(dim=0)


def with_eot(attack: PGD, transforms: Any = None, *, samples: int = 1) -> PGD:
    """The same attack, made to survive transformations (default: `isr.transforms.standard_eot`)."""
    return attack.with_objective(EOT(attack.objective, transforms, samples), name=f"{attack.name}+eot")


def with_prompts(
    attack: PGD, prompts: Sequence[str], *, own: bool = True, mode: Literal["cycle", "all"] = "cycle"
) -> PGD:
    """The same attack against a pool of prompts."""
    return attack.with_objective(PromptPool(attack.objective, tuple(prompts), own, mode), name=f"{attack.name}+prompts")


def with_editors(attack: PGD, editors: Sequence[WhiteBoxEditor], *, balance: bool = True) -> PGD:
    """The same attack against several editors at once (the one given to `immunize`, and these)."""
    return attack.with_objective(
        EditorEnsemble(attack.objective, tuple(editors), balance), name=f"{attack.name}+ensemble"
    )
