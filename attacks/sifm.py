"""Synergistic Intermediate Feature Manipulation (SIFM): the paper's own method, Algorithm 1, Eqs. 3–7."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from isr.errors import UsageError
from isr.protocols import Editor, WhiteBoxEditor

from .context import Context, Encoded, require
from .denoise import (
    TRAIN_STEPS,
    Path,
    first_timestep,
    noisy_and_condition,
    schedule,
    takes_condition,
    trajectory,
    usable_path,
    with_path,
)
from .factory import PAPER, attack
from .memory import sum_parts
from .objective import Objective, unit
from .validation import at_least, list_of, one_of

__all__ = ["SIFM", "sifm"]

Norm = Literal["l1", "frobenius"]
Reduction = Literal["paper", "mean_mean", "mean_sum", "relative", "grad_balanced"]
Aggregate = Literal["auto", "features", "losses"]
NoisePolicy = Literal["fixed", "fresh_both", "fresh_imm"]
Dist = Literal["mse", "cosine", "l1"]
Terms = Literal["both", "norm", "dist"]
Features = list[Tensor]  # φ_t as one aggregated tensor, or one per layer; rows are timestep-major


@dataclass(frozen=True)
class SIFM(Objective):
    """Shrinks the denoiser's deep features and drives them away from the clean picture's.

    Minimises (1/|T|) Σ_t ‖φ_t(x)‖₁ − λ · Dist(φ_t(x), φ_t(x₀)),  φ_t = (1/M) Σ_j L_j(z_t, prompt, t).

    Source: arXiv 2512.14320, section V, Eqs. 3–7 and Algorithm 1; no code is known. ε 0.03, 100 iterations, λ 0.1 and the
    edit's own prompt are the paper's; α, T, layers, Dist, reductions, noise and guidance are not stated, so each reading
    is an option here. Random: n_t, drawn once (default). Cost per iteration: 1 encoder pass and |T| denoiser passes, cut
    off after the deepest layer, both with gradient; one pass of each at the start. All timesteps share one encoder pass:
    the gradient is that of Algorithm 1's loop. `path="trajectory"` adds a clean edit without guidance and gradient, K further full
    denoiser passes, K + 1 being the steps of the editor's schedule down to the last of T (default: the first 60 % of it: 60 of
    100 steps, so K = 59): once at the start, or with fresh noise, which begins another edit, in every iteration.

    At δ = 0 with shared noise the distance and its gradient are exactly 0: the first step is a pure norm step, and a
    dist-only run from zero never moves. `terms="dist"` therefore starts within ±1/255 unless `start` is given.

    Options:
        lam: λ; None: 1 where the reduction brings both terms to one scale ("relative", "grad_balanced"; at 0.1 the direction
            is nearly the norm's alone), else the paper's 0.1. terms: "both", "norm" or "dist" only (Table VI).
        feature_norm: "l1" (Eq. 5, Algorithm 1) or "frobenius" (the introduction's word).
        dist: "mse" (Eq. 4's example), "cosine" (1 − cos) or "l1".
        reduction: of (norm, Dist) over the elements of φ. "paper": sum and mean, the literal reading, nearly norm-only;
            "mean_mean"; "mean_sum" (fits the paper's Tables VI and VII best); "relative": each over its clean size,
            dimensionless, mean‖φ‖/mean‖φ₀‖ − λ·mean(Δφ²)/mean(φ₀²); "grad_balanced": the two pixel gradients, each divided
            by its own L1 norm, g_N − λ·g_D (independent of all reductions).
        layers: names that `editor.features()` knows (`editor.layers()` lists the useful ones); None: the editor's default (deepest attention level; blocks 12–22 of SD3).
        aggregate: "features": average first (Eq. 3; layers of one shape); "losses": average the layers' losses, each divided
            by its layer's element count where the reduction sums ("paper", "mean_sum"; "grad_balanced" takes means), so that
            large layers do not outweigh small ones; "auto": Eq. 3 where shapes agree, else losses.
        timesteps: the timesteps themselves (image-to-image: none above that at which an edit begins), or None: `count` of
            them over the first `fraction` of the editor's schedule; a warning where that holds fewer.
        path: how pixels reach z_t and the condition: "both", "lat", "cond" (z_t from the clean latent) or "trajectory" (z_t
            of a clean edit run, without guidance).
        noise: "fixed" (one n_t for clean and immunized, always); "fresh_both" (new in each iteration, clean features anew:
            one more forward pass); "fresh_imm" (new, against cached clean features: a noise floor in Dist).

    z is the editor's own scaled latent: of SD3-instruct editors s·E without the VAE's shift (docs/attacks.md).
    """

    method: ClassVar[str] = "sifm"
    needs: ClassVar[tuple[str, ...]] = ("latents", "scaled", "condition", "embed", "timesteps", "noisy", "features")

    lam: float | None = None
    terms: Terms = "both"
    feature_norm: Norm = "l1"
    dist: Dist = "mse"
    reduction: Reduction = "paper"
    layers: Sequence[str] | None = None
    aggregate: Aggregate = "auto"
    timesteps: Sequence[float] | None = None
    count: int = 4
    fraction: float = 0.6
    path: Path = "both"
    noise: NoisePolicy = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        choices: Mapping[str, Any] = {
            "terms": Terms, "feature_norm": Norm, "dist": Dist, "reduction": Reduction, "aggregate": Aggregate,
            "noise": NoisePolicy, "path": Path,
        }  # fmt: skip
        for name, allowed in choices.items():
            one_of(get_args(allowed), **{name: getattr(self, name)})
        at_least(0, lam=self.weight)
        if self.count < 1 or not 0 < self.fraction <= 1:
            raise UsageError(
                f"count must be at least 1 and fraction in (0, 1], not {self.count!r} and {self.fraction!r}"
            )
        if self.timesteps is not None:
            if (times := list_of((int, float), self.timesteps, low=0, high=TRAIN_STEPS)) is None:
                raise UsageError(
                    f"timesteps must be a list of numbers from 0 to {TRAIN_STEPS}, at least one, not {self.timesteps!r}"
                )
            object.__setattr__(self, "timesteps", times)
        if self.layers is not None:
            if (names := list_of(str, self.layers)) is None:
                hint = f"write [{self.layers!r}]" if isinstance(self.layers, str) else "None: the editor's default"
                raise UsageError(f"layers must be a list of names, at least one, not {self.layers!r}; {hint}")
            object.__setattr__(self, "layers", names)

    @property
    def weight(self) -> float:
        """λ: as given, or what suits the reduction."""
        if self.lam is not None:
            return self.lam
        return 1.0 if self.reduction in ("relative", "grad_balanced") else 0.1

    @property
    def stochastic(self) -> bool:
        return self.noise != "fixed"

    def options(self) -> dict[str, Any]:
        return {**super().options(), "lam": self.weight}

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        more = () if self.layers is not None else ("default_layers",)
        inside = require(
            self.method, super().check(editor), (*more, *(("predict",) if self.path == "trajectory" else ()))
        )
        with_path(self.method, inside, self.path)
        if self.timesteps is not None and not takes_condition(inside):
            first = first_timestep(inside)
            if over := [t for t in self.timesteps if t > first]:
                raise UsageError(
                    f"timesteps of sifm must be at most {first:g} on {inside.name!r}, not {over}: an edit starts there, "
                    "and the image enters it only through the noisy latent"
                )
        return inside

    # --------------------------------------------------------------- Algorithm 1, lines 3–4: what is computed once

    def prepare(self, context: Context) -> None:
        editor, cache = context.editor, context.cache
        cache["path"] = usable_path(context, self.path)
        cache["layers"] = tuple(editor.default_layers() if self.layers is None else self.layers)
        cache["times"] = self._times(context)
        self._new_noise(context)
        if self.noise != "fresh_both":
            with torch.no_grad():
                cache["clean"] = self._features_of_clean(context)

    def _times(self, context: Context) -> Tensor:
        """T (|T|,), noisy to clean."""
        if self.timesteps is not None:
            return torch.tensor([float(t) for t in self.timesteps], device=context.editor.device)
        steps = schedule(context.editor)
        last = max(round(self.fraction * len(steps)) - 1, 0)
        places = sorted({round(p) for p in torch.linspace(0, last, self.count).tolist()})
        if len(places) < self.count:
            warnings.warn(
                f"sifm: count={self.count}, but the first {100 * self.fraction:g} % of {context.editor.name!r}'s schedule of "
                f"{len(steps)} timesteps hold {len(places)}, which are used; raise fraction, or give timesteps",
                stacklevel=2,
            )
        return steps[places]

    def _new_noise(self, context: Context) -> None:
        """n_t, (|T|·B, C, h, w) timestep-major; and z_t of a clean run where the path is "trajectory"."""
        cache, raw = context.cache, context.clean_encoded().raw
        drawn = context.draws.normal("noise", (len(cache["times"]), *raw.shape[1:]), raw)
        cache["noise"] = drawn.transpose(0, 1).flatten(0, 1)
        if cache["path"] == "trajectory":
            with torch.no_grad():
                cache["z_t"] = torch.cat(trajectory(context, cache["times"], drawn[:, 0]))

    def _features_of_clean(self, context: Context) -> list[Features]:
        return [self._phi(context, context.clean_encoded(), part) for part in self._parts(context)]

    # ------------------------------------------------------------------------------------------- φ_t(x, c), Eq. 3

    def _parts(self, context: Context) -> list[slice]:
        """Timesteps in groups that fit `context.rows` denoiser rows."""
        size = max(1, context.rows // len(context))
        return [slice(k, k + size) for k in range(0, len(context.cache["times"]), size)]

    def _phi(self, context: Context, encoded: Encoded, part: slice) -> Features:
        cache, batch = context.cache, len(context)
        times = cache["times"][part]
        rows = slice(part.start * batch, (part.start + len(times)) * batch)
        t = times.repeat_interleave(batch)
        fixed = cache["z_t"][rows] if "z_t" in cache else None
        z_t, cond = noisy_and_condition(context, encoded, t, cache["noise"][rows], path=cache["path"], fixed=fixed)
        found = context.editor.features(z_t, t, context.text(len(times)), cond, cache["layers"])
        if lacking := [name for name in cache["layers"] if name not in found]:
            raise UsageError(f"{context.editor.name!r} has no layers {lacking}: its features() gave {list(found)}")
        features = [found[name] for name in cache["layers"]]
        same = len({f.shape for f in features}) == 1
        if self.aggregate == "features" and not same:
            shapes = {name: tuple(f.shape[1:]) for name, f in found.items()}
            raise UsageError(
                f"aggregate='features' averages layers of one shape (Eq. 3), but they are {shapes}; choose layers"
            )
        if self.aggregate == "losses" or not same:
            return features
        return [torch.stack(features).mean(dim=0)]

    # ---------------------------------------------------------------------------------------- Eqs. 4–7 and line 9

    def _terms(self, context: Context, part: slice, which: int, encoded: Encoded) -> Tensor:
        """(2, B): Σ over the part's timesteps of norm and Dist, each meaned over layers and divided by |T|."""
        phi, clean = self._phi(context, encoded, part), context.cache["clean"][which]
        of_layers = [torch.stack([self._norm(f, f0), self._dist(f, f0)]) for f, f0 in zip(phi, clean, strict=True)]
        if self.aggregate == "losses" or len(phi) > 1:
            of_layers = [self._per_element(loss, f[0].numel()) for loss, f in zip(of_layers, phi, strict=True)]
        per_time = torch.stack(of_layers).mean(dim=0).reshape(2, -1, len(context))
        return per_time.sum(dim=1) / len(context.cache["times"])

    def _per_element(self, loss: Tensor, count: int) -> Tensor:
        """A layer's (norm, Dist) (2, rows), on one footing with layers of other sizes: the whole loss over its element count,
        which keeps its own balance. Means stand on it already; balanced gradients need it of each term by itself."""
        if self.reduction in ("paper", "mean_sum"):
            return loss / count
        return torch.stack([loss[0] / count, loss[1]]) if self.reduction == "grad_balanced" else loss

    def _norm(self, phi: Tensor, clean: Tensor) -> Tensor:
        """‖φ‖ per row."""
        flat, count = phi.flatten(1), phi[0].numel()
        size = _length(flat, self.feature_norm)
        if self.reduction in ("paper", "grad_balanced"):
            return size
        if self.reduction == "relative":
            return size / _length(clean.flatten(1), self.feature_norm)
        return size / (count if self.feature_norm == "l1" else count**0.5)

    def _dist(self, phi: Tensor, clean: Tensor) -> Tensor:
        """Dist(φ, φ₀) per row."""
        flat, base = phi.flatten(1), clean.flatten(1)
        if self.dist == "cosine":
            return 1 - torch.nn.functional.cosine_similarity(flat, base, dim=1)
        if self.dist == "l1":
            change, size = (flat - base).abs(), base.abs()
        else:
            change, size = (flat - base).square(), base.square()
        if self.reduction == "mean_sum":
            return change.sum(dim=1)
        return change.mean(dim=1) / size.mean(dim=1) if self.reduction == "relative" else change.mean(dim=1)

    def _weights(self) -> tuple[float, float]:
        return (
            0.0 if self.terms == "dist" else 1.0,
            0.0 if self.terms == "norm" else -self.weight if self.terms == "both" else -1.0,
        )

    def _norm_and_dist(self, x: Tensor, context: Context) -> Tensor:
        """(2, B), differentiable: one encoder pass, timesteps in parts."""
        if self.noise != "fixed":
            self._new_noise(context)
            if self.noise == "fresh_both":
                with torch.no_grad():
                    context.cache["clean"] = self._features_of_clean(context)
        encoded, parts = context.encode(x), self._parts(context)
        leaves = [encoded.raw] if encoded.cond is None or encoded.cond is encoded.raw else [encoded.raw, encoded.cond]

        def of_part(k: int, *given: Tensor) -> Tensor:
            cond = None if encoded.cond is None else given[-1]
            return self._terms(context, parts[k], k, Encoded(given[0], cond))

        return sum_parts(of_part, len(parts), *leaves, scale=context.loss_scale)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        norm, dist = self._norm_and_dist(x, context).unbind(0)
        w_norm, w_dist = self._weights()
        return w_norm * norm + w_dist * dist

    def gradient(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        if self.reduction != "grad_balanced" or self.terms != "both":
            return super().gradient(x, context)
        norm, dist = self._norm_and_dist(x, context).unbind(0)
        # The scale is divided out by the balance itself.
        (g_norm,) = torch.autograd.grad(norm.sum() * context.loss_scale, x, retain_graph=True)
        (g_dist,) = torch.autograd.grad(dist.sum() * context.loss_scale, x)
        return (norm - self.weight * dist).detach(), unit(g_norm) - self.weight * unit(g_dist)


def _length(flat: Tensor, norm: Norm) -> Tensor:
    """L1 or Euclidean length per row."""
    found: Tensor = torch.linalg.vector_norm(flat, ord=1 if norm == "l1" else 2, dim=1)
    return found


def _start(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"start": "small" if settings.get("terms") == "dist" else "zero"}


#: Algorithm 1 clips δ to ±ε only (line 13) and takes x = clip₀₁(x₀ + δ) anew (line 14).
_ALGORITHM_1 = {**PAPER, "reclip": False}

sifm = attack("sifm", SIFM, presets={"paper": _ALGORITHM_1, "native": _ALGORITHM_1}, after=_start)
