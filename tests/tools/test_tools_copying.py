"""The miniature U-Net begins as a copy of its source, at every step and whatever the instruction."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))


def test_the_output_is_the_scaled_source_at_every_step() -> None:
    from miniworld_training.copying import copy_the_source
    from miniworld_training.editor import build_unet

    torch.manual_seed(0)
    unet = build_unet(8)
    copy_the_source(unet, 0.4)
    noisy, source = torch.randn(6, 8, 16, 16), 1.8 * torch.randn(6, 8, 16, 16) + torch.randn(6, 8, 1, 1)
    steps, text = torch.tensor([1, 100, 400, 700, 900, 999]), torch.randn(6, 24, 64)
    with torch.no_grad():
        got = unet(torch.cat([noisy, source], 1), steps, text).sample
    # latents have a variance near one: an error of 0.0002 of it is 37 dB
    assert float(((got - 0.4 * source) ** 2).mean()) < 2e-4
    assert float(((got - 0.4 * noisy) ** 2).mean()) > 0.1


def test_every_part_still_learns() -> None:
    """The trunk's first gradients go to the last layers only (its output weights are nothing); after a step all get some."""
    from miniworld_training.copying import copy_the_source
    from miniworld_training.editor import build_unet

    torch.manual_seed(0)
    unet = build_unet(8)
    copy_the_source(unet, 0.4)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    for _ in range(2):
        seen, text = torch.randn(2, 16, 16, 16), torch.randn(2, 24, 64)
        loss = (unet(seen, torch.tensor([100, 900]), text).sample - torch.randn(2, 8, 16, 16)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    dead = [
        n for n, p in unet.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.any()
    ]
    assert dead == []


def test_groups_that_cannot_carry_the_latents_are_refused() -> None:
    from miniworld_training.copying import copy_the_source
    from miniworld_training.editor import build_unet

    with pytest.raises(
        ValueError, match="expected 16 input latents, 2 to each group of at least 5 channels; got 8 groups of 2"
    ):
        copy_the_source(build_unet(8, widths=(16, 32, 32)), 0.4)
