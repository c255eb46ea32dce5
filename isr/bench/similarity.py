"""How similar an unseen prompt is to the prompt that the immunizer knew: by words, or by CLIP's text encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import missing_extra

__all__ = ["MEASURES", "Similarity", "clip_text", "prompt_similarity", "told"]

#: words: `prompt_similarity`. clip-text: `clip_text`.
Similarity = Literal["words", "clip-text"]
MEASURES: tuple[Similarity, ...] = get_args(Similarity)

_WORD = re.compile(r"[\w']+")


def prompt_similarity(a: str, b: str) -> float:
    """Words in common over words in either (Jaccard index of the lower-cased word sets), in [0, 1]. A measure of wording,
    not of meaning."""
    one, other = (set(_WORD.findall(text.lower())) for text in (a, b))
    return len(one & other) / len(one | other) if one | other else 1.0


def told(measure: str, convention: str = "") -> str:
    """What a measure is, in a sentence for a table's notes."""
    if measure == "words":
        return "words: share of words in common between the unseen prompt and the prompt the immunizer knew (wording, not meaning)"
    return f"{measure}: {convention or 'cosine of the two prompts under CLIP'}"


def clip_text(
    a: Sequence[str], b: Sequence[str], model: str | Path | None = None, *, loaded: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Cosine of CLIP's projected text embeddings, pair by pair, in [-1, 1] (Radford et al. 2021, Sec. 2).

    The weights must lie in the user's Hugging Face cache; nothing is downloaded.

    Args:
        a, b: texts. model: name or folder of another CLIP (safetensors). loaded: keeps the network between calls, as for
            `isr.metrics.compute`.

    Returns:
        `values` (one per pair, None where the weights are missing), `reason`, `lacking` (as of `NotAvailable`), `convention`.

    Raises:
        MissingExtraError: torch is not installed.
    """
    try:
        import torch

        from ..metrics.clip import CLIP_MODEL, load_clip
        from ..metrics.result import NotAvailable
    except ImportError as error:
        raise missing_extra("Similarity of prompts by CLIP", "attacks", "torch") from error
    name = CLIP_MODEL if model is None else model
    held = {} if loaded is None else loaded
    scorer = held.get("clip") or load_clip(name)
    if not isinstance(scorer, NotAvailable):
        held["clip"] = scorer
    convention = f"cosine of the projected text embeddings of {scorer.name if not isinstance(scorer, NotAvailable) else name}; text cut at the model's length"
    if isinstance(scorer, NotAvailable):
        return {"values": [None] * len(a), "reason": scorer.reason, "lacking": scorer.lacking, "convention": convention}
    every = list(dict.fromkeys([*a, *b]))
    with torch.no_grad():
        tokens = scorer.tokenizer(every, padding=True, truncation=True, return_tensors="pt")
        pooled = scorer.model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        rows = torch.nn.functional.normalize(scorer.model.text_projection(pooled), dim=-1)
    place = {text: i for i, text in enumerate(every)}
    values = [float(rows[place[x]] @ rows[place[y]]) for x, y in zip(a, b, strict=True)]
    return {"values": values, "reason": "", "lacking": False, "convention": convention}
