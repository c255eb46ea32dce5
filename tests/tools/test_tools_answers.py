"""Edits whose place is the sampler's to choose are learnt from noised targets by squared errors, all others not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from isr.data.miniworld import EDITS  # noqa: E402

PLACED = {f"landscape/{name}/add" for name in ("house", "trees", "balloon", "mountain")} | {"landscape/time/night"}


def test_what_is_placed_anywhere_has_many_answers() -> None:
    from miniworld_training.answers import many_answers, placed_anywhere

    names = sorted(EDITS)
    placed, many = placed_anywhere(names), many_answers(names)
    assert {n for n, p in zip(names, placed, strict=True) if p} == PLACED
    assert set(np.array(names)[placed]) < set(np.array(names)[many])


class _Net:
    """Anything differentiable, of the shape that is asked for."""

    def __call__(self, seen: Any, *_told: Any, **_more: Any) -> Any:
        return SimpleNamespace(sample=torch.tanh(seen[:, :8]))


def _loss(kind: str, edits: list[str], passes: int = 1) -> float:
    from miniworld_training import editor, mmdit
    from miniworld_training.batches import Batches
    from miniworld_training.pairs import Pairs
    from miniworld_training.words import build_text_encoder, build_tokenizer

    tokenizer, n = build_tokenizer(captions=20), len(edits)
    latents = np.random.default_rng(0).standard_normal((n, 2, 8, 16, 16)).astype(np.float16)
    data = Pairs(np.zeros((n, 0), np.uint8), edits, np.zeros((n, 0), np.int8), ["a portrait"] * n)
    batches = Batches(data, latents, tokenizer, torch.device("cpu"), captions=0.0)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    if kind == "ip2p":
        models = {"unet": _Net(), "text_encoder": build_text_encoder(tokenizer)}
        own = editor._Task(batches, 0.6)
        return float(own.loss(models, np.arange(n), rng, drop=True, passes=passes))  # type: ignore[arg-type]
    encoders = {k: build_text_encoder(tokenizer, projection=True) for k in ("text_encoder", "text_encoder_2")}
    vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.6, shift_factor=0.1))
    task = mmdit._Task(batches, vae, instruct=kind == "instruct")
    nets: Any = {"transformer": _Net(), **encoders}
    return float(task.loss(nets, np.arange(n), rng, drop=True, passes=passes))


@pytest.mark.parametrize("kind", ["ip2p", "instruct", "img2img"])
@pytest.mark.parametrize("part", ["walked", "smooth", "imperfect"])
def test_only_edits_with_a_place_of_their_own_learn_from_errors(
    monkeypatch: pytest.MonkeyPatch, kind: str, part: str
) -> None:
    """Each of the three is broken in turn: a batch of placed edits never notices, one of the others does."""
    from miniworld_training import editor, mmdit

    module: Any = editor if kind == "ip2p" else mmdit
    for share in (
        "_NO_TEXT",
        "_NO_IMAGE",
        *(["_UNTOLD"] if kind != "ip2p" else []),
    ):  # without instruction nothing is placed
        monkeypatch.setattr(module, share, 0.0)
    others = [
        "portrait/hair/red",
        "portrait/glasses/add",
        "artwork/reshape/circle/square",
        "landscape/house/remove",
    ] * 2

    def broken(x: Any, *_: Any) -> Any:
        return torch.full_like(x, float("nan"))

    def walked(_self: Any, *given: Any, passes: int) -> Any:
        x = given[1]
        start = torch.zeros(len(x), dtype=torch.long) if kind == "ip2p" else torch.zeros_like(given[2])
        return torch.full_like(x, float("nan")), start

    if part == "walked":
        monkeypatch.setattr(module._Task, part, walked)
    else:
        monkeypatch.setattr(module, part, broken)
    assert np.isfinite(_loss(kind, [*sorted(PLACED), *sorted(PLACED)]))
    assert set(others) <= set(EDITS)
    assert not np.isfinite(_loss(kind, others))


@pytest.mark.parametrize("kind", ["ip2p", "instruct", "img2img"])
def test_the_samplers_passes_are_those_that_the_ranks_agreed_on(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from miniworld_training import editor, mmdit

    module: Any = editor if kind == "ip2p" else mmdit
    walked, asked = module._Task.walked, list[int]()

    def noted(self: Any, *given: Any, passes: int) -> Any:
        asked.append(passes)
        return walked(self, *given, passes=passes)

    monkeypatch.setattr(module._Task, "walked", noted)
    for passes in (0, 2):
        _loss(kind, ["portrait/hair/red"] * 8, passes)
    assert asked == [0, 2]
    drawn = [editor.shared_passes(3, step) for step in range(300)]
    assert {drawn.count(k) // 50 for k in (0, 1, 2)} <= {1, 2}  # each about a third
