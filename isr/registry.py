"""One generic, lazy registry over entry points. Our own plugins enter the same way as a stranger's.

Nothing is imported until a plugin is asked for, so listing works with no optional package installed, and one broken
plugin is reported by name without stopping the others.
"""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from .errors import MissingExtraError, RegistryError, missing_extra

__all__ = ["ATTACKS", "COMMANDS", "CONSENSUS", "EDITORS", "JUDGES", "PURIFIERS", "RESOLVERS", "Plugin", "Registry"]


#: Optional packages, and the extra that brings them.
_EXTRA_OF = {
    "torch": "attacks", "diffusers": "attacks", "transformers": "attacks", "safetensors": "attacks", "accelerate": "attacks",
    "torchmetrics": "metrics", "matplotlib": "plots", "fastapi": "study", "sqlalchemy": "study", "uvicorn": "study", "ray": "ray",
}  # fmt: skip


@dataclass(frozen=True)
class Plugin:
    """One registered name. `target` is "module:object" (or "<registered in this process>")."""

    name: str
    target: str
    distribution: str = ""


@cache
def _checkout_entry_points() -> tuple[EntryPoint, ...]:
    """Our own entry points when running from a source checkout that was never installed (no metadata exists then)."""
    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if not pyproject.is_file():
        return ()
    groups = tomllib.loads(pyproject.read_text("utf-8")).get("project", {}).get("entry-points", {})
    return tuple(
        EntryPoint(name=name, value=value, group=group)
        for group, table in groups.items()
        for name, value in table.items()
    )


@cache
def _installed(group: str, _path: tuple[str, ...]) -> tuple[tuple[EntryPoint, str], ...]:
    """Entry points of installed distributions; read once per import path, because it parses every package's metadata."""
    return tuple((p, p.dist.name if p.dist is not None else "") for p in entry_points(group=group))


class Registry:
    """Plugins of one kind.

    Args:
        group: entry-point group ("isr.judges").
        noun: the kind in error messages ("judge").
        aliases: other accepted names (the paper's abbreviations), lower case.
    """

    def __init__(self, group: str, noun: str, *, aliases: dict[str, str] | None = None) -> None:
        self.group = group
        self.noun = noun
        self.aliases = dict(aliases or {})
        self._local: dict[str, Any] = {}

    def register(self, name: str, target: Any = None) -> Any:
        """Register an object in this process; usable as a decorator. A name that is taken raises."""
        if target is None:
            return lambda obj: self.register(name, obj)
        if name in self._table():
            raise RegistryError(
                f"{self.noun} {name!r} is already registered as {self._table()[name].target}; choose another name"
            )
        self._local[name] = target
        return target

    def unregister(self, name: str) -> None:
        """Forget an object registered in this process (entry points stay)."""
        self._local.pop(name, None)

    def _found(self) -> Iterator[tuple[EntryPoint, str]]:
        yield from _installed(self.group, tuple(sys.path))
        for point in _checkout_entry_points():
            if point.group == self.group:
                yield point, ""

    def _table(self) -> dict[str, Plugin]:
        table: dict[str, Plugin] = {name: Plugin(name, "<registered in this process>") for name in self._local}
        for point, dist in self._found():
            held = table.get(point.name)
            if held is None:
                table[point.name] = Plugin(point.name, point.value, dist)
            elif held.target != point.value:
                raise RegistryError(
                    f"two plugins claim the {self.noun} name {point.name!r}: {held.target} and {point.value}; uninstall one of them"
                )
        return table

    def list(self) -> tuple[Plugin, ...]:
        """All plugins by name; imports none of them."""
        return tuple(sorted(self._table().values(), key=lambda p: p.name))

    def resolve(self, name: str) -> str:
        """The registered name behind a name or alias; raises with near matches when there is none."""
        table = self._table()
        if name in table:
            return name
        alias = self.aliases.get(name.lower())
        if alias in table:
            return alias
        near = difflib.get_close_matches(name, list(dict.fromkeys([*table, *self.aliases])), n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        known = ", ".join(sorted(table)) or "none"
        raise RegistryError(f"no {self.noun} is called {name!r}.{hint} Installed: {known}.")

    def load(self, name: str) -> Any:
        """The object behind a name; imports its module now."""
        name = self.resolve(name)
        if name in self._local:
            return self._local[name]
        plugin = self._table()[name]
        module, _, attribute = plugin.target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except MissingExtraError:
            raise
        except (ImportError, AttributeError) as error:
            package = (getattr(error, "name", None) or "").partition(".")[0]
            if isinstance(error, ModuleNotFoundError) and package in _EXTRA_OF:
                raise missing_extra(f"The {self.noun} {name!r}", _EXTRA_OF[package], package) from error
            where = f" (from the distribution {plugin.distribution})" if plugin.distribution else ""
            raise RegistryError(
                f"the {self.noun} {name!r} at {plugin.target}{where} cannot be loaded: {error}"
            ) from error

    def create(self, name: str, /, *args: Any, **settings: Any) -> Any:
        """Call the factory behind a name."""
        factory: Callable[..., Any] = self.load(name)
        return factory(*args, **settings)


JUDGES = Registry("isr.judges", "judge")
ATTACKS = Registry(
    "isr.attacks",
    "attack",
    aliases={
        "photoge": "photoguard-encoder", "photogd": "photoguard-diffusion", "ed": "editshield", "sa": "semantic",
        "ace": "ace", "sds": "sds", "mist": "mist", "sifm": "sifm",
    },
)  # fmt: skip
EDITORS = Registry("isr.editors", "editor")
PURIFIERS = Registry("isr.purifiers", "purifier")
CONSENSUS = Registry("isr.consensus", "consensus policy")
COMMANDS = Registry("isr.commands", "command")
#: How the core turns a user's words into objects of a room it never imports ("judges": spec → list of judges).
RESOLVERS = Registry("isr.resolvers", "resolver")
