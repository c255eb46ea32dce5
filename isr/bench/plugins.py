"""Plugins that the user's own environment names (`ISR_PLUGINS=module,module`), for code that is not installed as a plugin.

Experiment files never name code (docs/definitions.md, section 13); the environment of the person who starts a run may.
Each module is imported once in the main process and in every worker, and registers what it brings
(`isr.registry.ATTACKS.register(…)`). An installed entry point is the way for everything that is shared.
"""

from __future__ import annotations

import os
from importlib import import_module

from ..errors import UsageError

__all__ = ["VARIABLE", "import_user_plugins"]

VARIABLE = "ISR_PLUGINS"


def import_user_plugins() -> tuple[str, ...]:
    """Import the modules named in ISR_PLUGINS; returns their names (the result card lists them).

    Raises:
        UsageError: one of them cannot be imported.
    """
    names = tuple(n.strip() for n in os.environ.get(VARIABLE, "").split(",") if n.strip())
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise UsageError(f"{VARIABLE}: the module {name!r} cannot be imported: {error}") from error
    return names
