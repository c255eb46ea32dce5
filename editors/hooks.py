"""Reading inside a network: outputs of named modules, with an early stop after the last one that was asked for.

A pass is cut short by a private exception raised in a forward hook, which leaves the gradients of what was read exactly
those of a full pass and spares the rest of the network. Hooks are removed in every case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from isr.errors import UsageError

from .pixels import wide

__all__ = ["column_attention", "first_tensor", "heads_of", "image_tensor", "listening", "read_modules"]

#: which tensor of a named layer's output counts
Pick = Callable[[str, Any], torch.Tensor]


class _StopForwardError(Exception):
    """Everything asked for has been seen; never leaves this module."""


def first_tensor(_name: str, output: Any) -> torch.Tensor:
    """The first tensor of a module's output (a U-Net down block returns hidden states and residuals)."""
    return _tensors(output)[0]


def image_tensor(name: str, output: Any) -> torch.Tensor:
    """The image stream of a joint transformer: blocks return (text, image), their attention (image, text)."""
    found = _tensors(output)
    return found[0] if name.rpartition(".")[2].startswith("attn") else found[-1]


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):  # the output classes of diffusers are ordered dicts
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        found = [item for item in output if isinstance(item, torch.Tensor)]
        if found:
            return found
    raise UsageError(f"a layer that returns {type(output).__name__} holds no tensor to read; choose another layer")


@contextmanager
def listening(modules: Mapping[str, nn.Module], note: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `note(name, output)` after each forward of the modules; the hooks are gone when the block ends.

    With gradient checkpointing, modules inside a checkpointed block run again during backward: by then no hook is left.
    """

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            note(name, output)

        return hook

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(hook_of(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_modules(
    modules: Mapping[str, nn.Module], run: Callable[[], Any], *, pick: Pick = first_tensor, stop: bool = True
) -> dict[str, torch.Tensor]:
    """Outputs of the named modules in one forward pass.

    Args:
        modules: name → module, each inside what `run` calls.
        run: makes the forward pass.
        pick: which tensor of an output counts.
        stop: leave the pass as soon as every module has been seen (False: run to the end).

    Returns:
        name → first output of that module in this pass, in the order of `modules`.

    Raises:
        UsageError: a module never ran.
    """
    seen: dict[str, torch.Tensor] = {}

    def note(name: str, output: Any) -> None:
        # setdefault: a module that runs twice (shared, or recomputed) keeps its first output.
        seen.setdefault(name, pick(name, output))
        if stop and len(seen) == len(modules):
            raise _StopForwardError

    if modules:
        with listening(modules, note), suppress(_StopForwardError):
            run()
    missing = [name for name in modules if name not in seen]
    if missing:
        raise UsageError(f"layers {missing} did not run in the forward pass; choose layers from editor.layers()")
    return {name: seen[name] for name in modules}


#: weights held at once before queries are taken in pieces (float32: a quarter of a GiB)
PIECE = 2**26


def column_attention(
    query: torch.Tensor, key: torch.Tensor, scale: float, columns: Sequence[int] | None, *, within: int | None = None
) -> torch.Tensor:
    """Softmax attention on the wanted keys only, averaged over heads: exp(q·k_c·scale − logsumexp over all keys).

    Long sequences are taken in pieces of queries, each recomputed during backward, so that memory holds one piece.

    Args:
        query: (B, heads, Q, d). key: (B, heads, K, d). scale: usually d^(-1/2).
        columns: indices into the first `within` keys (the text), or None for all of those.
        within: number of keys that are text; None: all K.

    Returns:
        (B, Q, number of columns) float32 in [0, 1]; over all K keys a row sums to 1.
    """
    size = key.shape[-2] if within is None else within
    wanted = range(size) if columns is None else list(columns)
    wrong = [c for c in wanted if not 0 <= c < size]
    if wrong:
        raise UsageError(f"columns {wrong} are outside the {size} text columns of this editor")
    index = torch.tensor(list(wanted), dtype=torch.long).to(query.device, non_blocking=True)

    def weights(part: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        logits = torch.matmul(wide(part), wide(keys).transpose(-1, -2)) * scale
        return torch.exp(logits[..., index] - torch.logsumexp(logits, dim=-1, keepdim=True)).mean(dim=1)

    rows = max(1, PIECE // (query.shape[0] * query.shape[1] * key.shape[-2]))
    if rows >= query.shape[-2]:
        return weights(query, key)
    pieces = [checkpoint(weights, part, key, use_reentrant=False) for part in torch.split(query, rows, dim=-2)]
    return torch.cat(pieces, dim=1)


def heads_of(projected: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, tokens, heads·d) → (B, heads, tokens, d)."""
    batch, tokens, width = projected.shape
    return projected.reshape(batch, tokens, heads, width // heads).transpose(1, 2)
