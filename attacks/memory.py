"""Bounded memory: a loss that is a sum over parts (timesteps) is evaluated and differentiated part by part.

Only one part's activations exist at a time; the encoder in front of the parts is run, and walked back through, once. The
gradient is that of the plain sum (tested against it). Where memory runs out all the same, the error says what to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from isr.errors import IsrError

__all__ = ["memory_advice", "sum_parts"]

#: Part k on the given tensors → losses (K, B): K objectives of B images.
Part = Callable[..., Tensor]
_HALF = (torch.float16, torch.bfloat16)


class _SumParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Part, count: int, scale: float, *tensors: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[3:]
        total: Tensor | None = None
        grads: list[list[Tensor | None]] = []  # per objective, per tensor
        for k in range(count):
            with torch.enable_grad():
                leaves = [
                    (t.detach().float() if t.dtype in _HALF else t.detach()).requires_grad_(w)
                    for t, w in zip(tensors, wanted, strict=True)
                ]
                losses = part(k, *leaves)
                live = [leaf for leaf in leaves if leaf.requires_grad]
                for j, row in enumerate(losses):
                    last = j == len(losses) - 1
                    # A row that reaches no leaf (a clean condition only) has no gradient.
                    found = (
                        torch.autograd.grad(row.sum() * scale, live, retain_graph=not last, allow_unused=True)
                        if row.requires_grad
                        else [None] * len(live)
                    )
                    _add(grads, j, [None if g is None else g / scale for g in found])
            total = losses.detach() if total is None else total + losses.detach()
        if total is None:
            raise ValueError("count must be at least 1")
        ctx.wanted, ctx.dtypes = wanted, [t.dtype for t in tensors]
        ctx.grads = grads
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        (weights,) = outer  # (K, B)
        sums: list[Tensor | None] = [None] * sum(ctx.wanted)
        for j, row in enumerate(ctx.grads):
            for i, g in enumerate(row):
                if g is not None:
                    term = g * weights[j].to(g.dtype).reshape(-1, *([1] * (g.ndim - 1)))
                    held = sums[i]
                    sums[i] = term if held is None else held + term
        live = iter(sums)
        out: list[Any] = []
        for want, dtype in zip(ctx.wanted, ctx.dtypes, strict=True):
            g = next(live) if want else None
            out.append(None if g is None else g.to(dtype))
        return (None, None, None, *out)


def _add(grads: list[list[Tensor | None]], j: int, found: Sequence[Tensor | None]) -> None:
    if j == len(grads):
        grads.append(list(found))
        return
    for i, g in enumerate(found):
        held = grads[j][i]
        if g is not None:
            grads[j][i] = g if held is None else held + g


def sum_parts(part: Part, count: int, *tensors: Tensor, scale: float = 1.0) -> Tensor:
    """Σ_k part(k, *tensors) with the memory of one part.

    Args:
        part: maps (k, *tensors) to losses (K, B); loss [:, i] may depend on item i of every tensor only (true of networks
            without batch statistics). It must give the same value when called again.
        count: number of parts, ≥ 1.
        tensors: (B, …) each; gradients flow to those that require them.
        scale: what a caller multiplies the loss by before its backward pass. Parts are differentiated in the forward pass,
            before that factor is known to autograd; given here it lifts their gradients too, and is divided out of them.

    Returns:
        (K, B); differentiable once.
    """
    if count == 1:
        return part(0, *tensors)
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return torch.stack([part(k, *tensors) for k in range(count)]).sum(dim=0)
    return _SumParts.apply(part, count, scale, *tensors)  # type: ignore[no-any-return,no-untyped-call]


@contextmanager
def memory_advice(what: str) -> Iterator[None]:
    """Turns the device's out-of-memory error into one that says what to change. what: "sifm on ip2p"."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise IsrError(
            f"{what} ran out of device memory ({str(error).partition(chr(10))[0][:160]}). Try, in this order: batch_size=1, rows=1 (one "
            "denoiser row at a time), an editor loaded with checkpointing=True, precision='bfloat16', a smaller size="
        ) from error
