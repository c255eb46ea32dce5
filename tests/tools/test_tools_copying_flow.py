"""The miniature SD3 transformers begin with a linear way to their velocity: a copy of the source, or of the noisy latents."""

from __future__ import annotations

import copy
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

SCALE, SHIFT = 0.4, 0.3
#: From the sampler's last step through the whole training range.
SIGMAS = (0.06, 0.0765, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)


def _transformer(*, instruct: bool = True, layers: int = 2, heads: int = 5) -> Any:
    from miniworld_training.mmdit import build_transformer

    torch.manual_seed(0)
    return build_transformer(8, instruct=instruct, layers=layers, heads=heads)


def _copying(**sizes: int) -> Any:
    from miniworld_training.copying_flow import copy_the_source_flow

    transformer = _transformer(**sizes)
    copy_the_source_flow(transformer, SCALE, SHIFT)
    return transformer


def _latents(sigmas: tuple[float, ...]) -> tuple[Any, Any, Any, Any]:
    """σ (N, 1, 1, 1), raw sources, their scaled latents, noisy latents of other pictures."""
    torch.manual_seed(1)
    sigma = torch.tensor(sigmas)[:, None, None, None]
    raw, other, noise = (torch.randn(len(sigmas), 8, 16, 16) for _ in range(3))
    raw = 2.0 * raw + torch.randn(len(sigmas), 8, 1, 1)
    return sigma, raw, (raw - SHIFT) * SCALE, (1 - sigma) * other + sigma * noise


@torch.no_grad()
def _velocity(transformer: Any, sigma: Any, *seen: Any) -> Any:
    n = len(sigma)
    text = torch.randn(n, 24, 128), torch.randn(n, 128)
    return transformer(torch.cat(seen, 1), *text, 1000 * sigma.flatten()).sample


def _rms(x: Any) -> Any:
    return x.square().mean((1, 2, 3)).sqrt()


@pytest.mark.parametrize("heads", [2, 5])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "rounded to float16"])
def test_the_predicted_latents_are_the_source_at_every_sigma(heads: int, half: bool) -> None:
    """The miss is a share of noisy − source: what the gain is off by (1.9 %) and the deviation (below 1 %)."""
    transformer = _copying(heads=heads)
    if half:
        transformer = transformer.half().float()
    sigma, raw, source, noisy = _latents(SIGMAS)
    clean = noisy - sigma * _velocity(transformer, sigma, noisy, raw)
    assert float((_rms(clean - source) / _rms(noisy - source)).max()) < 0.025
    assert float(_rms(clean - noisy).min()) > 0.5  # which is far away: another picture


def test_below_its_smallest_sigma_it_passes_into_the_noisy_latents() -> None:
    from miniworld_training.copying_flow import SMALLEST

    sigma, raw, source, noisy = _latents((0.001, 0.00225, 0.01, 0.02, 0.03, 0.04, 0.05))
    clean = noisy - sigma * _velocity(_copying(), sigma, noisy, raw)
    share = sigma / SMALLEST
    wanted = share * source + (1 - share) * noisy
    assert float((_rms(clean - wanted) / _rms(noisy - source)).max()) < 0.05  # the corner of the gain is the worst


def test_the_gain_is_one_over_sigma() -> None:
    from miniworld_training.copying_flow import gain

    sigma = torch.linspace(0.05, 1, 4000)  # finer than, and off, the grid of the fit
    with torch.no_grad():
        error = (gain(_copying(), sigma) * sigma - 1).abs()
    assert float(error.max()) < 0.045
    assert float(error[sigma >= 0.06].max()) < 0.02
    assert float(error[sigma >= 0.1].max()) < 0.01


def test_the_first_sampled_edit_is_the_source() -> None:
    """20 Euler steps, also with text guidance; image guidance of 1 has no use for the branch without picture."""
    from miniworld_training.mmdit import sample_instruct

    transformer = _copying()
    _, raw, source, _ = _latents((1.0, 1.0))
    text, empty = ((torch.randn(2, 24, 128), torch.randn(2, 128)) for _ in range(2))
    for guidance in (1.0, 3.0):
        generator = torch.Generator().manual_seed(0)
        got = sample_instruct(transformer, raw, text, empty, generator=generator, guidance=guidance, image_guidance=1.0)
        assert float((_rms(got - source) / _rms(source)).max()) < 0.01


def test_the_noisy_latents_are_scaled_to_their_posterior_mean() -> None:
    """Posterior mean of unit latents, by hand at σ = 0.6: 0.4 / (0.16 + 0.36) = 10/13 of noisy, so v = (1 − 10/13) / 0.6."""
    from miniworld_training.copying_flow import gain, keep_the_noisy_flow

    transformer = _transformer(instruct=False)
    keep_the_noisy_flow(transformer)
    sigmas = (0.001, 0.1, 0.3, 0.5, 0.6, 0.8, 1.0)
    sigma, _, _, noisy = _latents(sigmas)
    mean = (1 - sigma) / ((1 - sigma) ** 2 + sigma**2) * noisy
    got = _velocity(transformer, sigma, noisy)
    assert float(_rms(sigma * (got - (noisy - mean) / sigma)).max()) < 0.01
    with torch.no_grad():
        gains = gain(transformer, torch.tensor([0.0, 0.5, 0.6, 1.0]))
    assert gains.tolist() == pytest.approx([-1.0, 0.0, 5 / 13, 1.0], abs=2e-3)


def _dead(transformer: Any, *, steps: int = 2) -> set[str]:
    """Parameters without a gradient after the last of `steps` steps."""
    optimiser = torch.optim.AdamW(transformer.parameters(), lr=1e-3)
    torch.manual_seed(2)
    for _ in range(steps):
        seen, sigma = torch.randn(2, transformer.config.in_channels, 16, 16), torch.tensor([100.0, 900.0])
        got = transformer(seen, torch.randn(2, 24, 128), torch.randn(2, 128), sigma).sample
        optimiser.zero_grad()
        (got - torch.randn(got.shape)).square().mean().backward()
        optimiser.step()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in transformer.parameters())
    return {n for n, p in transformer.named_parameters() if p.grad is None or not p.grad.any()}


@pytest.mark.parametrize("instruct", [True, False])
def test_every_part_still_learns(instruct: bool) -> None:
    from miniworld_training.copying_flow import copy_the_source_flow, keep_the_noisy_flow

    transformer = _transformer(instruct=instruct)
    plain = _dead(copy.deepcopy(transformer))  # the last block has no use for the text's queries
    if instruct:
        copy_the_source_flow(transformer, SCALE)
    else:
        keep_the_noisy_flow(transformer)
    assert _dead(transformer) == plain
    assert all("transformer_blocks.1.attn.add_q_proj" in name or "attn.add_k_proj.bias" in name for name in plain)


def test_the_gain_is_not_learnt() -> None:
    """Large steps change the velocity, and the function 1/σ not at all."""
    from miniworld_training.copying_flow import gain, hold_the_gain

    transformer, sigma = _copying(), torch.linspace(0.06, 1, 50)
    hold_the_gain(transformer)
    before = {n: p.detach().clone() for n, p in transformer.named_parameters()}
    optimiser = torch.optim.SGD(transformer.parameters(), lr=10.0)
    seen, time = torch.randn(2, 16, 16, 16), torch.tensor([100.0, 900.0])
    transformer(seen, torch.randn(2, 24, 128), torch.randn(2, 128), time).sample.square().mean().backward()
    optimiser.step()
    with torch.no_grad():
        assert float((gain(transformer, sigma) * sigma - 1).abs().max()) < 0.02
    moved = {n for n, p in transformer.named_parameters() if not torch.equal(p, before[n])}
    assert {"proj_out.weight", "pos_embed.proj.weight", "norm_out.linear.weight", "proj_out.bias"} <= moved


def test_the_way_is_recognised_also_after_training_and_saving(tmp_path: Path) -> None:
    from diffusers import SD3Transformer2DModel
    from miniworld_training.copying_flow import carries

    transformer = _transformer()
    _dead(transformer, steps=3)
    assert not carries(transformer)
    transformer = _copying()
    _dead(transformer, steps=3)
    assert carries(transformer)
    transformer.half().save_pretrained(tmp_path)
    assert carries(SD3Transformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.float32))


def test_transformers_that_cannot_carry_the_source_are_refused() -> None:
    from miniworld_training.copying_flow import copy_the_source_flow, keep_the_noisy_flow

    with pytest.raises(ValueError, match=r"expected 16 input channels \(noisy, source\), got 8"):
        copy_the_source_flow(_transformer(instruct=False), SCALE)
    with pytest.raises(ValueError, match="expected at least 43 channels to carry patches of 32 values, got 32"):
        keep_the_noisy_flow(_transformer(instruct=False, heads=1))


# ------------------------------------------------------------------------------------------------------ in training


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from miniworld_training.words import build_tokenizer

    return build_tokenizer(captions=20)


def _models(tokenizer: Any, **sizes: Any) -> dict[str, Any]:
    from miniworld_training.words import build_text_encoder

    transformer = _transformer(**sizes)
    encoders = {
        name: build_text_encoder(tokenizer, width=64, projection=True) for name in ("text_encoder", "text_encoder_2")
    }
    return {**encoders, "transformer": transformer}


def _task(tokenizer: Any, *, instruct: bool) -> tuple[Any, Any]:
    """A training task on random latents, half of whose channels the edit changes; and its latents."""
    from miniworld_training.batches import Batches
    from miniworld_training.mmdit import _Task
    from miniworld_training.pairs import Pairs

    from isr.data.miniworld import EDITS

    rng = np.random.default_rng(0)
    latents = 2.0 * rng.standard_normal((12, 2, 8, 16, 16)).astype(np.float16)
    latents[:, 1, :, 4:] = latents[:, 0, :, 4:]  # a quarter of the picture changes
    names = (sorted(EDITS) * 12)[:12]
    data = Pairs(np.zeros((12, 0), np.uint8), names, np.zeros((12, 0), np.int8), ["a portrait"] * 12)
    batches = Batches(data, latents, tokenizer, torch.device("cpu"), captions=0.0 if instruct else 0.5)
    vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=SCALE, shift_factor=SHIFT))
    return _Task(batches, vae, instruct=instruct), torch.from_numpy(latents).float()


def test_the_first_loss_is_the_edit_and_nothing_where_nothing_was_asked(tokenizer: Any) -> None:
    """At first ẑ = source: the loss is Σ w (target − source)² / Σ w, w = 3 where latents change and 1 elsewhere."""
    from miniworld_training.editor import changed
    from miniworld_training.mmdit import begin

    task, latents = _task(tokenizer, instruct=True)
    models = _models(tokenizer)
    begin(models, task.scale, task.shift, tokenizer=tokenizer)
    rows, rng = np.arange(12), np.random.default_rng(0)
    source, target = latents[:, 0] * SCALE, latents[:, 1] * SCALE
    weight = 1 + 2 * changed(latents[:, 0], latents[:, 1], SCALE).float()
    wanted = float((weight * (target - source) ** 2).mean() / weight.mean())
    with torch.no_grad():
        told = float(task._instructed(models, rows, rng, np.ones(12), False))
        idle = float(task._instructed(models, rows, rng, np.zeros(12), False))
    assert told == pytest.approx(wanted, rel=0.02)
    assert idle < 1e-3 * wanted


@pytest.mark.parametrize("instruct", [True, False])
def test_ten_steps_learn_and_keep_the_way(tokenizer: Any, instruct: bool) -> None:
    from miniworld_training.copying_flow import carries
    from miniworld_training.mmdit import begin

    task, _ = _task(tokenizer, instruct=instruct)
    models = _models(tokenizer, instruct=instruct, heads=2)
    begin(models, task.scale, task.shift, tokenizer=tokenizer)
    parameters = [p for m in models.values() for p in m.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)

    @torch.no_grad()
    def left() -> float:  # the same noise, and none of the net's own errors: what falls is what was learnt
        torch.manual_seed(0)
        return float(task.loss(models, np.arange(12), np.random.default_rng(0), drop=False))

    before = left()
    for step in range(10):
        torch.manual_seed(step)
        loss = task.loss(models, np.arange(12), np.random.default_rng(step), drop=True)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    assert left() < before
    assert carries(models["transformer"])
    found = task.check(models, np.arange(4))
    assert all(np.isfinite(v) for v in found.values())
    assert {"held_out_loss", "nearer_target", "relative_error", "kept_error"} <= set(found)


@pytest.fixture(scope="module")
def saved(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The pipeline folder of a barely trained instruct editor, and its models."""
    from miniworld_training.autoencoder import build
    from miniworld_training.mmdit import _save, begin

    folder = tmp_path_factory.mktemp("start") / "mini-sd3-instruct" / "pipeline"
    models = _models(tokenizer, heads=2)
    vae = build(widths=(8, 16, 16), flow=True)
    vae.register_to_config(scaling_factor=SCALE)
    begin(models, SCALE, 0.0, tokenizer=tokenizer)
    _dead(models["transformer"], steps=3)
    _save(folder, vae, tokenizer, models, instruct=True)
    return folder, models


def test_a_start_that_has_the_way_is_kept_as_it_was_trained(saved: Any, tokenizer: Any) -> None:
    from miniworld_training.mmdit import begin

    folder, trained = saved
    models = _models(tokenizer, heads=2)
    copied = begin(models, SCALE, 0.0, start=folder, tokenizer=tokenizer)
    assert copied == sum(len(m.state_dict()) for m in models.values())
    for name, part in trained.items():
        for key, value in part.state_dict().items():
            assert torch.equal(models[name].state_dict()[key], value.half().float()), (name, key)


def test_a_start_without_a_transformer_lends_its_text_encoder_to_both(tokenizer: Any, tmp_path: Path) -> None:
    """As mini-ip2p's folder does; its tokens may have other numbers."""
    from miniworld_training.mmdit import begin
    from miniworld_training.words import build_text_encoder

    torch.manual_seed(5)
    lender = build_text_encoder(tokenizer, width=64)
    lender.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    record = json.loads(path.read_text("utf-8"))
    numbers: dict[str, int] = record["model"]["vocab"]
    first, second = sorted(numbers)[:2]
    numbers[first], numbers[second] = numbers[second], numbers[first]
    path.write_text(json.dumps(record), "utf-8")
    models = _models(tokenizer, heads=2)
    projections = [models[name].text_projection.weight.clone() for name in ("text_encoder", "text_encoder_2")]
    assert begin(models, SCALE, 0.0, start=tmp_path, tokenizer=tokenizer) == 2 * len(lender.state_dict())
    for name, kept in zip(("text_encoder", "text_encoder_2"), projections, strict=True):
        assert torch.equal(models[name].text_projection.weight, kept)
    with pytest.raises(SystemExit, match="--start: expected the folder of a saved pipeline"):
        begin(models, SCALE, 0.0, start=tmp_path / "nowhere", tokenizer=tokenizer)
    ours = tokenizer.get_vocab()
    for name in ("text_encoder", "text_encoder_2"):
        rows = models[name].get_input_embeddings().weight
        for token, row in ours.items():
            assert torch.equal(rows[row], lender.get_input_embeddings().weight[numbers[token]]), token
        inner = [k for k in models[name].state_dict() if "layers." in k]
        assert len(inner) == sum("layers." in k for k in lender.state_dict())
        for key in inner:
            assert torch.equal(models[name].state_dict()[key], lender.state_dict()[key.removeprefix("text_model.")]), (
                key
            )


@pytest.mark.parametrize("kind", ["without", "image to image", "more blocks", "fewer blocks"])
def test_any_other_start_gets_the_way_anew(saved: Any, tokenizer: Any, tmp_path: Path, kind: str) -> None:
    """A transformer from before, one of the other kind, or one with another number of blocks lends its blocks alone."""
    import shutil

    from miniworld_training.copying_flow import copy_the_source_flow, keep_the_noisy_flow
    from miniworld_training.mmdit import begin

    shutil.copytree(saved[0], tmp_path / "start")
    layers = {"more blocks": 3, "fewer blocks": 1}.get(kind, 2)
    other = _transformer(instruct=kind != "image to image", heads=2, layers=layers)
    if kind == "image to image":
        keep_the_noisy_flow(other)
    elif kind != "without":
        copy_the_source_flow(other, SCALE)
    _dead(other)
    shutil.rmtree(tmp_path / "start" / "transformer")
    other.save_pretrained(tmp_path / "start" / "transformer")
    models = _models(tokenizer, heads=2)
    begin(models, SCALE, SHIFT, start=tmp_path / "start", tokenizer=tokenizer)
    key = "transformer_blocks.0.attn.to_q.weight"
    assert torch.equal(models["transformer"].state_dict()[key], other.state_dict()[key])
    sigma, raw, source, noisy = _latents(SIGMAS)
    clean = noisy - sigma * _velocity(models["transformer"], sigma, noisy, raw)
    assert float((_rms(clean - source) / _rms(noisy - source)).max()) < 0.025


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_shipped_editor_is_the_training_sampler(
    saved: Any, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder loads through the catalogue's editor and gives the bytes of the sampler of the checks."""
    from isr.editors import load_editor
    from miniworld_training import trained
    from miniworld_training.models import MODELS

    from isr.data.miniworld import miniworld

    folder, settings = saved[0], {"guidance": guidance, "image_guidance": 1.2}
    item = miniworld(1, "design")[0]
    monkeypatch.setattr(trained, "sample_instruct", partial(trained.sample_instruct, **settings))
    mine = trained.Trained(MODELS["mini-sd3-instruct"], folder.parent.parent, torch.device("cpu"))
    raw = mine.latents(np.asarray(item.image)[None])
    got = mine.edit(raw, [item.prompt], torch.Generator().manual_seed(5), steps=4)
    editor = load_editor("mini-sd3-instruct", source=str(folder), device="cpu", defaults={"steps": 4, **settings})
    wanted = np.asarray(editor.edit([item.image], [item.prompt], seeds=[5])[0])
    assert np.abs(got[0].astype(int) - wanted.astype(int)).max() <= 1
