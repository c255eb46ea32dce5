"""Where MiniWorld's weights lie. Holds no models: `isr` loads them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["names", "path"]

_WEIGHTS = Path(__file__).resolve().parent / "weights"


def names() -> tuple[str, ...]:
    """The miniatures in this distribution."""
    return tuple(sorted(p.name for p in _WEIGHTS.iterdir() if p.is_dir())) if _WEIGHTS.is_dir() else ()


def path(name: str) -> Path:
    """The folder of one miniature ("mini-ip2p", "referee-a", …).

    Raises:
        LookupError: no miniature has that name.
    """
    if name not in names():
        raise LookupError(f"name: no miniature is called {name!r}; there are {', '.join(names()) or 'none'}")
    return _WEIGHTS / name
