"""A judge that calls an edit defeated where it hardly differs from the original: small, deterministic, offline."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from isr.protocols import AskJudge, Question, Reply
from isr.schema import NoVerdict, Verdict

__all__ = ["SampleJudge"]


class SampleJudge(AskJudge):
    """Semantic mismatch = mean absolute pixel difference to the original below `threshold` (0-255 levels).

    Args:
        threshold: in 8-bit levels; part of the judge's identity, because it can change an answer.
    """

    name = "sample"

    def __init__(self, threshold: float = 4.0) -> None:
        self.threshold = threshold

    def identity(self) -> Mapping[str, Any]:
        return {"provider": "isr-sample-judge", "version": "0.1.0", "threshold": self.threshold}

    async def ask(self, question: Question) -> Reply:
        import numpy as np
        from PIL import Image

        edited, original = question.picture("edited"), question.picture("original")
        if edited is None or original is None or edited.size != original.size:
            return Reply(answer=NoVerdict(reason="abstained", detail="needs an original of the same size"))
        pixels = [
            np.asarray(Image.open(io.BytesIO(p.png)).convert("RGB"), dtype=np.float64) for p in (edited, original)
        ]
        difference = float(np.abs(pixels[0] - pixels[1]).mean())
        return Reply(
            answer=Verdict(
                semantic_mismatch=difference < self.threshold,
                degradation=False,
                observations=f"mean absolute difference {difference:.2f} levels",
            )
        )
