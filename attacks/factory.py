"""From an objective class and its presets to the factory that stands in the registry."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from isr.errors import UsageError

from .objective import Objective
from .pgd import PGD
from .settings import PGDSettings
from .validation import as_plain, check_types

__all__ = ["PAPER", "AttackFactory", "attack"]

#: The SIFM paper's budget and iterations for every method (VII); it states no step size.
PAPER: Mapping[str, Any] = {"eps": 0.03, "norm": "linf", "alpha": 1 / 255, "iterations": 100, "step": "sign"}

_RUNNING = ("progress", "checkpoint", "checkpoint_every")


class AttackFactory(Protocol):
    """What a method's entry point is: called with settings, gives an `Immunizer`."""

    presets: tuple[str, ...]
    summary: str

    def __call__(self, *, preset: str = "paper", **settings: Any) -> PGD: ...


def attack(
    name: str,
    objective: type[Objective],
    *,
    presets: Mapping[str, Mapping[str, Any]],
    after: Callable[..., Any] | None = None,
) -> AttackFactory:
    """A factory `f(*, preset="paper", **settings) -> PGD`.

    Args:
        name: the registry name. objective: a frozen dataclass; its fields are options of the method.
        presets: settings by name ("paper", "native", …): optimiser settings and options side by side.
        after: for settings that follow from others: gets the merged settings and what the caller named; returns changes.

    The factory raises UsageError for unknown presets and settings, naming those there are, and for settings annotated as
    bool, int or float (also `… | None`) that are none, before the class sees them.
    """
    own = {f.name for f in dataclasses.fields(objective)}
    walk = {f.name for f in dataclasses.fields(PGDSettings)}
    if clash := own & walk:
        raise UsageError(
            f"options {sorted(clash)} of {objective.__name__} have the names of optimiser settings; rename them"
        )

    def make(*, preset: str = "paper", **settings: Any) -> PGD:
        if preset not in presets:
            raise UsageError(f"{name} has no preset {preset!r}; it has {', '.join(presets)}")
        known = own | walk | set(_RUNNING)
        for key in settings:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise UsageError(
                    f"{name} has no setting {key!r}{hint}; options: {', '.join(sorted(own)) or 'none'}; optimiser: {', '.join(sorted(walk))}"
                )
        settings = {key: as_plain(value) for key, value in settings.items()}
        merged = {**presets[preset], **settings}
        if after is not None:
            merged |= {k: v for k, v in after(merged).items() if k not in settings}
        check_types(objective, merged)
        return PGD(
            objective(**{k: v for k, v in merged.items() if k in own}),
            PGDSettings(**{k: v for k, v in merged.items() if k in walk}),
            name=name,
            preset=preset,
            **{k: v for k, v in merged.items() if k in _RUNNING},
        )

    make.__name__ = make.__qualname__ = name.replace("-", "_")
    make.__doc__ = objective.__doc__
    make.presets = tuple(presets)  # type: ignore[attr-defined]
    make.summary = next((line.strip() for line in (objective.__doc__ or "").splitlines() if line.strip()), "")  # type: ignore[attr-defined]
    return make  # type: ignore[return-value]
