"""The outside implementations that our metrics are compared with. piq imports torchvision, which this project never
installs; an empty stand-in is in place for the moment of the import only."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

STUBS = (
    "torchvision",
    "torchvision.models",
    "torchvision.models.inception",
    "torchvision.transforms",
    "torchvision.models.utils",
)


class _Anything(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def load_piq() -> ModuleType | None:
    """piq, or None where it is not installed (the caller prints why it skips)."""
    held = {name: sys.modules.get(name) for name in STUBS}
    made = {name: _Anything(name) for name in STUBS if held[name] is None}
    for name, module in made.items():
        parent, _, leaf = name.rpartition(".")
        if parent in made:
            setattr(made[parent], leaf, module)
    sys.modules.update(made)
    try:
        import piq
    except ImportError:
        return None
    finally:
        for name, module in held.items():
            if module is None:
                sys.modules.pop(name, None)
    return piq
