"""DiffusionGuard: the first denoising step, from pure noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isr.protocols import Editor, WhiteBoxEditor

from .context import Context, require
from .denoise import clean_estimate, first_timestep, noise_estimate, takes_condition
from .factory import PAPER, attack
from .objective import Objective
from .validation import at_least, one_of

__all__ = ["DiffusionGuard", "diffusionguard"]


@dataclass(frozen=True)
class DiffusionGuard(Objective):
    """Blows up the first noise prediction of an edit: maximises ‖ε̂([n ‖ c(x)], t₁, prompt)‖₂.

    Source: Choi et al., ICLR 2025 (arXiv 2410.05694); code read in choi403/DiffusionGuard (no licence, nothing copied). The
    noisy latent is pure noise, independent of the picture, and t₁ the first timestep of a 4-step schedule: for editors that
    take the image as a condition this is exactly an edit's first step. Flow editors: ‖v̂‖₂ at σ = 1. Img2img editors have no
    condition: z_t₁ = noisy(E(x), t₁, n) at the first timestep of the editor's own edit, and the network's own output is used: of
    flow editors ‖v̂‖₂, since ‖n̂‖ would nearly be ‖z_t‖. An ε-network's output is n̂; `of="clean"` takes ‖ẑ‖₂ instead. Random:
    n per picture and iteration. Cost per iteration: 1 encoder and 1 denoiser pass with gradient.

    Ours differs: no mask augmentation (whole-picture editors have no mask; masks given to the optimiser limit δ); encoder
    mean instead of a sample; the edit's own prompt (`prompt="empty"` for the authors' ""). DiffVax's port is another attack.

    Options:
        steps: of the schedule whose first timestep is used, where the image is a condition. prompt: "own" or "empty".
        of: "output" (the network's own output: the noise for ε-networks, the clean latents for those that predict them),
            "noise" (n̂ behind it) or "clean" (ẑ behind it).
    """

    method: ClassVar[str] = "diffusionguard"
    needs: ClassVar[tuple[str, ...]] = ("latents", "scaled", "condition", "embed", "timesteps", "predict")

    steps: int = 4
    prompt: Literal["own", "empty"] = "own"
    of: Literal["output", "noise", "clean"] = "output"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, steps=self.steps)
        one_of(("own", "empty"), prompt=self.prompt)
        one_of(("output", "noise", "clean"), of=self.of)

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        inside = super().check(editor)
        if self.of == "output" and "noisy" in getattr(inside, "undefined", ()) and takes_condition(inside):
            return inside  # from pure noise, at the network's own timestep
        return require(self.method, inside, ("noisy",))

    def prepare(self, context: Context) -> None:
        editor, cache = context.editor, context.cache
        steps = None if context.clean_encoded().cond is None else self.steps
        cache["t"] = torch.full((len(context),), first_timestep(editor, steps), device=editor.device)
        cache["text"] = context.text() if self.prompt == "own" else context.child(prompts=[""] * len(context)).text()

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        editor, t = context.editor, context.cache["t"]
        encoded = context.encode(x)
        noise = context.draws.normal("noise", encoded.raw.shape[1:], encoded.raw)
        z_t = noise if encoded.cond is not None else editor.noisy(editor.scaled(encoded.raw), t, noise)
        prediction = editor.predict(z_t, t, context.cache["text"], encoded.cond)
        if self.of == "noise":
            prediction = noise_estimate(editor, prediction, z_t, t)
        elif self.of == "clean":
            prediction = clean_estimate(editor, prediction, z_t, t)
        length: Tensor = torch.linalg.vector_norm(prediction.flatten(1), dim=1)
        return -length


diffusionguard = attack(
    "diffusionguard",
    DiffusionGuard,
    presets={
        "paper": PAPER,
        "native": {"eps": 8 / 255, "alpha": 0.5 / 255, "iterations": 800, "prompt": "empty"},
    },
)
