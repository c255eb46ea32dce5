"""Mist: a textural pull and a semantic push at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import PIL.Image
import torch
from torch import Tensor

from isr.protocols import Editor, WhiteBoxEditor

from .context import Context, require
from .denoise import PATHS, denoising_loss, draw_timestep_noise, mean_square, usable_path, with_path
from .factory import PAPER, attack
from .objective import Objective
from .targets import check_target, picture_tensor
from .validation import at_least, one_of

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
    the edit's own prompt instead of "a painting". z is the editor's own scaled latent: of SD3-instruct editors s·E without the
    VAE's shift, which cancels in the pull and not in the push (docs/attacks.md).

    Options:
        mode: "fused" (the authors' default), "texture" (what robust-style-mimicry calls Mist) or "semantic" (AdvDM).
        weight: w. target: "tile", "grey" or a picture. path: of the semantic term, as for advdm.
    """

    method: ClassVar[str] = "mist"
    needs: ClassVar[tuple[str, ...]] = ("latents", "scaled")

    mode: Mode = "fused"
    weight: float = 1e4 / 16384
    target: str | PIL.Image.Image = "tile"
    path: Literal["both", "lat", "cond"] = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(get_args(Mode), mode=self.mode)
        at_least(0, weight=self.weight)
        check_target(self.target)
        one_of(PATHS, path=self.path)

    @property
    def stochastic(self) -> bool:
        return self.mode != "texture"

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        inside = super().check(editor)
        if self.mode == "texture":
            return inside
        require(self.method, inside, ("condition", "embed", "timesteps", "noisy", "predict"))
        return with_path(self.method, inside, self.path)

    def prepare(self, context: Context) -> None:
        editor, cache = context.editor, context.cache
        if self.mode != "texture":
            cache["path"] = usable_path(context, self.path)
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
