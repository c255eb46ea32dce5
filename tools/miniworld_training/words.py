"""The miniature CLIP tokenizer: byte-level BPE learnt from MiniWorld's wordings and captions."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from isr.data.miniworld import EDITS, miniworld

__all__ = ["MAX_TOKENS", "build_text_encoder", "build_tokenizer"]

MAX_TOKENS = 24


def build_tokenizer(*, captions: int = 1500) -> Any:
    """A CLIPTokenizer in which every wording is one token per word; other text falls back to bytes."""
    texts = {words for edit in EDITS.values() for words in edit.wordings}
    texts |= {item.caption for item in miniworld(captions, "train")}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.train_from_iterator(
        sorted(texts),
        trainers.BpeTrainer(vocab_size=900, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False),
    )  # fmt: skip
    merges = [
        tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in json.loads(bpe.to_str())["model"]["merges"]
    ]
    tokens = dict.fromkeys([*alphabet, *(a + "</w>" for a in alphabet), *(a + b for a, b in merges)])
    tokens |= dict.fromkeys(["<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: Any, *, width: int = 64, projection: bool = False) -> Any:
    """An untrained two-layer CLIP text model for that tokenizer; projection: with the pooled output that SD3 takes."""
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=width,
            hidden_act="quick_gelu",
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
