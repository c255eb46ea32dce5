"""What an objective sees while a perturbation is optimised: editor, clean picture, cached text, and named random draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from isr.errors import UsageError
from isr.protocols import Editor, WhiteBoxEditor

__all__ = ["Context", "Draws", "Encoded", "require", "undefined"]

Given = Mapping[str, Tensor | Sequence[Tensor]]


class Draws:
    """Every random number of an attack: named, and from one generator per image.

    Image i draws from a generator seeded with seeds[i] alone, on the CPU, so its numbers depend neither on the other images
    of the batch nor on the device.

    Args:
        seeds: one integer per image.
        given: numbers to use instead of drawing, by name: a tensor (B, …) used at every draw of that name, or a sequence of
            tensors used one after the other. For tests and for replaying one step.
    """

    def __init__(self, seeds: Sequence[int], *, given: Given | None = None) -> None:
        self.seeds = tuple(int(s) for s in seeds)
        self.generators = [torch.Generator().manual_seed(s) for s in self.seeds]
        self._given = dict(given or {})
        self._used: dict[str, int] = {}

    def _take(self, name: str, shape: tuple[int, ...], like: Tensor | None) -> Tensor | None:
        entry = self._given.get(name)
        if entry is None:
            return None
        if not isinstance(entry, Tensor):
            position = self._used.get(name, 0)
            if position >= len(entry):
                raise UsageError(f"given[{name!r}] holds {len(entry)} draws, but another one was asked for")
            self._used[name] = position + 1
            entry = entry[position]
        if tuple(entry.shape) != shape:
            raise UsageError(f"given[{name!r}] must have shape {shape}, not {tuple(entry.shape)}")
        return entry if like is None else _onto(entry, like)

    def normal(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal (B, *shape), with the device and dtype of `like`."""
        full = (len(self.seeds), *shape)
        found = self._take(name, full, like)
        if found is not None:
            return found
        drawn = torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators])
        return _onto(drawn, like)

    def uniform(self, name: str, shape: Sequence[int], like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform on [low, high), (B, *shape), with the device and dtype of `like`."""
        full = (len(self.seeds), *shape)
        found = self._take(name, full, like)
        if found is not None:
            return found
        drawn = torch.stack([torch.rand(tuple(shape), generator=g) for g in self.generators])
        return _onto(low + (high - low) * drawn, like)

    def integer(self, name: str, low: int, high: int) -> Tensor:
        """Whole numbers from low to high, both inclusive, (B,) int64 on the CPU."""
        found = self._take(name, (len(self.seeds),), None)
        if found is not None:
            return found.long()
        return torch.cat([torch.randint(low, high + 1, (1,), generator=g) for g in self.generators])

    def state(self) -> Tensor:
        """(B, n) uint8: the generators' states, for a checkpoint."""
        return torch.stack([g.get_state() for g in self.generators])

    def restore(self, state: Tensor) -> None:
        for generator, row in zip(self.generators, state, strict=True):
            generator.set_state(row.clone())  # a row of a larger tensor is misread


def _onto(drawn: Tensor, like: Tensor) -> Tensor:
    """With the device and dtype of `like`; a GPU is not waited for."""
    return drawn.to(device=like.device, dtype=like.dtype, non_blocking=True)


class Encoded(NamedTuple):
    """A picture inside the model: raw encoder mean, and what it adds to the denoiser's input (or None)."""

    raw: Tensor
    cond: Tensor | None


@dataclass
class Context:
    """One batch under attack.

    Attributes:
        editor: the white-box editor. clean: (B, 3, H, W) in [0, 1], never changed. prompts: B edit prompts.
        draws: all randomness. rows: the most denoiser rows (image × timestep) in one pass.
        iteration: 0-based; iterations: how many there will be.
        loss_scale: losses are multiplied by it before each backward pass, and gradients divided (float16 underflow).
        cache: an objective's own clean features and the like, filled in `prepare`.
    """

    editor: WhiteBoxEditor
    clean: Tensor
    prompts: tuple[str, ...]
    draws: Draws
    rows: int = 16
    iteration: int = 0
    iterations: int = 1
    loss_scale: float = 1.0
    cache: dict[str, Any] = field(default_factory=dict)
    _text: dict[tuple[str, ...], Any] = field(default_factory=dict)
    _clean: Encoded | None = None
    _shared: bool = False

    def __len__(self) -> int:
        return len(self.clean)

    def child(self, *, editor: WhiteBoxEditor | None = None, prompts: Sequence[str] | None = None) -> Context:
        """The same pictures and draws with another editor or other prompts, and caches of its own."""
        return Context(
            editor=editor or self.editor,
            clean=self.clean if editor is None else self.clean.to(editor.device),
            prompts=self.prompts if prompts is None else tuple(prompts),
            draws=self.draws,
            rows=self.rows,
            iteration=self.iteration,
            iterations=self.iterations,
            loss_scale=self.loss_scale,
        )

    def text(self, repeats: int = 1) -> Any:
        """Text conditioning of the batch, `repeats` times over (repeat-major rows); embedded once per layout."""
        rows = self.prompts * repeats
        if rows not in self._text:
            with torch.no_grad():
                self._text[rows] = self.editor.embed(rows)
        return self._text[rows]

    def clean_encoded(self) -> Encoded:
        """The clean picture inside the model, computed once, without gradients."""
        if self._clean is None:
            with torch.no_grad():
                raw = self.editor.latents(self.clean)
                cond = self._condition(self.clean, raw)
            # InstructPix2Pix and its kin concatenate the very latents that were just computed: then one pass serves both.
            self._shared = cond is not None and cond.shape == raw.shape and bool(torch.equal(cond, raw))
            self._clean = Encoded(raw, cond)
        return self._clean

    def _condition(self, x: Tensor, raw: Tensor) -> Tensor | None:
        """`condition(x)`, from the latents at hand where the editor offers `condition_of(raw)`."""
        of = cast("Callable[[Tensor], Tensor | None] | None", getattr(self.editor, "condition_of", None))
        return self.editor.condition(x) if of is None else of(raw)

    def encode(self, x: Tensor, *, cond: bool = True) -> Encoded:
        """x (B, 3, H, W) inside the model, with gradients; one encoder pass wherever the family allows it."""
        if not cond:
            return Encoded(self.editor.latents(x), None)
        self.clean_encoded()
        raw = self.editor.latents(x)
        return Encoded(raw, raw if self._shared else self._condition(x, raw))


def undefined(method: str, editor: Editor, why: str) -> UsageError:
    """The one error for a method that makes no sense on an editor."""
    family = f", family {editor.traits.family!r}" if editor.traits.family else ""
    return UsageError(f"{method} is not defined for this editor ({editor.name!r}{family}): {why}")


def require(method: str, editor: Editor | None, needs: Sequence[str]) -> WhiteBoxEditor:
    """The editor, if it is there and offers all of `needs` (names of DEFINITIONS 11); else an error that says what lacks.

    An editor that cannot offer something leaves the attribute out, sets it to None, or lists its name in `undefined`: a
    sequence of names, or a mapping from name to why and what to do.
    """
    if editor is None:
        raise UsageError(
            f"{method} looks inside an editing model: give editor= (a white-box editor; `isr editors` lists them)"
        )
    if not editor.traits.white_box:
        raise undefined(method, editor, "it needs gradients, and this editor is a black box")
    withheld: Any = getattr(editor, "undefined", ())
    lacking = [n for n in needs if n in withheld or not callable(getattr(editor, n, None))]
    if lacking:
        reasons = [withheld[n] for n in lacking if isinstance(withheld, Mapping) and n in withheld]
        why = f": {'; '.join(dict.fromkeys(reasons))}" if reasons else ""
        raise undefined(method, editor, f"it needs {', '.join(lacking)}, which this editor does not offer{why}")
    return cast(WhiteBoxEditor, editor)
