"""Purifiers that run through an editor's autoencoder or a latent diffusion model: VAE round trip, noise then image-to-image,
noisy upscaling, IMPRESS. Nothing is loaded before the first picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import PIL.Image
import torch
from torch.nn import functional as F

from isr.errors import UsageError
from isr.protocols import Editor, WhiteBoxEditor
from isr.transforms import resize_to

from . import load_editor
from .loading import EditorLoadError, check_environment
from .pixels import to_pictures, to_pixels
from .purify import BasePurifier, _named, derived_seed

__all__ = ["Img2ImgPurifier", "Impress", "NoisyUpscale", "VAERoundTrip", "img2img"]

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _OnEditor(BasePurifier):
    """Holds an editor, or its name until the first picture."""

    def __init__(self, name: str, editor: str | Editor, settings: dict[str, Any]) -> None:
        super().__init__(name, settings)
        self._editor = editor

    @property
    def editor(self) -> Editor:
        if isinstance(self._editor, str):
            self._editor = load_editor(self._editor)
        return self._editor

    def settings(self) -> dict[str, Any]:
        """With everything the editor records; that loads it."""
        return {**super().settings(), "through": dict(self.editor.settings())}


def _editor_name(editor: str | Editor) -> str:
    if not isinstance(editor, str | Editor):
        raise UsageError(f"editor must be an editor or the name of one, got {type(editor).__name__}")
    return editor if isinstance(editor, str) else editor.name


def _white_box(editor: Editor, purifier: str) -> WhiteBoxEditor:
    if not isinstance(editor, WhiteBoxEditor):
        raise UsageError(
            f"the purifier {purifier!r} needs the autoencoder of a white-box editor; {editor.name} has none"
        )
    return editor


def _round_trip(editor: WhiteBoxEditor, x: torch.Tensor) -> torch.Tensor:
    """Encoder mean and back, (B, 3, H, W) in and out, not clamped. Sides that the autoencoder cannot take are padded with the
    edge and cropped again, so nothing is resampled."""
    h, w = x.shape[-2:]
    multiple = editor.traits.size_multiple
    padded = F.pad(x, (0, -w % multiple, 0, -h % multiple), mode="replicate")
    back = editor.decode(editor.scaled(editor.latents(padded)))
    if back.shape != padded.shape:
        raise UsageError(
            f"{editor.name} decodes {tuple(padded.shape[-2:])} to {tuple(back.shape[-2:])} pixels; make it without resolution="
        )
    return back[..., :h, :w]


class VAERoundTrip(_OnEditor):
    """ "vae:sd3": encode and decode with another model's autoencoder (posterior mean, nothing random)."""

    def __init__(self, editor: str | Editor) -> None:
        super().__init__(_named("vae", _editor_name(editor)), editor, {"transform": "vae"})

    def one(self, image: PIL.Image.Image, seed: int) -> PIL.Image.Image:  # noqa: ARG002 - deterministic
        editor = _white_box(self.editor, self.name)
        with torch.no_grad():
            return to_pictures(_round_trip(editor, to_pixels([image]).to(editor.device)))[0]


class Img2ImgPurifier(_OnEditor):
    """Gaussian noise on the pixels, then an edit with a neutral prompt (SDEdit as a purifier; Meng et al. 2022).

    Args:
        editor: any editor; image-to-image families take `strength`, others ignore nothing: pass only what they know.
        sigma: of the pixel noise on [0, 1], 0 for none. prompt: what the edit is told. settings: of the edit (strength, steps, …).
    """

    def __init__(self, editor: str | Editor, *, sigma: float, prompt: str, edit: dict[str, Any]) -> None:
        if sigma < 0:
            raise UsageError(f"sigma must be a number ≥ 0 on [0, 1] pixels, got {sigma!r}")
        name = _named(
            "img2img",
            _editor_name(editor),
            sigma=(sigma, 0.05),
            prompt=(prompt, ""),
            **{k: (v, None) for k, v in edit.items()},
        )
        super().__init__(name, editor, {"transform": "img2img", "sigma": sigma, "prompt": prompt, "edit": dict(edit)})
        self.sigma, self.prompt, self.edit = sigma, prompt, dict(edit)

    def settings(self) -> dict[str, Any]:
        return {**BasePurifier.settings(self), "through": dict(self.editor.settings(**self.edit))}

    def one(self, image: PIL.Image.Image, seed: int) -> PIL.Image.Image:
        noised = _noised(to_pixels([image]), self.sigma, derived_seed(seed, "purify-img2img-pixels"))
        own = derived_seed(seed, "purify-img2img-edit") % 2**32
        (edited,) = self.editor.edit(to_pictures(noised), [self.prompt], seeds=[own], **self.edit)
        if edited.size != image.size:
            edited = edited.resize(image.size, PIL.Image.Resampling.LANCZOS)
        return edited


def _noised(x: torch.Tensor, sigma: float, seed: int) -> torch.Tensor:
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return (x + sigma * drawn.to(x)).clamp(0, 1)


class NoisyUpscale(BasePurifier):
    """ "noisy-upscale:0.1": noise, then a ×4 diffusion upscaler, then back to the picture's size (Hönig et al. 2024, "noisy upscaling").
    "jpeg:75+noisy-upscale:0" is JPEG, then upscaling.

    Args:
        sigma: of the pixel noise on [0, 1]. source: folder or hub name of a diffusers upscaling pipeline.
        noise_level: the upscaler's own noise augmentation (None: its default). prompt, steps, guidance: of the upscaler.
        pipeline: a pipeline made already (then `source` is only recorded). offline: use only what is cached.
        device, dtype: where and in what precision it runs.
    """

    def __init__(
        self,
        sigma: float = 0.1,
        *,
        source: str = "stabilityai/stable-diffusion-x4-upscaler",
        revision: str | None = None,
        noise_level: int | None = None,
        prompt: str = "",
        steps: int = 75,
        guidance: float = 9.0,
        device: str | None = None,
        dtype: str = "float32",
        offline: bool = False,
        pipeline: Any = None,
    ) -> None:
        if sigma < 0:
            raise UsageError(f"sigma must be a number ≥ 0 on [0, 1] pixels, got {sigma!r}")
        told = {"noise_level": noise_level, "prompt": prompt, "steps": steps, "guidance": guidance}
        super().__init__(
            _named("noisy-upscale", float(sigma), noise_level=(noise_level, None), prompt=(prompt, ""), steps=(steps, 75), guidance=(guidance, 9.0)),
            {"transform": "noisy-upscale", "sigma": sigma, "source": source, "revision": revision, "dtype": dtype, "resample": "bicubic-antialias", **told},
        )  # fmt: skip
        self.sigma, self.source, self.revision, self.dtype, self.offline = sigma, source, revision, dtype, offline
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
        if noise_level is not None:
            self._call["noise_level"] = noise_level
        self.prompt = prompt
        self._pipeline = pipeline

    @property
    def pipeline(self) -> Any:
        if self._pipeline is None:
            check_environment("noisy upscaling")
            import diffusers

            kind: Any = diffusers.StableDiffusionUpscalePipeline

            try:
                made = kind.from_pretrained(
                    self.source, revision=self.revision, dtype=getattr(torch, self.dtype), use_safetensors=True,
                    local_files_only=self.offline or Path(self.source).expanduser().is_dir(),
                )  # fmt: skip
            except (OSError, ValueError) as error:
                raise EditorLoadError(
                    f"the upscaler {self.source!r} cannot be loaded ({type(error).__name__}: {str(error)[:200]}); give source= a "
                    "folder in diffusers layout with safetensors, or a hub name"
                ) from error
            self._pipeline = made.to(self.device)
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline

    def one(self, image: PIL.Image.Image, seed: int) -> PIL.Image.Image:
        noised = _noised(to_pixels([image]), self.sigma, derived_seed(seed, "purify-upscale-pixels"))
        generator = torch.Generator().manual_seed(derived_seed(seed, "purify-upscale"))
        out = self.pipeline(prompt=self.prompt, image=to_pictures(noised)[0], generator=generator, **self._call).images[
            0
        ]
        grown = to_pixels([out.convert("RGB")])
        return to_pictures(resize_to(grown, (image.height, image.width), "bicubic"))[0]


class Impress(_OnEditor):
    """ "impress:ip2p": IMPRESS (Cao et al. 2023): find a nearby picture that the autoencoder reconstructs well.

    Minimises MSE(VAE(p), p) + weight · max(LPIPS(p, x) − tolerance, 0) over pixels p on [−1, 1] with Adam and a cosine schedule
    down to 1e-5, from x + sigma · noise. Defaults are its PhotoGuard setting.

    Args:
        editor: whose autoencoder. distance: (a, b) on [0, 1] → (B,); None: LPIPS with VGG from the user's cache.
    """

    FINAL_LR = 1e-5

    def __init__(
        self,
        editor: str | Editor,
        *,
        steps: int = 1000,
        lr: float = 0.005,
        weight: float = 0.01,
        sigma: float = 0.05,
        tolerance: float = 0.1,
        distance: Distance | None = None,
    ) -> None:
        if steps < 1 or lr <= 0 or weight < 0 or sigma < 0:
            raise UsageError(
                f"steps ≥ 1, lr > 0, weight ≥ 0 and sigma ≥ 0 are needed, got {steps}, {lr}, {weight}, {sigma}"
            )
        told = {"steps": steps, "lr": lr, "weight": weight, "sigma": sigma, "tolerance": tolerance}
        usual = {"steps": 1000, "lr": 0.005, "weight": 0.01, "sigma": 0.05, "tolerance": 0.1}
        name = _named("impress", _editor_name(editor), **{k: (v, usual[k]) for k, v in told.items()})
        given = (
            "lpips-vgg"
            if distance is None
            else f"given by the caller ({getattr(distance, '__name__', type(distance).__name__)})"
        )
        super().__init__(name, editor, {"transform": "impress", **told, "distance": given})
        self.steps, self.lr, self.weight, self.sigma, self.tolerance = steps, lr, weight, sigma, tolerance
        self._distance = distance

    @property
    def distance(self) -> Distance:
        if self._distance is None:
            from isr.metrics import NotAvailable
            from isr.metrics.lpips import load_lpips

            loaded = load_lpips("vgg")
            if isinstance(loaded, NotAvailable):
                raise EditorLoadError(f"IMPRESS needs LPIPS with VGG: {loaded.reason}")
            self._distance = loaded
        return self._distance

    def one(self, image: PIL.Image.Image, seed: int) -> PIL.Image.Image:
        return to_pictures(self.optimise(to_pixels([image]), seed))[0]

    def optimise(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        """x (1, 3, H, W) in [0, 1] → the purified pixels in [0, 1]."""
        editor = _white_box(self.editor, self.name)
        distance = self.distance
        x = x.to(editor.device)
        if isinstance(distance, torch.nn.Module):
            distance = cast("Distance", distance.to(editor.device))
        start = 2 * x - 1
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(derived_seed(seed, "purify-impress")))
        p = (start + self.sigma * drawn.to(x)).clamp(-1, 1).requires_grad_()
        adam = torch.optim.Adam([p], lr=self.lr)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=self.steps, eta_min=min(self.FINAL_LR, self.lr))
        for _ in range(self.steps):
            inside = p.clamp(-1, 1) / 2 + 0.5
            loss = 4 * (_round_trip(editor, inside) - inside).square().mean()  # 4: the MSE is meant on [−1, 1]
            if self.weight:
                loss = loss + self.weight * (distance(inside, x) - self.tolerance).clamp_min(0).mean()
            (p.grad,) = torch.autograd.grad(loss, p)
            adam.step()
            cosine.step()
        return p.detach().clamp(-1, 1) / 2 + 0.5


def img2img(editor: str | Editor, sigma: float = 0.05, prompt: str = "", **edit: Any) -> Img2ImgPurifier:
    """ "img2img:sd15-img2img,strength=0.3": noise, then an edit that asks for nothing; `edit` are the editor's own settings."""
    return Img2ImgPurifier(editor, sigma=float(sigma), prompt=prompt, edit=edit)
