"""The cases of `isr demo`: MiniWorld's test pictures, protected and edited on the spot by trained models."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..cases import EditCase
from ..immunization import immunize
from ..making import make_editor
from ..schema import Arm
from .miniworld import miniworld

__all__ = ["EPS", "ITERATIONS", "METHODS", "miniworld_cases"]

#: attack -> arm
METHODS: dict[str, Arm] = {"noise": "noise", "photoguard-encoder": "immunized", "sifm": "immunized"}
#: Twice the paper's budget on [0, 1]: pictures of 64×64 pixels need more than photographs (docs/miniworld.md).
EPS, ITERATIONS = 0.06, 40


def miniworld_cases(
    n: int = 12,
    *,
    eps: float = EPS,
    iterations: int = ITERATIONS,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[EditCase]:
    """Edits of `n` test pictures by `mini-ip2p`: without protection (the control), with random signs (the noise arm), and
    after an encoder attack and SIFM of the same budget; same prompts and seeds throughout.

    Args:
        eps: budget of all three, maximum norm on [0, 1]. iterations: of the two attacks.
        progress: show bars. say: gets one line per step.

    Raises:
        MissingExtraError: torch, diffusers or MiniWorld's weights are not installed.
    """
    world, seeds = miniworld(n, "test"), list(range(n))
    editor = make_editor("mini-ip2p", batch_size=n)
    started = time.monotonic()

    def done(text: str) -> None:
        nonlocal started
        say(f"{text}  ({time.monotonic() - started:.1f} s)")
        started = time.monotonic()

    controls = editor.edit(world.images, world.prompts, seeds=seeds)
    done(f"edited {n} pictures without protection")
    cases = []
    for method, arm in METHODS.items():
        # As far per budget as in the presets, where 100 steps of 1/255 cross 0.03 some thirteen times
        settings: dict[str, Any] = (
            {} if arm == "noise" else {"alpha": eps / 8, "iterations": iterations, "batch_size": n}
        )
        protected = immunize(
            world.images, world.prompts, attack=method, editor=editor, seeds=seeds, eps=eps, progress=progress, **settings
        )  # fmt: skip
        edits = editor.edit(list(protected), world.prompts, seeds=seeds)
        done(f"protected {n} pictures with {method} (ε = {eps:g}), and edited them")
        cases += [
            EditCase(
                edited=edit, prompt=item.prompt, original=item.image, control=control, id=f"{method}-{i}",
                image_id=item.image_id, method=method, category=item.category, prompt_kind="original",
                editor=editor.name, seed=seed, arm=arm, tags={"family": item.edits[0].family},
            )
            for i, (item, edit, control, seed) in enumerate(zip(world, edits, controls, seeds, strict=True))
        ]  # fmt: skip
    return cases
