"""Every method on MiniWorld's trained editor, where its weights are installed (ISR_MINI_EDITOR names another folder)."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from isr.attacks.pgd import PGD, one_step, to_tensor
from isr.editors import load_editor

from isr.data import miniworld
from isr.errors import IsrError
from isr.registry import ATTACKS

pytestmark = pytest.mark.slow
METHODS = tuple(p.name for p in ATTACKS.list() if p.name != "noise")
OPTIONS: dict[str, dict[str, Any]] = {
    "photoguard-diffusion": {"steps": 3},
    "end-to-end": {"steps": 3},
    "semantic": {"count": 4},
}


@pytest.fixture(scope="module")
def editor() -> Any:
    try:
        return load_editor(os.environ.get("ISR_MINI_EDITOR", "mini-ip2p"), device="cpu")
    except IsrError as error:
        pytest.skip(f"no trained editor: {error}")


@pytest.mark.parametrize("name", METHODS)
def test_loss_falls_on_a_trained_editor(name: str, editor: Any) -> None:
    """At random numbers that the attack did not see. SDS(−) is measured by what it is for: the denoising loss."""
    world = miniworld(n=2, split="design")
    attack: PGD = ATTACKS.create(name, eps=0.0627, alpha=0.008, iterations=10, batch_size=2, **OPTIONS.get(name, {}))
    result = attack.run(world.images, world.prompts, editor=editor, seeds=[0, 1])
    measured = ATTACKS.create("advdm", direction="-").objective if name == "sds" else attack.objective
    fixed = name in ("sifm", "end-to-end", "photoguard-encoder")
    clean, delta = to_tensor(world.images), torch.stack(result.deltas)
    seeds = [[0, 1]] if fixed else [[100 + k, 200 + k] for k in range(12)]

    def loss(at: torch.Tensor) -> torch.Tensor:
        return sum(one_step(measured, editor, clean, world.prompts, delta=at, seeds=s).losses for s in seeds)  # type: ignore[return-value]

    before, after = loss(torch.zeros_like(clean)), loss(delta)
    assert bool((after < before).all()), (before, after)


def test_sifm_changes_edits_more_than_noise_does(editor: Any) -> None:
    world = miniworld(n=3, split="design")
    settings = {"steps": 8}
    plain = to_tensor(editor.edit(world.images, world.prompts, seeds=[0, 1, 2], **settings))
    moved = {}
    for name, more in (("sifm", {"iterations": 30, "alpha": 0.006}), ("noise", {})):
        protected = ATTACKS.create(name, eps=0.06, **more).immunize(
            world.images, world.prompts, editor=editor, seeds=[0, 1, 2]
        )
        edited = to_tensor(editor.edit(protected, world.prompts, seeds=[0, 1, 2], **settings))
        moved[name] = (edited - plain).square().flatten(1).mean(dim=1)
    assert bool((moved["sifm"] > 3 * moved["noise"]).all()), moved
