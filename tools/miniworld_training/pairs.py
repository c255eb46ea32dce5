"""Training pairs: (source, target) pictures of the train split with the edit between them, drawn once into a folder."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isr.data.miniworld import ATTRIBUTES, EDITS, SIZE, Scene, Style, miniworld, render_array

__all__ = ["HEADS", "Pairs", "draw_pairs", "labels"]

#: One classification head per attribute, and one for the category.
HEADS: dict[str, tuple[Any, ...]] = {"category": ("portrait", "landscape", "artwork"), **ATTRIBUTES}
_BLOCK = 500
_BY_COLOUR = frozenset({"hair", "backdrop", "shirt", "color", "ground", "season", "time"})  # unreadable without colour


@dataclass(frozen=True)
class Pairs:
    """Pictures (N, 2, 64, 64, 3) uint8 (source, target), the edit's name and the target's caption per pair, labels
    (N, 2, heads) int8, −1 unknown."""

    pictures: npt.NDArray[np.uint8]
    edits: list[str]
    labels: npt.NDArray[np.int8]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.edits)

    def first(self, count: int) -> Pairs:
        """The first pairs alone."""
        return Pairs(self.pictures[:count], self.edits[:count], self.labels[:count], self.captions[:count])

    @classmethod
    def load(cls, folder: Path) -> Pairs:
        return cls(
            np.load(folder / "pictures.npy", mmap_mode="r"),
            json.loads((folder / "edits.json").read_text("utf-8")),
            np.load(folder / "labels.npy"),
            json.loads((folder / "captions.json").read_text("utf-8")),
        )


def labels(scene: Scene) -> list[int]:
    """Index of each head's value; −1 where the scene has no such attribute, or a colour was lost to the tone."""
    out = []
    for head, values in HEADS.items():
        if head == "category":
            out.append(values.index(scene.category))
        elif head not in scene.attributes or (scene["tone"] != "color" and head in _BY_COLOUR):
            out.append(-1)
        else:
            out.append(values.index(scene[head]))
    return out


def _block(
    start: int, stop: int, style: Style, seed: int
) -> tuple[npt.NDArray[np.uint8], list[str], npt.NDArray[np.int8], list[str]]:
    pictures = np.zeros((stop - start, 2, SIZE, SIZE, 3), np.uint8)
    names, marks, captions = [], [], []
    world = miniworld(stop, "train", seed, style=style)
    for k, i in enumerate(range(start, stop)):
        item = world[i]
        target = item.target_scene()
        pictures[k, 0], pictures[k, 1] = render_array(item.scene, style), render_array(target, style)
        names.append(item.edits[0].name)
        captions.append(item.target_caption())
        marks.append([labels(item.scene), labels(target)])
    return pictures, names, np.array(marks, np.int8), captions


def draw_pairs(folder: Path, count: int, *, workers: int = 1, style: Style = "plain", seed: int = 0) -> Pairs:
    """Draw `count` pairs of the train split into `folder` (kept if it already holds as many)."""
    if (folder / "captions.json").is_file() and len(json.loads((folder / "edits.json").read_text("utf-8"))) == count:
        return Pairs.load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spans = [(i, min(i + _BLOCK, count), style, seed) for i in range(0, count, _BLOCK)]
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            blocks = list(pool.map(_block, *zip(*spans, strict=True)))
    else:
        blocks = [_block(*span) for span in spans]
    np.save(folder / "pictures.npy", np.concatenate([b[0] for b in blocks]))
    np.save(folder / "labels.npy", np.concatenate([b[2] for b in blocks]))
    (folder / "edits.json").write_text(json.dumps([name for b in blocks for name in b[1]]), "utf-8")
    (folder / "captions.json").write_text(json.dumps([text for b in blocks for text in b[3]]), "utf-8")
    if set(EDITS) - set(json.loads((folder / "edits.json").read_text("utf-8"))) and count >= 5000:
        raise RuntimeError("some edits never occur among the training pairs")
    return Pairs.load(folder)
