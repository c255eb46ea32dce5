"""SD 1.5 and SDXL image-to-image, and SDXL-instruct: against diffusers' pipelines and against loops of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import editor_surface as surface  # noqa: E402
import tiny  # noqa: E402
from isr.editors.img2img import Img2Img, Img2ImgXL  # noqa: E402
from isr.editors.unet_xl import InstructPix2PixXL  # noqa: E402

from isr.errors import UsageError  # noqa: E402

FAMILIES = {"sd15": Img2Img, "sdxl": Img2ImgXL, "sdxl-ip2p": InstructPix2PixXL}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tiny.build(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def editors(folders: dict[str, Path]) -> dict[str, Any]:
    return {family: cls.from_pretrained(str(folders[family]), device="cpu") for family, cls in FAMILIES.items()}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNDMScheduler", {}),
        ("DDIMScheduler", {}),
        ("EulerDiscreteScheduler", {}),
        ("DDIMScheduler", {"prediction_type": "sample"}),
        ("EulerDiscreteScheduler", {"prediction_type": "sample"}),
    ],
)
def test_sd15_equals_the_diffusers_pipeline(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    folder = tiny.build("sd15", tmp_path, scheduler=kind, **options)
    editor = Img2Img.from_pretrained(str(folder), device="cpu")
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(str(folder), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for guidance, strength in ((7.5, 0.8), (1.0, 0.5)):
        reference = pipeline(
            surface.PROMPTS, image=surface.pictures(), num_inference_steps=6, strength=strength, guidance_scale=guidance,
            generator=surface.generators(), output_type="np",
        ).images  # fmt: skip
        surface.check_against(editor, reference, steps=6, strength=strength, guidance=guidance)


def test_sd15_equals_a_loop_written_from_the_equations(tmp_path: Path) -> None:
    """SDEdit with DDIM (eta 0): posterior sample, then noise, from one generator per picture; steps·strength kept."""
    editor = Img2Img.from_pretrained(str(tiny.build("sd15", tmp_path, scheduler="DDIMScheduler")), device="cpu")
    parts, steps, scale = editor.parts, 5, 7.5
    bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    with torch.no_grad():
        image = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in surface.pictures()])
        mean, logvar = parts["vae"].quant_conv(parts["vae"].encoder(image)).chunk(2, dim=1)

        def text(prompts: list[str]) -> Any:
            ids = parts["tokenizer"](
                prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            return parts["text_encoder"](ids).last_hidden_state

        words, empty = text(surface.PROMPTS), text(["", ""])
        draws = [
            (torch.randn((1, *mean.shape[1:]), generator=g), torch.randn((1, *mean.shape[1:]), generator=g))
            for g in surface.generators()
        ]
        z = 0.18215 * (mean + (logvar / 2).exp() * torch.cat([d[0] for d in draws]))
        stride = 1000 // steps
        times = [i * stride + 1 for i in reversed(range(4))]  # 5 steps, strength .8: the last 4
        z = bar[times[0]] ** 0.5 * z + (1 - bar[times[0]]) ** 0.5 * torch.cat([d[1] for d in draws])
        for t in times:
            e_plain = parts["unet"](z.float(), t, encoder_hidden_states=empty).sample
            e = e_plain + scale * (parts["unet"](z.float(), t, encoder_hidden_states=words).sample - e_plain)
            before = bar[t - stride] if t >= stride else bar[0]
            z = before**0.5 * (z - (1 - bar[t]) ** 0.5 * e) / bar[t] ** 0.5 + (1 - before) ** 0.5 * e
        out = parts["vae"].decoder(parts["vae"].post_quant_conv(z.float() / 0.18215))
        reference = (out / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    surface.check_against(editor, reference, steps=steps, strength=0.8, guidance=scale)
    assert editor.timesteps(5).tolist() == times


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_equals_the_diffusers_pipeline(tmp_path: Path, zeros: bool) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    folder = tiny.build("sdxl", tmp_path, zeros=zeros)
    editor = Img2ImgXL.from_pretrained(str(folder), device="cpu")
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        str(folder), local_files_only=True, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    for negative in (None, "dark"):
        reference = pipeline(
            surface.PROMPTS, image=surface.pictures(), num_inference_steps=6, strength=0.6, guidance_scale=5.0,
            negative_prompt=None if negative is None else [negative] * 2, generator=surface.generators(), output_type="np",
        ).images  # fmt: skip
        surface.check_against(editor, reference, steps=6, strength=0.6, guidance=5.0, negative_prompt=negative)


def test_sdxl_instruct_equals_the_diffusers_pipeline(folders: dict[str, Path], editors: dict[str, Any]) -> None:
    from diffusers import StableDiffusionXLInstructPix2PixPipeline

    pipeline = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(
        str(folders["sdxl-ip2p"]), local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    for negative in (None, "dark"):
        reference = pipeline(
            surface.PROMPTS, image=surface.pictures(), height=32, width=32, num_inference_steps=4, guidance_scale=5.0,
            image_guidance_scale=1.5, negative_prompt=None if negative is None else [negative] * 2,
            generator=surface.generators(), output_type="np",
        ).images  # fmt: skip
        surface.check_against(
            editors["sdxl-ip2p"], reference, steps=4, guidance=5.0, image_guidance=1.5, negative_prompt=negative
        )


@pytest.mark.parametrize("family", ["sdxl", "sdxl-ip2p"])
def test_sdxl_equals_a_loop_written_from_the_equations(family: str, editors: dict[str, Any]) -> None:
    """Euler in σ (Karras et al. 2022, algorithm 1 without churn): x ← x + (σ' − σ)·ê, network input x/√(σ²+1)."""
    editor = editors[family]
    parts, steps, scale, image_scale = editor.parts, 4, 5.0, 1.5
    bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    all_sigmas = ((1 - bar) / bar) ** 0.5
    times = np.linspace(0, 999, steps)[::-1]
    sigmas = [*np.interp(times, np.arange(1000), all_sigmas), 0.0]
    with torch.no_grad():
        image = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in surface.pictures()])
        mean, logvar = parts["vae"].quant_conv(parts["vae"].encoder(image)).chunk(2, dim=1)
        ids = parts["tokenizer"](surface.PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
        one = parts["text_encoder"](ids, output_hidden_states=True)
        two = parts["text_encoder_2"](ids, output_hidden_states=True)
        words = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1)
        sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)
        gens = surface.generators()

        def noise(which: list[Any]) -> Any:
            return torch.cat([torch.randn((1, *mean.shape[1:]), generator=g) for g in which])

        def net(x: Any, t: float, extra: list[Any], on: bool) -> Any:
            added = {"text_embeds": two.text_embeds * on, "time_ids": sizes}
            return parts["unet"](
                torch.cat([x, *extra], 1), t, encoder_hidden_states=words * on, added_cond_kwargs=added
            ).sample

        if family == "sdxl":
            start = 2  # strength .5 of 4 steps
            z = 0.13025 * (mean + (logvar / 2).exp() * noise(gens))
            z = z + sigmas[start] * noise(gens)
        else:
            start = 0
            z = noise(gens) * sigmas[0]  # the Euler scheduler's start for linspace spacing
        for k in range(start, steps):
            x, t = (z / (sigmas[k] ** 2 + 1) ** 0.5).float(), float(np.float32(times[k]))
            if family == "sdxl":
                plain = net(x, t, [], False)
                e = plain + scale * (net(x, t, [], True) - plain)
            else:
                plain, with_image, both = (
                    net(x, t, [0 * mean], False),
                    net(x, t, [mean], False),
                    net(x, t, [mean], True),
                )
                e = plain + scale * (both - with_image) + image_scale * (with_image - plain)
            z = z + (sigmas[k + 1] - sigmas[k]) * e
        out = parts["vae"].decoder(parts["vae"].post_quant_conv(z.float() / 0.13025))
        reference = (out / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    more = {"strength": 0.5} if family == "sdxl" else {"image_guidance": image_scale}
    surface.check_against(editor, reference, steps=steps, guidance=scale, **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_surface(family: str, editors: dict[str, Any], folders: dict[str, Path]) -> None:
    editor = editors[family]
    surface.check_gradients(editor)
    surface.check_features(editor)
    surface.check_checkpointing(
        editor, FAMILIES[family].from_pretrained(str(folders[family]), device="cpu", checkpointing=True)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_rollout_equals_edit(family: str, editors: dict[str, Any]) -> None:
    surface.check_rollout(editors[family], **({} if family == "sdxl-ip2p" else {"strength": 0.8}))


def test_default_layers_of_sdxl_have_one_shape(editors: dict[str, Any]) -> None:
    editor = editors["sdxl"]
    assert editor.default_layers() == (
        "down_blocks.1.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
    )
    found = editor.features(*surface.inputs(editor, surface.pixels(1), 1), editor.default_layers())
    assert len({f.shape for f in found.values()}) == 1


def test_too_little_strength_says_so(editors: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"strength=0.3 of steps=3 leaves no step to run; raise steps to at least 4"):
        editors["sdxl"].edit(surface.pictures(1), ["x"], seeds=[1], steps=3)


def test_the_vae_of_sdxl_stays_in_float32_where_its_pipeline_has_it_so(folders: dict[str, Path]) -> None:
    """Image to image encodes in float32 wherever the VAE asks for it (force_upcast), the instruct pipeline under float16 only."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    folder = folders["sdxl"]
    editor = Img2ImgXL.from_pretrained(str(folder), device="cpu", dtype="bfloat16")
    assert editor.vae.config.force_upcast
    assert (editor.vae.dtype, editor.denoiser.dtype) == (torch.float32, torch.bfloat16)
    instruct = InstructPix2PixXL.from_pretrained(str(folders["sdxl-ip2p"]), device="cpu", dtype="bfloat16")
    assert instruct.vae.dtype == torch.bfloat16
    assert (editor.settings()["dtype"], editor.settings()["vae_dtype"]) == ("bfloat16", "float32")
    assert "vae_dtype" not in instruct.settings(), "one precision says it all"
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        str(folder), local_files_only=True, torch_dtype=torch.bfloat16, add_watermarker=False
    )
    seen: list[Any] = []
    encode = pipeline.vae.encode
    pipeline.vae.encode = lambda x: seen.append(x.dtype) or encode(x)
    pipeline.set_progress_bar_config(disable=True)
    pipeline("x", image=surface.pictures(1), num_inference_steps=2, strength=0.5, output_type="latent")
    assert seen == [torch.float32], "the pipeline does so, too"
