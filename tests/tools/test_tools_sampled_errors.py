"""What the editors learn to mend lies on the sampler's own way."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))


class _Wrong:
    """Predicts the clean latents with an error that depends on all it sees."""

    def __call__(self, seen: Any, t: Any, text: Any) -> Any:
        told = (t / 1000.0 + text.mean((1, 2)))[:, None, None, None]
        return SimpleNamespace(sample=torch.tanh(seen[:, :8]) + 0.3 * seen[:, 8:] + told)


def test_walked_unet_is_ddim() -> None:
    from miniworld_training.editor import _Task, build_scheduler

    torch.manual_seed(0)
    scheduler = build_scheduler()
    batches: Any = SimpleNamespace(device=torch.device("cpu"))
    task, source, text = _Task(batches, 1.0), torch.randn(3, 8, 4, 4), torch.randn(3, 1, 4)
    for passes in (0, 1, 2):
        torch.manual_seed(3)
        x, t = task.walked(_Wrong(), source, text, passes=passes)  # type: ignore[arg-type]
        torch.manual_seed(3)
        steps = (900 + 100 * torch.rand(3)).long()
        want = torch.randn_like(source)
        for _ in range(passes):
            later = (steps * torch.rand(3)).long()
            for i in range(3):
                # a step of the scheduler goes down by 1000 // this
                scheduler.num_inference_steps = Fraction(1000, int(steps[i] - later[i]))
                now, one = want[i : i + 1], slice(i, i + 1)
                y = _Wrong()(torch.cat([now, source[one]], 1), steps[one], text[one]).sample
                want[one] = scheduler.step(y, int(steps[i]), now).prev_sample
            steps = later
        assert torch.equal(t, steps)
        torch.testing.assert_close(x, want)


def test_walked_flow_is_euler() -> None:
    from miniworld_training.mmdit import _Task, euler

    class Transformer:
        def __call__(self, seen: Any, hidden: Any, pooled: Any, t: Any) -> Any:
            told = (t / 1000.0 + hidden.mean((1, 2)) + pooled.mean(1))[:, None, None, None]
            return SimpleNamespace(sample=torch.sin(3 * seen[:, :4]) + 0.3 * seen[:, 4:] + told)

    vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=1.0, shift_factor=0.0))
    task = _Task(SimpleNamespace(), vae, instruct=True)  # type: ignore[arg-type]
    torch.manual_seed(0)
    models: Any = {"transformer": Transformer()}
    text: Any = (torch.randn(1, 1, 4), torch.randn(1, 4))
    begun, cond, start = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4), torch.full((1, 1, 1, 1), 0.7)
    torch.manual_seed(5)
    x, sigma = task.walked(models, begun, start, text, cond, passes=2)
    torch.manual_seed(5)
    middle = 0.7 * float(torch.rand(1))
    end = middle * float(torch.rand(1))
    assert float(sigma) == pytest.approx(end)

    def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = Transformer()(torch.cat([z, cond], 1), *text, t).sample
        return found

    # euler goes down to 0 from the last σ; the last step is taken back
    want = euler(velocity, begun, torch.tensor([0.7, middle]))
    before = begun + (middle - 0.7) * velocity(begun, torch.tensor([700.0]))
    want = want + end * velocity(before, torch.tensor([1000 * middle]))
    torch.testing.assert_close(x, want)
