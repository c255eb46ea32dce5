"""PhotoGuard's encoder attack (PhotoGE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import PIL.Image
import torch
from torch import Tensor

from isr.protocols import Editor, WhiteBoxEditor

from .context import Context, require
from .factory import PAPER, attack
from .objective import Objective
from .targets import PICTURES, check_target, picture_tensor

__all__ = ["PhotoGuardEncoder", "photoguard_encoder"]


@dataclass(frozen=True)
class PhotoGuardEncoder(Objective):
    """Pulls the image's latent to a target: ‖E(x) − T‖₂.

    Source: Salman et al. 2023, "Raising the Cost of Malicious AI-Powered Image Editing", section 4.1; the authors' img2img
    notebook (T = 0, raw mean, not scaled). For InstructPix2Pix and SD3-instruct editors T = 0 is what guidance uses for
    "no image". Random: the start only. Cost per iteration: 1 encoder pass with gradient, no denoiser.

    Ours differs: float32 instead of float16; the first iterate is clipped to the pixel range; prompts are not read.

    Options:
        target: "zeros" (raw mean 0); "scaled-zeros" (0 after shift and scale, which differs where the VAE has a shift);
            "grey" (latent of mid grey, as the authors' hosted demo) or "tile" (of tiled lettering, as Mist); or a picture.
    """

    method: ClassVar[str] = "photoguard-encoder"
    needs: ClassVar[tuple[str, ...]] = ("latents",)
    stochastic: ClassVar[bool] = False

    target: str | PIL.Image.Image = "zeros"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_target(self.target, ("zeros", "scaled-zeros", *PICTURES))

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        more = ("scaled",) if self.target == "scaled-zeros" else ()
        return require(self.method, super().check(editor), more)

    def prepare(self, context: Context) -> None:
        if self.target in ("zeros", "scaled-zeros"):
            return
        with torch.no_grad():
            context.cache["target"] = context.editor.latents(picture_tensor(self.target, context.clean))

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        z = context.encode(x, cond=False).raw
        if self.target == "scaled-zeros":
            z = context.editor.scaled(z)
        away: Tensor = z - context.cache["target"] if "target" in context.cache else z
        length: Tensor = torch.linalg.vector_norm(away.flatten(1), dim=1)
        return length


photoguard_encoder = attack(
    "photoguard-encoder",
    PhotoGuardEncoder,
    presets={
        "paper": {**PAPER, "start": "uniform"},
        "native": {"eps": 0.03, "alpha": 0.01, "schedule": "linear", "iterations": 1000, "start": "uniform"},
    },
)
