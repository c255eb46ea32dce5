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

#: (role → part, pipeline class of model_index.json, further entries of model_index.json)
Built = tuple[dict[str, Any], str, dict[str, Any]]


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


def ip2p(scheduler: str = "DDIMScheduler", **options: Any) -> Built:
    tokenizer = clip_tokenizer()
    parts = {
        "vae": kl_vae(4, 0.18215), "text_encoder": clip_text(tokenizer), "tokenizer": tokenizer, "unet": unet(8),
        "scheduler": vp_scheduler(scheduler, **options), "safety_checker": None, "feature_extractor": None, "image_encoder": None,
    }  # fmt: skip
    return parts, "StableDiffusionInstructPix2PixPipeline", {"requires_safety_checker": False}


def sd15(scheduler: str = "PNDMScheduler", **options: Any) -> Built:
    tokenizer = clip_tokenizer()
    parts = {
        "vae": kl_vae(4, 0.18215), "text_encoder": clip_text(tokenizer), "tokenizer": tokenizer, "unet": unet(4),
        "scheduler": vp_scheduler(scheduler, **options), "safety_checker": None, "feature_extractor": None, "image_encoder": None,
    }  # fmt: skip
    return parts, "StableDiffusionPipeline", {"requires_safety_checker": False}


def _xl(in_channels: int, scheduler: str, options: dict[str, Any]) -> dict[str, Any]:
    tokenizer, tokenizer_2 = clip_tokenizer(), clip_tokenizer()
    net = unet(
        in_channels, cross_attention_dim=64, attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=32 + 6 * 8, transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return {
        "vae": kl_vae(4, 0.13025), "text_encoder": clip_text(tokenizer), "text_encoder_2": clip_text(tokenizer_2, projection=True),
        "tokenizer": tokenizer, "tokenizer_2": tokenizer_2, "unet": net,
        "scheduler": vp_scheduler(scheduler, **options),
    }  # fmt: skip


def sdxl_ip2p(scheduler: str = "EulerDiscreteScheduler", **options: Any) -> Built:
    return (
        _xl(8, scheduler, options),
        "StableDiffusionXLInstructPix2PixPipeline",
        {"force_zeros_for_empty_prompt": True},
    )


def sdxl(scheduler: str = "EulerDiscreteScheduler", zeros: bool = True, **options: Any) -> Built:
    parts = _xl(4, scheduler, options) | {"image_encoder": None, "feature_extractor": None}
    return parts, "StableDiffusionXLPipeline", {"force_zeros_for_empty_prompt": zeros}


def t5(width: int, length: int = 512) -> tuple[Any, Any]:
    """(tokenizer, encoder): one piece per character and a few words."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", "▁", *(chr(c) for c in range(33, 127)), "▁the", "▁hat", "▁red", "▁make", "▁add"]
    tokenizer = T5TokenizerFast(
        vocab=[(p, -float(i)) for i, p in enumerate(pieces)], extra_ids=0, model_max_length=length
    )
    config = T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    return tokenizer, T5EncoderModel(config)


def flow_scheduler(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def sd3(
    *, with_t5: bool = True, in_channels: int = 16, qk_norm: str | None = None, dual: tuple[int, ...] = (), layers: int = 3,
    pipeline: str = "StableDiffusion3Pipeline", vae_shift: float = 0.0609,
) -> Built:  # fmt: skip
    from diffusers import SD3Transformer2DModel

    tokenizer, tokenizer_2 = clip_tokenizer(), clip_tokenizer()
    words, encoder = t5(64) if with_t5 else (None, None)
    net = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=in_channels, out_channels=16, num_layers=layers, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=48,
        qk_norm=qk_norm, dual_attention_layers=dual,
    )  # fmt: skip
    parts = {
        "transformer": net, "vae": kl_vae(16, 1.5305, vae_shift, quant=False), "scheduler": flow_scheduler(shift=3.0),
        "text_encoder": clip_text(tokenizer, projection=True), "text_encoder_2": clip_text(tokenizer_2, projection=True),
        "text_encoder_3": encoder, "tokenizer": tokenizer, "tokenizer_2": tokenizer_2, "tokenizer_3": words,
        "image_encoder": None, "feature_extractor": None,
    }  # fmt: skip
    return parts, pipeline, {}


def sd35() -> Built:
    """SD3.5-medium's marks: query-key norms and a second, image-only attention in the first blocks."""
    return sd3(qk_norm="rms_norm", dual=(0,))


def ultraedit(*, mask: bool = False, with_t5: bool = False) -> Built:
    return sd3(in_channels=48 if mask else 32, with_t5=with_t5, pipeline="StableDiffusion3InstructPix2PixPipeline")


def kontext(*, dynamic: bool = True) -> Built:
    from diffusers import FluxTransformer2DModel

    tokenizer = clip_tokenizer()
    words, encoder = t5(32)
    net = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    shift = {
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    }
    parts = {
        "transformer": net, "vae": kl_vae(16, 0.3611, 0.1159, quant=False),
        "scheduler": flow_scheduler(shift=3.0, **(shift if dynamic else {})), "text_encoder": clip_text(tokenizer),
        "text_encoder_2": encoder, "tokenizer": tokenizer, "tokenizer_2": words, "image_encoder": None, "feature_extractor": None,
    }  # fmt: skip
    return parts, "FluxKontextPipeline", {}


def qwen() -> Built:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    special = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    vocab = {piece: i for i, piece in enumerate([*_byte_alphabet(), *special])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in special}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]}, "rope_theta": 1e6,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14,
            "window_size": 112, "fullatt_block_indexes": [1], "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    net = QwenImageTransformer2DModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 16, latents_std=[1.5] * 16,
    )  # fmt: skip
    parts = {
        "transformer": net, "vae": vae, "text_encoder": Qwen2_5_VLForConditionalGeneration(config), "tokenizer": tokenizer,
        "scheduler": flow_scheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192),
    }  # fmt: skip
    return parts, "QwenImageEditPipeline", {}


BUILDERS: dict[str, Callable[..., Built]] = {
    "ip2p": ip2p, "sd15": sd15, "sdxl": sdxl, "sdxl-ip2p": sdxl_ip2p, "sd3": sd3, "sd35": sd35, "ultraedit-sd3": ultraedit, "kontext": kontext, "qwen-edit": qwen,
}  # fmt: skip
