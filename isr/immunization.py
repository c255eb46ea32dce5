"""`immunize`: any pictures, any registered attack, and a budget that the framework itself verifies on the 8-bit result."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, overload

import numpy as np
import PIL.Image

from .errors import BudgetError, UsageError
from .images import as_image, check_images
from .making import make_attack, make_editor
from .masks import hold, mask_for, working_mask
from .perturbation import Budget, Perturbation, fit, measure, pixels, share_of, verify, within
from .protocols import Editor, Immunizer
from .working import Size, carry_over, check_size, resized, working_size

__all__ = [
    "NO_MASKS",
    "Immunized",
    "OverBudget",
    "check_defined",
    "immunize",
    "protect",
    "takes_masks",
    "warn_unchanged",
    "why_still",
]

OverBudget = Literal["rounding", "project", "raise"]
NO_MASKS = "takes no masks (its immunize has no argument named masks); leave masks out or use another attack"
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
        masks: N greyscale masks in the size of the pictures, white where pixels may change, or None each (`isr.masks`: PIL,
            files, arrays of 0–255, of [0, 1] or of booleans; no transparency). Black pixels stay as they are in the result,
            and grey ones within their share of an L∞ budget, whatever the immunizer does.
        size: longest side to work at (default: as the editor works), at least the editor's `size_multiple`.
        over_budget: what to do where a returned picture is over the declared budget: "rounding" cuts back what rounding to
            8 bits explains (one level) and raises otherwise; "project" always cuts back; "raise" never does.
        progress: True for a bar, or a function. checkpoint: folder from which an interrupted run goes on.
        settings: of a registered attack: preset, eps, iterations, options of the method.

    Raises:
        ProblemsError: pictures that cannot be read, all listed. UsageError: lengths, names, or the method is not defined for
            the editor. BudgetError: the immunizer broke its own budget.

    Pictures that come back unchanged are named in a warning: they are not protected.

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
    greys: list[PIL.Image.Image | None] = [None] * len(originals)
    if masks is not None:
        given = _per_image("masks", masks, originals)
        greys = [mask_for(originals[k], m, f"masks[{k}]") for k, m in enumerate(given)]
    check_defined(immunizer, made, texts)
    names = [f"images[{k}]" for k in range(len(originals))]
    found = protect(
        originals, texts, numbers, names, immunizer=immunizer, editor=made, masks=None if masks is None else greys, size=size,
        over_budget=over_budget, progress=progress, checkpoint=checkpoint,
    )  # fmt: skip
    still = [
        n + why_still(g, found.budget) for n, m, g in zip(names, found.measured, greys, strict=True) if not m.levels
    ]
    warn_unchanged(immunizer, still, len(names), found.budget, stacklevel=3)
    return found


def check_defined(immunizer: Immunizer, editor: Editor | None, prompts: Sequence[str | None]) -> None:
    """Asks an immunizer that can say so whether it is defined for the editor and can use all prompts (its `check` and
    `check_prompts`), before anything is made.

    Raises:
        UsageError: from the immunizer, which says why not.
    """
    if callable(check := getattr(immunizer, "check", None)):
        check(editor)
    if callable(check := getattr(immunizer, "check_prompts", None)):
        check(editor, prompts)


def protect(
    originals: Sequence[PIL.Image.Image],
    prompts: Sequence[str | None],
    seeds: Sequence[int],
    names: Sequence[str],
    *,
    immunizer: Immunizer,
    editor: Editor | None,
    masks: Sequence[PIL.Image.Image | None] | None = None,
    size: int | None = None,
    over_budget: OverBudget = "rounding",
    progress: bool | Callable[[Any], None] = False,
    checkpoint: Any = None,
) -> Immunized:
    """What `immunize` does once everything is made: N canonical pictures, prompts, seeds and names (for errors).

    masks: of mode "L", in the size of the pictures. It does not warn of unchanged pictures.
    """
    check_size(size, editor)
    # A method that looks at no model works on the picture itself.
    free = editor is None or bool(getattr(immunizer, "any_size", False))
    sizes = [i.size if free else working_size(*i.size, editor, size) for i in originals]
    works = [resized(image, s) for image, s in zip(originals, sizes, strict=True)]
    more: dict[str, Any] = {}
    if masks is not None:
        more["masks"] = [working_mask(m, s) for m, s in zip(masks, sizes, strict=True)]
        if not takes_masks(immunizer):
            raise UsageError(f"{immunizer.name} {NO_MASKS}")
    budget = Budget.of(immunizer.settings())
    with _running(immunizer, progress, checkpoint):
        # Copies: what is drawn on its input must not become the original that it is measured against.
        returned = immunizer.immunize(
            [w.copy() for w in works], list(prompts), editor=editor, seeds=list(seeds), **more
        )
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
        kept, cut = _within(work, protected, budget, over_budget, immunizer.name, names[k])
        # Resampling spreads a perturbation over the edges of its mask, and strangers need not look at one.
        full = hold(original, carry_over(original, work, kept, budget), None if masks is None else masks[k], budget)
        found.append(verify(original, full, budget, name=immunizer.name, item=names[k]))
        finished.append(full)
        cuts.append(cut)
        if budget is not None and budget.norm == "l2" and work.size != original.size:
            warnings.warn(
                f"{names[k]}: the L2 budget holds on its {original.width}×{original.height} pixels, which weakens a perturbation "
                f"made at {work.width}×{work.height}; an L∞ budget is kept at full strength",
                stacklevel=3,
            )
    return Immunized(
        images=tuple(finished), originals=tuple(originals), measured=tuple(found), budget=budget, settings=immunizer.settings(),
        editor=None if editor is None else {"name": editor.name, **editor.settings()}, prompts=tuple(prompts), seeds=tuple(seeds),
        working_sizes=tuple(sizes), cut=tuple(cuts),
    )  # fmt: skip


def warn_unchanged(
    immunizer: Immunizer, still: Sequence[str], total: int, budget: Budget | None, *, stacklevel: int = 2
) -> None:
    """A warning that counts and names the pictures whose saved change is zero (`still`, of `total`): they look protected."""
    if not still:
        return
    what = "picture as it was" if total == 1 else "pictures as they were"
    why = "look at the settings of the attack (more iterations, another start, a larger eps)"
    if budget is not None and budget.norm == "l2":
        why = (
            f"the L2 budget of {budget.eps:g} is the length of the whole change, which rounding to 8 bits took back: give a larger "
            "eps (PhotoGuard's is 8 for 512×512)"
        )
    more = f" and {len(still) - 20} more" if len(still) > 20 else ""
    warnings.warn(
        f"{immunizer.name} left {len(still)} of {total} {what}, not protected; {why}: {', '.join(still[:20])}{more}",
        stacklevel=stacklevel,
    )


def takes_masks(immunizer: Immunizer) -> bool:
    """Whether it says where pixels may change, by an argument `masks` of its own."""
    return "masks" in inspect.signature(immunizer.immunize).parameters


def why_still(mask: PIL.Image.Image | None, budget: Budget | None) -> str:
    """What a mask has to do with a picture that came back unchanged, in brackets; "" where nothing."""
    if mask is None:
        return ""
    share = np.asarray(mask)
    if not share.any():
        return " (its mask is black)"
    faint = budget is not None and budget.norm == "linf" and not share_of(budget, share.max(keepdims=True)).any()
    return " (its mask lets no level change)" if faint else ""


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
    if isinstance(values, str | bytes | PIL.Image.Image) or not hasattr(values, "__len__"):
        raise UsageError(f"{name} must be a list of one entry per image, not one {type(values).__name__}")
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
