"""FLUX.1 Kontext: against diffusers' pipeline and against a loop written from the equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import editor_surface as surface  # noqa: E402
import tiny  # noqa: E402
from isr.editors.kontext import TRAINED_SIZES, Kontext, packed, unpacked  # noqa: E402

from isr.errors import UsageError  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("kontext", tmp_path_factory.mktemp("kontext"))


@pytest.fixture(scope="module")
def editor(folder: Path) -> Any:
    return Kontext.from_pretrained(str(folder), device="cpu", resolution=32, max_sequence_length=24)


def test_edit_equals_the_diffusers_pipeline(folder: Path, editor: Any) -> None:
    from diffusers import FluxKontextPipeline

    pipeline = FluxKontextPipeline.from_pretrained(str(folder), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for true_guidance in (1.0, 2.0):
        reference = pipeline(
            prompt=surface.PROMPTS, image=surface.pictures(), height=32, width=32, num_inference_steps=4, guidance_scale=3.5,
            true_cfg_scale=true_guidance, negative_prompt=["dark"] * 2, generator=surface.generators(), max_sequence_length=24,
            output_type="np", _auto_resize=False, max_area=32 * 32,
        ).images  # fmt: skip
        surface.check_against(editor, reference, steps=4, true_guidance=true_guidance, negative_prompt="dark")


def test_edit_equals_a_loop_written_from_the_equations(editor: Any) -> None:
    """σ from 1 to 1/n, shifted by e^μ/(e^μ + 1/σ − 1) with μ linear in tokens; tokens [noisy, reference]; Euler."""
    parts, steps = editor.parts, 3
    tokens = 64
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    linear = np.linspace(1, 1 / steps, steps)
    sigmas = np.append(np.exp(mu) / (np.exp(mu) + (1 / linear - 1)), 0.0)
    with torch.no_grad():
        image = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in surface.pictures()])
        reference_latent = (parts["vae"].encoder(image)[:, :16] - 0.1159) * 0.3611
        fold = torch.nn.PixelUnshuffle(2)  # (C, 2h, 2w) → (4C, h, w), channel-major cells

        def seq(z: Any) -> Any:
            return fold(z).flatten(2).transpose(1, 2)

        ids = parts["tokenizer"](surface.PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
        pooled = parts["text_encoder"](ids).pooler_output
        more = parts["tokenizer_2"](
            surface.PROMPTS, padding="max_length", max_length=24, truncation=True, return_tensors="pt"
        ).input_ids
        words = parts["text_encoder_2"](more).last_hidden_state
        position = torch.tensor([[k, r, c] for k in (0, 1) for r in range(8) for c in range(8)], dtype=torch.float32)
        z = torch.cat([torch.randn((1, 16, 16, 16), generator=g) for g in surface.generators()])
        for k in range(steps):
            out = parts["transformer"](
                hidden_states=torch.cat([seq(z.float()), seq(reference_latent)], 1), timestep=torch.full((2,), float(sigmas[k])),
                guidance=torch.full((2,), 3.5), pooled_projections=pooled, encoder_hidden_states=words,
                txt_ids=torch.zeros(24, 3), img_ids=position,
            ).sample[:, :tokens]  # fmt: skip
            v = torch.nn.functional.pixel_shuffle(out.transpose(1, 2).reshape(2, 64, 8, 8), 2)
            z = z + (sigmas[k + 1] - sigmas[k]) * v
        out = parts["vae"].decoder(z.float() / 0.3611 + 0.1159)
        reference = (out / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    surface.check_against(editor, reference, steps=steps)
    assert editor.timesteps(3, (32, 32)).tolist() == pytest.approx([1000 * s for s in sigmas[:-1]], rel=1e-5)


def test_surface(editor: Any, folder: Path) -> None:
    surface.check_gradients(editor)
    surface.check_features(editor)
    saving = Kontext.from_pretrained(
        str(folder), device="cpu", resolution=32, max_sequence_length=24, checkpointing=True
    )
    surface.check_checkpointing(editor, saving)


def test_rollout_equals_edit(editor: Any) -> None:
    surface.check_rollout(editor)


def test_batch_size_changes_next_to_nothing(editor: Any) -> None:
    surface.check_batches(editor)


def test_features_hold_image_tokens_of_both_pictures(editor: Any) -> None:
    args = surface.inputs(editor, surface.pixels(1), 1)
    found = editor.features(*args, [*editor.layers(), "single_transformer_blocks.0.attn", "transformer_blocks.0.attn"])
    assert {tuple(f.shape) for f in found.values()} == {(1, 2 * 64, 32)}
    assert editor.image_tokens(args[0]) == 128


def test_attention_equals_the_models_own(editor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the probabilities of the q and k that reach the model's own attention call (norms and rotations applied)."""
    from torch.nn import functional

    args = surface.inputs(editor, surface.pixels(2), 1)
    maps = editor.attention(*args)
    seen: list[Any] = []
    real = functional.scaled_dot_product_attention

    def spy(query: Any, key: Any, *more: Any, **options: Any) -> Any:
        seen.append((query, key))
        return real(query, key, *more, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    editor.predict(*args)
    joint = [(q, k) for q, k in seen if k.shape[2] == 24 + 128]
    assert len(joint) == len(maps) == 3
    for (q, k), got in zip(joint, maps.values(), strict=True):
        p = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1).mean(1)
        torch.testing.assert_close(got, p[:, 24:, :24], atol=1e-6, rtol=1e-4)


def test_sizes_are_those_the_model_was_trained_at(folder: Path) -> None:
    editor = Kontext.from_pretrained(str(folder), device="cpu")
    assert editor.working_size(512, 512) == (1024, 1024)
    assert editor.working_size(600, 900) == (832, 1248)  # 3:2
    assert {(w, h) for w, h in TRAINED_SIZES} == {(h, w) for w, h in TRAINED_SIZES}


def test_packing_is_undone() -> None:
    z = torch.randn(2, 3, 4, 6)
    assert packed(z).shape == (2, 6, 12)
    torch.testing.assert_close(unpacked(packed(z), 4, 6, 3), z)


def test_words_and_errors(editor: Any) -> None:
    assert editor.word_columns("make the hat red", "hat") == (2,)
    noisy, t, text, cond = surface.inputs(editor, surface.pixels(1), 1)
    with pytest.raises(UsageError, match=r"needs cond=editor.condition\(x\)"):
        editor.predict(noisy, t, text, None)
    assert cond.shape == noisy.shape
