"""Diff-Protect: score distillation through the encoder only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import PIL.Image
import torch
from torch import Tensor

from .context import Context
from .denoise import draw_timestep_noise, noise_estimate, noisy_and_condition
from .factory import PAPER, attack
from .objective import Objective
from .targets import check_target, picture_tensor
from .validation import at_least, one_of

__all__ = ["SDS", "sds"]


@dataclass(frozen=True)
class SDS(Objective):
    """Moves the latent along the score difference g = ε̂ − n, without the denoiser's Jacobian: ∇_x = J_Eᵀ g.

    The loss returned is ±⟨stop-gradient(g), z⟩, whose gradient in z is ±g; its value has no meaning of its own, so
    `patience` has nothing to go by.

    Source: Xue et al. 2024 (arXiv 2311.12832), SDS(−) and SDS(+); code read in Diff-Protect. "−" lowers the denoising loss
    (smoothed content; the paper argues for it and it is the default), "+" raises it. Flow editors: g = v̂ − (n − z), the
    same gradient up to a positive factor. Random: t uniform on 0 … 999 and n per picture and iteration. Cost per iteration:
    1 encoder pass with gradient, 1 denoiser pass without.

    Ours differs: encoder mean instead of a sample; the edit's own prompt. Dropping the Jacobian also drops the path through
    the condition (z = s·c still moves it); for that path see advdm with path="cond". z is the editor's own scaled latent: of
    SD3-instruct editors s·E without the VAE's shift, elsewhere s·(E − m) (docs/attacks.md).

    Options:
        direction: "-" or "+". target_weight: SDST, adds target_weight·Σ(z_T − z)² to 5·(the loss above), as the authors'
            targeted variant with weight 1; 0: off. target: "tile", "grey" or a picture.
    """

    method: ClassVar[str] = "sds"
    needs: ClassVar[tuple[str, ...]] = ("latents", "scaled", "condition", "embed", "timesteps", "noisy", "predict")

    direction: Literal["-", "+"] = "-"
    target_weight: float = 0.0
    target: str | PIL.Image.Image = "tile"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(("+", "-"), direction=self.direction)
        at_least(0, target_weight=self.target_weight)
        check_target(self.target)

    def prepare(self, context: Context) -> None:
        if self.target_weight:
            with torch.no_grad():
                raw = context.editor.latents(picture_tensor(self.target, context.clean))
                context.cache["target"] = context.editor.scaled(raw)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        editor, encoded = context.editor, context.encode(x)
        z = editor.scaled(encoded.raw)
        t, noise = draw_timestep_noise(context)
        with torch.no_grad():
            z_t, cond = noisy_and_condition(context, encoded, t, noise, path="both")
            prediction = editor.predict(z_t, t, context.text(), cond)
            if editor.prediction == "flow":
                score = prediction - (noise - z)
            else:
                score = noise_estimate(editor, prediction, z_t, t) - noise
        loss: Tensor = (score * z).flatten(1).sum(dim=1)
        loss = loss if self.direction == "-" else -loss
        if not self.target_weight:
            return loss
        pull: Tensor = (context.cache["target"] - z).square().flatten(1).sum(dim=1)
        return 5 * loss + self.target_weight * pull


sds = attack(
    "sds",
    SDS,
    presets={"paper": PAPER, "native": {"eps": 16 / 255, "alpha": 1 / 255, "iterations": 100}},
)
