"""The short differentiable edit that two attacks look at, with or without recomputing its passes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import Tensor

from isr.errors import UsageError
from isr.protocols import WhiteBoxEditor

from .context import Context

__all__ = ["check_recompute", "short_edit"]


def short_edit(
    x: Tensor, context: Context, prompts: Sequence[str], steps: int, *, seeds: Sequence[int], recompute: bool
) -> Tensor:
    """Pixels (B, 3, H, W) of the editor's `rollout`. recompute: each denoiser pass during backward, as editors do unless told."""
    kept = {} if recompute else {"checkpoint": False}
    return context.editor.rollout(x, prompts, steps, seeds=seeds, **kept)


def check_recompute(editor: WhiteBoxEditor, recompute: bool) -> None:
    """Raises UsageError where passes are not to be recomputed and the editor's `rollout` cannot be told so."""
    if not recompute and "checkpoint" not in inspect.signature(editor.rollout).parameters:
        raise UsageError(
            f"recompute=False needs an editor whose rollout takes checkpoint=, which {editor.name}'s does not; leave recompute out"
        )
