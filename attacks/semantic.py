"""Semantic Attack (SA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from isr.errors import UsageError
from isr.protocols import Editor, WhiteBoxEditor

from .context import Context, Encoded, undefined
from .denoise import PATHS, Path, noisy_and_condition, schedule, scheduler_steps, usable_path, with_path
from .factory import PAPER, attack
from .memory import sum_parts
from .objective import Objective
from .validation import at_least, list_of, one_of

__all__ = ["Semantic", "semantic"]


@dataclass(frozen=True)
class Semantic(Objective):
    """Takes attention off the words: minimises the mean cross-attention A of image tokens on the word's columns.

    L = mean over |T| timesteps, layers, heads, image tokens and the word's sub-tokens of A (the L1 norm up to scale).

    Source: Lo et al., CVPR 2024 ("Distraction is All You Need"); no official code; an unofficial one (siiyayu/SemanticAttack,
    no licence, nothing copied) was read. U-Nets: cross-attention; SD3: image queries on text columns of joint attention.
    Random: one noise per timestep, picture and iteration. Cost per iteration: 1 encoder and |T| denoiser passes with gradient.

    Ours differs from the unofficial code: one perturbation inside the budget (there the picture drifts beyond it); the
    conditional branch only; prompts padded as the editor pads them; no masking of the input, since the attention mask stage
    of the paper needs a separate word prompt (give the optimiser masks instead). z is the editor's own scaled latent: of
    SD3-instruct editors s·E without the VAE's shift (docs/attacks.md).

    Options:
        words: the word per prompt ({prompt: word}, with an entry for each) or one word for all; None: every content token of
            the prompt.
        columns: text columns (at least one) to use for all pictures, instead of words. count: |T|, over all that an edit visits.
        path: as for sifm, without "trajectory".
    """

    method: ClassVar[str] = "semantic"
    needs: ClassVar[tuple[str, ...]] = ("latents", "scaled", "condition", "embed", "timesteps", "noisy", "attention")

    words: Any = None
    columns: Sequence[int] | None = None
    count: int = 10
    path: Path = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, count=self.count)
        one_of(PATHS, path=self.path)
        if self.columns is not None:
            if (columns := list_of(int, self.columns, low=0)) is None:
                raise UsageError(f"columns must be a list of whole numbers from 0, at least one, not {self.columns!r}")
            object.__setattr__(self, "columns", columns)
        if self.words is not None and not isinstance(self.words, str | Mapping):
            raise UsageError(f"words must be one word, a mapping {{prompt: word}} or None, not {self.words!r}")

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        inside = with_path(self.method, super().check(editor), self.path)
        if self.columns is None and not callable(getattr(inside, "word_columns", None)):
            raise undefined("semantic without columns=", inside, "it has no word_columns(prompt, word)")
        scheduler_steps(inside, self.count)
        return inside

    def check_prompts(self, editor: WhiteBoxEditor, prompts: Sequence[str]) -> None:
        for prompt in dict.fromkeys(prompts):
            self._columns(editor, prompt)

    def prepare(self, context: Context) -> None:
        cache = context.cache
        cache["path"] = usable_path(context, self.path)
        cache["times"] = schedule(context.editor, scheduler_steps(context.editor, self.count))
        chosen = [self._columns(context.editor, prompt) for prompt in context.prompts]
        cache["union"] = sorted({c for columns in chosen for c in columns})
        # (B, columns): each picture's own columns, weights that sum to 1.
        weights = torch.zeros(len(chosen), len(cache["union"]))
        for i, columns in enumerate(chosen):
            for column in columns:
                weights[i, cache["union"].index(column)] = 1 / len(columns)
        cache["weights"] = weights.to(context.clean)

    def _columns(self, editor: Any, prompt: str) -> Sequence[int]:
        if self.columns is not None:
            return self.columns
        word = self.words
        if isinstance(word, Mapping):
            if prompt not in word:
                raise UsageError(
                    f"words has no entry for the prompt {prompt!r}; it has {', '.join(map(repr, word)) or 'none'} "
                    "(an entry None stands for all content tokens of its prompt)"
                )
            word = word[prompt]
        columns: Sequence[int] = editor.word_columns(prompt, word)  # no part of the protocol; `check` has seen it
        if not columns:
            raise UsageError(
                f"semantic needs a prompt with at least one word, not {prompt!r}: give prompts, or columns="
            )
        return columns

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        cache, batch = context.cache, len(context)
        encoded, times = context.encode(x), context.cache["times"]
        noise = context.draws.normal("noise", (len(times), *encoded.raw.shape[1:]), encoded.raw)
        size = max(1, context.rows // batch)
        parts = [slice(k, k + size) for k in range(0, len(times), size)]

        def of_part(k: int, raw: Tensor, *rest: Tensor) -> Tensor:
            cond = None if encoded.cond is None else rest[0] if rest else raw
            t = times[parts[k]].repeat_interleave(batch)
            n = noise[:, parts[k]].transpose(0, 1).flatten(0, 1)
            z_t, cond = noisy_and_condition(context, Encoded(raw, cond), t, n, path=cache["path"])
            count = len(t) // batch
            maps = context.editor.attention(z_t, t, context.text(count), cond, cache["union"])
            per_layer = [m.mean(dim=1).reshape(count, batch, -1) for m in maps.values()]  # over image tokens
            per_picture = torch.stack(per_layer).mean(dim=0).sum(dim=0) * cache["weights"].to(per_layer[0].dtype)
            total: Tensor = per_picture.sum(dim=1)[None]
            return total / len(times)

        shared = encoded.cond is None or encoded.cond is encoded.raw
        leaves = (encoded.raw,) if shared or encoded.cond is None else (encoded.raw, encoded.cond)
        (loss,) = sum_parts(of_part, len(parts), *leaves, scale=context.loss_scale).unbind(0)
        return loss


semantic = attack(
    "semantic",
    Semantic,
    presets={"paper": PAPER, "native": {"eps": 0.03, "alpha": 0.005, "iterations": 100}},
)
