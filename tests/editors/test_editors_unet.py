"""InstructPix2Pix: against the diffusers pipeline and against a loop written from the paper's equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import editor_surface as surface  # noqa: E402
import tiny  # noqa: E402
from isr.editors.unet import InstructPix2Pix  # noqa: E402

from isr.errors import UsageError  # noqa: E402
from isr.protocols import Editor, WhiteBoxEditor  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("ip2p", tmp_path_factory.mktemp("ip2p"))


@pytest.fixture(scope="module")
def editor(folder: Path) -> Any:
    return InstructPix2Pix.from_pretrained(str(folder), device="cpu")


def test_fulfils_the_protocols(editor: Any) -> None:
    assert isinstance(editor, Editor)
    assert isinstance(editor, WhiteBoxEditor)
    assert editor.prediction == "epsilon"
    assert editor.traits.white_box
    assert editor.traits.steps == 100


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("DDIMScheduler", {}),
        ("DDIMScheduler", {"prediction_type": "v_prediction"}),
        ("DDIMScheduler", {"prediction_type": "sample"}),
        ("EulerDiscreteScheduler", {"prediction_type": "sample"}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("PNDMScheduler", {}),
    ],
)
def test_edit_equals_the_diffusers_pipeline(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    from diffusers import StableDiffusionInstructPix2PixPipeline

    folder = tiny.build("ip2p", tmp_path, scheduler=kind, **options)
    editor = InstructPix2Pix.from_pretrained(str(folder), device="cpu")
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(str(folder), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for guidance, image_guidance in ((7.5, 1.5), (1.0, 1.5)):
        reference = pipeline(
            surface.PROMPTS, image=surface.pictures(), num_inference_steps=4, guidance_scale=guidance,
            image_guidance_scale=image_guidance, negative_prompt=["dark"] * 2, generator=surface.generators(), output_type="np",
        ).images  # fmt: skip
        surface.check_against(
            editor, reference, steps=4, guidance=guidance, image_guidance=image_guidance, negative_prompt="dark"
        )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_edit_equals_a_loop_written_from_the_equations(tmp_path: Path, kind: str) -> None:
    """DDIM (Song et al. 2021, eq. 12 with eta 0) under the guidance of Brooks et al. 2023, eq. 3; numpy schedule.

    The guided output is the noise, or v = √ᾱ ε − √(1−ᾱ) z (Salimans & Ho 2022), or z, the scaled latents themselves.
    """
    folder = tiny.build("ip2p", tmp_path, prediction_type=kind)
    editor = InstructPix2Pix.from_pretrained(str(folder), device="cpu")
    parts, steps, s_text, s_image = editor.parts, 4, 7.5, 1.5
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    bar = np.cumprod(1 - betas)
    with torch.no_grad():
        image = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in surface.pictures()])
        moments = parts["vae"].quant_conv(parts["vae"].encoder(image))
        cond = moments[:, :4]  # the mean, unscaled

        def text(prompts: list[str]) -> Any:
            ids = parts["tokenizer"](
                prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            return parts["text_encoder"](ids).last_hidden_state

        words, empty = text(surface.PROMPTS), text(["", ""])
        z = torch.cat([torch.randn((1, 4, 16, 16), generator=g) for g in surface.generators()])
        for i in reversed(range(steps)):
            t = i * (1000 // steps) + 1  # leading spacing, offset 1
            noise = {}
            for key, c, w in (("plain", 0 * cond, empty), ("image", cond, empty), ("text", cond, words)):
                noise[key] = parts["unet"](torch.cat([z, c], 1), t, encoder_hidden_states=w).sample
            e = noise["plain"] + s_image * (noise["image"] - noise["plain"]) + s_text * (noise["text"] - noise["image"])
            before = bar[t - 1000 // steps] if t >= 1000 // steps else bar[0]
            signal, level = bar[t] ** 0.5, (1 - bar[t]) ** 0.5
            if kind == "sample":
                clean, e = e, (z - signal * e) / level
            elif kind == "v_prediction":
                clean, e = signal * z - level * e, level * z + signal * e
            else:
                clean = (z - level * e) / signal
            z = before**0.5 * clean + (1 - before) ** 0.5 * e
        out = parts["vae"].decoder(parts["vae"].post_quant_conv(z.float() / 0.18215))
        reference = (out / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    surface.check_against(editor, reference, steps=steps, guidance=s_text, image_guidance=s_image)


@pytest.mark.parametrize("kind", ["PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_scheduler_that_cannot_step_from_clean_latents_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tiny.build("ip2p", tmp_path, prediction_type="sample")
    editor = InstructPix2Pix.from_pretrained(str(folder), device="cpu", scheduler=kind)
    with pytest.raises(UsageError, match=rf"prediction_type 'sample'\), from which {kind} cannot step"):
        editor.edit(surface.pictures(1), ["x"], seeds=[1], steps=8)


def test_an_unknown_kind_of_prediction_is_refused(tmp_path: Path) -> None:
    folder = tiny.build("ip2p", tmp_path)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"score"'))
    editor = InstructPix2Pix.from_pretrained(str(folder), device="cpu")
    with pytest.raises(UsageError, match=r"prediction_type 'score'.*only epsilon, v_prediction, sample"):
        _ = editor.prediction


def test_gradients_reach_the_pixels_at_every_hook(editor: Any) -> None:
    surface.check_gradients(editor)


def test_features_equal_a_full_pass(editor: Any) -> None:
    surface.check_features(editor)


def test_checkpointing_changes_nothing(editor: Any, folder: Path) -> None:
    surface.check_checkpointing(editor, InstructPix2Pix.from_pretrained(str(folder), device="cpu", checkpointing=True))


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_rollout_equals_edit(folder: Path, kind: str) -> None:
    surface.check_rollout(InstructPix2Pix.from_pretrained(str(folder), device="cpu", scheduler=kind))


def test_rollout_equals_edit_where_clean_latents_are_predicted(tmp_path: Path) -> None:
    folder = tiny.build("ip2p", tmp_path, prediction_type="sample")
    surface.check_rollout(InstructPix2Pix.from_pretrained(str(folder), device="cpu"))


def test_batch_size_changes_next_to_nothing(editor: Any) -> None:
    surface.check_batches(editor)


def test_layers_stand_in_order_of_the_forward_pass(editor: Any) -> None:
    ran: list[str] = []
    names = editor.layers()
    modules = dict(editor.denoiser.named_modules())
    handles = [modules[n].register_forward_hook(lambda *_, n=n: ran.append(n)) for n in names]
    editor.predict(*surface.inputs(editor, surface.pixels(1), 1))
    for handle in handles:
        handle.remove()
    assert tuple(ran) == names


def test_attention_equals_the_models_own_scores(editor: Any) -> None:
    """Against diffusers' `get_attention_scores`, from q and k of a full pass."""
    x = surface.pixels(2)
    args = surface.inputs(editor, x, 1)
    maps = editor.attention(*args)
    seen: dict[str, dict[str, Any]] = {}
    handles = []
    for name, module in editor.denoiser.named_modules():
        if name.endswith("attn2"):
            for which in ("to_q", "to_k"):
                store = seen.setdefault(name, {"module": module})
                handles.append(
                    getattr(module, which).register_forward_hook(
                        lambda _m, _a, out, s=store, w=which: s.update({w: out})
                    )
                )
    editor.predict(*args)
    for handle in handles:
        handle.remove()
    assert set(maps) == set(seen)
    for name, store in seen.items():
        module = store["module"]
        scores = module.get_attention_scores(
            module.head_to_batch_dim(store["to_q"]), module.head_to_batch_dim(store["to_k"])
        )
        want = scores.unflatten(0, (2, module.heads)).mean(1)
        torch.testing.assert_close(maps[name], want, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(maps[name].sum(-1), torch.ones(maps[name].shape[:2]), atol=1e-5, rtol=0)
    some = editor.attention(*args, columns=[4, 2])
    for name, value in some.items():
        torch.testing.assert_close(value, maps[name][..., [4, 2]])


def test_word_columns(editor: Any) -> None:
    """ "make the hat red": <start> mak e the hat red <end>, so "hat" is column 4 and "make" columns 1 and 2."""
    assert editor.word_columns("make the hat red") == (1, 2, 3, 4, 5)
    assert editor.word_columns("make the hat red", "hat") == (4,)
    assert editor.word_columns("make the hat red", "Make") == (1, 2)
    assert editor.word_columns("") == ()
    with pytest.raises(UsageError, match="word='cat' does not stand in the prompt"):
        editor.word_columns("make the hat red", "cat")
    with pytest.raises(UsageError, match="does not stand"):  # part of a word is not that word
        editor.word_columns("make the hat red", "ha")


def test_sizes(editor: Any, folder: Path) -> None:
    """Odd sides are cut to the VAE's multiple and brought back; `resolution` scales the longer side."""
    odd = surface.pictures(1, (65, 49))
    assert editor.working_size(49, 65) == (48, 64)
    (edit,) = editor.edit(odd, ["x"], seeds=[1], steps=1)
    assert edit.size == (65, 49)
    working = InstructPix2Pix.from_pretrained(str(folder), device="cpu", resolution=32, restore_size=False)
    assert working.working_size(49, 65) == (24, 32)
    (edit,) = working.edit(odd, ["x"], seeds=[1], steps=1)
    assert edit.size == (32, 24)
    x = torch.rand(1, 3, 49, 65, requires_grad=True)
    (g,) = torch.autograd.grad(working.latents(x).square().sum(), x)
    assert torch.isfinite(g).all()
    mixed = editor.edit([*surface.pictures(1), *odd, *surface.pictures(1)], ["x"] * 3, seeds=[1, 1, 1], steps=1)
    assert [m.size for m in mixed] == [(32, 32), (65, 49), (32, 32)]
    assert np.array_equal(np.asarray(mixed[0]), np.asarray(mixed[2]))


def test_settings_are_recorded_and_checked(editor: Any) -> None:
    record = editor.settings(steps=7)
    assert record["steps"] == 7
    assert record["guidance"] == 7.5
    assert record["scheduler"] == "DDIMScheduler"
    assert len(record["weights"]) == 64
    with pytest.raises(UsageError, match="no setting 'stepps'; it takes: eta, guidance"):
        editor.settings(stepps=7)
    with pytest.raises(UsageError, match="steps must be a whole number of at least 1, got 0"):
        editor.edit(surface.pictures(1), ["x"], seeds=[1], steps=0)


def test_wrong_arguments_say_what_is_wrong(editor: Any) -> None:
    one = surface.pictures(1)
    with pytest.raises(UsageError, match="one prompt and one seed per picture, got 1 pictures, 2 prompts, 1 seeds"):
        editor.edit(one, ["a", "b"], seeds=[1])
    with pytest.raises(UsageError, match="got one text"):
        editor.edit(one, "x", seeds=[1])
    with pytest.raises(UsageError, match=r"images\[0\] must be an 8-bit RGB PIL.Image, got a picture of mode L"):
        editor.edit([one[0].convert("L")], ["x"], seeds=[1])
    with pytest.raises(UsageError, match="must be a whole number, got float"):
        editor.edit(one, ["x"], seeds=[1.0])
    noisy, t, text, cond = surface.inputs(editor, surface.pixels(1), 1)
    with pytest.raises(UsageError, match="takes 8 channels, got 4"):
        editor.predict(noisy, t, text, None)
    with pytest.raises(UsageError, match=r"has no layers \['up_blocks.9'\]"):
        editor.features(noisy, t, text, cond, ["up_blocks.9"])
    with pytest.raises(UsageError, match="3 rows, which do not divide the 1 rows"):
        editor.predict(noisy, t, editor.embed(["a", "b", "c"]), cond)
    with pytest.raises(UsageError, match="columns"):
        editor.attention(noisy, t, text, cond, columns=[77])
    with pytest.raises(UsageError, match="float pixels"):
        editor.latents(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_pixels_that_are_not_finite_are_refused() -> None:
    from isr.editors.pixels import to_pictures

    with pytest.raises(UsageError, match="not finite"):
        to_pictures(torch.full((1, 3, 4, 4), float("nan")))


def test_default_layers_of_the_real_architectures() -> None:
    """Stable Diffusion 1's U-Net: its five 16²×1280 transformers (at 512²); without allocating a weight."""
    from types import SimpleNamespace

    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        net = UNet2DConditionModel(in_channels=8, cross_attention_dim=768, attention_head_dim=8)
    stand_in: Any = SimpleNamespace(denoiser=net)
    assert InstructPix2Pix.default_layers(stand_in) == (
        "down_blocks.2.attentions.0", "down_blocks.2.attentions.1",
        "up_blocks.1.attentions.0", "up_blocks.1.attentions.1", "up_blocks.1.attentions.2",
    )  # fmt: skip
    assert InstructPix2Pix.layers(stand_in)[-1] == "up_blocks.3"


@pytest.mark.parametrize(
    "kind", ["DDIMScheduler", "PNDMScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"]
)
def test_timesteps_are_those_of_the_edit(tmp_path: Path, kind: str) -> None:
    """n of them, falling, and each is one the denoiser is called with (PNDM calls one of them twice)."""
    editor: Any = InstructPix2Pix.from_pretrained(str(tiny.build("ip2p", tmp_path, scheduler=kind)), device="cpu")
    for n in (1, 4, 50):
        t = editor.timesteps(n)
        assert t.shape == (n,)
        assert (t.diff() < 0).all()
    called: list[float] = []
    handle = editor.denoiser.register_forward_pre_hook(lambda _m, args: called.append(float(args[1][0])))
    editor.edit(surface.pictures(1), ["x"], seeds=[1], steps=4)
    handle.remove()
    assert list(dict.fromkeys(called)) == editor.timesteps(4).tolist()
