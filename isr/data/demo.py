"""Twelve tiny edits and two function judges for `isr demo`: a stand-in for models, and it says so.

The scene is a coloured disc on a gradient; the "edit" asked for turns the disc red. Protected pictures come back
unedited, wrecked by noise, or (where protection failed) properly edited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import PIL.Image

from ..cases import EditCase
from ..schema import Verdict

if TYPE_CHECKING:
    from ..judges.function import JudgeCase

__all__ = ["demo_cases", "judge_by_pixels", "judge_by_sharpness"]

SIDE = 96
PROMPT = "Make the disc red"
Pixels = npt.NDArray[np.uint8]


def _scene(rng: np.random.Generator, disc: tuple[int, int, int]) -> Pixels:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    base = np.stack([120 + 0.6 * x, 140 + 0.5 * y, 200 - 0.5 * x], axis=-1) + rng.normal(0, 2, (SIDE, SIDE, 1))
    inside = (x - SIDE / 2) ** 2 + (y - SIDE / 2) ** 2 < (SIDE / 4) ** 2
    base[inside] = disc
    pixels: Pixels = np.clip(base, 0, 255).round().astype(np.uint8)
    return pixels


def _noisy(rng: np.random.Generator, pixels: Pixels, sigma: float) -> Pixels:
    return np.clip(pixels + rng.normal(0, sigma, pixels.shape), 0, 255).round().astype(np.uint8)


def demo_cases() -> list[EditCase]:
    """Two methods × six pictures, with originals and controls; the same on every machine."""
    cases = []
    for index in range(6):
        rng = np.random.default_rng(index)
        original = _scene(rng, (60, 90, 220))
        edited = _scene(np.random.default_rng(index), (215, 45, 40))
        outcomes = {
            "strong": original if index < 3 else _noisy(rng, edited, 60.0) if index < 5 else edited,
            "weak": original if index < 1 else _noisy(rng, edited, 60.0) if index < 2 else edited,
        }
        for method, picture in outcomes.items():
            cases.append(
                EditCase(
                    edited=PIL.Image.fromarray(picture), prompt=PROMPT, original=PIL.Image.fromarray(original),
                    control=PIL.Image.fromarray(edited), id=f"{method}-{index}", image_id=f"disc-{index}",
                    method=method, prompt_kind="original", category="artwork", seed=index,
                )
            )  # fmt: skip
    return cases


def _middle(image: PIL.Image.Image) -> npt.NDArray[np.float64]:
    side = image.width
    box = np.asarray(image, dtype=np.float64)[side * 3 // 8 : side * 5 // 8, side * 3 // 8 : side * 5 // 8]
    return box


def _grain(image: PIL.Image.Image) -> float:
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    return float(np.median(np.abs(np.diff(grey, axis=1))))


def judge_by_pixels(case: JudgeCase) -> Verdict:
    """Mismatch: the middle is not red. Degradation: strong pixel noise."""
    red, green, blue = _middle(case.edited).reshape(-1, 3).mean(axis=0)
    return Verdict(
        semantic_mismatch=bool(not (red > green + 60 and red > blue + 60)),
        degradation=_grain(case.edited) > 15,
        observations=f"mean colour of the middle: ({red:.0f}, {green:.0f}, {blue:.0f}); grain {_grain(case.edited):.1f}",
        reasons={
            "semantic_mismatch": "is the middle red?",
            "degradation": "is the median step between pixels over 15?",
        },
    )


def judge_by_sharpness(case: JudgeCase) -> Verdict:
    """Mismatch: the middle did not change from the original. Degradation: more than four times the original's grain."""
    if case.original is None:
        raise ValueError("this demonstration judge compares with the original, and there is none")
    change = float(np.abs(_middle(case.edited) - _middle(case.original)).mean())
    ratio = _grain(case.edited) / max(_grain(case.original), 1.0)
    return Verdict(
        semantic_mismatch=change < 20,
        degradation=ratio > 4,
        observations=f"mean change of the middle {change:.0f}; grain × {ratio:.1f}",
        reasons={"semantic_mismatch": "did the middle change?", "degradation": "is it far grainier than the original?"},
    )
