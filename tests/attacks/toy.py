"""A white-box editor of a few hundred smooth parameters, in any float type: finite differences, counts, identities.

It is written against the protocol only and shares no code with the real editors.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from isr.protocols import Traits

LENGTH = 6  # text columns: start, up to four words, padding


class ToyEditor:
    """8 px per 2 latent cells: E = tanh(conv stride 4), 4 channels; a three-layer denoiser with joint text bias.

    Args:
        prediction: "epsilon", "v_prediction", "sample" or "flow".
        image: "cond" (concatenated raw latent, as InstructPix2Pix), "own" (a condition that is not the latent), or
            "latent" (img2img: no condition, edits start at half noise).
        dtype: of weights and outputs.
    """

    def __init__(
        self,
        prediction: str = "epsilon",
        image: str = "cond",
        dtype: torch.dtype = torch.float32,
        name: str = "toy",
        seed: int = 0,
    ) -> None:
        g = torch.Generator().manual_seed(seed)

        def weight(*shape: int, scale: float = 0.5) -> Tensor:
            fan = 1
            for s in shape[1:]:
                fan *= s
            return (torch.randn(shape, generator=g, dtype=torch.float64) * scale * 2 / fan**0.5).to(dtype)

        self.prediction, self.image, self.dtype, self._name = prediction, image, dtype, name
        channels = 4 if image == "latent" else 8
        self.w_enc, self.b_enc = weight(4, 3, 4, 4), weight(4, 1)[:, 0]
        self.w_cond = weight(4, 4, 1, 1)
        self.w1, self.w2, self.w3 = weight(6, channels, 3, 3), weight(6, 6, 3, 3), weight(4, 6, 3, 3)
        self.w_q, self.w_k, self.w_text = weight(5, 6), weight(5, 3), weight(6, 3)
        self.w_dec = weight(4, 3, 4, 4)
        self.shift, self.scale = 0.1, 0.7
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.kept = torch.cumprod(1 - betas, 0)
        self.calls: Counter[str] = Counter()

    @property
    def name(self) -> str:
        return self._name

    @property
    def traits(self) -> Traits:
        return Traits(white_box=True, size_multiple=4, family="toy", steps=10)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def settings(self, **overrides: Any) -> dict[str, Any]:
        return {"prediction": self.prediction, "image": self.image, **overrides}

    def latents(self, x: Tensor) -> Tensor:
        self.calls["encoder"] += 1
        y = torch.nn.functional.conv2d(2 * x.to(self.dtype) - 1, self.w_enc, stride=4)
        return torch.tanh(y + self.b_enc[:, None, None])

    def scaled(self, z: Tensor) -> Tensor:
        return (z - self.shift) * self.scale

    def condition(self, x: Tensor) -> Tensor | None:
        if self.image == "latent":
            return None
        z = self.latents(x)
        return z if self.image == "cond" else torch.tanh(torch.nn.functional.conv2d(z, self.w_cond))

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """(B, LENGTH, 3): a fixed vector per word."""
        self.calls["text"] += 1
        rows = []
        for prompt in prompts:
            words = ["<s>", *prompt.split()[: LENGTH - 2]]
            words += ["<e>"] * (LENGTH - len(words))
            rows.append(torch.stack([self._word(w) for w in words]))
        return torch.stack(rows).to(self.dtype)

    @staticmethod
    def _word(word: str) -> Tensor:
        g = torch.Generator().manual_seed(zlib.crc32(word.encode()))
        return torch.randn(3, generator=g, dtype=torch.float64)

    def word_columns(self, prompt: str, word: str | None = None) -> tuple[int, ...]:
        words = prompt.split()[: LENGTH - 2]
        return tuple(i + 1 for i, w in enumerate(words) if word is None or w == word)

    def timesteps(self, n: int) -> Tensor:
        first = 1000.0 if self.prediction == "flow" else 951.0
        if self.image == "latent":
            first *= 0.6
        return torch.linspace(first, first / n, n)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.prediction == "flow":
            sigma = t.double() / 1000
            a, b = 1 - sigma, sigma
        else:
            kept = self.kept[t.round().long().clamp(0, 999)]
            a, b = kept.sqrt(), (1 - kept).sqrt()
        return a.to(self.dtype).reshape(-1, 1, 1, 1), b.to(self.dtype).reshape(-1, 1, 1, 1)

    def noisy(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        a, b = self.levels(t)
        return a * z + b * noise

    def _stages(self, noisy: Tensor, t: Tensor, text: Tensor, cond: Tensor | None) -> Any:
        self.calls["denoiser"] += 1
        self.calls["rows"] += len(noisy)
        bias = (text.mean(dim=1) @ self.w_text.T)[:, :, None, None] + (t.to(self.dtype) / 1000).reshape(-1, 1, 1, 1)
        h = noisy.to(self.dtype) if cond is None else torch.cat([noisy.to(self.dtype), cond], dim=1)
        h = torch.tanh(torch.nn.functional.conv2d(h, self.w1, padding=1) + bias)
        yield "one", h
        h = torch.tanh(torch.nn.functional.conv2d(h, self.w2, padding=1) + bias) + 0.3 * h
        yield "two", h
        self.calls["full"] += 1
        yield "out", torch.nn.functional.conv2d(h, self.w3, padding=1)

    def predict(self, noisy: Tensor, t: Tensor, text: Tensor, cond: Tensor | None) -> Tensor:
        return dict(self._stages(noisy, t, text, cond))["out"]

    def layers(self) -> tuple[str, ...]:
        return ("one", "two", "out")

    def default_layers(self) -> tuple[str, ...]:
        return ("one", "two")

    def features(
        self, noisy: Tensor, t: Tensor, text: Tensor, cond: Tensor | None, layers: Sequence[str]
    ) -> dict[str, Tensor]:
        found = {}
        for name, value in self._stages(noisy, t, text, cond):
            if name in layers:
                found[name] = value
            if len(found) == len(layers):
                break
        return found

    def attention(
        self, noisy: Tensor, t: Tensor, text: Tensor, cond: Tensor | None, columns: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        maps = {}
        for name, h in self._stages(noisy, t, text, cond):
            if name in ("one", "two"):
                q = torch.einsum("dc,bchw->bhwd", self.w_q, h).flatten(1, 2)
                probabilities = torch.softmax(q @ (text @ self.w_k.T).transpose(1, 2), dim=-1)
                maps[name] = probabilities if columns is None else probabilities[..., list(columns)]
        return maps

    def decode(self, z: Tensor) -> Tensor:
        return torch.nn.functional.conv_transpose2d(z / self.scale + self.shift, self.w_dec, stride=4) / 2 + 0.5

    def rollout(
        self,
        x: Tensor,
        prompts: Sequence[str],
        steps: int,
        *,
        seeds: Sequence[int],
        checkpoint: bool = True,
        **settings: Any,
    ) -> Tensor:
        self.calls["rollout"] += 1
        text, raw, cond = self.embed(prompts), self.latents(x), self.condition(x)
        n = torch.stack(
            [torch.randn(raw.shape[1:], generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        ).to(self.dtype)
        times = [float(t) for t in self.timesteps(steps)]
        z = n if cond is not None else self.noisy(self.scaled(raw), torch.full((len(x),), times[0]), n)
        for i, t in enumerate(times):
            tt = torch.full((len(x),), t)
            p = self.predict(z, tt, text, cond)
            a, b = self.levels(tt)
            if self.prediction == "flow":
                n_hat, clean = z + a * p, z - b * p
            elif self.prediction == "sample":
                n_hat, clean = (z - a * p) / b, p
            else:
                n_hat = p if self.prediction == "epsilon" else b * z + a * p
                clean = (z - b * n_hat) / a
            if i + 1 < steps:
                a, b = self.levels(torch.full((len(x),), times[i + 1]))
            else:
                a, b = torch.ones(()), torch.zeros(())
            z = a * clean + b * n_hat
        return self.decode(z)

    def edit(
        self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], *, seeds: Sequence[int], **settings: Any
    ) -> list[PIL.Image.Image]:
        raise NotImplementedError("the toy is attacked, not used")


class BlackBox:
    """An editor without a surface."""

    name = "box"
    traits = Traits(white_box=False, family="function")

    def settings(self, **overrides: Any) -> dict[str, Any]:
        return {}

    def edit(self, images: Any, prompts: Any, *, seeds: Any, **settings: Any) -> list[PIL.Image.Image]:
        return list(images)


def pictures(n: int = 2, size: tuple[int, int] = (16, 16), seed: int = 0) -> list[PIL.Image.Image]:
    """Smooth random pictures, 8-bit RGB."""
    import numpy as np

    out = []
    for i in range(n):
        small = np.random.default_rng(seed + i).integers(20, 236, size=(4, 4, 3)).astype(np.uint8)
        out.append(PIL.Image.fromarray(small).resize(size, PIL.Image.Resampling.BICUBIC))
    return out
