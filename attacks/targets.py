"""Target pictures, drawn by code: tiled high-contrast lettering (Mist, ACE) and mid grey (PhotoGuard)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from isr.errors import UsageError

__all__ = ["PICTURES", "check_target", "picture_tensor", "tile"]

#: Names of target pictures.
PICTURES = ("tile", "grey")

# A 5×7 bitmap face, so that the tile has the same bytes with every font library.
_LETTERS = {
    "I": ("#####", "..#..", "..#..", "..#..", "..#..", "..#..", "#####"),
    "S": (".####", "#....", "#....", ".###.", "....#", "....#", "####."),
    "R": ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"),
}


def _word() -> npt.NDArray[np.float32]:
    """ "ISR" in white on black with a margin of one cell, (9, 19) in {0, 1}."""
    word = np.zeros((9, 19), np.float32)
    for i, letter in enumerate("ISR"):
        for row, line in enumerate(_LETTERS[letter]):
            for column, mark in enumerate(line):
                word[1 + row, 1 + 6 * i + column] = mark == "#"
    return word


def tile(width: int, height: int, *, columns: int = 3, rows: int = 8) -> PIL.Image.Image:
    """White lettering on black, `columns` × `rows` times, nearest-neighbour; what Mist and ACE pull latents towards.

    Mist's authors tile a white wordmark 3 × 8 on black and find contrast and tiling to matter; this is our own drawing.
    """
    word = _word()
    y = (np.arange(height) * rows * word.shape[0] // height) % word.shape[0]
    x = (np.arange(width) * columns * word.shape[1] // width) % word.shape[1]
    plane = (word[np.ix_(y, x)] * 255).astype(np.uint8)
    return PIL.Image.fromarray(np.repeat(plane[:, :, None], 3, axis=2))


def check_target(target: object, names: Sequence[str] = PICTURES) -> None:
    """Refuse a target that is neither one of the names nor a picture."""
    if isinstance(target, PIL.Image.Image) or (isinstance(target, str) and target in names):
        return
    came = repr(target) if isinstance(target, str | int | float) else type(target).__name__
    hint = "; open a file with PIL.Image.open" if isinstance(target, str) and "." in target else ""
    raise UsageError(f"target must be {', '.join(map(repr, names))} or a picture (PIL.Image), not {came}{hint}")


def picture_tensor(target: str | PIL.Image.Image, like: Tensor) -> Tensor:
    """A target as pixels (1, 3, H, W) in [0, 1], in the size, dtype and device of `like`: "grey", "tile", or a picture
    (brought to the size by bicubic resampling). Raises UsageError for other names."""
    check_target(target)
    height, width = like.shape[-2:]
    if target == "grey":
        return torch.full((1, 3, height, width), 0.5, dtype=like.dtype, device=like.device)
    picture = tile(width, height) if isinstance(target, str) else target.convert("RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), PIL.Image.Resampling.BICUBIC)
    array = np.asarray(picture, dtype=np.float32) / 255.0
    return torch.from_numpy(array).permute(2, 0, 1)[None].to(device=like.device, dtype=like.dtype)
