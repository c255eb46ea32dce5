"""Wrappers around any method: transformations (EOT), pools of prompts, ensembles of editors. Each is an objective itself."""

from __future__ import annotations

import math
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
from .validation import at_least, one_of

__all__ = ["EOT", "EditorEnsemble", "PromptPool", "with_editors", "with_eot", "with_prompts"]


class _Wrapper(Objective):
    """Shared by wrappers: the inner objective decides what is needed and how a gradient is taken."""

    inner: Objective

    def options(self) -> dict[str, Any]:
        return {**super().options(), "inner": {"objective": type(self.inner).__name__, **self.inner.options()}}

    @property
    def stochastic(self) -> bool:
        return self.inner.stochastic

    @property
    def cycle(self) -> int:
        return self.inner.cycle

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        return self.inner.check(editor)

    def check_prompts(self, editor: WhiteBoxEditor, prompts: Sequence[str]) -> None:
        self.inner.check_prompts(editor, prompts)

    def members(self, editor: WhiteBoxEditor) -> Sequence[WhiteBoxEditor]:
        return self.inner.members(editor)

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
        super().__post_init__()
        at_least(1, samples=self.samples)
        if self.transforms is not None and not (callable(self.transforms) or hasattr(self.transforms, "sample_each")):
            raise UsageError(
                f"transforms must be a distribution of isr.transforms, a function (pixels, generator) → pixels or None, "
                f"not {self.transforms!r}"
            )

    @property
    def stochastic(self) -> bool:
        return True

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
            self.inner.prepare(child)
        context.cache["children"] = children

    def _of(self, child: Context, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        child.iteration, child.iterations, child.loss_scale = context.iteration, context.iterations, context.loss_scale
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
        super().__post_init__()
        _check_prompts(self.prompts)
        if not self.prompts and not self.own:
            raise UsageError(f"prompts must be a list of at least one prompt ('' for none), not {self.prompts!r}")
        one_of(("cycle", "all"), mode=self.mode)

    @property
    def cycle(self) -> int:
        turns = len(self.prompts) + self.own if self.mode == "cycle" else 1
        return math.lcm(turns, self.inner.cycle)

    def check_prompts(self, editor: WhiteBoxEditor, prompts: Sequence[str]) -> None:
        self.inner.check_prompts(editor, [*(prompts if self.own else ()), *self.prompts])

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

    The editor given to the optimiser is the first member; the others must take the same pictures: each side a multiple of
    every member's `size_multiple` (checked before anything is made).

    Options:
        editors: further white-box editors. balance: divide each picture's gradient by its L1 norm first, so that no editor
            drowns the others by the scale of its loss.
    """

    method: ClassVar[str] = "ensemble"

    inner: Objective = field(default_factory=Objective)
    editors: Sequence[WhiteBoxEditor] = ()
    balance: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_editors(self.editors)

    def options(self) -> dict[str, Any]:
        inner = {"objective": type(self.inner).__name__, **self.inner.options()}
        others = [{"name": editor.name, **editor.settings()} for editor in self.editors]
        return {"editors": others, "balance": self.balance, "inner": inner}

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        for other in self.editors:
            self.inner.check(other)
        return self.inner.check(editor)

    def check_prompts(self, editor: WhiteBoxEditor, prompts: Sequence[str]) -> None:
        for member in (editor, *self.editors):
            self.inner.check_prompts(member, prompts)

    def members(self, editor: WhiteBoxEditor) -> Sequence[WhiteBoxEditor]:
        return [m for one in (editor, *self.editors) for m in self.inner.members(one)]

    def _children(self, context: Context) -> list[Context]:
        return [context.child(), *(context.child(editor=other) for other in self.editors)]

    def gradient(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        found = [self._of(child, x, context) for child in context.cache["children"]]
        gradients = [unit(g) if self.balance else g for _, g in found]
        return torch.stack([f[0] for f in found]).mean(dim=0), torch.stack(gradients).mean(dim=0)


def _check_prompts(prompts: object) -> None:
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not all(isinstance(p, str) for p in prompts):
        raise UsageError(f"prompts must be a list of at least one prompt ('' for none), not {prompts!r}")


def _check_editors(editors: object) -> None:
    if isinstance(editors, str) or not isinstance(editors, Sequence) or not editors:
        raise UsageError(f"editors must be a list of at least one further white-box editor, not {editors!r}")
    for editor in editors:
        if not isinstance(editor, Editor):
            raise UsageError(f"editors must hold loaded editors (isr.editors.load_editor), not {editor!r}")


def _wrappable(attack: PGD, wrapper: str) -> PGD:
    """The attack, if there is a gradient to wrap."""
    if isinstance(attack, PGD):
        return attack
    if callable(getattr(attack, "immunize", None)):
        raise UsageError(
            f"{wrapper} wraps gradient attacks (isr.attacks.pgd.PGD: every registered one but noise), and "
            f"{getattr(attack, 'name', type(attack).__name__)!r} is none: it takes no gradient that could be averaged"
        )
    hint = "; call it first: with its settings, or ()" if callable(attack) else ""
    raise UsageError(f"{wrapper} wraps an attack that is made (isr.attacks.pgd.PGD), not {attack!r}{hint}")


def with_eot(attack: PGD, transforms: Any = None, *, samples: int = 1) -> PGD:
    """The same attack, made to survive transformations (default: `isr.transforms.standard_eot`)."""
    made = _wrappable(attack, "with_eot")
    return made.with_objective(EOT(made.objective, transforms, samples), name=f"{made.name}+eot")


def with_prompts(
    attack: PGD, prompts: Sequence[str], *, own: bool = True, mode: Literal["cycle", "all"] = "cycle"
) -> PGD:
    """The same attack against a pool of prompts."""
    made = _wrappable(attack, "with_prompts")
    _check_prompts(prompts)  # before a string becomes its letters
    return made.with_objective(PromptPool(made.objective, tuple(prompts), own, mode), name=f"{made.name}+prompts")


def with_editors(attack: PGD, editors: Sequence[WhiteBoxEditor], *, balance: bool = True) -> PGD:
    """The same attack against several editors at once (the one given to `immunize`, and these)."""
    made = _wrappable(attack, "with_editors")
    _check_editors(editors)
    return made.with_objective(EditorEnsemble(made.objective, tuple(editors), balance), name=f"{made.name}+ensemble")
