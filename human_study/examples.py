"""Items whose right answer is known: training examples and attention checks.

They are made from pictures of the run by an exact operation (black and white, mirrored, drowned in noise, left as it is),
so their answers rest on no model's and no person's opinion. A lab's own come from a CSV.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from isr.agreeing import read_ratings
from isr.errors import Problem, ProblemsError, UsageError
from isr.images import as_image
from isr.images.errors import ImageError

from .study import StudyItem

__all__ = ["from_csv", "made_from"]

Kind = Literal["training", "attention"]
Pixels = npt.NDArray[np.uint8]
MONOCHROME = "Turn this picture into a black-and-white photograph"
MIRROR = "Mirror this picture left to right"
#: Mean distance between the largest and the smallest channel under which a picture counts as colourless.
COLOURLESS = 14.0
#: Mean distance from the mirror image under which nobody could tell left from right.
SYMMETRIC = 8.0
Recipe = tuple[str, Pixels, dict[str, bool], str]
_ANSWERS = ("semantic_mismatch", "degradation", "overall")


def _grey(pixels: Pixels) -> Pixels:
    luma = (pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
    return np.repeat(luma[..., None], 3, axis=2)


def _drowned(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    noise = rng.normal(0, 110, pixels.shape)
    drowned: Pixels = np.clip(0.35 * pixels + 80 + noise, 0, 255).round().astype(np.uint8)
    return drowned


def _black_and_white(pixels: Pixels, _rng: np.random.Generator) -> Recipe:
    return (
        MONOCHROME,
        _grey(pixels),
        {"semantic_mismatch": False, "degradation": False, "overall": False},
        "The picture is now black and white, as requested, and otherwise intact. The request was carried out.",
    )


def _still_coloured(pixels: Pixels, _rng: np.random.Generator) -> Recipe:
    return (
        MONOCHROME,
        pixels,
        {"semantic_mismatch": True, "degradation": False, "overall": True},
        "Nothing was changed: the picture still has its colours, so the request was not carried out. The picture "
        "itself is fine.",
    )


def _under_noise(pixels: Pixels, rng: np.random.Generator) -> Recipe:
    return (
        MIRROR,
        _drowned(pixels[:, ::-1], rng),
        {"degradation": True, "overall": True},
        "Heavy noise covers the picture, and the request did not ask for any. Nobody could use it.",
    )


def _mirrored(pixels: Pixels, _rng: np.random.Generator) -> Recipe:
    return (
        MIRROR,
        np.ascontiguousarray(pixels[:, ::-1]),
        {"semantic_mismatch": False, "degradation": False, "overall": False},
        "Left and right are swapped, as requested, and the picture is intact.",
    )


def _not_mirrored(pixels: Pixels, _rng: np.random.Generator) -> Recipe:
    return (
        MIRROR,
        pixels,
        {"semantic_mismatch": True, "degradation": False, "overall": True},
        "Left and right are as they were, so the request was not carried out. The picture itself is fine.",
    )


def _recipes(bases: list[Pixels], *, with_originals: bool) -> tuple[list[Any], list[Pixels]]:
    """The examples that have a known answer for these pictures, and the pictures that serve: whether colours are gone can
    only be told of coloured ones, whether left and right are swapped only beside the original, of pictures that differ from
    their mirror image."""
    coloured = [b for b in bases if float(np.ptp(b.astype(np.int16), axis=2).mean()) >= COLOURLESS]
    lopsided = [b for b in coloured or bases if float(np.abs(b.astype(np.int16) - b[:, ::-1]).mean()) >= SYMMETRIC]
    if coloured and with_originals and lopsided:
        return [_black_and_white, _still_coloured, _under_noise, _mirrored], lopsided
    if coloured:
        return [_black_and_white, _still_coloured, _under_noise], coloured
    if with_originals and lopsided:
        return [_mirrored, _not_mirrored, _under_noise], lopsided
    raise UsageError(
        "training, attention: no example with a known answer can be made from this run's pictures (colourless, and symmetric "
        "or judged without originals); give your own as CSV, or do without them (--training 0 --attention 0)"
    )


def made_from(
    pngs: Sequence[bytes], count: int, kind: Kind, *, with_originals: bool, seed: int, skip: int = 0
) -> tuple[list[StudyItem], dict[str, bytes]]:
    """`count` items from these pictures, used in turn, and the pictures they need (PNG by digest).

    Args:
        pngs: base pictures. skip: start at another base picture and example, so that checks differ from the training.
    """
    if count and not pngs:
        raise UsageError("training, attention: the run holds no picture to make examples from; give your own CSV")
    bases = [np.asarray(as_image(png, name="base").pil(), dtype=np.uint8) for png in pngs]
    items: list[StudyItem] = []
    pictures: dict[str, bytes] = {}
    if not count:
        return items, pictures
    recipes, bases = _recipes(bases, with_originals=with_originals)
    for index in range(count):
        rng = np.random.default_rng([seed, 3, skip + index])
        base = bases[(skip + index) % len(bases)]
        prompt, edited, expected, feedback = recipes[(skip + index) % len(recipes)](base, rng)
        refs = [as_image(edited, name="edited"), as_image(base, name="original")]
        pictures[refs[0].digest] = refs[0].png()
        if with_originals:
            pictures[refs[1].digest] = refs[1].png()
        items.append(
            StudyItem(
                id=f"{kind}-{index}",
                kind=kind,
                prompt=prompt,
                edited=refs[0].digest,
                original=refs[1].digest if with_originals else None,
                expected=expected,
                feedback=feedback if kind == "training" else "",
            )
        )
    return items, pictures


def from_csv(path: str | Path, kind: Kind) -> tuple[list[StudyItem], dict[str, bytes]]:
    """A lab's own items: columns edited, prompt, and original, semantic_mismatch, degradation, overall, feedback where known.

    Paths are relative to the CSV. An answer left empty is not checked.
    """
    table: pd.DataFrame = read_ratings(path)
    missing = [c for c in ("edited", "prompt") if c not in table.columns]
    if missing:
        raise UsageError(
            f"{kind} {str(path)!r}: the column {missing[0]!r} is missing; it has {', '.join(table.columns)}"
        )
    items: list[StudyItem] = []
    pictures: dict[str, bytes] = {}
    problems: list[Problem] = []
    for index, row in enumerate(table.to_dict("records")):
        expected = {key: bool(row[key]) for key in _ANSWERS if row.get(key) is not None and not pd.isna(row[key])}
        if not expected:
            problems.append(
                Problem(f"row {index + 1}", "no known answer; fill in at least one of " + ", ".join(_ANSWERS))
            )
            continue
        digests: dict[str, Any] = {"original": None}
        try:
            for role in ("edited", "original"):
                if row.get(role):
                    ref = as_image(Path(path).parent / str(row[role]))
                    pictures[ref.digest] = ref.png()
                    digests[role] = ref.digest
        except ImageError as error:
            problems.append(Problem(f"row {index + 1}", str(error)))
            continue
        items.append(
            StudyItem(
                id=f"{kind}-{index}", kind=kind, prompt=str(row["prompt"]), expected=expected,
                feedback=str(row.get("feedback") or "") if kind == "training" else "", **digests,
            )
        )  # fmt: skip
    if problems:
        raise ProblemsError(problems, hint=f"Mend these rows of {str(path)!r}.")
    return items, pictures
