"""End to end: the largest change of a short edit. Not a published method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isr.protocols import Editor, WhiteBoxEditor

from .context import Context
from .denoise import mean_square, scheduler_steps
from .factory import PAPER, attack
from .objective import Objective
from .short_edit import check_recompute, short_edit
from .validation import at_least, one_of

__all__ = ["EndToEnd", "end_to_end"]


@dataclass(frozen=True)
class EndToEnd(Objective):
    """Drives a short edit away from the clean picture's: maximises MSE(f_K(x), f_K(x₀)) with the same start noise in both.

    f_K is the editor's own K-step edit (`rollout`), prompt and guidance included. Not a published method: it goes for
    the edit itself, with nothing in between, and MiniWorld's working ε is chosen by it. It bounds the change of the edit's pixels, not
    ISR: a pattern that judges notice can defeat more edits with less change. Random: the start (the gradient is
    0 at δ = 0), and the edit's noise, drawn once ("fixed") or anew ("fresh": one more forward edit per iteration). Cost per
    iteration: 1 encoder, K guided denoiser and 1 decoder pass with gradient, and K more denoiser passes where they are recomputed.

    Options:
        steps: K, denoiser passes; an image-to-image editor's run from its strength on. noise: "fixed" or "fresh". recompute: each
            denoiser pass during backward, so that memory does not grow with K; False is faster where memory is ample.
    """

    method: ClassVar[str] = "end-to-end"
    needs: ClassVar[tuple[str, ...]] = ("rollout",)
    unrecorded: ClassVar[tuple[str, ...]] = ("recompute",)

    steps: int = 4
    noise: Literal["fixed", "fresh"] = "fixed"
    recompute: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, steps=self.steps)
        one_of(("fixed", "fresh"), noise=self.noise)

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        inside = super().check(editor)
        check_recompute(inside, self.recompute)
        scheduler_steps(inside, self.steps)
        return inside

    @property
    def stochastic(self) -> bool:
        return self.noise == "fresh"

    def prepare(self, context: Context) -> None:
        self._draw(context)

    def _draw(self, context: Context) -> None:
        seeds = context.draws.integer("rollout_seed", 0, 2**31 - 1).tolist()
        with torch.no_grad():
            clean = short_edit(
                context.clean, context, context.prompts, self.steps, seeds=seeds, recompute=self.recompute
            )
        context.cache |= {"seeds": seeds, "clean": clean}

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        if self.noise == "fresh":
            self._draw(context)
        edited = short_edit(
            x, context, context.prompts, self.steps, seeds=context.cache["seeds"], recompute=self.recompute
        )
        return -mean_square(edited - context.cache["clean"])


end_to_end = attack("end-to-end", EndToEnd, presets={"paper": {**PAPER, "start": "small"}})
