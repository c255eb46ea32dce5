"""One attack file serves every family: all registered methods on a tiny checkpoint of each, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import editor_surface as surface  # noqa: E402
import tiny  # noqa: E402
from isr.editors import load_editor  # noqa: E402

from isr.registry import ATTACKS  # noqa: E402

FAMILIES: dict[str, dict[str, Any]] = {
    "ip2p": {}, "sd15": {}, "sdxl-ip2p": {}, "sd3": {"max_sequence_length": 8}, "ultraedit-sd3": {"max_sequence_length": 8},
    "kontext": {"max_sequence_length": 8, "resolution": 32},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_runs_on_every_family(family: str, tmp_path: Path) -> None:
    editor = load_editor(tiny.build(family, tmp_path), device="cpu", **FAMILIES[family])
    (original,) = surface.pictures(1)
    before = np.asarray(original).astype(int)
    for plugin in (p for p in ATTACKS.list() if p.target.startswith("isr.")):
        immunizer = ATTACKS.create(plugin.name, **({} if plugin.name == "noise" else {"iterations": 2}))
        (protected,) = immunizer.immunize([original], ["make the hat red"], editor=editor, seeds=[1])
        change = np.abs(np.asarray(protected).astype(int) - before)
        assert protected.size == original.size
        assert 0 < change.max() <= 255 * 0.03, plugin.name
