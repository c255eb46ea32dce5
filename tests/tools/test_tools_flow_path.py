"""mini-sd3's instructed training points lie on the path that the sampler takes."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))


def test_source_left_is_what_a_perfect_sampler_has_left() -> None:
    from miniworld_training.mmdit import source_left

    generator = torch.Generator().manual_seed(0)
    source, target, noise = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    start = torch.tensor(0.6, dtype=torch.float64)
    z = (1 - start) * source + start * noise
    for sigma, end in pairwise([0.6, 0.5, 0.35, 0.2, 0.05]):
        z = z + (end - sigma) * (z - target) / sigma  # the velocity of a sampler whose ẑ = z − σ v is the target
        left = source_left(torch.tensor(end, dtype=torch.float64), start)
        torch.testing.assert_close(z, (1 - end) * (target + left * (source - target)) + end * noise)


def test_nothing_is_done_at_the_start_and_all_at_the_end() -> None:
    from miniworld_training.mmdit import source_left

    start = torch.tensor(0.6)
    assert float(source_left(start, start)) == 1.0
    assert float(source_left(torch.tensor(0.0), start)) == 0.0


def test_batches_tell_instructions_from_captions_and_empty_texts() -> None:
    import numpy as np
    from miniworld_training.batches import Batches
    from miniworld_training.pairs import Pairs
    from miniworld_training.words import build_tokenizer

    from isr.data.miniworld import EDITS

    names = sorted(EDITS)[:6]
    data = Pairs(np.zeros((6, 2, 64, 64, 3), np.uint8), names, np.zeros((6, 2, 1), np.int8), ["a red circle"] * 6)
    latents = np.zeros((6, 2, 8, 16, 16), np.float16)
    batches = Batches(data, latents, build_tokenizer(captions=50), torch.device("cpu"), captions=0.5)
    rows, none = np.arange(6), np.array([True, False, False, False, False, False])
    seen = set()
    for seed in range(8):
        batch = batches.draw(rows, np.random.default_rng(seed), no_text=none)
        text = batch.unique[batch.back]
        caption = batches.index["a red circle"]
        assert batch.instructed.tolist() == [int(t) not in (0, caption) for t in text]
        seen |= set(batch.instructed[1:].tolist())
        assert not batch.instructed[0]
    assert seen == {True, False}


def test_image_to_image_begins_where_the_shift_of_small_latents_puts_it() -> None:
    from miniworld_training.mmdit import build_scheduler

    # diffusers keeps the last 12 of 20 steps at strength 0.6: the first at t = 0.6 (of 1, in steps of 1/20), which a shift s
    # takes to s t / (1 + (s − 1) t); s = 3/8: 0.225 / 0.625 = 0.36; s = 1.5: 0.9 / 1.3 = 0.692
    for instruct, begin in ((False, 0.36), (True, 0.692)):
        scheduler = build_scheduler(instruct=instruct)
        scheduler.set_timesteps(20)
        assert float(scheduler.sigmas[8]) == pytest.approx(begin, abs=0.02)
