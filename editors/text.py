"""Text conditioning: a batch of prompts as tensors, and where a word stands in it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from isr.errors import UsageError

from .checks import check_prompts

__all__ = ["Text", "columns_of", "joined", "read_columns", "tiled", "tokens_of"]

log = logging.getLogger("isr.editors")


@dataclass(frozen=True)
class Text:
    """Text conditioning of B prompts.

    Attributes:
        hidden: (B, L, D) token states. pooled: (B, P) where the family has one. mask: (B, L) where it has one.
        extra: further tensors with a leading B axis.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    extra: Mapping[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        return int(self.hidden.shape[0])

    def tiled(self, batch: int) -> Text:
        """The whole batch repeated until it has `batch` rows (row i belongs to row i mod B)."""
        return replace(
            self,
            hidden=tiled(self.hidden, batch, "text"),
            pooled=None if self.pooled is None else tiled(self.pooled, batch, "text"),
            mask=None if self.mask is None else tiled(self.mask, batch, "text"),
            extra=None if self.extra is None else {k: tiled(v, batch, "text") for k, v in self.extra.items()},
        )


def tiled(value: torch.Tensor, batch: int, name: str) -> torch.Tensor:
    """Repeat along the first axis until it has `batch` rows; so K·B noisy latents (timestep-major) take B texts."""
    have = value.shape[0]
    if have == batch:
        return value
    if have == 0 or batch % have:
        raise UsageError(f"{name} has {have} rows, which do not divide the {batch} rows of the noisy latent")
    return value.repeat(batch // have, *([1] * (value.ndim - 1)))


def joined(texts: Sequence[Text]) -> Text:
    """Several texts as one batch, for guidance."""
    first = texts[0]
    extra = first.extra
    return Text(
        torch.cat([t.hidden for t in texts]),
        None if first.pooled is None else torch.cat([t.pooled for t in texts if t.pooled is not None]),
        None if first.mask is None else torch.cat([t.mask for t in texts if t.mask is not None]),
        None if extra is None else {k: torch.cat([t.extra[k] for t in texts if t.extra is not None]) for k in extra},
    )


def tokens_of(tokenizer: Any, prompts: Sequence[str], editor: str, *, length: int | None = None) -> Any:
    """Padded, truncated tokens of one tokenizer; a prompt that is cut is said so."""
    check_prompts(prompts)
    length = length or int(tokenizer.model_max_length)
    for prompt, ids in zip(
        prompts, tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"], strict=True
    ):
        if len(ids) > length:
            log.warning(
                "%s reads only the first %d tokens of a prompt of %d: %r", editor, length, len(ids), prompt[:80]
            )
    return tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def columns_of(tokenizer: Any, prompt: str, word: str | None, *, limit: int | None = None) -> list[int]:
    """Positions of a word's tokens (or of all content tokens) in the padded token sequence of one tokenizer."""
    length = limit or int(tokenizer.model_max_length)
    encoded = tokenizer(prompt, max_length=length, truncation=True, return_offsets_mapping=True)
    spans = [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
    special = set(tokenizer.all_special_ids)
    content = [
        i
        for i, ((a, b), token) in enumerate(zip(spans, encoded["input_ids"], strict=True))
        if b > a and token not in special
    ]
    if word is None:
        return content
    places = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(word.strip())}(?!\w)", prompt, re.IGNORECASE)]
    if not word.strip() or not places:
        raise UsageError(
            f"word={word!r} does not stand in the prompt {prompt!r}; choose one of its words, or None for all"
        )
    return [i for i in content if any(spans[i][0] < end and spans[i][1] > start for start, end in places)]


def read_columns(columns: Sequence[int], prompt: str, word: str | None, length: int) -> tuple[int, ...]:
    """Columns as they are; raises where a word has none, because the prompt is cut before it."""
    if word is not None and not columns:
        raise UsageError(
            f"word={word!r} has no token among the first {length} of the prompt, which is all that is read of it; shorten the "
            f"prompt, or choose another word: {prompt[:80]!r}"
        )
    return tuple(columns)
