"""Qwen-Image-Edit: the editor against a loop written from the equations (it runs diffusers' own pipeline)."""

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
from isr.editors.qwen import PromptProcessor, QwenEdit  # noqa: E402

from isr.errors import UsageError  # noqa: E402
from isr.protocols import Editor, WhiteBoxEditor  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("qwen-edit", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def editor(folder: Path) -> Any:
    return QwenEdit.from_pretrained(str(folder), device="cpu", restore_size=False)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline works at 32² instead of about 1024² pixels (which takes ten seconds an edit)."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as module

    monkeypatch.setattr(module, "calculate_dimensions", lambda *_: (32, 32, None))


@pytest.mark.usefixtures("small")
def test_edit_equals_a_loop_written_from_the_equations(editor: Any) -> None:
    pipeline, steps, scale = editor.pipeline, 3, 4.0
    (image,) = surface.pictures(1)
    prompt = "make the hat red"
    (edited,) = editor.edit([image], [prompt], seeds=[11], steps=steps, guidance=scale, negative_prompt=" ")
    mu = 0.5 + (0.9 - 0.5) * (4 - 256) / (8192 - 256)
    linear = np.linspace(1, 1 / steps, steps)
    sigmas = np.append(np.exp(mu) / (np.exp(mu) + (1 / linear - 1)), 0.0)
    with torch.no_grad():
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None, :, None] / 127.5 - 1
        reference = (pipeline.vae.encode(x.float()).latent_dist.mode() - 0.1) / 1.5
        fold = torch.nn.PixelUnshuffle(2)

        def seq(z: Any) -> Any:
            return fold(z.reshape(1, 16, 4, 4)).flatten(2).transpose(1, 2)

        def text(words: str) -> Any:
            template = pipeline.prompt_template_encode
            tokens = pipeline.tokenizer(
                template.format(words).replace("<|image_pad|>", "<|image_pad|>" * 4), return_tensors="pt"
            )
            pixels = pipeline.processor.images(images=image, return_tensors="pt")
            states = pipeline.text_encoder(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True, **pixels
            ).hidden_states[-1]
            return states[:, 64:]  # the system part of the template is dropped

        z = torch.randn((1, 1, 16, 4, 4), generator=torch.Generator().manual_seed(11))
        sequence = seq(z)
        for k in range(steps):
            v = {}
            for key, words in (("text", text(prompt)), ("plain", text(" "))):
                v[key] = pipeline.transformer(
                    hidden_states=torch.cat([sequence.float(), seq(reference)], 1), timestep=torch.tensor([float(sigmas[k])]),
                    encoder_hidden_states=words, encoder_hidden_states_mask=None, img_shapes=[[(1, 2, 2), (1, 2, 2)]],
                ).sample[:, :4]  # fmt: skip
            both = v["plain"] + scale * (v["text"] - v["plain"])
            both = both * v["text"].norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True)
            sequence = sequence + (sigmas[k + 1] - sigmas[k]) * both
        grid = torch.nn.functional.pixel_shuffle(sequence.float().transpose(1, 2).reshape(1, 64, 2, 2), 2)
        out = pipeline.vae.decode(grid[:, :, None] * 1.5 + 0.1).sample[:, :, 0]
    want = ((out / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255).round()
    assert np.abs(np.asarray(edited).astype(float) - want).max() <= 1
    assert (np.asarray(edited) != want).mean() < 0.005


@pytest.mark.usefixtures("small")
def test_seeds_sizes_and_settings(editor: Any, folder: Path) -> None:
    assert isinstance(editor, Editor)
    assert not isinstance(editor, WhiteBoxEditor)
    assert not editor.traits.white_box
    images = surface.pictures(2, (40, 24))
    one = editor.edit(images, surface.PROMPTS, seeds=[1, 2], steps=1)
    again = editor.edit(images[1:], surface.PROMPTS[1:], seeds=[2], steps=1)
    assert np.array_equal(np.asarray(one[1]), np.asarray(again[0]))
    assert one[0].size == (32, 32)
    back = QwenEdit.from_pretrained(str(folder), device="cpu").edit(images[:1], ["x"], seeds=[1], steps=1)
    assert back[0].size == (40, 24)
    assert editor.settings(steps=3)["steps"] == 3
    with pytest.raises(UsageError, match="has no setting 'strength'"):
        editor.settings(strength=0.5)


def test_placeholders_and_pictures_must_agree(editor: Any) -> None:
    processor = PromptProcessor(editor.pipeline.tokenizer, editor.pipeline.processor.images)
    picture = PIL.Image.new("RGB", (56, 56))
    made = processor(text=["a<|image_pad|>b"], images=[picture])
    # 56 px are 4×4 patches of 14, merged 2×2: four tokens.
    placeholder = editor.pipeline.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (made["input_ids"] == placeholder).sum() == 4
    with pytest.raises(UsageError, match="1 pictures for 0 image placeholders"):
        processor(text=["ab"], images=[picture])
