"""What the transcriptions share: schedules, conversions and steps, each as written down in the source it names.

The transcriptions are written from the papers and from published descriptions of the authors' code, without a look at the
package's own attacks. They work on one picture at a time, in loops, with autograd: slow and plain on purpose.

Notation: x pixels on [0, 1]; E(x) raw encoder mean (nothing is sampled: the toy has no variance); z = (E − shift)·scale; n the
noise; t a timestep; P the prompt; c what the picture adds to the denoiser's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """losses (B,), gradient (B, 3, H, W) of what is minimised, next δ and next pixels (B, 3, H, W)."""

    losses: Tensor
    gradient: Tensor
    delta: Tensor
    pixels: Tensor


# ------------------------------------------------------------------------------------------------------ noise schedules


def alpha_bars() -> Tensor:
    """ā_t of Stable Diffusion 1.x: betas whose square roots run evenly from √.00085 to √.012 over 1000 steps."""
    kept, product = [], 1.0
    for t in range(1000):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999
        product *= 1 - root * root
        kept.append(product)
    return torch.tensor(kept, dtype=torch.float64)


def sigma_of_timestep(t: int) -> float:
    """The rectified-flow σ of equal signal-to-noise ratio: √(1−ā) / (√ā + √(1−ā))."""
    kept = float(alpha_bars()[t])
    return (1 - kept) ** 0.5 / (kept**0.5 + (1 - kept) ** 0.5)


def model_time(editor: Any, t: int) -> float:
    """A draw on the 1000-step scale in the editor's own time: t itself, or 1000 σ where it is a rectified flow."""
    return 1000 * sigma_of_timestep(t) if editor.prediction == "flow" else float(t)


def levels(editor: Any, time: float) -> tuple[float, float]:
    """(a, b) of a·z + b·n: (√ā, √(1−ā)) for VP, (1−σ, σ) for rectified flow, noise at σ = 1."""
    if editor.prediction == "flow":
        sigma = time / 1000
        return 1 - sigma, sigma
    kept = float(alpha_bars()[round(time)])
    return kept**0.5, (1 - kept) ** 0.5


def add_noise(editor: Any, z: Tensor, time: float, n: Tensor) -> Tensor:
    """z_t = √ā z + √(1−ā) n (DDPM, eq. 4), or z_σ = (1−σ) z + σ n."""
    a, b = levels(editor, time)
    return a * z + b * n


def denoise(editor: Any, z_t: Tensor, time: float, prompt: str, c: Tensor | None) -> Tensor:
    """The network's raw output for one picture, conditional branch only."""
    out: Tensor = editor.predict(z_t, torch.tensor([time], dtype=torch.float64), editor.embed([prompt]), c)
    return out


def noise_estimate(editor: Any, output: Tensor, z_t: Tensor, time: float) -> Tensor:
    """n̂ from what the network says: ε̂ itself; √(1−ā) z_t + √ā v̂ (Salimans & Ho 2022, section 4 and appendix D, where
    v = √ā n − √(1−ā) z); (z_t − √ā ẑ)/√(1−ā) where it says ẑ (DDPM, eq. 4, solved for the noise); z_σ + (1−σ) v̂ for a flow
    with v = n − z."""
    a, b = levels(editor, time)
    if editor.prediction == "epsilon":
        return output
    if editor.prediction == "v_prediction":
        return b * z_t + a * output
    if editor.prediction == "sample":
        return (z_t - a * output) / b
    return z_t + a * output


def clean_estimate(editor: Any, output: Tensor, z_t: Tensor, time: float) -> Tensor:
    """ẑ from what the network says: (z_t − √(1−ā) ε̂)/√ā (DDPM, eq. 4, solved for the clean latent; DDIM, eq. 9);
    √ā z_t − √(1−ā) v̂ (Salimans & Ho 2022, appendix D); ẑ itself; z_σ − σ v̂ for a flow with v = n − z."""
    a, b = levels(editor, time)
    if editor.prediction == "epsilon":
        return (z_t - b * output) / a
    if editor.prediction == "v_prediction":
        return a * z_t - b * output
    if editor.prediction == "sample":
        return output
    return z_t - b * output


def inputs(
    editor: Any, x: Tensor, clean: Tensor, path: str
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(z, c) with the gradient paths asked for: "lat" through z only, "cond" through c only, "both".

    The other one comes from the clean picture. An editor without c has the latent path alone.
    """
    z = editor.scaled(editor.latents(x if path in ("both", "lat") else clean))
    c = editor.condition(x if path in ("both", "cond") else clean)
    return z, c


# ----------------------------------------------------------------------------------------------------------- the steps


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum() / a.numel()


def gradients(loss: Callable[[int, Tensor], Tensor], clean: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and ∂loss/∂x at x = clip₀₁(x₀ + δ), picture by picture; the clip is outside of what is differentiated."""
    losses, grads = [], []
    for i in range(len(clean)):
        x = (clean[i : i + 1] + delta[i : i + 1]).clamp(0, 1).detach().requires_grad_(True)
        value = loss(i, x)
        (g,) = torch.autograd.grad(value, x)
        losses.append(value.detach())
        grads.append(g)
    return torch.stack(losses), torch.cat(grads)


def sign_step(clean: Tensor, delta: Tensor, g: Tensor, alpha: float, eps: float) -> tuple[Tensor, Tensor]:
    """SIFM's Algorithm 1, lines 13 and 14: δ ← clip(δ − α·sign(g), −ε, ε); x ← clip₀₁(x₀ + δ). Also its Eq. 2."""
    delta = torch.clip(delta - alpha * torch.sign(g), -eps, eps)
    return delta, torch.clip(clean + delta, 0, 1)


def l2_step(clean: Tensor, delta: Tensor, g: Tensor, alpha: float, radius: float) -> tuple[Tensor, Tensor]:
    """PhotoGuard's `super_l2`: δ ← proj_{‖δ‖₂ ≤ radius}(δ − α·g/‖g‖₂), then clip; norms over one whole picture."""
    moved = []
    for i in range(len(clean)):
        d = delta[i] - alpha * g[i] / (g[i] ** 2).sum().sqrt()
        length = float((d**2).sum().sqrt())
        if length > radius:
            d = d * (radius / length)
        moved.append(d)
    delta = torch.stack(moved)
    return delta, torch.clip(clean + delta, 0, 1)


def first_adam_step(delta: Tensor, g: Tensor, rate: float) -> Tensor:
    """Adam's first step (Kingma & Ba 2015, Algorithm 1): m̂ = g, v̂ = g², so δ ← δ − rate·g/(|g| + 10⁻⁸)."""
    return delta - rate * g / (g.abs() + 1e-8)


def descend(
    loss: Callable[[int, Tensor], Tensor], clean: Tensor, delta: Tensor, *, alpha: float, eps: float
) -> Step:  # fmt: skip
    """One sign step that makes a loss smaller."""
    losses, g = gradients(loss, clean, delta)
    return Step(losses, g, *sign_step(clean, delta, g, alpha, eps))


def one(values: Sequence[Any] | Tensor, i: int) -> Any:
    """Row i as a batch of one."""
    return values[i : i + 1]
