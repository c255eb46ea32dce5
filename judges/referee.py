"""MiniWorld's referees: small trained networks that answer the rubric about 64×64 MiniWorld pictures, offline and free.

They read the two pictures and the prompt, never the description of the scene. Asked-for attribute: a classifier on the
edited picture; category: the same on both pictures. Degradation: the logarithm of the root mean square of a map of local
damage, which a network paints from edit and original. It was trained on the editor's own edits of disturbed and undisturbed
image latents, on copies and on generic corruptions (no attacked picture among them); it is no distance to a clean edit.
What they may judge is decided by size, the presence of the original and the prompt's grammar alone, so that a wrecked
edit can never leave the domain.
"""

from __future__ import annotations

import asyncio
import importlib
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from isr.data.miniworld import SIZE, Edit, edits_for_prompt
from isr.errors import UsageError, missing_extra
from isr.protocols import AskJudge, JudgeLimits, Picture, Question, Reply
from isr.schema import NoVerdict, Verdict

if TYPE_CHECKING:
    import torch

    from ._referee_nets import Loaded

__all__ = ["REFEREES", "RefereeJudge"]

#: "a" and "b" decide together; "c" is kept for final measurements and never takes part in a choice.
REFEREES = ("a", "b", "c")
_PACKAGE, _DISTRIBUTION = "isr_miniworld", "immunization-success-rate-miniworld"


class RefereeJudge(AskJudge):
    """A referee as a judge: `judges=["referee:a", "referee:b"]`.

    Args:
        which: "a" (plain convolutional), "b" (residual) or "c" (patch transformer).
        folder: weights from elsewhere: a folder with config.json and model.safetensors.

    Raises:
        UsageError: unknown referee, or a folder without weights. MissingExtraError: torch or safetensors is missing.
    """

    limits = JudgeLimits(concurrency=1)  # one small network on one processor: more calls at once gain nothing

    def __init__(self, which: str = "a", *, folder: str | Path | None = None) -> None:
        if which not in REFEREES:
            raise UsageError(f"referee: expected one of {', '.join(REFEREES)}; got {which!r}")
        self.which = which
        self.name = f"referee:{which}"
        self.folder = Path(folder) if folder is not None else _installed(which)

    def __repr__(self) -> str:
        return f"RefereeJudge({self.which!r})"

    @cached_property
    def _loaded(self) -> Loaded:
        try:
            nets = importlib.import_module("._referee_nets", __package__)
        except ModuleNotFoundError as error:
            if error.name in {"torch", "safetensors"}:
                raise missing_extra("the MiniWorld referees", "attacks", error.name) from error
            raise
        loaded: Loaded = nets.load(self.folder)
        return loaded

    def identity(self) -> Mapping[str, Any]:
        """Provider, kind, thresholds and the digest of weights and configuration."""
        loaded = self._loaded
        return {
            "provider": "referee",
            "name": self.name,
            "kind": loaded.config["kind"],
            "thresholds": dict(loaded.config["thresholds"]),
            "weights": loaded.digest,
        }

    async def ask(self, question: Question) -> Reply:
        """The referee's verdict, or `NoVerdict("out_of_domain")`."""
        answer = await asyncio.to_thread(self.answer, question)
        return Reply(answer=answer)

    def answer(self, question: Question) -> Verdict | NoVerdict:
        """The same without an event loop."""
        reason = _outside(question)
        if reason:
            return NoVerdict(reason="out_of_domain", detail=reason)
        edited, original = question.picture("edited"), question.picture("original")
        if edited is None or original is None:  # `_outside` has said so already; the checker cannot know
            return NoVerdict(reason="out_of_domain", detail="a picture is missing")
        return self.judge([(_decode(edited), _decode(original), question.prompt)])[0]

    def judge(self, cases: Sequence[tuple[PIL.Image.Image, PIL.Image.Image, str]]) -> list[Verdict]:
        """Verdicts on (edited, original, prompt) triples of the domain, in one batch.

        Raises:
            UsageError: a prompt that is not MiniWorld's, or a picture that is not 64×64.
        """
        rows = self.scores(cases)
        thresholds = self._loaded.config["thresholds"]
        verdicts = []
        for row in rows:
            there = row["asked"] >= thresholds["asked"]
            mismatch = not (there and row["category_kept"])
            degraded = row["degradation"] >= thresholds["degradation"]
            verdicts.append(
                Verdict(
                    semantic_mismatch=mismatch,
                    degradation=degraded,
                    observations=(
                        f"asked {row['attribute']}={row['value']}: log-odds {row['asked']:+.2f}; category "
                        f"{row['category']} → {row['category_seen']}; degradation {row['degradation']:+.2f}"
                    ),
                    reasons={
                        "semantic_mismatch": f"{'below' if not there else 'at or above'} {thresholds['asked']:+.2f}"
                        + ("" if row["category_kept"] else ", and another category"),
                        "degradation": f"{'at or above' if degraded else 'below'} {thresholds['degradation']:+.2f}",
                    },
                )
            )
        return verdicts

    def scores(self, cases: Sequence[tuple[PIL.Image.Image, PIL.Image.Image, str]]) -> list[dict[str, Any]]:
        """Per case: asked attribute and value, log-odds that the edit shows it, the category of both pictures, degradation.

        `degradation` is the logarithm of the root mean square of local damage; lower is less.

        Raises:
            UsageError: a prompt that is not MiniWorld's, or a picture that is not 64×64.
        """
        meanings = []
        for edited, original, prompt in cases:
            found = edits_for_prompt(prompt)
            if not found:
                raise UsageError(f"prompt: expected one of MiniWorld's wordings, got {prompt!r}")
            for role, picture in (("edited", edited), ("original", original)):
                if picture.size != (SIZE, SIZE):
                    raise UsageError(f"{role}: expected {SIZE}×{SIZE} pixels, got {picture.size[0]}×{picture.size[1]}")
            meanings.append(found)
        if not cases:
            return []
        import torch

        net, heads = self._loaded.net, self._loaded.config["heads"]
        with torch.inference_mode():
            edits = torch.stack([_pixels(e) for e, _, _ in cases])
            originals = torch.stack([_pixels(o) for _, o, _ in cases])
            seen = net.attributes(edits)
            before = net.attributes(originals)["category"].argmax(1).tolist()
            after = seen["category"].argmax(1).tolist()
            degraded = net.degradation(edits, originals).tolist()
            rows = []
            for i, found in enumerate(meanings):
                category = heads["category"][before[i]]
                edit = _meant(found, category)
                logits = seen[edit.attribute][i]
                k = heads[edit.attribute].index(edit.value)
                others = torch.cat([logits[:k], logits[k + 1 :]])
                rows.append(
                    {
                        "attribute": edit.attribute,
                        "value": edit.value,
                        "asked": float(logits[k] - torch.logsumexp(others, 0)),
                        "category": category,
                        "category_seen": heads["category"][after[i]],
                        "category_kept": before[i] == after[i],
                        "degradation": degraded[i],
                    }
                )
        return rows


def _meant(found: Sequence[Edit], category: str) -> Edit:
    """The reading of a prompt for that category of picture; the first one where it has none ("add a hat" to a landscape)."""
    return next((edit for edit in found if edit.category == category), found[0])


def _outside(question: Question) -> str:
    """Why a question is not MiniWorld's, or "". Looks at sizes, presence and grammar, never at the edited pixels."""
    for role in ("edited", "original"):
        picture = question.picture(role)
        if picture is None:
            return f"the referees need the {role} picture"
        if picture.size != (SIZE, SIZE):
            return f"the {role} picture is {picture.size[0]}×{picture.size[1]}, not {SIZE}×{SIZE}"
    if not edits_for_prompt(question.prompt):
        return "the prompt is not one of MiniWorld's wordings"
    return ""


def _decode(picture: Picture) -> PIL.Image.Image:
    with PIL.Image.open(io.BytesIO(picture.png)) as image:
        return image.convert("RGB")


def _pixels(image: PIL.Image.Image) -> torch.Tensor:
    import torch

    values = np.array(image.convert("RGB"), np.float32) / 127.5 - 1
    return torch.from_numpy(values).permute(2, 0, 1)


def _installed(which: str) -> Path:
    try:
        package = importlib.import_module(_PACKAGE)
    except ModuleNotFoundError as error:
        if error.name != _PACKAGE:
            raise
        raise missing_extra(f"referee {which!r}", "mini", _DISTRIBUTION) from error
    try:
        return Path(package.path(f"referee-{which}"))
    except LookupError as error:
        raise UsageError(
            f"referee: the installed MiniWorld weights hold no referee {which!r} ({error}); update that distribution, or "
            "pass folder="
        ) from error
