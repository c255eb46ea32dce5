"""What the denoising losses share, for variance-preserving (VP) and rectified-flow editors alike.

Every editor's noisy latent is a·z + b·n (VP: a = √ᾱ, b = √(1−ᾱ); flow: a = 1−σ, b = σ = t/1000). Both numbers are read off
`editor.noisy` itself, so nothing here knows a schedule. From a prediction p:

    ε̂ (or n̂):  epsilon: p               v: b·z_t + a·p    sample: (z_t − a·p)/b    flow: z_t + a·p
    ẑ:          epsilon: (z_t − b·p)/a   v: a·z_t − b·p    sample: p                flow: z_t − b·p

z is `editor.scaled`, what the editor's own pipeline works on: s·(E − m), but s·E for SD3-instruct (UltraEdit), whose pipeline
takes off no shift when it encodes and adds none when it decodes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from isr.errors import UsageError
from isr.protocols import Prediction, WhiteBoxEditor

from .context import Context, Encoded, require, undefined

__all__ = [
    "PATHS", "TRAIN_STEPS", "Path", "clean_estimate", "coefficients", "denoising_loss", "draw_timestep", "draw_timestep_noise", "first_timestep", "mean_square",
    "noise_estimate", "noisy_and_condition", "prediction_kind", "schedule", "scheduler_steps", "sigma_of", "takes_condition", "trajectory", "usable_path", "with_path",
]  # fmt: skip

#: How the pixels reach the loss: the noisy latent and the condition, one of them, or the condition with z_t from a clean edit.
Path = Literal["both", "lat", "cond", "trajectory"]
#: The paths of methods that walk no edit.
PATHS = ("both", "lat", "cond")
#: Timesteps run from 0 to this on every editor; flow has t = 1000 σ.
TRAIN_STEPS = 1000


def coefficients(editor: WhiteBoxEditor, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of the noisy latent at t (B,), each (B, 1, 1, 1), with the dtype of `like` (B, C, h, w)."""
    one = torch.ones((len(t), *like.shape[1:]), dtype=like.dtype, device=like.device)
    zero = torch.zeros_like(one)
    corner = (slice(None), *([slice(0, 1)] * (one.ndim - 1)))
    with torch.no_grad():
        return editor.noisy(one, t, zero)[corner], editor.noisy(zero, t, one)[corner]


def prediction_kind(editor: WhiteBoxEditor) -> Prediction:
    """What the editor's denoiser predicts; raises UsageError where it is none of the known kinds."""
    kind: Prediction = getattr(editor, "prediction", None)  # type: ignore[assignment] # looked at below
    if kind not in get_args(Prediction):
        raise UsageError(
            f"prediction of {editor.name!r} must be one of {', '.join(get_args(Prediction))}, not {kind!r}"
        )
    return kind


def noise_estimate(editor: WhiteBoxEditor, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """ε̂ (n̂ for flow) behind a raw prediction, (B, C, h, w)."""
    kind = prediction_kind(editor)
    if kind == "epsilon":
        return prediction
    a, b = coefficients(editor, t, noisy)
    if kind == "sample":
        return (noisy - a * prediction) / b
    return (b * noisy if kind == "v_prediction" else noisy) + a * prediction


def clean_estimate(editor: WhiteBoxEditor, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """ẑ behind a raw prediction, (B, C, h, w), scaled."""
    kind = prediction_kind(editor)
    if kind == "sample":
        return prediction
    a, b = coefficients(editor, t, noisy)
    if kind == "epsilon":
        return (noisy - b * prediction) / a
    return (a * noisy if kind == "v_prediction" else noisy) - b * prediction


@lru_cache(maxsize=1)
def _sd1_sigmas() -> tuple[float, ...]:
    """σ of equal signal-to-noise ratio for t = 0 … 999 of Stable Diffusion 1's schedule (scaled linear, 0.00085 to 0.012)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS, dtype=torch.float64).square()
    kept = torch.cumprod(1 - betas, dim=0)
    signal, noise = kept.sqrt(), (1 - kept).sqrt()
    return tuple((noise / (signal + noise)).tolist())


def sigma_of(t: int) -> float:
    """The rectified-flow σ with the signal-to-noise ratio of timestep t (0 … 999) of Stable Diffusion 1."""
    return _sd1_sigmas()[t]


def schedule(editor: WhiteBoxEditor, steps: int | None = None) -> Tensor:
    """The timesteps of the editor's own edit (its default number of steps, or 50), from noisy to clean."""
    return editor.timesteps(steps or editor.traits.steps or 50)


def first_timestep(editor: WhiteBoxEditor, steps: int | None = None) -> float:
    """The noisiest timestep that an edit visits; img2img editors start below pure noise."""
    return float(schedule(editor, steps)[0])


def scheduler_steps(editor: WhiteBoxEditor, count: int) -> int:
    """The scheduler's steps of an edit that runs `count` of them.

    More than `count` where an image-to-image editor runs only the share of its strength: of 4 scheduler steps at strength
    0.3 one would be left, at almost no noise, which is no edit.

    Raises:
        UsageError: no number of steps leaves so many, or the editor cannot say which it runs.
    """
    strength = editor.traits.strength
    if strength is None or strength >= 1:
        return count
    require(f"an edit of {count} passes", editor, ("timesteps",))
    why: UsageError | None = None
    least = max(1, math.floor(count / strength)) if strength > 0 else count  # families round the share down or up
    for steps in (least, least + 1, least + 2):
        try:
            found = len(editor.timesteps(steps))
        except UsageError as error:  # the share of so few leaves none
            why = error
            continue
        if steps > count and found >= steps:
            return count  # an editor that runs all steps it is asked for, from where its edits begin
        if found >= count:
            return steps
    raise UsageError(
        f"steps={count}: {editor.name!r} runs a share of {strength:g} of its scheduler's steps, and no number of them leaves "
        f"{count}; give it a higher strength, or fewer steps" + (f" ({why})" if why else "")
    ) from why


def draw_timestep(context: Context, low: int = 0, high: int = TRAIN_STEPS - 1, *, name: str = "timestep") -> Tensor:
    """One random timestep per picture, (B,), of the editor's own kind; draws "timestep" (or another `name`).

    t is uniform on low … high of the 1000-step scale on which the methods were published. Flow editors get the σ of equal
    signal-to-noise ratio. Where the image enters only through the noisy latent, nothing above the first timestep of an edit
    is used (it would never occur): t is drawn up to there, and is the highest possible one if the whole range lies above.
    """
    editor = context.editor
    highest = _highest(context, high)
    t = context.draws.integer(name, min(low, highest), highest)
    if prediction_kind(editor) == "flow":
        values = torch.tensor([TRAIN_STEPS * sigma_of(int(k)) for k in t])
        return values.to(device=editor.device, dtype=torch.float32, non_blocking=True)
    return t.to(device=editor.device, dtype=torch.float32, non_blocking=True)


def _highest(context: Context, high: int) -> int:
    if context.clean_encoded().cond is not None:
        return high
    if "first_timestep" not in context.cache:  # the same in every iteration, and read off a schedule on the device
        context.cache["first_timestep"] = first_timestep(context.editor)
    ceiling = context.cache["first_timestep"]
    if prediction_kind(context.editor) == "flow":
        return max((k for k in range(high + 1) if TRAIN_STEPS * sigma_of(k) <= ceiling), default=0)
    return min(high, max(int(ceiling), 0))


def draw_timestep_noise(context: Context, low: int = 0, high: int = TRAIN_STEPS - 1) -> tuple[Tensor, Tensor]:
    """(t (B,), n (B, C, h, w)); draws "timestep", then "noise"."""
    t = draw_timestep(context, low, high)
    raw = context.clean_encoded().raw
    return t, context.draws.normal("noise", raw.shape[1:], raw)


def mean_square(difference: Tensor) -> Tensor:
    """Mean of squares per picture, (B,)."""
    found: Tensor = difference.square().flatten(1).mean(dim=1)
    return found


def with_path(method: str, editor: WhiteBoxEditor, path: Path) -> WhiteBoxEditor:
    """The editor, if the path exists on it: where the image adds no condition, only "both" (the same as "lat") and "lat" do."""
    if path in ("cond", "trajectory") and not takes_condition(editor):
        raise undefined(f"{method} with path={path!r}", editor, "the image enters it only through the noisy latent")
    return editor


def takes_condition(editor: WhiteBoxEditor) -> bool:
    """Whether the image enters the denoiser's input as a condition too; asked with a small black picture."""
    multiple = editor.traits.size_multiple
    side = multiple * max(1, -(-64 // multiple))
    with torch.no_grad():
        return editor.condition(torch.zeros(1, 3, side, side, device=editor.device)) is not None


def usable_path(context: Context, path: Path) -> Path:
    """The path as it is walked: "lat" where the image adds no condition (`with_path` refuses what does not exist)."""
    return "lat" if context.clean_encoded().cond is None else path


def noisy_and_condition(
    context: Context, encoded: Encoded, t: Tensor, noise: Tensor, *, path: Path, fixed: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(z_t, condition) of K·B rows, timestep-major.

    Args:
        encoded: of the pixels under attack (B). t: (K·B,). noise: (K·B, C, h, w).
        fixed: z_t (K·B, …) of a clean edit, for path "trajectory".
    """
    clean, count = context.clean_encoded(), len(t) // len(context)
    source = encoded if path in ("both", "lat") else clean
    if path == "trajectory" and fixed is not None:
        z_t = fixed
    else:
        z_t = context.editor.noisy(_repeat(context.editor.scaled(source.raw), count), t, noise)
    cond = (clean if path == "lat" else encoded).cond
    return z_t, None if cond is None else _repeat(cond, count)


def _repeat(value: Tensor, count: int) -> Tensor:
    return value if count == 1 else value.repeat(count, *([1] * (value.ndim - 1)))


def denoising_loss(context: Context, encoded: Encoded, t: Tensor, noise: Tensor, path: Path) -> Tensor:
    """Mean square denoising error per picture, (B,).

    VP: MSE(ε̂, n). Flow: MSE(v̂, n − z), in which z carries gradient where the path goes through the latent.
    """
    editor = context.editor
    z_t, cond = noisy_and_condition(context, encoded, t, noise, path=path)
    prediction = editor.predict(z_t, t, context.text(), cond)
    if prediction_kind(editor) == "flow":
        source = encoded if path in ("both", "lat") else context.clean_encoded()
        error = prediction - (noise - editor.scaled(source.raw))
    else:
        error = noise_estimate(editor, prediction, z_t, t) - noise
    return mean_square(error)


@torch.no_grad()
def trajectory(context: Context, times: Tensor, noise: Tensor) -> list[Tensor]:
    """The noisy latents that a clean edit passes at `times`, [(B, C, h, w)] in their order.

    A deterministic walk (DDIM with η = 0; the same formula is Euler's step for flow) over the editor's own schedule,
    conditional branch only (no guidance, which a sampled edit has), z' = a'·ẑ + b'·n̂, from `noise` (B, C, h, w): pure noise
    where the image is a condition.
    """
    editor, clean = context.editor, context.clean_encoded()
    steps = schedule(editor)
    wanted = sorted(
        {float(t) for t in times} | {float(t) for t in steps if float(t) >= float(times.min())}, reverse=True
    )
    rows = len(context)

    def at(t: float) -> Tensor:
        return torch.full((rows,), t, device=noise.device, dtype=torch.float32)

    z = noise.clone() if clean.cond is not None else editor.noisy(editor.scaled(clean.raw), at(wanted[0]), noise)
    seen = {}
    for i, t in enumerate(wanted):
        seen[t] = z
        if i + 1 < len(wanted):
            prediction = editor.predict(z, at(t), context.text(), clean.cond)
            n_hat, z_hat = noise_estimate(editor, prediction, z, at(t)), clean_estimate(editor, prediction, z, at(t))
            a, b = coefficients(editor, at(wanted[i + 1]), z)
            z = a * z_hat + b * n_hat
    return [seen[float(t)] for t in times]
