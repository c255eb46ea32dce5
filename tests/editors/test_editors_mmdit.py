"""SD3 image-to-image and SD3-instruct: against diffusers' pipeline and against loops written from the equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import editor_surface as surface  # noqa: E402
import tiny  # noqa: E402
from isr.editors.mmdit import SD3Img2Img, SD3Instruct  # noqa: E402

from isr.errors import UsageError  # noqa: E402

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
    with pytest.raises(UsageError, match="has no mask channels"):
        editors["ultraedit"].condition(x, x)


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
