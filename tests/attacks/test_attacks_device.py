"""Attacks on a device that is not the CPU: nothing is mixed with CPU tensors, and no iteration waits for a result."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "editors"))
pytest.importorskip("diffusers")
import tiny
from isr.attacks import pgd
from isr.attacks.pgd import PGD
from isr.editors import load_editor
from pretend_device import PretendDevice, carry, label
from toy import pictures

from isr.registry import ATTACKS

PROMPTS = ["make the hat red", "make it snow"]
LONG = ("end-to-end", "photoguard-diffusion")
QUICK = tuple(p.name for p in ATTACKS.list() if p.name not in ("noise", *LONG))


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    class Lazy(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            folder = tiny.build(name, tmp_path_factory.mktemp(name))
            self[name] = load_editor(folder, device="cpu", resolution=32, defaults={"steps": 3})
            return self[name]

    return Lazy()


def run(attack: PGD, editor: Any, **more: Any) -> tuple[Counter[str], Counter[str]]:
    """Places where devices were mixed, and where the device was waited for."""
    with PretendDevice() as pretend:
        carry(editor)
        attack.run(pictures(2, (32, 32)), PROMPTS, editor=editor, seeds=[0, 1], **more)
    return pretend.mixed, pretend.waits


def test_the_pretended_device_finds_what_it_looks_for() -> None:
    with PretendDevice() as pretend:
        a, b = torch.ones(3, device="cuda"), torch.ones(3)
        assert (str(a.device), str(b.device), label(2 * a), label(b.to("cuda"))) == ("cuda", "cpu", "cuda", "cuda")
        pretend.clear()
        _ = a * torch.tensor(2.0), a[torch.tensor([0])], a.cumsum(0), b + b
        assert not pretend.mixed
        assert not pretend.waits
        _ = a + b
        assert sum(pretend.mixed.values()) == 1
        x = torch.ones(3, device="cuda").requires_grad_(True)
        (gradient,) = torch.autograd.grad((x * a).sum(), x)
        assert label(gradient) == "cuda"
        pretend.clear()
        _ = a.tolist(), float(a.sum()), bool(a.any()), a.cpu(), b.to("cuda")
        assert sum(pretend.waits.values()) == 5
        _ = b.to("cuda", non_blocking=True)
        assert sum(pretend.waits.values()) == 5


@pytest.mark.parametrize(
    ("family", "name"),
    [("ip2p", n) for n in QUICK] + [("ultraedit-sd3", n) for n in ("ace", "diffusionguard", "semantic", "sifm")],
)
def test_no_devices_are_mixed_and_no_iteration_waits(family: str, name: str, editors: dict[str, Any]) -> None:
    options = {"count": 2} if name in ("sifm", "semantic") else {}
    mixed, once = run(ATTACKS.create(name, iterations=1, **options), editors[family])
    assert not mixed
    _, thrice = run(ATTACKS.create(name, iterations=3, **options), editors[family])
    assert not thrice - once


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("family", ["ip2p", "ultraedit-sd3"])
def test_attacks_through_whole_edits_too(family: str, name: str, editors: dict[str, Any]) -> None:
    mixed, once = run(ATTACKS.create(name, iterations=1, steps=2), editors[family])
    assert not mixed
    _, thrice = run(ATTACKS.create(name, iterations=3, steps=2), editors[family])
    assert not thrice - once


@pytest.mark.parametrize(
    "settings",
    [
        {"step": "adam", "start": "uniform"},
        {"norm": "l2", "eps": 1.0, "step": "normalised", "alpha": 0.1, "start": "uniform"},
        {"patience": 1, "grad_reps": 2},
    ],
    ids=["adam", "l2", "patience"],
)
def test_walks_and_masks_mix_no_devices(settings: dict[str, Any], editors: dict[str, Any], tmp_path: Path) -> None:
    attack: PGD = ATTACKS.create("photoguard-encoder", iterations=2, checkpoint=tmp_path, **settings)
    half = np.zeros((32, 32), np.uint8)
    half[:16] = 255
    for _ in range(2):  # the second run goes on from the checkpoint of the first
        mixed, _ = run(attack, editors["ip2p"], masks=[half, None])
        assert not mixed


def test_edits_and_wrappers_mix_no_devices(editors: dict[str, Any]) -> None:
    editor = editors["ip2p"]
    base: PGD = ATTACKS.create("photoguard-encoder", iterations=2)
    mixed, _ = run(base.with_eot(samples=4), editor)
    assert not mixed
    with PretendDevice() as pretend:
        editor.edit(pictures(2, (32, 32)), PROMPTS, seeds=[0, 1])
    assert not pretend.mixed


def test_losses_that_are_read_late_are_the_same(editors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """12 iterations: on the CPU read one by one, on another device after 10 and at the end."""
    monkeypatch.setattr(pgd, "READ_EVERY", 10)
    editor = load_editor(str(editors["ip2p"].settings()["source"]), device="cpu", resolution=32, defaults={"steps": 3})
    attack: PGD = ATTACKS.create("photoguard-encoder", iterations=12)
    plain = attack.run(pictures(2, (32, 32)), PROMPTS, editor=editor, seeds=[0, 1])
    with PretendDevice():
        carry(editor)
        late = attack.run(pictures(2, (32, 32)), PROMPTS, editor=editor, seeds=[0, 1])
    assert late.histories == plain.histories
    assert [len(h) for h in late.histories] == [12, 12]
    assert [i.tobytes() for i in late.images] == [i.tobytes() for i in plain.images]
