"""The one optimiser: projected gradient descent on the pixels, for any objective.

Per iteration and picture, with x = clip₀₁(x₀ + δ):

    g ← mean over grad_reps of ∇_x objective(x);   δ ← Π_ε(δ − α · direction(g))

which is Algorithm 1, lines 12–14, of the SIFM paper for sign steps in the L∞ ball. An attack is an `Objective` and
`PGDSettings`; a method file holds only those (attacks/sifm.py).

One step by hand
----------------
`one_step(objective, editor, images, prompts, given={…})` evaluates an objective once at given pixels with given random
numbers and returns losses, gradient and the next δ. Every random number has a name; a tensor in `given` replaces the draw
of that name (a sequence of tensors replaces successive draws). Names and shapes (B pictures, T timesteps, latents C×h×w):

    "noise"         (B, C, h, w), or (B, T, C, h, w) for sifm and semantic       n ~ N(0, I)
    "timestep"      (B,) whole numbers        advdm, mist, ace, sds: t on the 1000-step scale (mapped to σ for flow editors)
    "clean_noise"   (B, C, h, w), and "clean_timestep" (B,)                      editshield, form="released"
    "rollout_seed"  (B,) whole numbers        photoguard-diffusion, end-to-end: seeds of the short edits

EditShield and EOT draw transformations from `Draws.generators`; for a fixed one give them a distribution that holds only it,
e.g. `transforms=isr.transforms.EOT([Identity()])`. The starting point is no part of a step: pass `delta=`. `sds` holds its
score constant; `sifm(reduction="grad_balanced")` is the one method whose direction is not the gradient of its loss.

Without `given`, image i draws from a generator seeded with its own seed, so results do not depend on the batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from isr.errors import IsrError, UsageError
from isr.masks import mask_for
from isr.perturbation import pixels, quantise
from isr.protocols import Editor, WhiteBoxEditor

from .checkpoint import Checkpoint, fingerprint
from .context import Context, Draws, Given
from .memory import memory_advice
from .objective import Objective, value_and_gradient
from .settings import PGDSettings
from .steps import Moments, clip_pixels, descend, first_delta, project
from .validation import as_plain

__all__ = ["PGD", "PGDResult", "Progress", "StepResult", "one_step", "to_tensor"]

#: Iterations between looks at the losses, where nobody asks for them in each.
READ_EVERY = 10
#: Iterations at least in a window whose mean loss `patience` looks at, where single losses are random.
WINDOW = 10
#: Loss scales of float16 where none is given: the first, the lowest, and what a gradient that overflows divides it by.
FIRST_SCALE, LEAST_SCALE, SCALE_STEP = 2.0**16, 2.0**-16, 16.0
Mask = PIL.Image.Image | npt.NDArray[Any]


@dataclass(frozen=True)
class Progress:
    """Where a run stands, once per iteration.

    Attributes:
        name: of the attack. batch, batches: 0-based and how many. iteration, iterations: done and in all.
        pictures: indices (into the input) of the batch. losses: one per picture, before the step.
    """

    name: str
    batch: int
    batches: int
    iteration: int
    iterations: int
    pictures: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class PGDResult:
    """What a run produced, in input order.

    Attributes:
        images: protected 8-bit RGB pictures, inside the budget.
        histories: per picture, the loss before each step (shorter where it stopped early).
        deltas: per picture (3, H, W) float32: the perturbation before rounding.
    """

    images: list[PIL.Image.Image]
    histories: list[list[float]]
    deltas: list[Tensor] = field(repr=False)


class StepResult(NamedTuple):
    """losses (B,), gradient (B, 3, H, W), next δ (B, 3, H, W) and next pixels (B, 3, H, W)."""

    losses: Tensor
    gradient: Tensor
    delta: Tensor
    pixels: Tensor


def to_tensor(images: Sequence[PIL.Image.Image], device: torch.device | str = "cpu") -> Tensor:
    """8-bit RGB pictures of one size → (B, 3, H, W) float32 in [0, 1]."""
    stack = np.stack([pixels(image) for image in images]).astype(np.float32) / 255.0
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous().to(device)


def one_step(
    objective: Objective,
    editor: WhiteBoxEditor,
    images: Tensor,
    prompts: Sequence[str],
    *,
    delta: Tensor | None = None,
    settings: PGDSettings | None = None,
    seeds: Sequence[int] | None = None,
    given: Given | None = None,
    iteration: int = 0,
) -> StepResult:
    """Prepare, evaluate once, step once; the precision is that of `images` (float64 for finite differences).

    Args:
        objective: e.g. `SIFM(...)`. editor: white-box. images: clean pixels (B, 3, H, W) in [0, 1]. prompts: B.
        delta: current perturbation, default 0 (the settings' `start` is not applied here).
        settings: of the step; default `PGDSettings()`. seeds: default 0 … B−1. given: named random numbers (see above).
        iteration: 0-based, for schedules.
    """
    settings = settings or PGDSettings()
    editor = objective.check(editor)
    context = Context(
        editor=editor,
        clean=images,
        prompts=tuple(prompts),
        draws=Draws(range(len(images)) if seeds is None else seeds, given=given),
        rows=settings.rows,
        iteration=iteration,
        iterations=settings.iterations,
    )
    delta = torch.zeros_like(images) if delta is None else delta
    objective.prepare(context)
    losses, gradient = value_and_gradient(objective, (images + delta).clamp(0, 1), context)
    moved, _ = descend(delta, gradient, settings, iteration)
    delta, x = clip_pixels(project(moved, settings), images, settings)
    return StepResult(losses, gradient, delta, x)


class PGD:
    """An `Immunizer` from an objective and settings.

    Args:
        objective: what to make small. settings: how to walk.
        name: as tables print it. preset: recorded only.
        progress: True for a bar in terminal or notebook, or a function that gets a `Progress` per iteration.
        checkpoint: folder for the state of unfinished batches; a run that finds its own state goes on from there and gives
            the bytes of an uninterrupted run. checkpoint_every: iterations between writes.
    """

    def __init__(
        self,
        objective: Objective,
        settings: PGDSettings | None = None,
        *,
        name: str = "",
        preset: str | None = None,
        progress: bool | Callable[[Progress], None] = False,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 10,
    ) -> None:
        self.objective = objective
        self.pgd = settings or PGDSettings()
        self._name = name or objective.method
        self.preset = preset
        self.progress = progress
        self.checkpoint = checkpoint
        if not (isinstance(progress, bool) or callable(progress)):
            raise UsageError(f"progress must be True, False or a function, not {progress!r}")
        checkpoint_every = as_plain(checkpoint_every)
        if isinstance(checkpoint_every, bool) or not isinstance(checkpoint_every, int) or checkpoint_every < 1:
            raise UsageError(f"checkpoint_every must be a whole number of at least 1, not {checkpoint_every!r}")
        self.checkpoint_every = checkpoint_every

    @property
    def name(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"PGD({self._name!r}, {self.objective!r}, {self.pgd!r})"

    def with_objective(self, objective: Objective, *, name: str) -> PGD:
        """The same optimiser around another objective (wrappers)."""
        return PGD(
            objective, self.pgd, name=name, preset=self.preset, progress=self.progress,
            checkpoint=self.checkpoint, checkpoint_every=self.checkpoint_every,
        )  # fmt: skip

    def with_settings(self, **changes: Any) -> PGD:
        """The same attack with some optimiser settings changed."""
        copy = self.with_objective(self.objective, name=self._name)
        copy.pgd = replace(self.pgd, **changes)
        return copy

    def with_eot(self, transforms: Any = None, *, samples: int = 1) -> PGD:
        """The same attack, made to survive transformations (see `isr.attacks.wrappers`)."""
        from .wrappers import with_eot

        return with_eot(self, transforms, samples=samples)

    def settings(self) -> Mapping[str, Any]:
        """Name, preset, budget, optimiser and objective, JSON-able."""
        return {
            "attack": self._name,
            "preset": self.preset,
            "budget": self.pgd.budget.settings(),
            "pgd": self.pgd.as_dict(),
            "objective": self.objective.options(),
        }

    def check(self, editor: Editor | None) -> WhiteBoxEditor:
        """The editor, or the UsageError that says why this method is not defined for it (asked before anything is made)."""
        return self.objective.check(editor)

    def check_prompts(self, editor: WhiteBoxEditor, prompts: Sequence[str | None]) -> None:
        """Raises UsageError for a prompt that this method cannot use (asked before anything is made); None is the empty prompt."""
        self.objective.check_prompts(editor, [prompt or "" for prompt in prompts])

    def immunize(
        self,
        images: Sequence[PIL.Image.Image],
        prompts: Sequence[str | None],
        *,
        editor: Editor | None = None,
        seeds: Sequence[int],
        masks: Sequence[Mask | None] | None = None,
    ) -> list[PIL.Image.Image]:
        """Protected pictures (see `run`)."""
        return self.run(images, prompts, editor=editor, seeds=seeds, masks=masks).images

    def run(
        self,
        images: Sequence[PIL.Image.Image],
        prompts: Sequence[str | None],
        *,
        editor: Editor | None = None,
        seeds: Sequence[int],
        masks: Sequence[Mask | None] | None = None,
    ) -> PGDResult:
        """Optimise each picture's perturbation.

        Args:
            images: N 8-bit RGB pictures whose sides the editor takes as they are (multiples of its `size_multiple`;
                `isr.immunize` handles any size). prompts: N; None counts as the empty prompt.
            editor: white-box. seeds: N integers, one generator each.
            masks: N greyscale pictures or arrays (H, W), white where pixels may change, black where they stay; None:
                everywhere. Grey is a share m: steps are m times as long, and in an L∞ ball |δ| ≤ m·ε. Read as in
                `isr.immunize`, to 8 bits.

        Raises:
            UsageError: the method is not defined for the editor, lengths or sizes are wrong.
            IsrError: a gradient is not finite.
        """
        inside = self.check(editor)
        _lengths(images, prompts, seeds, masks)
        _sizes(images, inside, self.objective.members(inside))
        self.check_prompts(inside, prompts)
        greys = (
            None
            if masks is None
            else [mask_for(i, m, f"masks[{k}]") for k, (i, m) in enumerate(zip(images, masks, strict=True))]
        )
        done: dict[int, tuple[PIL.Image.Image, list[float], Tensor]] = {}
        plan = list(_batches(images, self.pgd.batch_size))
        for number, members in enumerate(plan):
            batch = _Batch(
                self, inside, [images[i] for i in members], [prompts[i] or "" for i in members], [seeds[i] for i in members],
                masks=None if greys is None else [greys[i] for i in members], members=members, place=(number, len(plan)),
            )  # fmt: skip
            for i, image, history, delta in batch.run():
                done[i] = (image, history, delta)
        ordered = [done[i] for i in range(len(images))]
        return PGDResult([o[0] for o in ordered], [o[1] for o in ordered], [o[2] for o in ordered])


class _Batch:
    """One batch of pictures of one size."""

    def __init__(
        self,
        attack: PGD,
        editor: WhiteBoxEditor,
        images: Sequence[PIL.Image.Image],
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        masks: Sequence[PIL.Image.Image | None] | None,
        members: Sequence[int],
        place: tuple[int, int],
    ) -> None:
        self.attack, self.editor, self.members, self.place = attack, editor, tuple(members), place
        self.images = list(images)
        self.clean = to_tensor(self.images, editor.device)
        self.mask = None if masks is None else _mask_tensor(masks, self.clean)
        self.lowers_scale = attack.pgd.precision == "float16" and attack.pgd.loss_scale is None
        self.context = Context(
            editor=editor,
            clean=self.clean,
            prompts=tuple(prompts),
            draws=Draws(seeds),
            rows=attack.pgd.rows,
            iterations=attack.pgd.iterations,
            loss_scale=attack.pgd.loss_scale or (FIRST_SCALE if self.lowers_scale else 1.0),
        )
        self.moments: Moments | None = None
        self.histories: list[list[float]] = [[] for _ in members]
        self.best = [float("inf")] * len(members)
        self.stale = [0] * len(members)
        self.window = _window(attack.objective)
        #: (iteration, live pictures, losses) that are still on the device: reading them waits for it, so a GPU is read seldom.
        self._unread: list[tuple[int, list[bool], Tensor]] = []
        self._reads_each = (
            editor.device.type == "cpu" or attack.pgd.patience is not None or attack.progress is not False
        )

    def run(self) -> Iterator[tuple[int, PIL.Image.Image, list[float], Tensor]]:
        attack, settings, context = self.attack, self.attack.pgd, self.context
        store = self._store()
        # The start comes first from each generator, then what the objective fixes, then one iteration after the other.
        delta = first_delta(self.clean, settings, context.draws)
        delta, x = clip_pixels(self._masked(delta), self.clean, settings)
        with self._precision(), memory_advice(f"{attack.name} on {self.editor.name}"):
            attack.objective.prepare(context)
        first = 0
        if store is not None and (held := store.load()) is not None:
            delta, first = self._resume(*held)
            x = (self.clean + delta).clamp(0, 1)
        last = settings.iterations - 1
        with _bar(attack, self.place) as report:
            for iteration in range(first, settings.iterations):
                live = [settings.patience is None or s < settings.patience for s in self.stale]
                if not any(live):
                    break
                context.iteration = iteration
                losses, gradient = self._gradient(x)
                self._unread.append((iteration, live, losses))
                moved, self.moments = descend(delta, gradient, settings, iteration, self.moments)
                moved, moved_x = clip_pixels(self._inside(delta, moved), self.clean, settings)
                if all(live):
                    delta, x = moved, moved_x
                else:
                    keep = torch.tensor(live, device=x.device).reshape(-1, 1, 1, 1)
                    delta, x = torch.where(keep, moved, delta), torch.where(keep, moved_x, x)
                saves = store is not None and ((iteration + 1) % attack.checkpoint_every == 0 or iteration == last)
                if saves or iteration == last or self._reads_each or len(self._unread) >= READ_EVERY:
                    values = self._read()
                    if store is not None and saves:
                        self._save(store, delta, iteration + 1)
                    report(Progress(attack.name, *self.place, iteration + 1, settings.iterations, self.members, values))
        for i, image, one, history in zip(
            self.members, self.images, (x - self.clean).cpu(), self.histories, strict=True
        ):
            perturbed = pixels(image).astype(np.float64) / 255 + one.permute(1, 2, 0).numpy().astype(np.float64)
            yield i, PIL.Image.fromarray(quantise(pixels(image), perturbed, settings.budget)), history, one

    def _masked(self, delta: Tensor) -> Tensor:
        return delta if self.mask is None else delta * self.mask

    def _inside(self, delta: Tensor, moved: Tensor) -> Tensor:
        """The step from δ, in the ball. A mask m shortens it, and bounds |δ| by m·ε where the ball is a box."""
        if self.mask is None:
            return project(moved, self.attack.pgd)
        found = project(delta + self.mask * (moved - delta), self.attack.pgd)
        if self.attack.pgd.norm == "l2":
            return found
        wall = self.attack.pgd.eps * self.mask
        return torch.minimum(torch.maximum(found, -wall), wall)

    def _gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over grad_reps of (losses, gradient), float32, checked."""
        repeats = self.attack.pgd.grad_reps
        losses = gradient = None
        for _ in range(repeats):
            value, grad = self._evaluate(x)
            losses = value if losses is None else losses + value
            gradient = grad if gradient is None else gradient + grad
        if losses is None or gradient is None:
            raise UsageError("grad_reps must be at least 1")
        losses, gradient = losses.float() / repeats, gradient.to(x.dtype) / repeats
        # A gradient that is not finite makes its loss so, and is found when losses are read.
        fine = torch.isfinite(gradient.flatten(1)).all(dim=1)
        losses = torch.where(fine, losses, torch.full_like(losses, float("nan")))
        gradient = self._masked(gradient)
        if self.context.iteration == 0 and not bool(gradient.flatten(1).any(dim=1).all()):
            still = [self.members[i] for i in torch.nonzero(~gradient.flatten(1).any(dim=1)).flatten().tolist()]
            warnings.warn(
                f"{self.attack.name}: the gradient of images {still} is exactly zero, so nothing moves them. A distance to the clean "
                'picture has no gradient at δ = 0 (use start="small"); an img2img edit of too few steps may start from pure noise',
                stacklevel=2,
            )
        return losses, gradient

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(losses, gradient). In float16 a gradient that overflows is made again from the same draws, with a lower scale."""
        context, drawn = self.context, self.context.draws.state() if self.lowers_scale else None
        while True:
            with self._precision(), memory_advice(f"{self.attack.name} on {self.editor.name}"):
                losses, gradient = value_and_gradient(self.attack.objective, x, context)
            if (
                drawn is None
                or context.loss_scale <= LEAST_SCALE
                or bool(torch.isfinite(gradient).all())
                or not bool(torch.isfinite(losses).all())
            ):
                return losses, gradient
            context.draws.restore(drawn)
            context.loss_scale /= SCALE_STEP

    def _read(self) -> tuple[float, ...]:
        """Losses of the iterations since the last reading, into the histories, with one wait for the device; the last ones."""
        rows = torch.stack([losses for _, _, losses in self._unread]).tolist()
        for (iteration, live, _), values in zip(self._unread, rows, strict=True):
            bad = [self.members[i] for i, value in enumerate(values) if not math.isfinite(value)]
            if bad:
                raise IsrError(
                    f"{self.attack.name}: loss or gradient of images {bad} is not finite in iteration {iteration + 1}; "
                    f'use precision="bfloat16" or "float32" instead of {self.attack.pgd.precision!r}, or another loss_scale'
                )
            self._note(values, live)
        self._unread.clear()
        return tuple(rows[-1])

    def _precision(self) -> AbstractContextManager[Any]:
        name = self.attack.pgd.precision
        if name == "float32":
            return nullcontext()
        return torch.autocast(self.editor.device.type, dtype=getattr(torch, name))

    def _note(self, values: Sequence[float], live: Sequence[bool]) -> None:
        tolerance = self.attack.pgd.tolerance
        for i, (value, alive) in enumerate(zip(values, live, strict=True)):
            if not alive:
                continue
            history = self.histories[i]
            history.append(value)
            if self.window > 1:
                if len(history) % self.window:
                    continue
                value = math.fsum(history[-self.window :]) / self.window
            if value < self.best[i] - tolerance * abs(self.best[i] if self.best[i] != float("inf") else 0.0):
                self.best[i], self.stale[i] = value, 0
            else:
                self.stale[i] += 1

    def _store(self) -> Checkpoint | None:
        if self.attack.checkpoint is None:
            return None
        parts = {
            "attack": self.attack.settings(),
            "editor": {"name": self.editor.name, **self.editor.settings()},
            "prompts": self.context.prompts,
            "seeds": self.context.draws.seeds,
        }
        pictures = self.clean if self.mask is None else torch.cat([self.clean, self.mask.expand_as(self.clean)])
        return Checkpoint(self.attack.checkpoint, fingerprint(parts, pictures))

    def _save(self, store: Checkpoint, delta: Tensor, iteration: int) -> None:
        tensors = {"delta": delta, "generators": self.context.draws.state()}
        if self.moments is not None:
            tensors |= {"first_moment": self.moments[0], "second_moment": self.moments[1]}
        best = [None if b == float("inf") else b for b in self.best]
        state = {
            "histories": self.histories, "best": best, "stale": self.stale, "window": self.window,
            "loss_scale": self.context.loss_scale,
        }  # fmt: skip
        store.save(tensors, {"iteration": iteration, **state})

    def _resume(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> tuple[Tensor, int]:
        like = self.clean
        self.context.draws.restore(tensors["generators"])
        if "first_moment" in tensors:
            self.moments = (tensors["first_moment"].to(like.device), tensors["second_moment"].to(like.device))
        self.histories = [list(h) for h in state["histories"]]
        self.context.loss_scale = float(state.get("loss_scale", self.context.loss_scale))
        if state.get("window", 1) == self.window:  # else the best loss is none of these means: patience begins anew
            self.best = [float("inf") if b is None else b for b in state["best"]]
            self.stale = list(state["stale"])
        return tensors["delta"].to(like.device), int(state["iteration"])


def _window(objective: Objective) -> int:
    """Iterations whose mean loss is comparable with the next ones': whole turns of a pool, and several draws of what is random."""
    turn = objective.cycle
    return turn * math.ceil(WINDOW / turn) if objective.stochastic else turn


def _batches(images: Sequence[PIL.Image.Image], size: int) -> Iterator[list[int]]:
    """Indices by picture size, in order of first appearance, at most `size` at once."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.size, []).append(i)
    for members in groups.values():
        for start in range(0, len(members), size):
            yield members[start : start + size]


def _sizes(images: Sequence[PIL.Image.Image], first: WhiteBoxEditor, members: Sequence[WhiteBoxEditor]) -> None:
    """Every editor takes every picture."""
    for member in members:
        multiple = member.traits.size_multiple
        for i, image in enumerate(images):
            if image.width % multiple or image.height % multiple:
                remedy = (
                    "use isr.immunize, which keeps any size"
                    if member is first
                    else f"give {member.name!r} as editor= and {first.name!r} as a further one, or pictures of such sides"
                )
                raise UsageError(
                    f"images[{i}] is {image.width}×{image.height}, but {member.name!r} works on sides that are multiples of "
                    f"{multiple}; {remedy}"
                )


def _lengths(images: Sequence[Any], prompts: Sequence[Any], seeds: Sequence[Any], masks: Sequence[Any] | None) -> None:
    given = {"prompts": prompts, "seeds": seeds, **({} if masks is None else {"masks": masks})}
    for name, values in given.items():
        if isinstance(values, str) or len(values) != len(images):
            came = "one string" if isinstance(values, str) else str(len(values))
            raise UsageError(f"{name} must hold one entry per image: {len(images)} images, {came} {name}")


def _mask_tensor(masks: Sequence[PIL.Image.Image | None], like: Tensor) -> Tensor | None:
    """(B, 1, H, W) in [0, 1], 1 where pixels may change; None where no picture has a mask. masks: of mode "L"."""
    if all(m is None for m in masks):
        return None
    full = np.full(like.shape[-2:], 255, np.uint8)
    rows = np.stack([full if m is None else np.asarray(m) for m in masks])
    return torch.from_numpy((rows / 255.0).astype(np.float32))[:, None].to(like.device)


class _Bar:
    """A progress bar or a user's function behind one call."""

    def __init__(self, attack: PGD, place: tuple[int, int]) -> None:
        self._attack, self._place, self._bar = attack, place, None

    def __enter__(self) -> Callable[[Progress], None]:
        wanted = self._attack.progress
        if callable(wanted):
            return wanted
        if wanted is False:
            return lambda _: None
        from tqdm.auto import tqdm

        number, batches = self._place
        self._bar = bar = tqdm(
            total=self._attack.pgd.iterations, desc=f"{self._attack.name} {number + 1}/{batches}", leave=False
        )

        def show(progress: Progress) -> None:
            bar.update(progress.iteration - bar.n)
            bar.set_postfix(loss=f"{sum(progress.losses) / len(progress.losses):.4g}", refresh=False)

        return show

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar(attack: PGD, place: tuple[int, int]) -> _Bar:
    return _Bar(attack, place)
