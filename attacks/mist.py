"""Mist: a textural pull and a semantic push at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import PIL.Image
import torch
from torch import Tensor

from isr.errors import UsageError

from .context import Context
from .denoise import denoising_loss, draw_timestep_noise, mean_square, usable_path
from .factory import PAPER, attack
from .objective import Objective
from .targets import picture_tensor

__all__ = ["Mist", "mist"]

Mode = Literal["fused", "texture", "semantic"]


@dataclass(frozen=True)
class Mist(Objective):
    """Pulls the latent to that of a tiled picture while raising the denoising loss: MSE(z, z_T) − w · MSE(ε̂, n).

    Source: Liang and Wu 2023 (arXiv 2305.12683); code read in psyker-team/mist (GPL; nothing copied). The authors sum over
    4·64·64 = 16384 latent elements with weight 10⁴ on the mean denoising loss: in means, w = 10⁴/16384 = 0.61, which keeps
    the balance on larger latents (SD3). Flow editors: MSE(v̂, n − z). Random: t uniform on 0 … 999 and n per picture and
    iteration; the start. Cost per iteration: 1 encoder and 1 denoiser pass with gradient ("texture": no denoiser).

    Ours differs: own lettering tile instead of the authors' logo; encoder mean instead of samples, so z_T is computed once;
    the edit's own prompt instead of "a painting".

    Options:
        mode: "fused" (the authors' default), "texture" (what robust-style-mimicry calls Mist) or "semantic" (AdvDM).
        weight: w. target: "tile" or a picture. path: of the semantic term, as for advdm.
    """

    method: ClassVar[str] = "mist"
    needs: ClassVar[tuple[str, ...]] = ("latents", "scaled", "condition", "embed", "timesteps", "noisy", "predict")

    mode: Mode = "fused"
    weight: float = 1e4 / 16384
    target: str | PIL.Image.Image = "tile"
    path: Literal["both", "lat", "cond"] = "both"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UsageError(f"mode must be one of {', '.join(get_args(Mode))}, not {self.mode!r}")

    def prepare(self, context: Context) -> None:
        editor, cache = context.editor, context.cache
        if self.mode != "texture":
            cache["path"] = usable_path("mist", context, self.path)
        with torch.no_grad():
            cache["target"] = editor.scaled(editor.latents(picture_tensor(self.target, context.clean)))

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        encoded = context.encode(x, cond=self.mode != "texture")
        texture = mean_square(context.editor.scaled(encoded.raw) - context.cache["target"])
        if self.mode == "texture":
            return texture
        t, noise = draw_timestep_noise(context)
        semantic = -denoising_loss(context, encoded, t, noise, context.cache["path"])
        return semantic if self.mode == "semantic" else texture + self.weight * semantic


mist = attack(
    "mist",
    Mist,
    presets={
        "paper": {**PAPER, "start": "uniform"},
        "native": {"eps": 16 / 255, "alpha": 1 / 255, "iterations": 100, "start": "uniform"},
    },
)
