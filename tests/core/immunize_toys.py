"""An editor for tests of `isr.immunize`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import PIL.Image

from isr.protocols import Traits


class Plain:
    """An editor that does nothing but has a working size rule (traits)."""

    name = "plain"

    def __init__(self, native: int | None = 64, multiple: int = 8) -> None:
        self.traits = Traits(white_box=True, native_size=native, size_multiple=multiple, family="test")

    def edit(self, images: Any, prompts: Any, *, seeds: Any, **settings: Any) -> list[PIL.Image.Image]:
        return list(images)

    def settings(self, **overrides: Any) -> Mapping[str, Any]:
        return {"steps": 1, **overrides}
