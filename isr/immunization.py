"""`immunize`: any pictures, any registered attack, and a budget that the framework itself verifies on the 8-bit result."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast, get_args, overload

import numpy as np
import numpy.typing as npt
import PIL.Image

from .errors import BudgetError, RegistryError, UsageError, missing_extra
from .images import as_image, check_images
from .perturbation import Budget, Perturbation, bands, fit, measure, pixels, quantise, verify, within
from .protocols import Editor, Immunizer
from .registry import ATTACKS, RESOLVERS

__all__ = ["Immunized", "OverBudget", "carry_over", "immunize", "make_attack", "make_editor", "working_size"]

OverBudget = Literal["rounding", "project", "raise"]
Size = tuple[int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class Immunized(Sequence[PIL.Image.Image]):
    """Protected pictures, in input order, with what was measured on them.

    Attributes:
        images: 8-bit RGB, each in the size of its original. originals: the canonical originals.
        measured: size of each perturbation as saved. budget: what was verified, or None (none declared).
        settings: of the immunizer, JSON-able. editor: its recorded settings, or None.
        prompts, seeds: as used. working_sizes: (width, height) in which each perturbation was made.
        cut: per picture, how many channel values the framework had to cut back to the budget.
    """

    images: tuple[PIL.Image.Image, ...]
    originals: tuple[PIL.Image.Image, ...] = field(repr=False)
    measured: tuple[Perturbation, ...]
    budget: Budget | None
    settings: Mapping[str, Any]
    editor: Mapping[str, Any] | None
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...]
    working_sizes: tuple[Size, ...]
    cut: tuple[int, ...]

    @overload
    def __getitem__(self, index: int) -> PIL.Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[PIL.Image.Image, ...]: ...
    def __getitem__(self, index: int | slice) -> PIL.Image.Image | tuple[PIL.Image.Image, ...]:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)


def make_attack(attack: str | Immunizer, **settings: Any) -> Immunizer:
    """An immunizer from its registered name (or the paper's abbreviation) and settings; one that is made already as it is.

    Raises:
        RegistryError: no such name. MissingExtraError: it needs torch. UsageError: unknown settings.
    """
    if not isinstance(attack, str):
        if settings:
            raise UsageError(f"attack is made already; settings {sorted(settings)} go where it is made")
        if not isinstance(attack, Immunizer):
            raise UsageError(f"attack must be a registered name or an Immunizer, not {type(attack).__name__}")
        return attack
    try:
        made = ATTACKS.create(attack, **settings)
    except RegistryError as error:
        if isinstance(error.__cause__, ModuleNotFoundError) and error.__cause__.name in ("torch", "safetensors"):
            raise missing_extra(f"The attack {attack!r}", "attacks", str(error.__cause__.name)) from error
        raise
    if not isinstance(made, Immunizer):
        raise UsageError(
            f"the attack {attack!r} gave a {type(made).__name__}, which is not an Immunizer (docs/attacks.md)"
        )
    return made


def make_editor(editor: Any, **options: Any) -> Editor:
    """An editor from a registered name, a folder, a function, or an editor (`isr.editors.load_editor`)."""
    if isinstance(editor, Editor) and not options:
        return editor
    return cast(Editor, RESOLVERS.load("editors")(editor, **options))


def working_size(width: int, height: int, editor: Editor | None, size: int | None = None) -> Size:
    """(width, height) in which the perturbation of a picture is made.

    The size in which the editor itself works on such a picture (`editor.working_size(height, width)`, where it has one).
    Where that has more than 1.5 times the pixels of the editor's native square (an editor that takes photos as they are),
    or the editor has no such rule: the longest side is brought to the native one at most. Sides are multiples of the
    editor's `size_multiple`; the picture is never enlarged except to one multiple.

    Args:
        size: longest side to work at instead.
    """
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


def immunize(
    images: Sequence[Any],
    prompts: Sequence[str | None] | str | None = None,
    *,
    attack: str | Immunizer = "sifm",
    editor: Any = None,
    seeds: Sequence[int] | None = None,
    seed: int = 0,
    masks: Sequence[Any] | None = None,
    size: int | None = None,
    over_budget: OverBudget = "rounding",
    progress: bool | Callable[[Any], None] = False,
    checkpoint: Any = None,
    **settings: Any,
) -> Immunized:
    """Protect pictures of any size against text-guided editing.

    Each picture keeps its resolution: the perturbation is made at the editor's working size and carried over. Whatever the
    immunizer (a stranger's too), the framework checks that it returned 8-bit RGB of the right size and that the budget it
    declares in `settings()["budget"]` holds on the 8-bit result.

    Args:
        images: N pictures: paths, bytes, PIL, arrays, tensors (canonicalised: docs/definitions.md, section 5).
        prompts: N edit prompts, one for all, or None (methods that read the prompt then use the empty one).
        attack: a registered name ("sifm", "photoguard-encoder", …; `isr attacks`), or an Immunizer.
        editor: a registered name, a folder, or an editor; white-box for every method but noise.
        seeds: N integers; default seed, seed + 1, ….
        masks: N greyscale masks in the size of the pictures, white where pixels may change, or None each. Black pixels stay
            as they are in the result, whatever the immunizer does.
        size: longest side to work at (default: as the editor works).
        over_budget: what to do where a returned picture is over the declared budget: "rounding" cuts back what rounding to
            8 bits explains (one level) and raises otherwise; "project" always cuts back; "raise" never does.
        progress: True for a bar, or a function. checkpoint: folder from which an interrupted run goes on.
        settings: of a registered attack: preset, eps, iterations, options of the method.

    Raises:
        ProblemsError: pictures that cannot be read, all listed. UsageError: lengths, names, or the method is not defined for
            the editor. BudgetError: the immunizer broke its own budget.

    >>> import isr
    >>> protected = isr.immunize(["face.png"], ["make him a zombie"], attack="sifm", editor="mini-ip2p")  # doctest: +SKIP
    """
    if over_budget not in get_args(OverBudget):
        raise UsageError(f"over_budget must be one of {', '.join(get_args(OverBudget))}, not {over_budget!r}")
    originals = _pictures(images)
    texts = _per_image(
        "prompts", [prompts] * len(originals) if prompts is None or isinstance(prompts, str) else prompts, originals
    )
    numbers = _per_image("seeds", [seed + i for i in range(len(originals))] if seeds is None else seeds, originals)
    immunizer = make_attack(attack, **settings)
    made = None if editor is None else make_editor(editor)
    # A method that looks at no model works on the picture itself.
    free = made is None or bool(getattr(immunizer, "any_size", False))
    sizes = [i.size if free else working_size(*i.size, made, size) for i in originals]
    works = [_resized(image, s) for image, s in zip(originals, sizes, strict=True)]
    more: dict[str, Any] = {}
    greys: list[PIL.Image.Image | None] = [None] * len(originals)
    if masks is not None:
        greys = [_grey(m, i) for m, i in zip(_per_image("masks", masks, originals), originals, strict=True)]
        more["masks"] = [
            g if g is None or g.size == s else g.resize(s, PIL.Image.Resampling.BILINEAR)
            for g, s in zip(greys, sizes, strict=True)
        ]
        if "masks" not in inspect.signature(immunizer.immunize).parameters:
            raise UsageError(f"{immunizer.name} takes no masks; leave masks= out or use another attack")
    budget = Budget.of(immunizer.settings())
    with _running(immunizer, progress, checkpoint):
        # Copies: what is drawn on its input must not become the original that it is measured against.
        returned = immunizer.immunize([w.copy() for w in works], texts, editor=made, seeds=numbers, **more)
    if (after := Budget.of(immunizer.settings())) != budget:
        raise BudgetError(
            f"{immunizer.name} declared {budget} before it ran and {after} after; it must keep to one budget"
        )
    if len(returned) != len(works):
        raise UsageError(
            f"{immunizer.name} returned {len(returned)} pictures for {len(works)}; it must return one per image"
        )
    finished, found, cuts = [], [], []
    for k, (original, work, protected) in enumerate(zip(originals, works, returned, strict=True)):
        kept, cut = _within(work, protected, budget, over_budget, immunizer.name, f"images[{k}]")
        full = _outside_restored(original, carry_over(original, work, kept, budget), greys[k])
        found.append(verify(original, full, budget, name=immunizer.name, item=f"images[{k}]"))
        finished.append(full)
        cuts.append(cut)
        if budget is not None and budget.norm == "l2" and work.size != original.size:
            warnings.warn(
                f"images[{k}]: the L2 budget holds on its {original.width}×{original.height} pixels, which weakens a perturbation "
                f"made at {work.width}×{work.height}; an L∞ budget is kept at full strength",
                stacklevel=2,
            )
    return Immunized(
        images=tuple(finished), originals=tuple(originals), measured=tuple(found), budget=budget, settings=immunizer.settings(),
        editor=None if made is None else {"name": made.name, **made.settings()}, prompts=tuple(texts), seeds=tuple(numbers),
        working_sizes=tuple(sizes), cut=tuple(cuts),
    )  # fmt: skip


def _within(
    work: PIL.Image.Image,
    protected: PIL.Image.Image,
    budget: Budget | None,
    over_budget: OverBudget,
    name: str,
    item: str,
) -> tuple[PIL.Image.Image, int]:
    """The returned picture inside its budget, and how many channel values were cut for that."""
    if not isinstance(protected, PIL.Image.Image):
        raise UsageError(f"{name} returned {type(protected).__name__} for {item}; an Immunizer returns PIL images")
    if protected.mode != "RGB" or protected.size != work.size:
        raise UsageError(
            f"{name} returned mode {protected.mode}, {protected.width}×{protected.height} for {item}; it must keep 8-bit RGB "
            f"{work.width}×{work.height}"
        )
    if budget is None or within(measure(work, protected), budget):
        return protected, 0
    allowed = over_budget == "project" or (
        over_budget == "rounding" and _explained_by_rounding(work, protected, budget)
    )
    if not allowed:
        verify(work, protected, budget, name=name, item=item)
        raise BudgetError(f"{name} broke its budget on {item}")  # verify has raised already
    kept = fit(work, protected, budget)
    return kept, int(np.count_nonzero(pixels(kept) != pixels(protected)))


def _explained_by_rounding(work: PIL.Image.Image, protected: PIL.Image.Image, budget: Budget) -> bool:
    """Rounding moves a channel value by at most half a level: L∞ by one level beyond ⌊255 ε⌋, L2 by half a level each."""
    found = measure(work, protected)
    if budget.norm == "linf":
        return found.levels <= math.ceil(255 * budget.eps - 1e-9)
    return found.l2 <= budget.eps + 0.5 / 255 * math.sqrt(3 * work.width * work.height * found.changed)


def _pictures(images: Sequence[Any]) -> list[PIL.Image.Image]:
    if isinstance(images, str | bytes | PIL.Image.Image) or not isinstance(images, Sequence):
        raise UsageError(f"images must be a list of pictures, not one {type(images).__name__}; write [picture]")
    refs = [as_image(image, name=None if isinstance(image, str) else f"images[{i}]") for i, image in enumerate(images)]
    check_images(refs)
    return [ref.pil() for ref in refs]


def _per_image(name: str, values: Sequence[T], images: Sequence[Any]) -> list[T]:
    if len(values) != len(images):
        raise UsageError(f"{name} must hold one entry per image: {len(images)} images, {len(values)} {name}")
    return list(values)


@contextmanager
def _running(immunizer: Immunizer, progress: Any, checkpoint: Any) -> Iterator[None]:
    """Progress and checkpoints reach immunizers that know of them (all of ours but noise, which needs neither); what they
    had before is put back."""
    wanted = {"progress": progress, "checkpoint": checkpoint}
    before = {n: getattr(immunizer, n) for n, v in wanted.items() if v not in (None, False) and hasattr(immunizer, n)}
    try:
        for name in before:
            setattr(immunizer, name, wanted[name])
        yield
    finally:
        for name, value in before.items():
            setattr(immunizer, name, value)


def _resized(image: PIL.Image.Image, size: Size) -> PIL.Image.Image:
    return image if image.size == size else image.resize(size, PIL.Image.Resampling.BICUBIC)  # as editors do


def _outside_restored(
    original: PIL.Image.Image, protected: PIL.Image.Image, mask: PIL.Image.Image | None
) -> PIL.Image.Image:
    """The original's pixels where the mask is black: resampling spreads a perturbation over its edge."""
    if mask is None:
        return protected
    black = np.asarray(mask) == 0
    levels = np.array(pixels(protected))
    levels[black] = pixels(original)[black]
    return PIL.Image.fromarray(levels)


def _grey(mask: Any, image: PIL.Image.Image) -> PIL.Image.Image | None:
    if mask is None:
        return None
    grey = mask.convert("L") if isinstance(mask, PIL.Image.Image) else as_image(mask, name="masks").pil().convert("L")
    if grey.size != image.size:
        raise UsageError(
            f"masks must have the size of their pictures: {image.width}×{image.height}, got {grey.width}×{grey.height}"
        )
    return grey
