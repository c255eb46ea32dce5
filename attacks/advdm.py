"""AdvDM: ascent on the denoising loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from isr.protocols import Editor, WhiteBoxEditor

from .context import Context
from .denoise import PATHS, denoising_loss, draw_timestep_noise, usable_path, with_path
from .factory import PAPER, attack
from .objective import Objective
from .validation import one_of

__all__ = ["AdvDM", "advdm"]


@dataclass(frozen=True)
class AdvDM(Objective):
    """Makes the picture hard to denoise: maximises E_{t,n} MSE(ε̂(z_t, t, prompt), n).

    Source: Liang et al. 2023 (arXiv 2302.04578); code read in Diff-Protect (mode `advdm`) and ACE's benchmarks. Flow
    editors: MSE(v̂, n − z), whose target carries gradient through z. Random: t uniform on 0 … 999 and n, one draw per
    picture and iteration; the start (`native-ace`: δ = 0). Cost per iteration: 1 encoder and 1 denoiser pass, both with gradient.

    Ours differs: encoder mean instead of a sample; no log-variance term (constant in the original); the edit's own prompt
    instead of a fixed one. One-sample gradients are noisy; `grad_reps` averages them. z is the editor's own scaled latent: of
    SD3-instruct editors s·E without the VAE's shift (docs/attacks.md).

    Options:
        direction: "+" ascends (the paper), "-" descends (Diff-Protect's variant).
        path: "both" (the original's form), "lat" or "cond" (through the image condition only, with z_t from the clean latent).
    """

    method: ClassVar[str] = "advdm"
    needs: ClassVar[tuple[str, ...]] = ("latents", "scaled", "condition", "embed", "timesteps", "noisy", "predict")

    direction: Literal["+", "-"] = "+"
    path: Literal["both", "lat", "cond"] = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(("+", "-"), direction=self.direction)
        one_of(PATHS, path=self.path)

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        return with_path(self.method, super().check(editor), self.path)

    def prepare(self, context: Context) -> None:
        context.cache["path"] = usable_path(context, self.path)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        t, noise = draw_timestep_noise(context)
        loss = denoising_loss(context, context.encode(x), t, noise, context.cache["path"])
        return -loss if self.direction == "+" else loss


advdm = attack(
    "advdm",
    AdvDM,
    presets={
        "paper": {**PAPER, "start": "uniform"},
        "native": {"eps": 16 / 255, "alpha": 1 / 255, "iterations": 100, "start": "uniform"},
        "native-ace": {"eps": 4 / 255, "alpha": 0.0025, "iterations": 50},
    },
)
