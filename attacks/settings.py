"""How the optimiser walks: everything about an attack that is not its objective. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from isr.errors import UsageError
from isr.perturbation import Budget, Norm

from .validation import at_least, check_types, one_of, own_numbers

__all__ = ["PGDSettings", "Precision", "Schedule", "Start", "Step"]

Schedule = Literal["constant", "linear"]
Step = Literal["sign", "normalised", "adam"]
Start = Literal["zero", "small", "uniform"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class PGDSettings:
    """Projected gradient descent (Madry et al. 2018) on the pixels, which live in [0, 1]; so do ε and α.

    Attributes:
        eps: radius of the ball. norm: "linf" or "l2".
        alpha: step size: levels of change per step for "sign", Euclidean length for "normalised", learning rate for "adam".
        schedule: "constant", or "linear": α_i = α (1 − 0.99 i/N), as PhotoGuard's encoder attack decays it.
        iterations: N.
        step: "sign" (α·sign g), "normalised" (α·g/‖g‖₂ per picture), "adam" (Kingma & Ba 2015, β = (0.9, 0.999)).
        start: "zero"; "small" (uniform within ±start_radius, for objectives whose gradient is 0 at δ = 0); "uniform" in the
            ball (L∞: the box; L2: a random direction of length ε·U^(1/d), which is uniform in the ball).
        start_radius: of "small".
        grad_reps: gradients averaged per iteration (fresh randomness in each).
        reclip: put δ back to what the pixels really changed after clipping to [0, 1] (usual PGD). False keeps δ as
            Algorithm 1 of the SIFM paper does (line 13: only ±ε).
        patience: stop a picture after this many iterations without a better loss (by `tolerance`, relative); None: never.
            Where losses are random, or a pool of prompts takes turns, single losses cannot be compared: this many windows
            without a better mean, each of at least 10 iterations and whole turns of the pool (deterministic: one turn).
        batch_size: pictures at once. rows: the most denoiser rows (picture × timestep) per pass.
        precision: of the networks, by autocast; δ, pixels and gradients are float32 always.
        loss_scale: the loss is multiplied by it before the backward pass and the gradient divided, so that small gradients
            outlive float16. None: 1, and with precision "float16" 2¹⁶, lowered where a gradient overflows.
    """

    eps: float = 0.03
    norm: Norm = "linf"
    alpha: float = 1 / 255
    schedule: Schedule = "constant"
    iterations: int = 100
    step: Step = "sign"
    start: Start = "zero"
    start_radius: float = 1 / 255
    grad_reps: int = 1
    reclip: bool = True
    patience: int | None = None
    tolerance: float = 1e-4
    batch_size: int = 4
    rows: int = 16
    precision: Precision = "float32"
    loss_scale: float | None = None

    def __post_init__(self) -> None:
        own_numbers(self)
        _ = self.budget
        check_types(type(self), self.as_dict())
        choices = {"schedule": Schedule, "step": Step, "start": Start, "precision": Precision}
        for name, allowed in choices.items():
            one_of(get_args(allowed), **{name: getattr(self, name)})
        at_least(0, tolerance=self.tolerance)
        for name in ("alpha", "start_radius", *(() if self.loss_scale is None else ("loss_scale",))):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be a positive number, not {value!r}")
        if self.step == "sign" and self.alpha > 1:
            raise UsageError(f"alpha is on [0, 1] pixels and must be at most 1 for sign steps, not {self.alpha!r}")
        for name in ("iterations", "grad_reps", "batch_size", "rows"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise UsageError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"patience must be at least 1, or None for no early stop, not {self.patience!r}")

    @property
    def budget(self) -> Budget:
        return Budget(self.norm, self.eps)

    def rate(self, iteration: int) -> float:
        """α of the 0-based iteration."""
        return self.alpha if self.schedule == "constant" else self.alpha * (1 - 0.99 * iteration / self.iterations)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
