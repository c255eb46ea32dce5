"""What bench_attacks_effect.py keeps: one small .npz per arm with its protected pictures and their edits, lossless.

Needs numpy and Pillow only, so that pictures made on one machine can be judged on another.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

__all__ = ["Arm", "Made", "Store"]

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Arm:
    """One way to protect: a registered attack with settings. `control` changes nothing."""

    attack: str
    eps: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        base = self.label or self.attack
        return base if self.attack == "control" else f"{base}@{self.eps:g}"


@dataclass(frozen=True)
class Made:
    """What there is of an arm: image_id → picture, both (H, W, 3) uint8, and the seconds each picture took."""

    protected: Mapping[str, Pixels]
    edits: Mapping[str, Pixels]
    seconds_protect: float | None
    seconds_edit: float | None
    about: Mapping[str, Any]

    def picture(self, kind: str, image_id: str) -> PIL.Image.Image:
        """`kind` is "protected" or "edits"."""
        return PIL.Image.fromarray(getattr(self, kind)[image_id])


class Store:
    """The arms of one editor in one folder.

    Args:
        folder: made when first written to. originals: image_id → (H, W, 3) uint8, all of one size; protected pictures are
            kept as changes to these.
    """

    def __init__(self, folder: Path, originals: Mapping[str, Pixels]) -> None:
        self.folder = folder
        self.originals = dict(originals)

    def path(self, arm: Arm) -> Path:
        return self.folder / f"{arm.name}.npz"

    def missing(self, arm: Arm) -> list[str]:
        """Pictures that the arm does not hold yet, in the order of the originals."""
        held = self.load(arm)
        return [i for i in self.originals if held is None or i not in held.edits]

    def arms(self) -> list[Arm]:
        """Every arm that has a file, by name."""
        found = []
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
            found.append(Arm(about["attack"], about["eps"], about["settings"], about["label"]))
        return found

    def load(self, arm: Arm) -> Made | None:
        """None where nothing was made. Raises SystemExit where the file holds other settings of the same name."""
        if not self.path(arm).is_file():
            return None
        with np.load(self.path(arm), allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about["settings"] != json.loads(json.dumps(dict(arm.settings))):
                raise SystemExit(
                    f"{self.path(arm)} was made with {about['settings']}, not {dict(arm.settings)}; give another --out"
                )
            ids = [str(i) for i in file["ids"]]
            change, edits = file["change"].astype(np.int16), _undo(file["edits"])
        known = {i: k for k, i in enumerate(ids) if i in self.originals}
        protected = {i: (self.originals[i] + change[k].transpose(1, 2, 0)).astype(np.uint8) for i, k in known.items()}
        return Made(
            protected, {i: edits[k] for i, k in known.items()}, about["seconds_protect"], about["seconds_edit"], about
        )

    def add(
        self, arm: Arm, ids: Sequence[str], protected: Sequence[PIL.Image.Image], edits: Sequence[PIL.Image.Image],
        *, seconds_protect: float, seconds_edit: float, about: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Further pictures of an arm; seconds are of all of them together. Written beside and renamed."""
        held = self.load(arm)
        before = 0 if held is None else len(held.edits)
        count = before + len(ids)

        def mean(old: float | None, new: float) -> float:
            return (before * (old or 0.0) + new) / count

        shown = dict(held.protected) if held else {}
        shown |= {i: np.asarray(p) for i, p in zip(ids, protected, strict=True)}
        edited = dict(held.edits) if held else {}
        edited |= {i: np.asarray(e) for i, e in zip(ids, edits, strict=True)}
        change = np.stack([shown[i].astype(np.int16) - self.originals[i] for i in shown]).transpose(0, 3, 1, 2)
        if np.abs(change).max(initial=0) <= 127:
            change = change.astype(np.int8)
        record = {
            **about, "settings": dict(arm.settings), "attack": arm.attack, "eps": arm.eps, "label": arm.label,
            "seconds_protect": mean(held.seconds_protect if held else None, seconds_protect),
            "seconds_edit": mean(held.seconds_edit if held else None, seconds_edit),
        }  # fmt: skip
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            ids=np.array(list(shown)),
            change=np.ascontiguousarray(change),
            edits=_do(np.stack([edited[i] for i in shown])),
            about=np.array(json.dumps(record, default=str)),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.path(arm).with_suffix(".part")
        beside.write_bytes(buffer.getvalue())
        beside.replace(self.path(arm))


def _do(pictures: Pixels) -> Pixels:
    """(N, H, W, 3) → (N, 3, H, W) differences to the row above, modulo 256: what deflate packs well."""
    planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    return np.diff(planes, axis=2, prepend=np.zeros_like(planes[:, :, :1]))


def _undo(packed: Pixels) -> Pixels:
    planes: Pixels = np.cumsum(packed, axis=2, dtype=np.uint8)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
