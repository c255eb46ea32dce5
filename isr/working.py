"""The size that a picture is worked at, and the way of a perturbation back to the full picture."""

from __future__ import annotations

import numbers

import numpy as np
import numpy.typing as npt
import PIL.Image

from .errors import UsageError
from .perturbation import Budget, bands, fit, pixels, quantise
from .protocols import Editor

__all__ = ["Size", "carry_over", "check_size", "resized", "working_size"]

Size = tuple[int, int]


def working_size(width: int, height: int, editor: Editor | None, size: int | None = None) -> Size:
    """(width, height) in which the perturbation of a picture is made.

    The size in which the editor itself works on such a picture (`editor.working_size(height, width)`, where it has one).
    Where that has more than 1.5 times the pixels of the editor's native square (an editor that takes photos as they are),
    or the editor has no such rule: the longest side is brought to the native one at most. Sides are multiples of the
    editor's `size_multiple`; the picture is never enlarged except to one multiple.

    Args:
        size: longest side to work at instead, at least the `size_multiple`.

    Raises:
        UsageError: another `size`.
    """
    check_size(size, editor)
    if editor is None:
        return width, height
    multiple, native = editor.traits.size_multiple, editor.traits.native_size
    own = getattr(editor, "working_size", None)
    if size is None and callable(own):
        tall, wide = own(height, width)
        if native is None or wide * tall <= 1.5 * native**2:
            return int(wide), int(tall)
    longest = size if size is not None else native
    scale = 1.0 if longest is None else min(1.0, longest / max(width, height))

    def side(value: int) -> int:
        return max(multiple, round(value * scale) // multiple * multiple)

    return side(width), side(height)


def check_size(size: int | None, editor: Editor | None) -> None:
    """A longest side that can be worked at.

    Raises:
        UsageError: it is no whole number, or less than the editor's `size_multiple` (1 without an editor).
    """
    least = 1 if editor is None else editor.traits.size_multiple
    if size is not None and (not isinstance(size, numbers.Integral) or isinstance(size, bool) or size < least):
        whose = "pixel" if editor is None else f"pixels (size_multiple of {editor.name!r})"
        raise UsageError(f"size must be a whole number of at least {least} {whose}, not {size!r}")


def carry_over(
    original: PIL.Image.Image, work: PIL.Image.Image, protected: PIL.Image.Image, budget: Budget | None
) -> PIL.Image.Image:
    """Carry a perturbation made at a working size over to the original's size, inside the budget.

    The change (protected − work, in levels) is resampled bicubically per channel as floats, added to the original, rounded
    and projected. An L2 budget holds on the original's pixels, which shrinks a perturbation made at a smaller size.

    Args:
        original: the full picture. work: the picture the attack was given. protected: what it returned, same size as `work`.
    """
    if work.size == original.size:
        return fit(original, protected, None)  # the same grid: nothing to resample
    change = pixels(protected, "protected").astype(np.float32) - pixels(work, "work").astype(np.float32)
    planes = [
        np.asarray(PIL.Image.fromarray(change[:, :, c]).resize(original.size, PIL.Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    base = pixels(original, "original")

    def perturbed(rows: slice) -> npt.NDArray[np.float64]:
        delta = np.stack([plane[rows] for plane in planes], axis=2).astype(np.float64) / 255
        if budget is not None and budget.norm == "linf":
            delta = np.clip(delta, -budget.eps, budget.eps)
        moved: npt.NDArray[np.float64] = base[rows].astype(np.float64) / 255 + delta
        return moved

    if budget is not None and budget.norm == "l2":
        return PIL.Image.fromarray(quantise(base, perturbed(slice(None)), budget))
    whole = np.empty_like(base, order="C")
    for rows in bands(base):
        whole[rows] = quantise(base[rows], perturbed(rows), budget)
    return PIL.Image.fromarray(whole)


def resized(image: PIL.Image.Image, size: Size) -> PIL.Image.Image:
    """The picture at another size, resampled as editors do."""
    return image if image.size == size else image.resize(size, PIL.Image.Resampling.BICUBIC)
