"""PhotoGuard's diffusion attack (PhotoGD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import PIL.Image
import torch
from torch import Tensor

from isr.protocols import Editor, WhiteBoxEditor

from .context import Context
from .denoise import scheduler_steps
from .factory import PAPER, attack
from .objective import Objective
from .short_edit import check_recompute, short_edit
from .targets import check_target, picture_tensor
from .validation import at_least, one_of

__all__ = ["PhotoGuardDiffusion", "photoguard_diffusion"]


@dataclass(frozen=True)
class PhotoGuardDiffusion(Objective):
    """Makes a short edit come out as a target picture: ‖f_K(x) − T‖₂, f_K a K-step edit, T mid grey.

    Source: Salman et al. 2023, section 4.2; the authors' complex-attack notebook (K = 4, guidance 7.5, prompt "", L2 ball of
    radius 8, normalised steps, 10 gradients averaged, 200 iterations; an L∞ variant beside it). The norm is taken on
    [−1, 1] pixels of the unclamped edit. Random: the edit's start noise, anew in each evaluation. Cost per evaluation:
    1 encoder, K guided denoiser passes (2 or 3 rows each) and 1 decoder pass with gradient, and K more denoiser passes
    where they are recomputed. By far the slowest method.

    Ours differs: the edit is the editor's own (`rollout`: its scheduler and guidance; an image-to-image editor's K passes run
    from its strength on, so of more scheduler steps) instead of an inpainting pipeline; no hole in the anchor;
    `prompt="own"` in the paper preset, as the SIFM paper makes perturbations with the edit's prompt; one gradient per
    iteration there.

    Options:
        steps: K, denoiser passes. prompt: "own" or "empty". target: "grey", "tile" or a picture. recompute: each denoiser pass during
            backward, so that memory does not grow with K; False is faster where memory is ample.
    """

    method: ClassVar[str] = "photoguard-diffusion"
    needs: ClassVar[tuple[str, ...]] = ("rollout",)
    unrecorded: ClassVar[tuple[str, ...]] = ("recompute",)

    steps: int = 4
    prompt: Literal["own", "empty"] = "own"
    target: str | PIL.Image.Image = "grey"
    recompute: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(("own", "empty"), prompt=self.prompt)
        at_least(1, steps=self.steps)
        check_target(self.target)

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        inside = super().check(editor)
        check_recompute(inside, self.recompute)
        scheduler_steps(inside, self.steps)
        return inside

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        prompts = context.prompts if self.prompt == "own" else ("",) * len(context)
        seeds = context.draws.integer("rollout_seed", 0, 2**31 - 1).tolist()
        edited = short_edit(x, context, prompts, self.steps, seeds=seeds, recompute=self.recompute)
        away = 2 * (edited - picture_tensor(self.target, edited))
        length: Tensor = torch.linalg.vector_norm(away.flatten(1), dim=1)
        return length


photoguard_diffusion = attack(
    "photoguard-diffusion",
    PhotoGuardDiffusion,
    presets={
        "paper": PAPER,
        "native": {
            "eps": 8.0, "norm": "l2", "alpha": 0.5, "step": "normalised", "iterations": 200, "grad_reps": 10, "prompt": "empty",
        },
        "native-linf": {"eps": 0.05, "alpha": 0.003, "iterations": 200, "grad_reps": 5, "prompt": "empty"},
    },
)  # fmt: skip
