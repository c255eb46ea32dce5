"""Checks that every white-box family must pass, on a tiny random checkpoint; called by the families' own tests."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import torch

PROMPTS = ["make the hat red", "add a dog"]
SEEDS = [11, 12]


def pictures(n: int = 2, size: tuple[int, int] = (32, 32), seed: int = 0) -> list[PIL.Image.Image]:
    """Smooth random 8-bit pictures, (width, height)."""
    rng = np.random.default_rng(seed)
    small = [PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(n)]
    return [p.resize(size, PIL.Image.Resampling.BICUBIC) for p in small]


def pixels(n: int = 2, seed: int = 0, grad: bool = False) -> torch.Tensor:
    from isr.editors.pixels import to_pixels

    return to_pixels(pictures(n, seed=seed)).requires_grad_(grad)


def generators(seeds: list[int] = SEEDS) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def inputs(editor: Any, x: torch.Tensor, n: int, start: int = 0) -> tuple[Any, ...]:
    """(noisy, t, text, cond) with n timesteps of every picture in one batch, timestep-major."""
    steps = editor.timesteps(24)[start : start + n]
    z = editor.scaled(editor.latents(x))
    noise = torch.randn((n * len(x), *z.shape[1:]), generator=torch.Generator().manual_seed(3))
    t = steps.repeat_interleave(len(x))
    return editor.noisy(z.repeat(n, 1, 1, 1), t, noise), t, editor.embed(PROMPTS[: len(x)]), editor.condition(x)


def gradient(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    (g,) = torch.autograd.grad(value.float().square().mean(), x, retain_graph=True)
    assert torch.isfinite(g).all()
    return g


def check_gradients(editor: Any, *, dead: tuple[str, ...] = ()) -> None:
    """Finite and non-zero gradients to the pixels at every hook, the prediction, attention, and the decoder."""
    x = pixels(1, grad=True)
    args = inputs(editor, x, 1, start=2)
    found = editor.features(*args, editor.layers())
    assert list(found) == list(editor.layers())
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert gradient(value, x).abs().max() > 0, name
    maps = editor.attention(*args, columns=[1, 2])
    for name, value in maps.items():
        g = gradient(value, x)
        assert name in dead or g.abs().max() > 0, name
    assert gradient(editor.predict(*args), x).abs().max() > 0
    assert gradient(editor.decode(editor.scaled(editor.latents(x))), x).abs().max() > 0
    assert all(not p.requires_grad for p in editor.denoiser.parameters())
    cond, of = editor.condition(x), editor.condition_of(editor.latents(x))
    assert (cond is None) == (of is None)
    if cond is not None:
        torch.testing.assert_close(of, cond)


def check_features(editor: Any) -> None:
    """Several layers and timesteps in one pass equal single passes that run to the end; the pass stops after the deepest."""
    from isr.editors.hooks import read_modules

    x = pixels(2)
    names = [*editor.default_layers(), editor.layers()[0]]
    noisy, t, text, cond = inputs(editor, x, 2, start=2)
    together = editor.features(noisy, t, text, cond, names)
    modules = dict(editor.denoiser.named_modules())
    for k in range(2):
        part = slice(2 * k, 2 * k + 2)
        one = (noisy[part], t[part], text, cond)
        full = read_modules({n: modules[n] for n in names}, partial(editor.predict, *one), pick=editor.pick, stop=False)
        for name in names:
            want = editor._image_part(full[name], noisy[part], text)
            torch.testing.assert_close(together[name][part], want, atol=1e-5, rtol=1e-4)
    # Stopped early: what comes after the layer does not run, and no hook is left behind.
    ran: list[str] = []
    last = modules[editor.layers()[-1]]
    handle = last.register_forward_hook(lambda *_: ran.append("last"))
    editor.features(noisy, t, text, cond, [editor.layers()[0]])
    handle.remove()
    assert ran == []
    assert all(not m._forward_hooks for m in editor.denoiser.modules())


def check_checkpointing(plain: Any, saving: Any) -> None:
    """Gradient checkpointing changes neither features, attention nor gradients, and each hook reads once: a checkpointed
    block runs again during backward, when no hook may be left."""
    from isr.editors import hooks

    read: list[str] = []
    listening = hooks.listening

    def counted(modules: Any, note: Any) -> Any:
        def also(name: str, output: Any) -> None:
            read.append(name)
            note(name, output)

        return listening(modules, also)

    results = []
    for editor in (plain, saving):
        x, x2 = pixels(2, grad=True), pixels(2, grad=True)
        names = editor.default_layers()
        args, args2 = inputs(editor, x, 2, start=2), inputs(editor, x2, 1, start=2)
        with mock.patch.object(hooks, "listening", counted):
            found = editor.features(*args, names)
            (g,) = torch.autograd.grad(sum(f.square().mean() for f in found.values()), x)
            assert sorted(read) == sorted(names)
            read.clear()
            maps = editor.attention(*args2, columns=[1, 2, 3])
            (ga,) = torch.autograd.grad(sum(m.square().mean() for m in maps.values()), x2)
            assert len(read) == len(set(read)) >= 2 * len(maps)
            read.clear()
        # Unwinding through a checkpointed block leaves no saved-tensor hooks behind.
        assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
        results.append((g, ga, *found.values(), *maps.values()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)
        assert torch.isfinite(a).all()


def check_rollout(editor: Any, **settings: Any) -> None:
    """`rollout` (checkpointed) is `edit` before clamping and rounding; gradients equal those without checkpoints."""
    images = pictures(2)
    edits = editor.edit(images, PROMPTS, seeds=SEEDS, steps=3, **settings)
    grads = []
    for wrap in (True, False):
        x = pixels(2, grad=True)
        y = editor.rollout(x, PROMPTS, 3, seeds=SEEDS, checkpoint=wrap, **settings)
        assert y.shape == x.shape
        rounded = (y.detach().clamp(0, 1) * 255).round()
        eight = torch.from_numpy(np.stack([np.asarray(e) for e in edits]).astype(np.float32)).permute(0, 3, 1, 2)
        # Sums differ in the last bit between one batch of two and two of one: at most one level, and rarely.
        assert (rounded - eight).abs().max() <= 1
        assert (rounded != eight).float().mean() < 0.005
        grads.append(torch.autograd.grad(y.square().mean(), x)[0])
    assert torch.isfinite(grads[0]).all()
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[0], grads[1], atol=1e-7, rtol=1e-3)


def check_batches(editor: Any, **settings: Any) -> None:
    """Same seeds → same bytes; batch size changes at most 0.5 % of pixels (docs/definitions.md, section 12)."""
    images, prompts, seeds = pictures(3), [*PROMPTS, "turn it to night"], [5, 6, 7]
    before = editor.batch_size
    runs = {}
    for size in (1, 3):
        editor.batch_size = size
        runs[size] = np.stack([np.asarray(e) for e in editor.edit(images, prompts, seeds=seeds, steps=2, **settings)])
        again = np.stack([np.asarray(e) for e in editor.edit(images, prompts, seeds=seeds, steps=2, **settings)])
        assert (runs[size] == again).all()
    editor.batch_size = before
    assert (runs[1] != runs[3]).mean() <= 0.005
    other = np.stack([np.asarray(e) for e in editor.edit(images, prompts, seeds=[8, 9, 10], steps=2, **settings)])
    assert (other != runs[1]).mean() > 0.1


def check_against(editor: Any, reference: np.ndarray, **settings: Any) -> None:
    """Float pixels before rounding equal a reference (B, H, W, 3) in [0, 1] to 1e-4."""
    with torch.no_grad():
        y = editor.rollout(pixels(len(reference)), PROMPTS[: len(reference)], seeds=SEEDS[: len(reference)], **settings)
    ours = y.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - reference).max() < 1e-4
    # The comparison would be empty if every pixel were clamped away.
    assert ((reference > 0) & (reference < 1)).mean() > 0.2
