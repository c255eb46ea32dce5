"""Tiny random checkpoints of each family, seeded, in diffusers' folder layout; for the tests of editors and attacks.

Weights are random: they test mechanics (shapes, gradients, equality with the pipelines), never whether anything works.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CLIP_LENGTH = 77


def build(family: str, folder: str | Path, seed: int = 0, **options: Any) -> Path:
    """Write a tiny checkpoint of a family into `folder` and return it. Families: `BUILDERS`."""
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts, pipeline, extra = BUILDERS[family](**options)
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.1", **extra}
    for role, part in parts.items():
        if part is None:
            index[role] = [None, None]
            continue
        part.save_pretrained(str(folder / role))
        index[role] = [type(part).__module__.split(".")[0], type(part).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index, indent=1), "utf-8")
    return folder


def clip_tokenizer(length: int = CLIP_LENGTH) -> Any:
    """A byte-level CLIP tokenizer with a few merges: every text encodes, common words to few tokens."""
    from transformers import CLIPTokenizer

    alphabet = _byte_alphabet()
    merges = [
        ("h", "a"),
        ("ha", "t</w>"),
        ("r", "e"),
        ("re", "d</w>"),
        ("t", "h"),
        ("th", "e</w>"),
        ("m", "a"),
        ("ma", "k"),
    ]
    pieces = [
        *alphabet,
        *(c + "</w>" for c in alphabet),
        *(a + b for a, b in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def clip_text(tokenizer: Any, *, projection: bool = False, hidden: int = 32) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length, projection_dim=hidden, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def kl_vae(channels: int, scale: float, shift: float | None = None, *, quant: bool = True) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(16, 32),
        layers_per_block=1, norm_num_groups=8, latent_channels=channels, scaling_factor=scale, shift_factor=shift,
        use_quant_conv=quant, use_post_quant_conv=quant, sample_size=64,
    )  # fmt: skip


def vp_scheduler(kind: str = "DDIMScheduler", **options: Any) -> Any:
    import diffusers

    base: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    if kind in ("DDIMScheduler",):
        base |= {"clip_sample": False, "set_alpha_to_one": False}
    if kind in ("PNDMScheduler",):
        base |= {"skip_prk_steps": True, "set_alpha_to_one": False}
    return getattr(diffusers, kind)(**base, **options)


def unet(in_channels: int, **options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    base: dict[str, Any] = {
        "sample_size": 32, "in_channels": in_channels, "out_channels": 4, "block_out_channels": (32, 64), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32, "attention_head_dim": 4, "norm_num_groups": 8,
    }  # fmt: skip
    return UNet2DConditionModel(**{**base, **options})


def ip2p(scheduler: str = "DDIMScheduler", **options: Any) -> tuple[dict[str, Any], str, dict[str, Any]]:
    tokenizer = clip_tokenizer()
    parts = {
        "vae": kl_vae(4, 0.18215), "text_encoder": clip_text(tokenizer), "tokenizer": tokenizer, "unet": unet(8),
        "scheduler": vp_scheduler(scheduler, **options), "safety_checker": None, "feature_extractor": None, "image_encoder": None,
    }  # fmt: skip
    return parts, "StableDiffusionInstructPix2PixPipeline", {"requires_safety_checker": False}


BUILDERS: dict[str, Callable[..., tuple[dict[str, Any], str, dict[str, Any]]]] = {"ip2p": ip2p}
