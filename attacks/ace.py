"""ACE: one consistent error for every noise prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import PIL.Image
import torch
from torch import Tensor

from isr.errors import UsageError
from isr.protocols import Editor, WhiteBoxEditor

from .context import Context
from .denoise import (
    PATHS,
    draw_timestep_noise,
    mean_square,
    noise_estimate,
    noisy_and_condition,
    usable_path,
    with_path,
)
from .factory import PAPER, attack
from .objective import Objective
from .targets import check_target, picture_tensor
from .validation import one_of

__all__ = ["ACE", "ace"]


@dataclass(frozen=True)
class ACE(Objective):
    """Pulls the noise prediction to one fixed pattern, whatever n and t: MSE(ε̂(z_t, t, prompt), z_T).

    Source: Zheng et al., ICLR 2025; code read in caradryanl/ACE (`mode lunet`; no licence, nothing copied). z_T is the
    scaled latent s·(E − m) of a tiled picture (SD3-instruct editors: s·E, without the VAE's shift; docs/attacks.md), used as a
    *noise prediction*. Flow editors: MSE(n̂, z_T) with n̂ = z_σ + (1−σ)v̂, or
    MSE(v̂, z_T) with `of="velocity"` (n̂'s gradient through v̂ dies towards σ = 1). Random: t uniform on 600 … 999 and n per
    picture and iteration. Cost per iteration: 1 encoder and 1 denoiser pass with gradient.

    Ours differs: no surrogate fine-tuning between rounds (the editor is frozen; the authors alternate with DreamBooth steps),
    own tile, encoder mean for the target, the edit's own prompt.

    Options:
        fused: adds 100 · MSE(z, z_T) (ACE+). of: "noise" or "velocity" (flow editors only). target: "tile", "grey" or a
            picture.
        low, high: range of t. path: as for advdm.
    """

    method: ClassVar[str] = "ace"
    needs: ClassVar[tuple[str, ...]] = ("latents", "scaled", "condition", "embed", "timesteps", "noisy", "predict")

    fused: bool = False
    of: Literal["noise", "velocity"] = "noise"
    target: str | PIL.Image.Image = "tile"
    low: int = 600
    high: int = 999
    path: Literal["both", "lat", "cond"] = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(("noise", "velocity"), of=self.of)
        check_target(self.target)
        one_of(PATHS, path=self.path)
        if not 0 <= self.low <= self.high <= 999:
            raise UsageError(f"low and high must satisfy 0 ≤ low ≤ high ≤ 999, not {self.low!r} and {self.high!r}")

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        inside = with_path(self.method, super().check(editor), self.path)
        if self.of == "velocity" and inside.prediction != "flow":
            raise UsageError(
                f"of='velocity' is for flow editors; {inside.name!r} predicts {inside.prediction}: use of='noise'"
            )
        return inside

    def prepare(self, context: Context) -> None:
        editor, cache = context.editor, context.cache
        cache["path"] = usable_path(context, self.path)
        with torch.no_grad():
            cache["target"] = editor.scaled(editor.latents(picture_tensor(self.target, context.clean)))

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        editor, encoded = context.editor, context.encode(x)
        t, noise = draw_timestep_noise(context, self.low, self.high)
        z_t, cond = noisy_and_condition(context, encoded, t, noise, path=context.cache["path"])
        prediction = editor.predict(z_t, t, context.text(), cond)
        if self.of == "noise":
            prediction = noise_estimate(editor, prediction, z_t, t)
        loss = mean_square(prediction - context.cache["target"])
        if self.fused:
            loss = loss + 100 * mean_square(editor.scaled(encoded.raw) - context.cache["target"])
        return loss


ace = attack(
    "ace",
    ACE,
    presets={"paper": PAPER, "native": {"eps": 4 / 255, "alpha": 0.0025, "iterations": 250}},
)
