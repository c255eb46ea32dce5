"""MiniWorld as a data set: pictures with one original prompt and five unseen ones, exact targets, and split by seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal, get_args, overload

import numpy as np
from PIL import Image

from ...errors import UsageError
from .edits import Edit, sample_edits
from .render import STYLES, Style, render
from .scenes import Category, Scene, caption, sample_scene

__all__ = ["SPLITS", "UNSEEN", "MiniWorld", "MiniWorldItem", "Split", "miniworld"]

Split = Literal["train", "design", "validation", "test"]
#: train: weights. design: choices while building. validation: thresholds and labels. test: final figures, never choices.
SPLITS: tuple[Split, ...] = get_args(Split)
#: Unseen prompts per image (as in the paper's protocol).
UNSEEN = 5

_STREAM = MappingProxyType({"train": 11, "design": 22, "validation": 33, "test": 44})


@dataclass(frozen=True)
class MiniWorldItem:
    """One picture and what is asked of it.

    Attributes:
        image_id: e.g. "miniworld-design-0-00017"; the cluster in every interval.
        scene: the full description of the picture.
        edits: six edits of six different families; the first is the original one.
        prompts: their wordings, in the same order.
        style: how it is drawn.
    """

    image_id: str
    scene: Scene
    edits: tuple[Edit, ...] = field(repr=False)
    prompts: tuple[str, ...]
    style: Style = "plain"

    @property
    def category(self) -> Category:
        return self.scene.category

    @property
    def prompt(self) -> str:
        """The prompt an immunizer may know."""
        return self.prompts[0]

    @property
    def unseen(self) -> tuple[str, ...]:
        """Five prompts of other edit families, kept from the immunizer."""
        return self.prompts[1:]

    @cached_property
    def image(self) -> Image.Image:
        """The picture: 64×64 8-bit RGB."""
        return render(self.scene, self.style)

    @property
    def caption(self) -> str:
        """The picture in words."""
        return caption(self.scene)

    def target_scene(self, prompt: int = 0) -> Scene:
        """The scene that edit number `prompt` (0 the original one, 1 to 5 unseen) should lead to."""
        return self.edits[prompt].target(self.scene)

    def target_caption(self, prompt: int = 0) -> str:
        """That scene in words."""
        return caption(self.target_scene(prompt))

    def target_image(self, prompt: int = 0) -> Image.Image:
        """That scene drawn: what a perfect editor would return, up to the codec."""
        return render(self.target_scene(prompt), self.style)


class MiniWorld(Sequence[MiniWorldItem]):
    """`n` items of one split. Item i depends on split, seed and i alone: a longer set begins with the shorter one."""

    def __init__(self, n: int, split: Split, seed: int, style: Style = "plain") -> None:
        self.n = n
        self.style: Style = style
        self.split: Split = split
        self.seed = seed
        self._items: dict[int, MiniWorldItem] = {}

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> MiniWorldItem: ...
    @overload
    def __getitem__(self, index: slice) -> list[MiniWorldItem]: ...
    def __getitem__(self, index: int | slice) -> MiniWorldItem | list[MiniWorldItem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.n))]
        at = index + self.n if index < 0 else index
        if not 0 <= at < self.n:
            raise IndexError(f"index {index} is outside 0..{self.n - 1}")
        if at not in self._items:
            self._items[at] = _item(self.split, self.seed, at, self.style)
        return self._items[at]

    def __iter__(self) -> Iterator[MiniWorldItem]:
        return (self[i] for i in range(self.n))

    def __repr__(self) -> str:
        style = "" if self.style == "plain" else f", style={self.style!r}"
        return f"miniworld(n={self.n}, split={self.split!r}, seed={self.seed}{style})"

    @property
    def images(self) -> list[Image.Image]:
        """All pictures, 64×64 8-bit RGB."""
        return [item.image for item in self]

    @property
    def prompts(self) -> list[str]:
        """The original prompt of each picture."""
        return [item.prompt for item in self]

    @property
    def unseen(self) -> list[tuple[str, ...]]:
        """Five unseen prompts per picture."""
        return [item.unseen for item in self]

    @property
    def image_ids(self) -> list[str]:
        return [item.image_id for item in self]

    @property
    def categories(self) -> list[Category]:
        return [item.category for item in self]


def _item(split: Split, seed: int, index: int, style: Style) -> MiniWorldItem:
    rng = np.random.default_rng([_STREAM[split], seed, index])
    scene = sample_scene(rng)
    edits = tuple(sample_edits(scene, rng, 1 + UNSEEN))
    prompts = tuple(edit.wordings[int(rng.integers(len(edit.wordings)))] for edit in edits)
    name = "miniworld" if style == "plain" else f"miniworld-{style}"
    return MiniWorldItem(f"{name}-{split}-{seed}-{index:05d}", scene, edits, prompts, style)


def miniworld(n: int = 100, split: Split = "design", seed: int = 0, *, style: Style = "plain") -> MiniWorld:
    """Procedural 64×64 pictures with edit prompts and exact targets; deterministic, drawn on first use.

    Args:
        n: how many pictures.
        split: "train", "design", "validation" or "test". Splits share no picture, whatever the seed; "test" is for
            final figures only and must not decide anything.
        seed: another draw of the same split (0 or more).
        style: "plain", or "canvas": the same scenes in another light, colours and grain.

    Returns:
        a sequence of `MiniWorldItem`, with `images`, `prompts`, `unseen`, `image_ids` and `categories` as lists.

    Raises:
        UsageError: for a negative number, an unknown split or style.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if style not in STYLES:
        raise UsageError(f"style must be one of {', '.join(STYLES)}; got {style!r}")
    for name, value in (("n", n), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageError(f"{name} must be an integer of 0 or more; got {value!r}")
    return MiniWorld(n, split, seed, style)
