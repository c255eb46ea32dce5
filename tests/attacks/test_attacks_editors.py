"""Every method on tiny random checkpoints of each family, through the very classes that load the real ones."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "editors"))
pytest.importorskip("diffusers")
import tiny
from isr.attacks.denoise import scheduler_steps
from isr.attacks.pgd import PGD, one_step, to_tensor
from isr.attacks.sifm import SIFM
from isr.attacks.wrappers import with_prompts
from isr.editors import load_editor
from toy import ToyEditor, pictures

import isr
from isr.errors import UsageError
from isr.photos import immunize_photos
from isr.registry import ATTACKS

METHODS = tuple(p.name for p in ATTACKS.list() if p.name != "noise")
#: family → checkpoint of tests/editors/tiny.py and its options. All methods are defined on all of them.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ip2p": ("ip2p", {}),
    "ip2p-sample": ("ip2p", {"prediction_type": "sample"}),
    "sd15-img2img": ("sd15", {}),
    "sd3-img2img": ("sd3", {}),
    "sd3-instruct": ("ultraedit-sd3", {}),
    "kontext": ("kontext", {}),
}
#: Their kin.
KIN: dict[str, tuple[str, dict[str, Any]]] = {
    "sdxl-ip2p": ("sdxl-ip2p", {}),
    "sdxl-img2img": ("sdxl", {}),
    "sd35-img2img": ("sd35", {}),
    "sd3-instruct-masked": ("ultraedit-sd3", {"mask": True}),
}
PAIRS = [
    *((family, name) for family in (*FAMILIES, *KIN) for name in METHODS),
]
PROMPTS = ["make the hat red"]


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made: dict[str, Any] = {}

    class Lazy(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            family, options = {**FAMILIES, **KIN}[name]
            folder = tiny.build(family, tmp_path_factory.mktemp(name), **options)
            made[name] = self[name] = load_editor(folder, device="cpu", resolution=32, defaults={"steps": 8})
            return made[name]

    return Lazy()


def make(name: str, **settings: Any) -> PGD:
    attack: PGD = ATTACKS.create(name, **settings)
    return attack


def test_sifm_reads_any_layer_of_the_denoiser(editors: dict[str, Any]) -> None:
    """Also one that `editor.layers()` does not list; a name that the denoiser lacks is refused by the editor."""
    editor, name = editors["ip2p"], "down_blocks.0.resnets.0.conv1"
    clean = to_tensor(pictures(1, (32, 32)))
    assert name not in editor.layers()
    assert one_step(SIFM(layers=[name]), editor, clean, PROMPTS).gradient.any()
    with pytest.raises(UsageError, match=r"no layers \['nowhere'\]"):
        one_step(SIFM(layers=[name, "nowhere"]), editor, clean, PROMPTS)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_loss_falls(family: str, name: str, editors: dict[str, Any]) -> None:
    editor, options = editors[family], {}
    if name in ("photoguard-diffusion", "end-to-end"):
        options["steps"] = 2
    if name == "semantic":
        options["count"] = 3
    attack = make(name, **options)
    clean = to_tensor(pictures(1, (32, 32)))
    start = 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    if attack.pgd.start == "zero":
        start = torch.zeros_like(clean)
    # Small steps along the sign with the same random numbers at each: the loss at those numbers must fall.
    settings = make(name, eps=0.5, alpha=0.004).pgd
    delta, values = start, []
    for _ in range(3):
        step = one_step(attack.objective, editor, clean, PROMPTS, delta=delta, settings=settings, seeds=[0])
        assert torch.isfinite(step.gradient).all()
        assert step.gradient.any()
        values.append(float(step.losses))
        delta = step.delta
    values.append(float(one_step(attack.objective, editor, clean, PROMPTS, delta=delta, seeds=[0]).losses))
    assert values[-1] < values[0], values


@pytest.mark.parametrize("family", FAMILIES)
def test_immunize_keeps_the_budget_and_repeats_itself(family: str, editors: dict[str, Any]) -> None:
    attack = make("sifm", iterations=3)
    images = pictures(2, (32, 32))
    first = attack.run(images, PROMPTS * 2, editor=editors[family], seeds=[0, 1])
    again = attack.run(images, PROMPTS * 2, editor=editors[family], seeds=[0, 1])
    assert [i.tobytes() for i in first.images] == [i.tobytes() for i in again.images]
    assert all(d.any() for d in first.deltas)
    assert all(float(d.abs().max()) <= 0.03 + 1e-6 for d in first.deltas)


@pytest.mark.parametrize("family", FAMILIES)
def test_sifm_encodes_once_per_iteration_and_stops_early(
    family: str, editors: dict[str, Any], monkeypatch: Any
) -> None:
    editor, calls = editors[family], Counter[str]()
    encode = editor.vae.encode

    def counted(*args: Any, **more: Any) -> Any:
        calls["encoder"] += 1
        return encode(*args, **more)

    monkeypatch.setattr(editor.vae, "encode", counted)
    last = list(editor.denoiser.children())[-1]  # the projection to the output
    handles = [
        editor.denoiser.register_forward_pre_hook(lambda *_: calls.update(["denoiser"])),
        last.register_forward_pre_hook(lambda *_: calls.update(["last layer"])),
    ]
    try:
        counts = []
        for iterations in (1, 3):
            calls.clear()
            make("sifm", iterations=iterations).immunize(pictures(1, (32, 32)), PROMPTS, editor=editor, seeds=[0])
            counts.append(dict(calls))
    finally:
        for handle in handles:
            handle.remove()
    assert counts[1]["denoiser"] - counts[0]["denoiser"] == 2, "one batched pass per iteration"
    assert "last layer" not in counts[1], "it stops after the deepest layer that is read"
    assert counts[1]["encoder"] - counts[0]["encoder"] == 2, "latent and condition share one pass"


@pytest.mark.parametrize("name", ["photoguard-diffusion", "end-to-end"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_without_recomputing_are_the_same_in_fewer_passes(
    family: str, name: str, editors: dict[str, Any]
) -> None:
    editor, calls = editors[family], Counter[str]()
    clean = to_tensor(pictures(1, (32, 32)))
    delta = 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    found = {}
    handle = editor.denoiser.register_forward_pre_hook(lambda *_: calls.update(["denoiser"]))
    try:
        for recompute in (True, False):
            calls.clear()
            attack = make(name, steps=4, recompute=recompute)
            step = one_step(attack.objective, editor, clean, PROMPTS, delta=delta, seeds=[0])
            found[recompute] = step.gradient, calls["denoiser"]
    finally:
        handle.remove()
    assert found[True][0].any()
    torch.testing.assert_close(found[True][0], found[False][0])
    assert make(name).settings() == make(name, recompute=False).settings()  # time and memory alone
    before = 1 if name == "end-to-end" else 0  # the clean picture's edit needs no gradient
    passes = found[False][1] // (1 + before)
    assert 4 <= passes <= 5  # PNDM begins with two passes at one timestep
    assert found[True][1] - found[False][1] == passes


@pytest.mark.parametrize("count", [4, 10])
@pytest.mark.parametrize("family", [*FAMILIES, *KIN])
def test_short_edits_run_all_their_steps_from_where_an_edit_begins(
    family: str, count: int, editors: dict[str, Any]
) -> None:
    """Of 4 scheduler steps at strength 0.3 one would be left, at t = 1: a pass through the autoencoder, no edit."""
    editor = editors[family]
    steps, strength = scheduler_steps(editor, count), editor.traits.strength
    assert len(editor.timesteps(steps)) == count
    if strength is None:
        assert steps == count
    else:
        # Coarse grids begin up to one of their steps away from where the 50 steps of a real edit do.
        begins, real = float(editor.timesteps(steps)[0]), float(editor.timesteps(50)[0])
        assert abs(begins - real) <= 1000 / steps
        assert steps > count


def test_a_strength_that_leaves_too_few_steps_is_refused_before_anything_is_made() -> None:
    class Stubborn(ToyEditor):
        def timesteps(self, n: int) -> torch.Tensor:
            return torch.tensor([500.0])

        @property
        def traits(self) -> Any:
            return replace(super().traits, strength=0.5)

    class Whole(Stubborn):
        """Runs all steps it is asked for, from where its edits begin."""

        def timesteps(self, n: int) -> torch.Tensor:
            return torch.linspace(500, 10, n)

    class Few(Stubborn):
        def timesteps(self, n: int) -> torch.Tensor:
            raise UsageError("steps must be at most 3")

    class Silent(Stubborn):
        undefined = ("timesteps",)

    assert scheduler_steps(Whole(), 4) == 4
    for name in ("photoguard-diffusion", "end-to-end"):
        make(name, steps=1).check(Stubborn())
        with pytest.raises(UsageError, match=r"no number of them leaves 4; .* \(steps must be at most 3\)"):
            make(name).check(Few())
        with pytest.raises(UsageError, match=r"an edit of 4 passes is not defined .* it needs timesteps"):
            make(name).check(Silent())
        with pytest.raises(UsageError, match=r"steps=4: .* no number of them leaves 4; give it a higher strength"):
            make(name).check(Stubborn())


def test_methods_that_add_noise_refuse_a_sampler_without_noise_levels(editors: dict[str, Any]) -> None:
    """EDM samplers have no table of ᾱ: such an editor edits, and encoder attacks work on it."""
    import diffusers

    edm = type(editors["ip2p"])({**editors["ip2p"].parts, "scheduler": diffusers.EDMEulerScheduler()}, device="cpu")
    for name in METHODS:
        if name in ("photoguard-encoder", "editshield", "photoguard-diffusion", "end-to-end", "diffusionguard"):
            make(name).check(edm)
        else:
            with pytest.raises(
                UsageError, match=r"needs noisy, which this editor does not offer: its sampler EDMEuler.*ᾱ"
            ):
                make(name).check(edm)
    clean = to_tensor(pictures(1, (32, 32)))
    assert one_step(make("diffusionguard").objective, edm, clean, PROMPTS).gradient.any()  # from pure noise
    with pytest.raises(UsageError, match=r"diffusionguard is not defined .* it needs noisy"):
        make("diffusionguard", of="clean").check(edm)


def test_prompts_that_a_method_cannot_use_are_named_before_anything_is_made(
    editors: dict[str, Any], tmp_path: Path
) -> None:
    editor, images = editors["ip2p"], pictures(2, (32, 32))
    prompts = ["make the hat red", ""]
    pool = with_prompts(make("semantic", iterations=1), [""])
    seen: list[Any] = []
    for attack, told in ((make("semantic", iterations=1), prompts), (pool, prompts[:1] * 2)):
        attack.progress = seen.append
        attack.pgd = replace(attack.pgd, batch_size=1)  # the first picture alone would have been made
        with pytest.raises(UsageError, match="semantic needs a prompt with at least one word, not ''"):
            isr.immunize(images, told, attack=attack, editor=editor)
        with pytest.raises(UsageError, match="semantic needs a prompt with at least one word"):
            attack.immunize(images, told, editor=editor, seeds=[0, 1])
    folder = tmp_path / "in"
    folder.mkdir()
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    with pytest.raises(UsageError, match="words has no entry for the prompt 'make the hat red'"):
        immunize_photos(
            [folder], tmp_path / "out", attack="semantic", editor=editor, prompts="make the hat red",
            settings={"words": {"another": "one"}},
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
    assert seen == []


@pytest.mark.parametrize("name", ["photoguard-diffusion", "end-to-end"])
def test_an_editor_that_always_recomputes_is_told_apart_before_anything_is_made(name: str) -> None:
    class Strange(ToyEditor):
        def rollout(self, x: Any, prompts: Any, steps: int, *, seeds: Any, **settings: Any) -> Any:
            raise NotImplementedError

    make(name).check(Strange())
    with pytest.raises(UsageError, match="recompute=False needs an editor whose rollout takes checkpoint="):
        make(name, recompute=False).check(Strange())


def test_weights_are_frozen_and_unchanged(editors: dict[str, Any]) -> None:
    editor = editors["ip2p"]
    before = [p.clone() for p in editor.denoiser.parameters()]
    make("advdm", iterations=2).immunize(pictures(1, (32, 32)), PROMPTS, editor=editor, seeds=[0])
    after = list(editor.denoiser.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in after)


@pytest.mark.parametrize("name", METHODS)
def test_batch_against_loop_on_a_real_unet(name: str, editors: dict[str, Any]) -> None:
    """DEFINITIONS 12: at most 0.5 % of perturbation pixels differ. Compared on gradients' signs, the way they enter."""
    editor, clean = editors["ip2p"], to_tensor(pictures(2, (32, 32)))
    options = {"photoguard-diffusion": {"steps": 1}, "end-to-end": {"steps": 1}, "semantic": {"count": 2}}.get(name, {})
    objective = make(name, **options).objective
    delta = 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    prompts = ["make the hat red", "add a dog"]
    both = one_step(objective, editor, clean, prompts, delta=delta, seeds=[0, 1]).gradient
    alone = torch.cat(
        [
            one_step(
                objective, editor, clean[i : i + 1], prompts[i : i + 1], delta=delta[i : i + 1], seeds=[i]
            ).gradient
            for i in range(2)
        ]
    )
    assert float((both.sign() != alone.sign()).float().mean()) <= 0.005


@pytest.mark.parametrize("family", [*FAMILIES, *KIN])
def test_paths_exist_where_the_image_is_a_condition(family: str, editors: dict[str, Any]) -> None:
    """Asked of the editor itself, with a small black picture, before a user's picture is touched."""
    editor = editors[family]
    for name in ("sifm", "advdm", "mist", "ace", "semantic"):
        objective = make(name, path="cond").objective
        if editor.traits.strength is None:
            objective.check(editor)
        else:
            with pytest.raises(UsageError, match=f"{name} with path='cond' is not defined for this editor"):
                objective.check(editor)


def test_literal_layers_of_sifm_on_a_unet(editors: dict[str, Any]) -> None:
    """Named layers of one shape are averaged first (Eq. 3); an unknown name is refused with the known ones."""
    editor, clean = editors["ip2p"], to_tensor(pictures(1, (32, 32)))
    with pytest.raises(UsageError, match="has no layers"):
        one_step(SIFM(layers=["nowhere"]), editor, clean, PROMPTS)
    found = one_step(SIFM(layers=[editor.layers()[0]]), editor, clean, PROMPTS)
    assert found.gradient.any()


def test_photos_of_any_size_end_to_end(editors: dict[str, Any], tmp_path: Path) -> None:
    """A folder of photos through `isr immunize`'s function: SIFM inside a real U-Net, budget read back from the files."""
    from isr.photos import immunize_photos

    folder = tmp_path / "photos"
    folder.mkdir()
    pictures(1, (70, 45))[0].save(folder / "wide.jpg", quality=95)
    pictures(1, (32, 32), seed=4)[0].save(folder / "square.png")
    editor = editors["ip2p"]
    settings = {"iterations": 2, "count": 2}
    rows = immunize_photos(
        [folder], tmp_path / "o", editor=editor, prompts="make the hat red", settings=settings, progress=False
    )
    assert [(r["file"], r["width"], r["height"]) for r in rows] == [("square.png", 32, 32), ("wide.png", 70, 45)]
    assert rows[1]["working_size"] == [editor.working_size(45, 70)[1], editor.working_size(45, 70)[0]]
    assert all(0 < r["levels"] <= 7 for r in rows)
    assert not (tmp_path / "o" / ".unfinished").exists()
    again = immunize_photos(
        [folder], tmp_path / "o", editor=editor, prompts="make the hat red", settings=settings, progress=False
    )
    assert again == rows
