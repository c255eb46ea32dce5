"""The short differentiable edit that two attacks look at: K denoiser passes, recomputed during backward or not."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import Tensor

from isr.errors import UsageError
from isr.protocols import WhiteBoxEditor

from .context import Context
from .denoise import scheduler_steps

__all__ = ["check_recompute", "short_edit"]


def short_edit(
    x: Tensor, context: Context, prompts: Sequence[str], steps: int, *, seeds: Sequence[int], recompute: bool
) -> Tensor:
    """Pixels (B, 3, H, W) of an edit of `steps` denoiser passes, by the editor's `rollout`.

    recompute: each pass during backward, as editors do unless told.
    """
    if "scheduler_steps" not in context.cache:
        context.cache["scheduler_steps"] = scheduler_steps(context.editor, steps)
    kept = {} if recompute else {"checkpoint": False}
    return context.editor.rollout(x, prompts, context.cache["scheduler_steps"], seeds=seeds, **kept)


def check_recompute(editor: WhiteBoxEditor, recompute: bool) -> None:
    """Raises UsageError where passes are not to be recomputed and the editor's `rollout` cannot be told so."""
    if not recompute and "checkpoint" not in inspect.signature(editor.rollout).parameters:
        raise UsageError(
            f"recompute=False needs an editor whose rollout takes checkpoint=, which {editor.name}'s does not; leave recompute out"
        )
