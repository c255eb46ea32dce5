"""Plugins without any model, for tests: named in ISR_PLUGINS, so that spawned workers import them too."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from isr.perturbation import Budget, quantise
from isr.protocols import AskJudge, JudgeLimits, Question, Reply, Traits
from isr.registry import ATTACKS, EDITORS, JUDGES
from isr.schema import Verdict


class ToyAttack:
    """Adds a constant, or signs from the seed; `over` breaks the declared budget on purpose."""

    def __init__(self, *, levels: int = 4, over: bool = False) -> None:
        self.levels, self.over = levels, over

    @property
    def name(self) -> str:
        return "toy-shift"

    def settings(self) -> Mapping[str, Any]:
        eps = (1 if self.over else self.levels) / 255
        return {"attack": self.name, "levels": self.levels, "budget": {"norm": "linf", "eps": eps}}

    def immunize(
        self,
        images: Sequence[PIL.Image.Image],
        prompts: Sequence[str | None],
        *,
        editor: Any = None,
        seeds: Sequence[int],
    ) -> list[PIL.Image.Image]:
        out = []
        for image, seed in zip(images, seeds, strict=True):
            base = np.asarray(image)
            signs = 2.0 * np.random.default_rng(seed).integers(0, 2, size=base.shape) - 1.0
            out.append(
                PIL.Image.fromarray(
                    quantise(base, base / 255 + signs * self.levels / 255, Budget("linf", self.levels / 255))
                )
            )
        return out


class ToyEditor:
    """Inverts the picture; noise from the seed. `log`: a file that gets one line per edit; `sleep`: seconds per picture;
    `die_once`: a file; the process kills itself when it can create it."""

    traits = Traits(white_box=False, size_multiple=1, family="toy")

    def __init__(
        self,
        *,
        log: str = "",
        sleep: float = 0.0,
        die_once: str = "",
        fail_on: str = "",
        always_die: bool = False,
        weights: str = "w0",
    ) -> None:
        self.log, self.sleep, self.die_once, self.fail_on, self.always_die = log, sleep, die_once, fail_on, always_die
        self.weights = os.environ.get("TOY_WEIGHTS", weights)

    @property
    def name(self) -> str:
        return "toy"

    def settings(self, **overrides: Any) -> Mapping[str, Any]:
        where = {"source": os.environ["TOY_SOURCE"]} if "TOY_SOURCE" in os.environ else {}
        return {"editor": "toy", "weights": self.weights, **where, **overrides}

    def edit(
        self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], *, seeds: Sequence[int], **settings: Any
    ) -> list[PIL.Image.Image]:
        out = []
        for image, prompt, seed in zip(images, prompts, seeds, strict=True):
            if self.always_die:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.die_once:
                try:
                    Path(self.die_once).touch(exist_ok=False)
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            if self.fail_on and self.fail_on in prompt:
                raise ValueError(f"the toy editor fails on {prompt!r}")
            time.sleep(self.sleep)
            noise = np.random.default_rng([seed, len(prompt)]).integers(0, 20, size=(image.height, image.width, 3))
            out.append(PIL.Image.fromarray((255 - np.asarray(image, dtype=int) - noise).clip(0, 255).astype(np.uint8)))
            if self.log:
                with open(self.log, "a") as file:
                    file.write(f"{prompt} {seed}\n")
        return out


class ToyJudge(AskJudge):
    """Answers from the pixels: `a` reads one byte of the edit, `b` another."""

    limits = JudgeLimits(concurrency=4)

    def __init__(self, which: str = "a") -> None:
        self.which = which
        self.name = f"toy-judge:{which}"

    def identity(self) -> Mapping[str, Any]:
        return {"provider": "toy", "name": self.name}

    async def ask(self, question: Question) -> Reply:
        picture = question.picture("edited")
        byte = int((picture.digest if picture else "00")[0 if self.which == "a" else 2 :][:2], 16)
        return Reply(answer=Verdict(semantic_mismatch=byte % 3 == 0, degradation=byte % 4 == 0))


ATTACKS.register("toy-shift", ToyAttack)
EDITORS.register("toy", ToyEditor)
JUDGES.register("toy-judge", ToyJudge)
