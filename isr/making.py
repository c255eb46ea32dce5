"""Attacks and editors from their names: what `immunize`, photos and benchmarks begin with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from .errors import RegistryError, UsageError, missing_extra
from .protocols import Editor, Immunizer
from .registry import ATTACKS, RESOLVERS

__all__ = ["make_attack", "make_editor"]


def make_attack(attack: str | Immunizer, /, **settings: Any) -> Immunizer:
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
        _takes(attack, ATTACKS.load(attack), settings)
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


def _takes(name: str, factory: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Settings that the factory has no place for are an error in words, not the call's TypeError."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # written in C: it says for itself
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if wrong := next((n for n in settings if n not in known), None):
        raise UsageError(f"attack {name!r} takes no setting {wrong!r}; it takes {', '.join(known) or 'none'}")


def make_editor(editor: Any, **options: Any) -> Editor:
    """An editor from a registered name, a folder, a function, or an editor (`isr.editors.load_editor`)."""
    if isinstance(editor, Editor) and not options:
        return editor
    return cast(Editor, RESOLVERS.load("editors")(editor, **options))
