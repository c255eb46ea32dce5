"""Purifiers with a model, on tiny random ones: mechanics, never whether they purify."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tiny
from skimage import data

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from isr.editors import load_editor  # noqa: E402
from isr.editors.loading import EditorLoadError  # noqa: E402
from isr.editors.purify import make_purifier  # noqa: E402
from isr.editors.purify_diffusion import DiffPure, GrIDPure, tile_starts  # noqa: E402
from isr.editors.purify_latent import Impress  # noqa: E402

from isr.errors import UsageError  # noqa: E402
from isr.protocols import Purifier  # noqa: E402
from isr.transforms import resize_to  # noqa: E402

PHOTO = PIL.Image.fromarray(data.astronaut()).resize((40, 34))
SECOND = PHOTO.transpose(PIL.Image.Transpose.ROTATE_180)


def pixels(image: PIL.Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def tensor(image: PIL.Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def sd15(tmp_path_factory) -> Path:
    return tiny.build("sd15", tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="module")
def editor(sd15):
    return load_editor(sd15, device="cpu")


@pytest.fixture(scope="module")
def pixel_model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ddpm")
    unet = diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler(num_train_timesteps=100)).save_pretrained(
        folder
    )
    return folder


def check(purifier: Purifier) -> list[PIL.Image.Image]:
    """What every purifier must do."""
    assert isinstance(purifier, Purifier)
    out = purifier.purify([PHOTO, SECOND], seeds=[1, 2])
    assert [o.size for o in out] == [PHOTO.size] * 2
    assert all(o.mode == "RGB" for o in out)
    again = purifier.purify([SECOND, PHOTO], seeds=[2, 1])
    assert [o.tobytes() for o in again] == [o.tobytes() for o in reversed(out)]
    json.dumps(purifier.settings())
    return out


# ------------------------------------------------------------------------------------------------------ autoencoders


def test_vae_round_trip_is_encode_and_decode(editor):
    p = make_purifier("vae", editor=editor)
    assert p.name == f"vae:{editor.name}"
    out = check(p)
    assert p.settings()["through"]["family"] == editor.settings()["family"]
    # By the pipeline's own parts, on sides that need no padding.
    even = PHOTO.resize((40, 32))
    x = tensor(even)
    with torch.no_grad():
        z = editor.vae.encode(2 * x - 1).latent_dist.mode()
        y = (editor.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    expected = (y[0].permute(1, 2, 0) * 255).round().byte().numpy()
    (got,) = p.purify([even], seeds=[0])
    assert np.abs(pixels(got) - expected.astype(int)).max() <= 1
    assert not np.array_equal(pixels(out[0]), pixels(PHOTO))


def test_a_black_box_editor_has_no_autoencoder():
    black = load_editor(lambda image, prompt, seed: image)
    with pytest.raises(UsageError, match="needs the autoencoder of a white-box editor"):
        make_purifier("vae", editor=black).purify([PHOTO], seeds=[0])
    with pytest.raises(UsageError, match="must be an editor or the name of one, got int"):
        make_purifier("vae", editor=3)


def test_img2img_noises_and_then_asks_the_editor():
    seen = []

    def remember(image, prompt, seed):
        seen.append((pixels(image), prompt, seed))
        return image

    p = make_purifier("img2img", editor=load_editor(remember), sigma=0.1, prompt="a photo")
    out = check(p)
    (first, prompt, seed), (_, _, other) = seen[:2]
    assert prompt == "a photo"
    assert seed != other
    assert np.array_equal(first, pixels(out[0]))
    assert (first - pixels(PHOTO)).std() == pytest.approx(0.1 * 255, rel=0.15)
    plain = make_purifier("img2img", editor=load_editor(lambda image, prompt, seed: image), sigma=0)
    assert plain.purify([PHOTO], seeds=[0])[0].tobytes() == PHOTO.tobytes()


def test_img2img_through_a_diffusion_editor(editor):
    p = make_purifier("img2img", editor=editor, strength=0.5, steps=2)
    assert p.name == f"img2img:{editor.name},strength=0.5,steps=2"
    check(p)
    assert p.settings()["through"]["strength"] == 0.5
    with pytest.raises(UsageError, match="has no setting 'strenght'"):
        make_purifier("img2img", editor=editor, strenght=0.5).purify([PHOTO], seeds=[0])


# ----------------------------------------------------------------------------------------------------------- IMPRESS


def brightness(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).abs().mean((1, 2, 3))


def test_impress_lowers_its_objective_and_stays_near(editor):
    p = Impress(editor, steps=15, lr=0.02, sigma=0.05, distance=brightness)
    out = check(p)
    assert p.settings()["distance"] == "given by the caller (brightness)"

    def inconsistency(image):
        x = tensor(image)
        with torch.no_grad():
            return float((editor.decode(editor.scaled(editor.latents(x))) - x).square().mean())

    even = PHOTO.resize((40, 32))
    (purified,) = p.purify([even], seeds=[1])
    assert inconsistency(purified) < inconsistency(even)
    # 15 Adam steps move a value of [−1, 1] by at most about 15·.02 = .3, the start by 5σ = .25 or so: .55/2 on [0, 1].
    assert np.abs(pixels(out[0]) - pixels(PHOTO)).max() / 255 < 0.3


def test_impress_weight_pulls_back_to_the_picture(editor):
    far, near = (
        Impress(editor, steps=15, lr=0.02, sigma=0.0, weight=w, tolerance=0.0, distance=brightness).purify(
            [PHOTO], seeds=[1]
        )[0]
        for w in (0.0, 100.0)
    )
    assert np.abs(pixels(near) - pixels(PHOTO)).mean() < np.abs(pixels(far) - pixels(PHOTO)).mean()


def test_impress_without_lpips_says_so_and_uses_nothing_else(editor, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(EditorLoadError, match=r"IMPRESS needs LPIPS with VGG: the weights vgg16-397923af\.pth are not"):
        make_purifier("impress", editor=editor).purify([PHOTO], seeds=[0])


def test_impress_takes_a_network_as_distance(editor):
    from isr.metrics.lpips import LPIPS

    torch.manual_seed(0)
    (out,) = Impress(editor, steps=2, distance=LPIPS("alex")).purify([PHOTO], seeds=[0])
    assert out.size == PHOTO.size


# --------------------------------------------------------------------------------------------------- pixel diffusion


def test_diffpure_loads_a_folder_and_follows_the_ddpm_loop(pixel_model):
    p = make_purifier(f"diffpure:5,source={pixel_model}")
    out = check(p)
    assert p.name == "diffpure:5"
    assert len(p.settings()["weights"]) == 64
    # The same by hand with diffusers' parts: noise to index 4, then ancestral steps 4 … 0.
    pipe = diffusers.DDPMPipeline.from_pretrained(pixel_model, local_files_only=True)
    from isr.editors.purify import derived_seed

    g = torch.Generator().manual_seed(derived_seed(1, "purify-diffusion"))
    x = 2 * resize_to(tensor(PHOTO), (16, 16)) - 1
    abar = pipe.scheduler.alphas_cumprod[4]
    z = abar.sqrt() * x + (1 - abar).sqrt() * torch.randn(x.shape, generator=g)
    pipe.scheduler.set_timesteps(100)
    with torch.no_grad():
        for t in range(4, -1, -1):
            z = pipe.scheduler.step(pipe.unet(z, t).sample, t, z, generator=g).prev_sample
    expected = resize_to((z / 2 + 0.5).clamp(0, 1), (34, 40))
    assert np.abs(pixels(out[0]) - (expected[0].permute(1, 2, 0) * 255).numpy()).max() <= 0.51


class Nothing(torch.nn.Module):
    """A denoiser that predicts the noise which it can know of: none. Keeps count of what it saw."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.config = type("Config", (), {"sample_size": side})()
        self.batches: list[int] = []

    def forward(self, z, t):
        self.batches.append(len(z))
        return type("Out", (), {"sample": torch.zeros_like(z)})()


def quiet() -> diffusers.DDPMScheduler:
    # Noise of variance 1e-6 per step on [-1, 1]: a tenth of a level, so that whatever is seen is tiling and blending.
    return diffusers.DDPMScheduler(num_train_timesteps=10, trained_betas=[1e-6] * 10)


def test_gridpure_tiles_cover_the_picture_and_put_everything_back():
    # 512 with tiles of 256 at stride 128: 3 × 3 tiles and the corner tile.
    assert tile_starts(512, 256, 128) == [0, 128, 256]
    assert tile_starts(40, 16, 8) == [0, 8, 16, 24]
    assert tile_starts(34, 16, 8) == [0, 8, 16, 18]
    assert tile_starts(16, 16, 8) == [0]
    net = Nothing(16)
    p = GrIDPure(2, rounds=3, unet=net, scheduler=quiet(), device="cpu")
    out = check(p)
    assert np.abs(pixels(out[0]) - pixels(PHOTO)).max() <= 1, (
        "a denoiser that does nothing leaves every tile in its place"
    )
    # 4 × 4 tiles and the corners, 2 steps, 3 rounds, 4 pictures in `check`.
    assert net.batches == [17] * (2 * 3 * 4)


def test_gridpure_blends_the_rounds_input():
    class Black(Nothing):
        def forward(self, z, t):
            super().forward(z, t)
            return type("Out", (), {"sample": torch.zeros_like(z)})()

    p = GrIDPure(1, rounds=2, gamma=0.25, unet=Black(16), scheduler=quiet(), device="cpu")
    p._purified = lambda x, generator: torch.zeros_like(x)
    (out,) = p.purify([PHOTO], seeds=[0])
    # Two rounds that keep a quarter each: 1/16 of the picture.
    assert np.abs(pixels(out) - pixels(PHOTO) / 16).max() <= 0.51


def test_gridpure_with_a_real_network_and_a_small_picture(pixel_model):
    p = make_purifier(f"gridpure:2,rounds=1,source={pixel_model}")
    assert p.name == "gridpure:2,rounds=1"
    check(p)
    small = PHOTO.resize((10, 12))
    assert p.purify([small], seeds=[0])[0].size == (10, 12)


def test_diffusion_errors(pixel_model):
    with pytest.raises(UsageError, match="diffpure:100 needs source="):
        make_purifier("diffpure")
    with pytest.raises(UsageError, match="t must be at most 100"):
        make_purifier("diffpure:101", source=str(pixel_model)).purify([PHOTO], seeds=[0])
    with pytest.raises(UsageError, match="t must be a whole number"):
        DiffPure(0, source="x")
    with pytest.raises(UsageError, match="gamma in"):
        GrIDPure(10, gamma=1.0, source="x")
    with pytest.raises(EditorLoadError):
        make_purifier("diffpure:5", source=str(pixel_model / "nowhere")).purify([PHOTO], seeds=[0])


# --------------------------------------------------------------------------------------------------------- upscaling


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    tokenizer = tiny.clip_tokenizer()
    unet = tiny.unet(7, num_class_embeds=1000)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(8, 16, 16),
        layers_per_block=1, norm_num_groups=8, latent_channels=4, sample_size=64,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionUpscalePipeline(
        vae=vae, text_encoder=tiny.clip_text(tokenizer), tokenizer=tokenizer, unet=unet,
        low_res_scheduler=diffusers.DDPMScheduler(), scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction"), max_noise_level=350,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("upscaler")
    pipe.save_pretrained(folder)
    return folder


def test_noisy_upscaling_loads_a_folder_and_comes_back_in_size(upscaler):
    p = make_purifier(f"noisy-upscale:0.1,steps=2,noise-level=320,source={upscaler}", device="cpu")
    assert p.name == "noisy-upscale:0.1,noise-level=320,steps=2"
    out = check(p)
    assert p.settings()["noise_level"] == 320
    assert not np.array_equal(pixels(out[0]), pixels(PHOTO))
    with pytest.raises(EditorLoadError, match="cannot be loaded"):
        make_purifier("noisy-upscale", source=str(upscaler / "nowhere"), offline=True).purify([PHOTO], seeds=[0])


def test_jpeg_then_upscaling_is_a_chain(upscaler):
    p = make_purifier("jpeg:75+noisy-upscale:0,steps=1", source=str(upscaler), device="cpu")
    assert p.name == "jpeg:75+noisy-upscale:0,steps=1"
    assert p.purify([PHOTO], seeds=[0])[0].size == PHOTO.size
