"""Training batches of latents and texts, held on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isr.data.miniworld import EDITS

from .answers import placed_anywhere
from .pairs import Pairs

__all__ = ["Batch", "Batches"]

Rows = npt.NDArray[np.int64]


class Batch:
    """source, target: raw encoder means (B, C, h, w) float32. unique: (U,) rows of the text table; back: (B,) text of each pair.
    instructed: (B,) bool, the text is an instruction, neither empty nor a caption. placed: (B,) bool, `placed_anywhere`."""

    def __init__(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        unique: torch.Tensor,
        back: torch.Tensor,
        instructed: torch.Tensor,
        placed: torch.Tensor,
    ) -> None:
        self.source, self.target, self.unique, self.back = source, target, unique, back
        self.instructed, self.placed = instructed, placed


class Batches:
    """Draws pairs with a wording of their instruction, or with the caption of their target.

    Args:
        latents: raw encoder means (N, 2, C, h, w). captions: share of pairs told by the target's caption.
    """

    def __init__(
        self, data: Pairs, latents: npt.NDArray[np.float16], tokenizer: Any, device: torch.device, captions: float
    ) -> None:
        self.device, self.share = device, captions
        self.latents: Any = torch.from_numpy(np.array(latents)).to(device) if device.type == "cuda" else latents
        names = sorted(EDITS)
        wordings = sorted({w for e in EDITS.values() for w in e.wordings})
        texts = ["", *wordings, *(sorted(set(data.captions)) if captions else ())]
        self.index = {t: i for i, t in enumerate(texts)}
        self.ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        self.count = np.array([len(EDITS[n].wordings) for n in names])
        self.table = np.zeros((len(names), int(self.count.max())), np.int64)
        for row, name in enumerate(names):
            self.table[row, : self.count[row]] = [self.index[w] for w in EDITS[name].wordings]
        place = {n: i for i, n in enumerate(names)}
        self.placed = placed_anywhere(data.edits)
        self.edit = np.array([place[n] for n in data.edits])
        self.caption = np.array([self.index[c] for c in data.captions]) if captions else None

    def __len__(self) -> int:
        return len(self.edit)

    def pairs(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw source and target latents."""
        z = self.latents[torch.from_numpy(rows).to(self.device)] if torch.is_tensor(self.latents) else torch.from_numpy(
            np.asarray(self.latents[rows])
        )  # fmt: skip
        z = z.float()
        return z[:, 0], z[:, 1]

    def draw(self, rows: Rows, rng: np.random.Generator, *, no_text: npt.NDArray[np.bool_] | None = None) -> Batch:
        """A batch of these pairs; where `no_text`, the text is empty."""
        k = (rng.random(len(rows)) * self.count[self.edit[rows]]).astype(np.int64)
        text = self.table[self.edit[rows], k]
        if self.caption is not None:
            text = np.where(rng.random(len(rows)) < self.share, self.caption[rows], text)
        if no_text is not None:
            text = np.where(no_text, 0, text)
        return self._batch(rows, text)

    def told(self, rows: Rows, *, captions: bool = False) -> Batch:
        """The same pairs with the first wording (or the caption) each: for checks."""
        if captions and self.caption is not None:
            return self._batch(rows, self.caption[rows])
        return self._batch(rows, self.table[self.edit[rows], 0])

    def texts(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(unique, back) of given texts, each of which must be known."""
        unique, back = np.unique([self.index[p] for p in prompts], return_inverse=True)
        return torch.from_numpy(unique).to(self.device), torch.from_numpy(back).to(self.device)

    def _batch(self, rows: Rows, text: npt.NDArray[np.int64]) -> Batch:
        source, target = self.pairs(rows)
        unique, back = np.unique(text, return_inverse=True)
        instructed = np.isin(text, self.table[self.table > 0])
        found = (torch.from_numpy(x).to(self.device) for x in (unique, back, instructed, self.placed[rows]))
        return Batch(source, target, *found)
