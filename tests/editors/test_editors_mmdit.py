"""SD3 image-to-image and SD3-instruct: against diffusers' pipeline and against loops written from the equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import editor_surface as surface  # noqa: E402
import tiny  # noqa: E402
from isr.editors.mmdit import SD3Img2Img, SD3Instruct  # noqa: E402

from isr.errors import UsageError  # noqa: E402
from isr.registry import ATTACKS  # noqa: E402

FAMILIES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "sd3": ("sd3", {"with_t5": True}, SD3Img2Img),
    "sd35": ("sd35", {}, SD3Img2Img),
    "ultraedit": ("ultraedit-sd3", {}, SD3Instruct),
    "ultraedit-mask": ("ultraedit-sd3", {"mask": True, "with_t5": True}, SD3Instruct),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tiny.build(kind, tmp_path_factory.mktemp(name), **more) for name, (kind, more, _) in FAMILIES.items()}


@pytest.fixture(scope="module")
def editors(folders: dict[str, Path]) -> dict[str, Any]:
    # A short T5 segment keeps the tests quick; the pipeline is given the same.
    return {
        name: cls.from_pretrained(str(folders[name]), device="cpu", max_sequence_length=24)
        for name, (_, _, cls) in FAMILIES.items()
    }


@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_edit_equals_the_diffusers_pipeline(name: str, folders: dict[str, Path], editors: dict[str, Any]) -> None:
    from diffusers import StableDiffusion3Img2ImgPipeline

    pipeline = StableDiffusion3Img2ImgPipeline.from_pretrained(str(folders[name]), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for guidance, strength in ((7.0, 0.6), (1.0, 0.9)):
        reference = pipeline(
            surface.PROMPTS, image=surface.pictures(), height=32, width=32, num_inference_steps=5, strength=strength,
            guidance_scale=guidance, negative_prompt=["dark"] * 2, generator=surface.generators(), max_sequence_length=24,
            output_type="np",
        ).images  # fmt: skip
        surface.check_against(
            editors[name], reference, steps=5, strength=strength, guidance=guidance, negative_prompt="dark"
        )


def test_without_t5_equals_the_diffusers_pipeline(folders: dict[str, Path]) -> None:
    from diffusers import StableDiffusion3Img2ImgPipeline

    editor = SD3Img2Img.from_pretrained(str(folders["sd3"]), device="cpu", without=["text_encoder_3", "tokenizer_3"])
    assert editor.settings()["t5"] is False
    pipeline = StableDiffusion3Img2ImgPipeline.from_pretrained(
        str(folders["sd3"]), local_files_only=True, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.set_progress_bar_config(disable=True)
    reference = pipeline(
        surface.PROMPTS, image=surface.pictures(), height=32, width=32, num_inference_steps=3, generator=surface.generators(), output_type="np"
    ).images  # fmt: skip
    surface.check_against(editor, reference, steps=3)
    with pytest.raises(UsageError, match="it can do without"):
        SD3Img2Img.from_pretrained(str(folders["sd3"]), without=["vae"])


def _text(parts: dict[str, Any], prompts: list[str], t5_length: int, with_t5: bool) -> tuple[Any, Any]:
    ids = parts["tokenizer"](
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    one, two = (parts[f"text_encoder{s}"](ids, output_hidden_states=True) for s in ("", "_2"))
    clip = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1)
    if with_t5:
        more = parts["tokenizer_3"](
            prompts, padding="max_length", max_length=t5_length, truncation=True, return_tensors="pt"
        ).input_ids
        words = parts["text_encoder_3"](more).last_hidden_state
    else:
        words = torch.zeros(len(prompts), t5_length, 64)
    clip = torch.cat([clip, torch.zeros(*clip.shape[:2], words.shape[-1] - clip.shape[-1])], -1)
    return torch.cat([clip, words], 1), torch.cat([one.text_embeds, two.text_embeds], -1)


def _sigmas(steps: int, shift: float = 3.0) -> Any:
    """Linear from 1 to the training grid's smallest σ, twice shifted (the scheduler shifts its own end points too), then 0."""
    end = shift * (1 / 1000) / (1 + (shift - 1) / 1000)
    s = np.linspace(1.0, end, steps)
    return np.append(shift * s / (1 + (shift - 1) * s), 0.0)


def test_sd3_equals_a_loop_written_from_the_equations(editors: dict[str, Any]) -> None:
    """z = s (E − m), z_σ0 = (1−σ0) z + σ0 n, Euler z ← z + (σ' − σ) v̂, pixels from z/s + m."""
    editor = editors["sd3"]
    parts, steps = editor.parts, 5
    sigmas = _sigmas(steps)
    start = 2  # strength .6 of 5 steps: floor(5 · .4) skipped
    with torch.no_grad():
        image = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in surface.pictures()])
        mean, logvar = parts["vae"].encoder(image).chunk(2, dim=1)
        gens = surface.generators()
        draw = lambda: torch.cat([torch.randn((1, *mean.shape[1:]), generator=g) for g in gens])  # noqa: E731
        z = (mean + (logvar / 2).exp() * draw() - 0.0609) * 1.5305
        z = (1 - sigmas[start]) * z + sigmas[start] * draw()
        (words, pooled), (empty, none) = _text(parts, surface.PROMPTS, 24, True), _text(parts, ["", ""], 24, True)
        for k in range(start, steps):
            t = torch.full((2,), 1000 * float(sigmas[k]))
            net = lambda h, p, t=t, z=z: parts["transformer"](z.float(), h, p, t).sample  # noqa: E731
            plain = net(empty, none)
            z = z + (sigmas[k + 1] - sigmas[k]) * (plain + 7.0 * (net(words, pooled) - plain))
        out = parts["vae"].decoder(z.float() / 1.5305 + 0.0609)
        reference = (out / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    surface.check_against(editor, reference, steps=steps, strength=0.6, guidance=7.0)
    assert editor.timesteps(5).tolist() == pytest.approx([1000 * s for s in sigmas[start:-1]], rel=1e-5)


@pytest.mark.parametrize("name", ["ultraedit", "ultraedit-mask"])
def test_instruct_equals_a_loop_written_from_the_equations(name: str, editors: dict[str, Any]) -> None:
    """c = E_mode with neither shift nor scale (and the mode of a white picture); three-way guidance; pixels from z/s alone."""
    editor = editors[name]
    parts, steps, s_text, s_image = editor.parts, 4, 7.5, 1.5
    sigmas = _sigmas(steps)
    with torch.no_grad():
        image = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in surface.pictures()])
        c = parts["vae"].encoder(image)[:, :16]
        if name == "ultraedit-mask":
            c = torch.cat([c, parts["vae"].encoder(torch.ones_like(image))[:, :16]], 1)
        z = torch.cat([torch.randn((1, 16, 16, 16), generator=g) for g in surface.generators()])
        with_t5 = name == "ultraedit-mask"
        (words, pooled), (empty, none) = _text(parts, surface.PROMPTS, 24, with_t5), _text(parts, ["", ""], 24, with_t5)
        for k in range(steps):
            t = torch.full((2,), 1000 * float(sigmas[k]))
            net = lambda c, h, p, t=t, z=z: parts["transformer"](torch.cat([z.float(), c], 1), h, p, t).sample  # noqa: E731
            plain, with_image, both = net(0 * c, empty, none), net(c, empty, none), net(c, words, pooled)
            v = plain + s_image * (with_image - plain) + s_text * (both - with_image)
            z = z + (sigmas[k + 1] - sigmas[k]) * v
        out = parts["vae"].decoder(z.float() / 1.5305)
        reference = (out / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    surface.check_against(editor, reference, steps=steps)


@pytest.mark.parametrize("name", ["sd3", "sd35", "ultraedit-mask"])
def test_surface(name: str, editors: dict[str, Any], folders: dict[str, Path]) -> None:
    cls = FAMILIES[name][2]
    surface.check_gradients(editors[name])
    surface.check_features(editors[name])
    surface.check_checkpointing(
        editors[name], cls.from_pretrained(str(folders[name]), device="cpu", checkpointing=True, max_sequence_length=24)
    )


@pytest.mark.parametrize("name", ["sd3", "ultraedit"])
def test_rollout_equals_edit(name: str, editors: dict[str, Any]) -> None:
    surface.check_rollout(editors[name])


def test_batch_size_changes_next_to_nothing(editors: dict[str, Any]) -> None:
    surface.check_batches(editors["sd3"])


@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_attention_equals_the_models_own(name: str, editors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the probabilities of the q and k that reach the model's own attention call (norms applied by the model)."""
    from torch.nn import functional

    editor = editors[name]
    args = surface.inputs(editor, surface.pixels(2), 1)
    maps = editor.attention(*args)
    seen: list[Any] = []
    real = functional.scaled_dot_product_attention

    def spy(query: Any, key: Any, value: Any, **more: Any) -> Any:
        seen.append((query, key))
        return real(query, key, value, **more)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    editor.predict(*args)
    length = args[2].hidden.shape[1]
    joint = [(q, k) for q, k in seen if k.shape[2] == 64 + length]  # the text encoders and dual attention are shorter
    assert len(joint) == len(maps) == 3
    for (q, k), got in zip(joint, maps.values(), strict=True):
        p = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1).mean(1)
        torch.testing.assert_close(got, p[:, :64, 64:], atol=1e-6, rtol=1e-4)
    some = editor.attention(*args, columns=[80, 3])
    for key, value in some.items():
        torch.testing.assert_close(value, maps[key][..., [80, 3]])


def test_attention_in_pieces_is_the_same(editors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from isr.editors import hooks

    results = []
    for piece in (2**26, 4000):
        monkeypatch.setattr(hooks, "PIECE", piece)
        x = surface.pixels(1, grad=True)
        maps = editors["sd3"].attention(*surface.inputs(editors["sd3"], x, 1), columns=[1, 2])
        (g,) = torch.autograd.grad(sum(m.square().sum() for m in maps.values()), x)
        results.append((g, *maps.values()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)


def test_word_columns_cover_both_tokenisations(editors: dict[str, Any]) -> None:
    """CLIP: <start> mak e the hat red <end>; T5 (one piece per word here): ▁make ▁the ▁hat ▁red </s>, after 77 CLIP columns."""
    editor = editors["sd3"]
    assert editor.word_columns("make the hat red", "hat") == (4, 77 + 2)
    assert editor.word_columns("make the hat red") == (1, 2, 3, 4, 5, 77, 78, 79, 80)
    assert editors["ultraedit"].word_columns("make the hat red", "hat") == (4,)


def test_scaling_differs_between_the_pipelines(editors: dict[str, Any]) -> None:
    z = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(editors["sd3"].scaled(z), (z - 0.0609) * 1.5305)
    torch.testing.assert_close(editors["ultraedit"].scaled(z), z * 1.5305)
    for name in ("sd3", "ultraedit"):
        torch.testing.assert_close(editors[name].unscaled(editors[name].scaled(z)), z)


def test_masks(editors: dict[str, Any]) -> None:
    x = surface.pixels(1)
    masked = editors["ultraedit-mask"]
    assert masked.condition(x).shape[1] == 32
    torch.testing.assert_close(masked.condition(x, torch.ones_like(x)), masked.condition(x))
    half = torch.ones_like(x)
    half[..., :16] = 0
    with torch.no_grad():
        want = masked.vae.encode(2 * half - 1).latent_dist.mode()
    torch.testing.assert_close(masked.condition(x, half)[:, 16:], want)
    torch.testing.assert_close(masked.condition(x, half)[:, :16], masked.condition(x)[:, :16])
    assert (masked.condition(x, half) - masked.condition(x)).abs().max() > 0.01
    with pytest.raises(UsageError, match="has no mask channels"):
        editors["ultraedit"].condition(x, x)


def test_edits_under_a_mask(editors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture's own mask reaches the network in every step, in `edit` and in `rollout` alike."""
    editor = editors["ultraedit-mask"]
    images, x = surface.pictures(2), surface.pixels(2)
    white, half = PIL.Image.new("L", (32, 32), 255), PIL.Image.new("RGB", (32, 32), (255, 255, 255))
    half.paste((0, 0, 0), (0, 0, 16, 32))
    plain = editor.edit(images, surface.PROMPTS, seeds=surface.SEEDS, steps=2)
    seen: list[Any] = []
    predict = editor.predict
    monkeypatch.setattr(editor, "predict", lambda z, t, text, cond: seen.append(cond[:1]) or predict(z, t, text, cond))
    edits = editor.edit(images, surface.PROMPTS, seeds=surface.SEEDS, steps=2, masks=[white, half])
    assert np.array_equal(np.asarray(edits[0]), np.asarray(plain[0]))
    assert not np.array_equal(np.asarray(edits[1]), np.asarray(plain[1]))
    pixels = torch.stack([torch.ones(3, 32, 32), torch.ones(3, 32, 32)])
    pixels[1, :, :, :16] = 0
    want = editor.condition(x, pixels)
    assert len(seen) == 4
    for k, cond in enumerate(seen):
        torch.testing.assert_close(cond[0], want[k // 2])
    y = editor.rollout(x, surface.PROMPTS, 2, seeds=surface.SEEDS, masks=pixels)
    rounded = (y.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(rounded - np.stack([np.asarray(e) for e in edits])).max() <= 1
    after = editor.edit(images, surface.PROMPTS, seeds=surface.SEEDS, steps=2)
    assert [e.tobytes() for e in after] == [e.tobytes() for e in plain], "no mask is left behind"


def test_a_mask_is_seen_by_its_own_edit_alone(editors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits by the same editor that begin and end while a masked one is under way (other threads', say) neither see its
    mask nor take it away."""
    editor, black = editors["ultraedit-mask"], PIL.Image.new("L", (32, 32), 0)
    call: dict[str, Any] = {"images": surface.pictures(1), "prompts": ["x"], "seeds": [1], "steps": 2}
    pixels: dict[str, Any] = {"x": surface.pixels(1), "prompts": ["x"], "seeds": [1], "steps": 2}
    plain, masked = editor.edit(**call)[0], editor.edit(**call, masks=[black])[0]
    assert plain.tobytes() != masked.tobytes()
    smooth = editor.rollout(**pixels)
    between: list[Any] = []
    denoise, busy = editor._denoise, []

    def interrupted(*args: Any, **more: Any) -> Any:
        if not busy:
            busy.append(True)
            between.append((editor.edit(**call)[0], editor.rollout(**pixels)))
            busy.clear()
        return denoise(*args, **more)

    monkeypatch.setattr(editor, "_denoise", interrupted)
    assert editor.edit(**call, masks=[black])[0].tobytes() == masked.tobytes()
    editor.rollout(**pixels, masks=torch.zeros(1, 3, 32, 32))
    assert len(between) == 2
    for edit, y in between:
        assert edit.tobytes() == plain.tobytes()
        assert torch.equal(y, smooth)


def test_masks_go_with_their_pictures_to_the_working_size(folders: dict[str, Path]) -> None:
    editor: Any = SD3Instruct.from_pretrained(
        str(folders["ultraedit-mask"]), device="cpu", max_sequence_length=24, resolution=32
    )
    (image,) = surface.pictures(1, (40, 32))
    mask = PIL.Image.new("L", (40, 32), 255)
    mask.paste(0, (0, 0, 20, 32))
    seen: list[Any] = []
    predict = editor.predict
    editor.predict = lambda z, t, text, cond: seen.append(cond[:1]) or predict(z, t, text, cond)
    (edit,) = editor.edit([image], ["x"], seeds=[1], steps=1, masks=[mask])
    assert edit.size == (40, 32)
    halves = torch.ones(1, 3, 32, 40)
    halves[..., :20] = 0
    small = torch.nn.functional.interpolate(halves, size=(24, 32), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        want = editor.vae.encode(2 * small - 1).latent_dist.mode()
    torch.testing.assert_close(seen[0][:, 16:], want)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_masks_of_any_mode_that_means_one_thing(mode: str, editors: dict[str, Any]) -> None:
    editor = editors["ultraedit-mask"]
    call: dict[str, Any] = {"images": surface.pictures(1), "prompts": ["x"], "seeds": [1], "steps": 1}
    grey = PIL.Image.new("L", (32, 32), 255)
    grey.paste(0, (0, 0, 16, 32))
    assert (
        editor.edit(**call, masks=[grey.convert(mode)])[0].tobytes() == editor.edit(**call, masks=[grey])[0].tobytes()
    )


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            PIL.Image.new("RGBA", (32, 32), (255, 255, 255, 0)),
            "mode 'RGBA' with transparency; draw it in black and white",
        ),
        (PIL.Image.new("LA", (32, 32), (255, 0)), "mode 'LA' with transparency"),
        (PIL.Image.new("L", (32, 32), 1), "holds .* of 0 and 1 only"),
        (PIL.Image.new("F", (32, 32), 1.0), "mode 'F'; bring it to 8-bit grey"),
        (PIL.Image.new("I;16", (32, 32), 65535), "mode 'I;16'; bring it to 8-bit grey"),
        (PIL.Image.new("CMYK", (32, 32)), "mode 'CMYK'; bring it to 8-bit grey"),
    ],
)
def test_masks_that_would_mean_something_else(mask: Any, message: str, editors: dict[str, Any]) -> None:
    """They are refused before the first picture is edited."""
    white = PIL.Image.new("L", (32, 32), 255)
    with pytest.raises(UsageError, match=rf"masks\[1\] (is a picture of )?{message}"):
        editors["ultraedit-mask"].edit(surface.pictures(2), ["x", "y"], seeds=[1, 2], steps=1, masks=[white, mask])


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (PIL.Image.new("L", (32, 32)), r"masks must be a list with one picture per picture, got one; write \[mask\]"),
        ([PIL.Image.new("L", (32, 32))], "2 pictures, 1 masks"),
        ([PIL.Image.new("L", (32, 32)), np.zeros((32, 32))], r"masks\[1\] must be a PIL.Image of size \(32, 32\), as its picture, got ndarray"),
        ([PIL.Image.new("L", (16, 32)), PIL.Image.new("L", (32, 32))], r"masks\[0\] must be .* got one of size \(16, 32\)"),
    ],
)  # fmt: skip
def test_wrong_masks(masks: Any, message: str, editors: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=message):
        editors["ultraedit-mask"].edit(surface.pictures(2), ["x", "y"], seeds=[1, 2], steps=1, masks=masks)
    with pytest.raises(UsageError, match="has no mask channels; leave"):
        editors["ultraedit"].edit(
            surface.pictures(1), ["x"], seeds=[1], steps=1, masks=[PIL.Image.new("L", (32, 32), 255)]
        )
    with pytest.raises(UsageError, match=r"masks must be float pixels \(2, 3, 32, 32\)"):
        editors["ultraedit-mask"].rollout(
            surface.pixels(2), ["x", "y"], 1, seeds=[1, 2], masks=torch.ones(2, 1, 32, 32)
        )


def test_the_white_mask_is_encoded_once_per_size_device_and_dtype(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = SD3Instruct.from_pretrained(str(folders["ultraedit-mask"]), device="cpu", max_sequence_length=24)
    passes: list[tuple[int, ...]] = []
    encode = editor.vae.encode

    def counted(x: Any, *args: Any, **more: Any) -> Any:
        passes.append(tuple(x.shape))
        return encode(x, *args, **more)

    monkeypatch.setattr(editor.vae, "encode", counted)

    def white(side: int) -> Any:
        return encode(torch.ones(1, 3, side, side, dtype=editor.vae.dtype)).latent_dist.mode()

    raw = torch.randn(2, 16, 16, 16, requires_grad=True)
    with torch.inference_mode():  # must not leave a tensor behind that no gradient may pass
        editor.condition_of(raw)
    for _ in range(3):
        cond = editor.condition_of(raw)
    assert len(passes) == 1
    assert torch.equal(cond[:, :16], raw)
    assert torch.equal(cond[:, 16:], white(32).expand(2, -1, -1, -1))
    (gradient,) = torch.autograd.grad((cond * cond).sum(), raw)
    assert torch.equal(gradient, 2 * raw)
    editor.condition_of(raw[:, :, :8])
    assert [p[2:] for p in passes] == [(32, 32), (16, 32)], "another size"
    with torch.autocast("cpu", torch.bfloat16):
        editor.condition_of(raw)
    assert len(passes) == 3, "half precision rounds"
    editor.vae.to(torch.float64)
    assert torch.equal(editor.condition_of(raw.double())[:1, 16:], white(32)), "in the precision that the VAE has now"
    assert len(passes) == 4
    for side in (4, 12, 20, 24, 28):
        editor.condition_of(raw.new_zeros(1, 16, side, side))
    assert len(editor._whites) <= 4


@pytest.mark.parametrize("name", ["ultraedit", "ultraedit-mask"])
def test_sifm_encodes_once_per_iteration(name: str, editors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    editor, passes = editors[name], []
    encode = editor.vae.encode
    monkeypatch.setattr(editor.vae, "encode", lambda *args, **more: (passes.append(1), encode(*args, **more))[1])
    image, counts = surface.pictures(1), []
    for iterations in (1, 3):
        passes.clear()
        ATTACKS.create("sifm", iterations=iterations).immunize(image, ["a hat"], editor=editor, seeds=[0])
        counts.append(len(passes))
    assert counts[1] - counts[0] == 2


def test_schedule_without_t5_tokens_and_wrong_lengths(folders: dict[str, Path]) -> None:
    editor = SD3Instruct.from_pretrained(str(folders["ultraedit"]), device="cpu", max_sequence_length=0)
    assert editor.embed(["x"]).hidden.shape == (1, 77, 64)
    with pytest.raises(UsageError, match="max_sequence_length must be at least 1"):
        SD3Img2Img.from_pretrained(str(folders["sd3"]), device="cpu", max_sequence_length=0)


def test_ultraedit_reads_as_much_text_as_its_authors_pipeline(folders: dict[str, Path]) -> None:
    """Its T5 segment is as long as CLIP's (77), not the 256 of diffusers' later SD3 pipelines; padding is attended to."""
    for name in ("ultraedit", "ultraedit-mask"):
        editor: Any = SD3Instruct.from_pretrained(str(folders[name]), device="cpu")
        assert editor.embed(["x"]).hidden.shape == (1, 77 + 77, 64)
        assert editor.settings()["max_sequence_length"] == 77
    assert SD3Img2Img.from_pretrained(str(folders["sd3"]), device="cpu").embed(["x"]).hidden.shape == (1, 77 + 256, 64)


def test_default_layers_of_sd3_medium() -> None:
    """Blocks 12 to 22 of 24."""
    from types import SimpleNamespace

    stand_in: Any = SimpleNamespace(layers=lambda: tuple(f"transformer_blocks.{i}" for i in range(24)))
    assert SD3Img2Img.default_layers(stand_in) == tuple(f"transformer_blocks.{i}" for i in range(12, 23))
