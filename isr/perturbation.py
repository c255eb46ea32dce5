"""The budget of a perturbation, on the saved 8-bit file: what a downloader gets is what counts, not a float tensor.

Every budget is given on [0, 1] pixels. With ε = 0.03 a channel value may change by at most 7 of 255 levels
(8/255 = 0.0314 > 0.03), so a saturated float perturbation must be rounded *and* projected. Needs numpy and Pillow only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import PIL.Image

from .errors import BudgetError, UsageError

__all__ = [
    "Budget", "Norm", "Perturbation", "bands", "fit", "measure", "pixels", "quantise", "share_of", "verify", "within",
]  # fmt: skip

Norm = Literal["linf", "l2"]
Levels = npt.NDArray[np.uint8]
_SLACK = 1e-9  # floats such as 8/255 must admit exactly 8 levels
_BAND = 2**20  # pixels; arithmetic on whole photos of tens of megapixels would take gigabytes


@dataclass(frozen=True)
class Budget:
    """How far a protected picture may be from its original.

    Attributes:
        norm: "linf" (largest change of any channel value) or "l2" (Euclidean norm over all pixels and channels).
        eps: the radius on [0, 1] pixels, at least 1/255: one level of one channel value, the least that a file can change by.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise UsageError(f"budget norm must be one of {', '.join(get_args(Norm))}, not {self.norm!r}")
        if not (isinstance(self.eps, int | float) and math.isfinite(self.eps) and self.eps > 0):
            raise UsageError(f"budget eps must be a positive number on [0, 1] pixels (0.03, not 8), not {self.eps!r}")
        if self.norm == "linf" and self.eps > 1:
            raise UsageError(
                f"budget eps is on [0, 1] pixels and must be at most 1, not {self.eps!r}; divide levels by 255"
            )
        if self.levels < 1:
            raise UsageError(
                f"budget eps {self.eps!r} is less than one of 255 levels ({255 * self.eps:.3g}), so no saved picture could change; "
                "eps is on [0, 1] pixels and must be at least 1/255 (0.00393; the paper's is 0.03)"
            )

    @property
    def levels(self) -> int:
        """The largest change of a channel value in 8-bit levels that the budget allows: ⌊255 ε⌋."""
        return math.floor(255 * self.eps + _SLACK)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Budget | None:
        """The `budget` entry of an immunizer's settings; None where it declares none."""
        entry = settings.get("budget")
        if entry is None:
            return None
        if not isinstance(entry, Mapping) or set(entry) != {"norm", "eps"}:
            raise UsageError(
                f'settings()["budget"] must be {{"norm": "linf" | "l2", "eps": number}} or None, not {entry!r}'
            )
        return cls(norm=cast(Norm, entry["norm"]), eps=cast(float, entry["eps"]))

    def settings(self) -> dict[str, Any]:
        return {"norm": self.norm, "eps": self.eps}


@dataclass(frozen=True)
class Perturbation:
    """What was measured between an original and a protected picture, both 8-bit RGB.

    Attributes:
        linf: largest change of a channel value, on [0, 1]. l2: Euclidean norm on [0, 1]. levels: linf in 8-bit levels.
        psnr: 10 log₁₀(1 / mean square change) in dB over all channels; inf where nothing changed.
        changed: share of channel values that differ.
    """

    linf: float
    l2: float
    levels: int
    psnr: float
    changed: float


def pixels(image: PIL.Image.Image, what: str = "image") -> Levels:
    """(H, W, 3) uint8 of an 8-bit RGB picture; anything else raises."""
    if not isinstance(image, PIL.Image.Image):
        raise UsageError(f"{what} must be a PIL image, not {type(image).__name__}")
    if image.mode != "RGB":
        raise UsageError(f"{what} must be an 8-bit RGB picture, not mode {image.mode!r}; convert it first")
    return np.asarray(image, dtype=np.uint8)


def measure(original: PIL.Image.Image, protected: PIL.Image.Image) -> Perturbation:
    """Size of a perturbation as saved. Sizes must agree."""
    a, b = pixels(original, "original"), pixels(protected, "protected")
    if a.shape != b.shape:
        raise UsageError(
            f"protected is {b.shape[1]}×{b.shape[0]}, its original {a.shape[1]}×{a.shape[0]}: sizes must agree"
        )
    squares = levels = differing = 0
    for rows in bands(a):
        change = b[rows].astype(np.int32) - a[rows]
        squares += int((change * change).sum(dtype=np.int64))
        levels = max(levels, int(np.abs(change).max()))
        differing += int(np.count_nonzero(change))
    psnr = math.inf if squares == 0 else 10 * math.log10(255.0**2 * a.size / squares)
    share = float(differing) / max(a.size, 1)
    return Perturbation(linf=levels / 255, l2=math.sqrt(squares) / 255, levels=levels, psnr=psnr, changed=share)


def bands(levels: Levels) -> Iterator[slice]:
    """Slices of rows of a picture (H, W, 3), each of about a megapixel."""
    height, width = levels.shape[:2]
    step = max(1, _BAND // max(width, 1))
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def within(found: Perturbation, budget: Budget) -> bool:
    """Whether a measured perturbation keeps the budget."""
    return found.levels <= budget.levels if budget.norm == "linf" else found.l2 <= budget.eps * (1 + _SLACK)


def share_of(budget: Budget, share: Levels) -> npt.NDArray[np.int16]:
    """⌊255 m ε⌋: the levels that an L∞ budget allows where a mask (uint8, 255 m) is a share m of it; same shape."""
    allowed: npt.NDArray[np.int16] = np.floor(share * budget.eps + _SLACK).astype(np.int16)
    return allowed


def verify(
    original: PIL.Image.Image,
    protected: PIL.Image.Image,
    budget: Budget | None,
    *,
    name: str = "the immunizer",
    item: str = "",
) -> Perturbation:
    """Check size, mode and budget of one protected picture.

    Args:
        original: 8-bit RGB. protected: what came back (or was read from the saved file). budget: None checks size and mode.
        name: the immunizer, and item: the picture, as errors call them.

    Raises:
        UsageError: another mode or size. BudgetError: the budget is broken; says by how much.
    """
    found = measure(original, protected)
    if budget is not None and not within(found, budget):
        where = f" on {item}" if item else ""
        size = f"{found.levels} levels ({found.linf:.5f})" if budget.norm == "linf" else f"{found.l2:.5f}"
        allowed = f"{budget.levels} levels ({budget.eps:g})" if budget.norm == "linf" else f"{budget.eps:g}"
        raise BudgetError(
            f"{name} broke its own {'L∞' if budget.norm == 'linf' else 'L2'} budget{where}: the saved picture changes by "
            f'{size}, allowed are {allowed}. Mend the plugin, or let isr.immunize(…, over_budget="project") cut it back'
        )
    return found


def quantise(original: Levels, perturbed: npt.NDArray[np.floating[Any]], budget: Budget | None) -> Levels:
    """Round a perturbed picture to 8 bits so that the budget holds on the result.

    L∞: round to the nearest level, then clip the change to ±⌊255 ε⌋. L2: shrink the float change into the ball if need be,
    round, and take back those roundings that went outward, the largest excess first, until the norm fits (taking back all
    of them always fits).

    Args:
        original: (H, W, 3) uint8. perturbed: (H, W, 3) float on [0, 1] (clipped to it). budget: None only rounds.

    Raises:
        UsageError: shapes differ, or a value is not finite.
    """
    if perturbed.shape != original.shape:
        raise UsageError(f"perturbed has shape {perturbed.shape}, its original {original.shape}: they must agree")
    if not np.isfinite(perturbed).all():
        raise UsageError("perturbed holds values that are not finite; the optimisation went wrong before saving")
    if budget is not None and budget.norm == "l2":
        return _quantise(original, perturbed, budget)
    whole = np.empty_like(original, order="C")
    for rows in bands(original):
        whole[rows] = _quantise(original[rows], perturbed[rows], budget)
    return whole


def _quantise(original: Levels, perturbed: npt.NDArray[np.floating[Any]], budget: Budget | None) -> Levels:
    base = original.astype(np.int64)
    wanted = np.clip(perturbed.astype(np.float64), 0.0, 1.0) * 255.0 - base
    if budget is not None and budget.norm == "l2":
        size = float(np.sqrt(np.square(wanted).sum())) / 255
        if size > budget.eps:
            wanted *= budget.eps / size
    change = np.rint(wanted).astype(np.int64)
    if budget is not None:
        if budget.norm == "linf":
            change = np.clip(change, -budget.levels, budget.levels)
        else:
            change = _take_back(change, wanted, (255 * budget.eps) ** 2 * (1 + _SLACK))
    saved: Levels = np.clip(base + change, 0, 255).astype(np.uint8)
    return saved


def _take_back(change: npt.NDArray[np.int64], wanted: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.int64]:
    """Undo outward roundings (largest excess first, ties by position) until the sum of squares is at most `limit`."""
    over = float(np.square(change).sum()) - limit
    if over <= 0:
        return change
    flat, excess = change.reshape(-1).copy(), (np.abs(change) - np.abs(wanted)).reshape(-1)
    outward = np.flatnonzero(excess > 0)
    order = outward[np.argsort(-excess[outward], kind="stable")]
    gained = np.cumsum(2 * np.abs(flat[order]) - 1)  # k² − (k−1)²
    count = int(np.searchsorted(gained, over)) + 1
    chosen = order[:count]
    flat[chosen] -= np.sign(flat[chosen])
    return flat.reshape(change.shape)


def fit(original: PIL.Image.Image, protected: PIL.Image.Image, budget: Budget | None) -> PIL.Image.Image:
    """The nearest 8-bit picture to `protected` inside the budget around `original` (the projection the framework makes)."""
    a, b = pixels(original, "original"), pixels(protected, "protected")
    return PIL.Image.fromarray(quantise(a, b.astype(np.float64) / 255, budget))
