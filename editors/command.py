"""`isr editors`: what can edit, under which licence, and what lies on this machine already."""

from __future__ import annotations

import argparse
from typing import Any

from isr.protocols import Traits
from isr.registry import EDITORS, Plugin

from .catalog import cached_bytes, entries

__all__ = ["register", "rows"]

COLUMNS = ("name", "family", "size", "licence", "white-box", "cached", "source")


def register(commands: Any) -> None:
    """Add the command to `isr`."""
    parser = commands.add_parser(
        "editors", help="editors by name: family, size, licence, white-box or not, what is cached"
    )
    parser.set_defaults(run=_run)


def rows() -> list[dict[str, str]]:
    """One row per registered editor; makes and downloads nothing, and imports no more than the modules of others' plugins."""
    table = []
    known = entries()
    for plugin in EDITORS.list():
        row = known.get(plugin.name)
        if row is None:
            values = _plugin(plugin)
        else:
            cached = cached_bytes(row)
            size = "–" if row.parameters is None else f"{row.parameters:g} B"
            values = (
                row.name,
                row.family,
                f"{size}, {row.native_size} px",
                row.licence + (" (gated)" if row.gated else ""),
                "yes" if row.white_box else "no",
                "no" if cached is None else human(cached),
                row.source,
            )
        table.append(dict(zip(COLUMNS, values, strict=True)))
    return table


def _plugin(plugin: Plugin) -> tuple[str, ...]:
    """The row of an editor that is not in the catalogue, from what its class says of itself."""
    if plugin.name == "function":
        return (plugin.name, "any", "–", "your own", "no", "–", "a Python function")
    try:
        traits = getattr(EDITORS.load(plugin.name), "traits", None)
    except Exception:  # noqa: BLE001 - a stranger's module may raise anything on import; the others are listed all the same
        traits = None
    if not isinstance(traits, Traits):  # a factory, or a class that knows only once it is made
        return (plugin.name, "plugin", "–", "?", "?", "–", plugin.target)
    licence = "?" if traits.licence == "unknown" else traits.licence + (" (gated)" if traits.gated else "")
    return (
        plugin.name,
        traits.family or "plugin",
        "–" if traits.native_size is None else f"–, {traits.native_size} px",
        licence,
        "yes" if traits.white_box else "no",
        "–",
        traits.source or plugin.target,
    )


def human(size: int) -> str:
    """Bytes for a reader."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size = round(size / 1000)
    return f"{size:.0f} GB"


def _run(_: argparse.Namespace) -> int:
    table = [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows()]
    widths = {column: max(len(row[column]) for row in table) for column in COLUMNS}
    for row in table:
        print("  ".join(row[column].ljust(widths[column]) for column in COLUMNS).rstrip())
    print("\nSizes: parameters of the denoiser as its authors state them, and the side it was trained at.")
    return 0
