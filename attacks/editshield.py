"""EditShield (ED)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from isr.protocols import Editor, WhiteBoxEditor
from isr.transforms import editshield_eot

from .context import Context, Encoded, require
from .denoise import draw_timestep, draw_timestep_noise, mean_square, noisy_and_condition
from .factory import PAPER, attack
from .objective import Objective
from .validation import at_least, one_of

__all__ = ["EditShield", "editshield"]


@dataclass(frozen=True)
class EditShield(Objective):
    """Shifts the latent that the editor reads, under transformations: maximises E_τ MSE(E(τ(x)), E(τ(x₀))).

    Source: Chen et al., ECCV 2024 (arXiv 2311.12066). form="paper" is its expectation over transformations: one τ per
    picture and iteration, the same on both sides, of identity, centre crop to 90 % and back, Gaussian blur 5×5 σ 1.5
    (normalised), rotation U(−5°, 5°). Random: τ; the start (the gradient is 0 at δ = 0 under a fixed τ). Cost per iteration:
    1 encoder pass with gradient and 1 without; no denoiser, no text.

    form="released" is what the released code optimises (no licence, nothing copied): −MSE(f(x), f₀) + 0.1·MSE(x, x₀) with
    f = [z_t ‖ E(x)] at a new random (t, n) each iteration against one f₀ with a (t, n) of its own; no transformation. The
    native preset walks as the code does: 30 Adam steps of 1e-3, which alone bound the change by about 0.03. z is the editor's
    own scaled latent: of SD3-instruct editors s·E without the VAE's shift (docs/attacks.md).

    Ours differs: pixels enter the encoder on [−1, 1] (the code feeds [0, 1]: `range_bug=True`), encoder mean instead of
    samples, always projected and clipped; the paper preset takes sign steps.

    Options:
        form: "paper" or "released". pixel_weight: β of MSE(x, x₀); None: 0 for "paper" (the budget holds it), 0.1 for
            "released". transforms: what to draw τ from (anything with `sample_each(generators)`), None: EditShield's own.
        range_bug: feed the encoder [0, 1] pixels, as the code does.
    """

    method: ClassVar[str] = "editshield"
    needs: ClassVar[tuple[str, ...]] = ("latents",)

    form: Literal["paper", "released"] = "paper"
    pixel_weight: float | None = None
    transforms: Any = None
    range_bug: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(("paper", "released"), form=self.form)
        if self.pixel_weight is not None:
            at_least(0, pixel_weight=self.pixel_weight)

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        released = ("scaled", "condition", "timesteps", "noisy") if self.form == "released" else ()
        return require(self.method, super().check(editor), released)

    def prepare(self, context: Context) -> None:
        if self.form == "released":
            with torch.no_grad():
                context.cache["first"] = self._released(context, context.clean, clean=True)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        if self.form == "released":
            shift = mean_square(self._released(context, x) - context.cache["first"])
        else:
            distribution = self.transforms or editshield_eot()
            tau: Callable[[Tensor, Any], Tensor] = distribution.sample_each(context.draws.generators)
            with torch.no_grad():
                base = self._encode(context, tau(context.clean, context.draws.generators))
            shift = mean_square(self._encode(context, tau(x, context.draws.generators)) - base)
        weight = self.pixel_weight if self.pixel_weight is not None else 0.1 if self.form == "released" else 0.0
        return -shift + weight * mean_square(x - context.clean)

    def _encode(self, context: Context, x: Tensor) -> Tensor:
        """E(x); with the bug, pixels on [0, 1] where the encoder expects [−1, 1]."""
        return context.editor.latents((x + 1) / 2 if self.range_bug else x)

    def _released(self, context: Context, x: Tensor, *, clean: bool = False) -> Tensor:
        """[z_t ‖ E(x)] at a random (t, n), (B, 2C, h, w)."""
        raw = self._encode(context, x)
        if clean:
            n = context.draws.normal("clean_noise", raw.shape[1:], raw)
            t = draw_timestep(context, name="clean_timestep")
            z_t = context.editor.noisy(context.editor.scaled(raw), t, n)
        else:
            t, n = draw_timestep_noise(context)
            z_t, _ = noisy_and_condition(context, Encoded(raw, None), t, n, path="both")
        return torch.cat([z_t, raw], dim=1)


editshield = attack(
    "editshield",
    EditShield,
    presets={
        "paper": {**PAPER, "start": "small"},
        "native": {"eps": 0.03, "alpha": 1e-3, "step": "adam", "iterations": 30, "form": "released"},
    },
)
