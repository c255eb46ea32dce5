"""The gradient of every method through the real surfaces of every family equals finite differences, in float64."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "editors"))
pytest.importorskip("diffusers")
import tiny
from isr.attacks.pgd import one_step, to_tensor
from isr.editors import load_editor
from toy import pictures

from isr.registry import ATTACKS

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ip2p": ("ip2p", {}),
    "sd15-img2img": ("sd15", {}),
    "sdxl-ip2p": ("sdxl-ip2p", {}),
    "sd3-img2img": ("sd3", {}),
    "sd3-instruct": ("ultraedit-sd3", {}),
    "kontext": ("kontext", {}),
}
#: SDS follows a score that it holds constant, which is no derivative of its loss (it has an identity of its own).
METHODS = tuple(p.name for p in ATTACKS.list() if p.name not in ("noise", "sds"))
PROMPTS = ["make the hat red"]


def doubled(editor: Any) -> Any:
    """The same editor in float64."""
    made = copy.deepcopy(editor)
    for part in made.parts.values():
        if isinstance(part, torch.nn.Module):
            part.double()
    made._dtype = torch.float64
    made._texts.clear()
    return made


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    class Lazy(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            family, options = FAMILIES[name]
            folder = tiny.build(family, tmp_path_factory.mktemp(name), **options)
            self[name] = doubled(load_editor(folder, device="cpu", resolution=32, defaults={"steps": 8}))
            return self[name]

    return Lazy()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_finite_differences(family: str, name: str, editors: dict[str, Any]) -> None:
    editor = editors[family]
    options: dict[str, Any] = {
        "photoguard-diffusion": {"steps": 2},
        "end-to-end": {"steps": 2},
        "semantic": {"count": 2},
    }.get(name, {})
    if (family, name) == ("kontext", "sifm"):
        options = {"feature_norm": "frobenius"}  # the kinks of an L1 norm are too many for a long difference
    objective = ATTACKS.create(name, **options).objective
    clean = to_tensor(pictures(1, (32, 32))).double() * 0.8 + 0.1  # off the walls of [0, 1]
    generator = torch.Generator().manual_seed(1)
    delta = 0.01 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    way = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    # Schedulers round a step's sample, and Kontext's denoiser its rotated queries, to float32: those need longer differences.
    encoder_only = objective.needs == ("latents",)
    coarse = name in ("photoguard-diffusion", "end-to-end") or (family == "kontext" and not encoder_only)
    size, tolerance = (1e-3, 2e-2) if coarse else (1e-6, 1e-3)  # an L1 norm has kinks

    def at(by: float) -> Any:
        return one_step(objective, editor, clean, PROMPTS, delta=delta + by * way, seeds=[0])

    here = at(0.0)
    assert here.gradient.dtype == torch.float64
    difference = float((at(size).losses - at(-size).losses) / (2 * size))
    assert float((here.gradient * way).sum()) == pytest.approx(difference, rel=tolerance)
    assert abs(difference) > 0
