"""One step of every attack against a straight transcription of its published formula (tests/attacks/transcriptions), written
without a look at the attack: same pixels, same noise; losses, gradients, signs and the next picture have to agree.

A `scale` other than 1 stands where the source fixes a loss up to a positive factor only, or where ours is a mean and the
source's a sum; sign steps do not see it, and it is a constant of the shapes, stated at the call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from isr.attacks.context import Draws
from isr.attacks.objective import unit
from isr.attacks.pgd import StepResult, one_step
from torch import Tensor
from toy import ToyEditor, pictures
from transcriptions import denoising, editshield, noise, photoguard, semantic, sifm
from transcriptions.common import Step, sigma_of_timestep

from isr.registry import ATTACKS
from isr.transforms import EOT, Blur, Identity

PROMPTS = ["make it a zombie", "snow"]
LATENT = 4 * 2 * 2  # elements of the toy's latent at 8 × 8 pixels
EVERY_EDITOR = [(p, i) for p in ("epsilon", "v_prediction", "sample", "flow") for i in ("cond", "own", "latent")]
CONDITIONED = [(p, "cond") for p in ("epsilon", "v_prediction", "sample", "flow")]
FLOW_AND_EPSILON = [("epsilon", "cond"), ("flow", "cond"), ("flow", "latent")]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start() -> tuple[Tensor, Tensor]:
    """Two pictures with pure black and white in them, and a δ inside ±0.03 that touches its walls and leaves [0, 1]."""
    g = torch.Generator().manual_seed(7)
    clean = (torch.rand(2, 3, 8, 8, generator=g, dtype=torch.float64) * 1.3 - 0.15).clamp(0, 1)
    delta = ((torch.rand(2, 3, 8, 8, generator=g, dtype=torch.float64) * 2 - 1) * 0.04).clamp(-0.03, 0.03)
    assert bool((clean == 0).any())
    assert bool((clean == 1).any())
    return clean, delta


def target_picture() -> tuple[PIL.Image.Image, Tensor]:
    """A picture and its pixels (1, 3, 8, 8)."""
    picture = pictures(1, (8, 8), seed=5)[0]
    return picture, torch.from_numpy(np.asarray(picture).astype(np.float64) / 255).permute(2, 0, 1)[None]


def ours(
    name: str, editor: ToyEditor, *, given: Any = None, preset: str = "paper", iteration: int = 0, zero: bool = False,
    prompts: list[str] = PROMPTS, **options: Any,
) -> StepResult:  # fmt: skip
    attack = ATTACKS.create(name, preset=preset, **options)
    clean, delta = start()
    if zero:
        delta = torch.zeros_like(clean)
    return one_step(
        attack.objective, editor, clean, prompts, delta=delta, settings=attack.pgd, given=given, iteration=iteration
    )


def toy(kind: tuple[str, str]) -> ToyEditor:
    return ToyEditor(*kind, dtype=torch.float64)


def walk(name: str, preset: str = "paper") -> dict[str, float]:
    """α and ε as the paper's and the authors' settings have them, typed here again (attacks on [0, 1] pixels)."""
    table = {
        "paper": (1 / 255, 0.03),
        "native:editshield": (1e-3, 0.03),
        "native:photoguard-encoder": (0.01, 0.03),
        "native:ace": (0.0025, 4 / 255),
        "native:diffusionguard": (0.5 / 255, 8 / 255),
        "native:sds": (1 / 255, 16 / 255),
        "native:advdm": (1 / 255, 16 / 255),
        "native:mist": (1 / 255, 16 / 255),
    }
    alpha, eps = table["paper" if preset == "paper" else f"{preset}:{name}"]
    return {"alpha": alpha, "eps": eps}


def compare(
    mine: StepResult,
    theirs: Step,
    *,
    scale: float = 1.0,
    losses: bool = True,
    keeps_delta: bool = False,
    atol: float = 1e-12,
) -> dict[str, float]:
    """Losses, gradient, signs and the next picture of one step: ours against a transcription's. Gives the largest differences."""
    expected = theirs.gradient * scale
    size = float(expected.abs().max())
    assert size > 0
    largest = {"gradient": float((mine.gradient - expected).abs().max()) / size}
    torch.testing.assert_close(mine.gradient, expected, rtol=1e-5, atol=1e-6 * size)
    assert torch.equal(mine.gradient.sign(), expected.sign())
    if losses:
        largest["loss"] = float((mine.losses / (theirs.losses * scale) - 1).abs().max())
        torch.testing.assert_close(mine.losses, theirs.losses * scale, rtol=1e-5, atol=0)
    largest["pixels"] = float((mine.pixels - theirs.pixels).abs().max())
    torch.testing.assert_close(mine.pixels, theirs.pixels, rtol=0, atol=atol)
    # Algorithm 1 keeps δ as it is; usual PGD puts it back to what the clipped pixels differ by.
    delta = theirs.delta if keeps_delta else theirs.pixels - start()[0]
    torch.testing.assert_close(mine.delta, delta, rtol=0, atol=atol)
    return largest


# -------------------------------------------------------------------------------------------------------------- SIFM

TIMES = [520.0, 371.0, 204.0]


def sifm_pair(
    kind: tuple[str, str], *, layers: tuple[str, ...] = ("one", "two"), zero: bool = False, **options: Any
) -> tuple[StepResult, Step]:
    editor, n = toy(kind), normal(2, 3, 4, 2, 2, seed=1)
    clean, delta = start()
    if zero:
        delta = torch.zeros_like(clean)
    mine = ours("sifm", editor, given={"noise": n}, timesteps=TIMES, layers=layers, zero=zero, **options)
    names = {"feature_norm": "norm"}
    theirs = sifm.step(
        editor, clean, delta, PROMPTS, times=TIMES, noise=n, layers=layers, **walk("sifm"),
        **{names.get(k, k): v for k, v in options.items()},
    )  # fmt: skip
    return mine, theirs


@pytest.mark.parametrize("kind", EVERY_EDITOR)
def test_sifm_is_algorithm_1(kind: tuple[str, str]) -> None:
    compare(*sifm_pair(kind), keeps_delta=True)


def test_sifm_first_step_from_zero() -> None:
    compare(*sifm_pair(("epsilon", "cond"), zero=True), keeps_delta=True)


@pytest.mark.parametrize("kind", [("epsilon", "cond"), ("flow", "own")])
@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "mean_mean", "lam": 5.0},
        {"reduction": "mean_sum", "lam": 5.0},
        {"reduction": "relative", "lam": 1.0},
        {"feature_norm": "frobenius", "lam": 50.0},
        {"dist": "cosine", "lam": 200.0},
        {"dist": "l1", "lam": 200.0},
        {"terms": "norm"},
        {"terms": "dist"},
        {"path": "lat", "lam": 200.0},
        {"path": "cond", "lam": 200.0},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_sifm_readings(kind: tuple[str, str], options: dict[str, Any]) -> None:
    compare(*sifm_pair(kind, **options), keeps_delta=True)


@pytest.mark.parametrize("policy", ["fresh_both", "fresh_imm"])
def test_sifm_noise_policies(policy: str) -> None:
    """Fresh noise for both sides; or for the immunized side only, against features cached with the first noise."""
    editor, first, second = toy(("epsilon", "cond")), normal(2, 3, 4, 2, 2, seed=1), normal(2, 3, 4, 2, 2, seed=2)
    mine = ours(
        "sifm", editor, given={"noise": [first, second]}, timesteps=TIMES, layers=("one", "two"), noise=policy, lam=100.0
    )  # fmt: skip
    theirs = sifm.step(
        editor, *start(), PROMPTS, times=TIMES, noise=second, clean_noise=first if policy == "fresh_imm" else second,
        layers=("one", "two"), lam=100.0, **walk("sifm"),
    )  # fmt: skip
    compare(mine, theirs, keeps_delta=True)


@pytest.mark.parametrize("kind", [*CONDITIONED, ("epsilon", "own"), ("flow", "own")])
@pytest.mark.parametrize("policy", ["fixed", "fresh_both"])
def test_sifm_trajectory(kind: tuple[str, str], policy: str) -> None:
    """Begun from the noise of the first timestep; with fresh noise another edit begins in each iteration."""
    editor, first, second = toy(kind), normal(2, 3, 4, 2, 2, seed=1), normal(2, 3, 4, 2, 2, seed=2)
    mine = ours(
        "sifm", editor, given={"noise": [first, second]}, timesteps=TIMES, layers=("one", "two"), path="trajectory",
        noise=policy, lam=200.0,
    )  # fmt: skip
    begun = (first if policy == "fixed" else second)[:, 0]
    theirs = sifm.step_trajectory(
        editor, *start(), PROMPTS, times=TIMES, noise=begun, layers=("one", "two"), lam=200.0, **walk("sifm")
    )
    compare(mine, theirs, keeps_delta=True)


@pytest.mark.parametrize("zero", [False, True])
def test_sifm_grad_balanced(zero: bool) -> None:
    editor, n = toy(("epsilon", "cond")), normal(2, 3, 4, 2, 2, seed=1)
    clean, delta = start()
    mine = ours(
        "sifm", editor, given={"noise": n}, timesteps=TIMES, layers=("one", "two"), reduction="grad_balanced", lam=1.0, zero=zero
    )  # fmt: skip
    theirs = sifm.step_grad_balanced(
        editor, clean, torch.zeros_like(clean) if zero else delta, PROMPTS, times=TIMES, noise=n, layers=("one", "two"), **walk("sifm")
    )  # fmt: skip
    compare(mine, theirs, losses=False, keeps_delta=True)


def layer_losses_pair(layers: tuple[str, ...], lam: float, reduction: str) -> tuple[StepResult, Step]:
    editor, n = toy(("epsilon", "cond")), normal(2, 3, 4, 2, 2, seed=1)
    mine = ours(
        "sifm", editor, given={"noise": n}, timesteps=TIMES, layers=layers, aggregate="losses", lam=lam, reduction=reduction
    )  # fmt: skip
    theirs = sifm.step_layer_losses(
        editor, *start(), PROMPTS, times=TIMES, noise=n, layers=layers, lam=lam, **walk("sifm")
    )
    return mine, theirs


def test_sifm_losses_of_layers_of_one_shape() -> None:
    compare(*layer_losses_pair(("one", "two"), 200.0, "paper"), keeps_delta=True)


def test_sifm_losses_of_layers_of_unlike_shapes_in_means() -> None:
    """The norm term, on which every reading of "each divided by its element count" agrees."""
    compare(*layer_losses_pair(("one", "out"), 0.0, "mean_mean"), keeps_delta=True)


@pytest.mark.parametrize("lam", [0.0, 0.1, 200.0])
def test_sifm_losses_of_layers_of_unlike_shapes(lam: float) -> None:
    compare(*layer_losses_pair(("one", "out"), lam, "paper"), keeps_delta=True)


@pytest.mark.parametrize("lam", [0.0, 0.1])
def test_sifm_losses_of_unlike_layers_when_dist_is_a_sum(lam: float) -> None:
    """mean_sum: each layer's mean|φ| − λ ΣΔφ², divided by its element count (6·2·2 = 24, and 4·2·2 = 16)."""
    single = {
        layer: layer_losses_pair((layer,), lam, "mean_sum")[0].losses * count
        for layer, count in (("one", 24), ("out", 16))
    }
    plain = {
        layer: ours(
            "sifm", toy(("epsilon", "cond")), given={"noise": normal(2, 3, 4, 2, 2, seed=1)}, timesteps=TIMES,
            layers=(layer,), aggregate="features", lam=lam, reduction="mean_sum",
        ).losses
        for layer in single
    }  # fmt: skip
    for layer, losses in single.items():
        torch.testing.assert_close(losses, plain[layer], rtol=1e-12, atol=0)
    both = layer_losses_pair(("one", "out"), lam, "mean_sum")[0].losses
    torch.testing.assert_close(both, (plain["one"] / 24 + plain["out"] / 16) / 2, rtol=1e-12, atol=0)


def test_sifm_balanced_gradients_of_unlike_layers() -> None:
    """Each term by itself per element: the gradients of mean|φ| and of mean(Δφ²), which mean_mean has at λ = 0 and alone."""
    both = ("one", "out")
    balanced = layer_losses_pair(both, 1.0, "grad_balanced")[0].gradient
    norm = layer_losses_pair(both, 0.0, "mean_mean")[0].gradient
    whole = layer_losses_pair(both, 1.0, "mean_mean")[0].gradient  # norm − Dist
    expected = unit(norm) - unit(norm - whole)
    torch.testing.assert_close(balanced, expected, rtol=1e-9, atol=1e-15)


# -------------------------------------------------------------------------------------------------------- PhotoGuard


@pytest.mark.parametrize("kind", [("epsilon", "cond"), ("flow", "latent")])
@pytest.mark.parametrize("target", ["zeros", "grey", "picture"])
def test_photoguard_encoder(kind: tuple[str, str], target: str) -> None:
    editor = toy(kind)
    picture, pixels = target_picture()
    wanted = {"zeros": None, "grey": torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64), "picture": pixels}[target]
    mine = ours("photoguard-encoder", editor, target=picture if target == "picture" else target)
    compare(mine, photoguard.encoder_step(editor, *start(), target=wanted, **walk("photoguard-encoder")))


@pytest.mark.parametrize("iteration", [0, 500, 999])
def test_photoguard_encoder_native_decay(iteration: int) -> None:
    editor, settings = toy(("epsilon", "cond")), walk("photoguard-encoder", "native")
    alpha = photoguard.decayed(settings["alpha"], iteration, 1000)
    mine = ours("photoguard-encoder", editor, preset="native", iteration=iteration)
    compare(mine, photoguard.encoder_step(editor, *start(), alpha=alpha, eps=settings["eps"]))


@pytest.mark.parametrize("kind", EVERY_EDITOR)
def test_photoguard_diffusion(kind: tuple[str, str]) -> None:
    editor, seeds = toy(kind), torch.tensor([11, 12])
    mine = ours("photoguard-diffusion", editor, given={"rollout_seed": seeds})
    theirs = photoguard.diffusion_step(editor, *start(), PROMPTS, seeds=seeds.tolist(), **walk("photoguard-diffusion"))
    compare(mine, theirs)


@pytest.mark.parametrize("radius", [8.0, 0.3])
def test_photoguard_diffusion_l2(radius: float) -> None:
    """The authors' ball never binds on a picture this small; a tighter one does."""
    editor, seeds = toy(("epsilon", "cond")), torch.tensor([11, 12])
    mine = ours("photoguard-diffusion", editor, given={"rollout_seed": seeds}, preset="native", eps=radius)
    theirs = photoguard.diffusion_step_l2(editor, *start(), ["", ""], seeds=[seeds.tolist()], alpha=0.5, radius=radius)
    compare(mine, theirs)


def test_photoguard_diffusion_averages_its_passes() -> None:
    """A whole run of one iteration with three passes, in float32, from the same edit seeds."""
    images = pictures(2, (8, 8))
    attack = ATTACKS.create("photoguard-diffusion", preset="native", iterations=1, grad_reps=3, eps=0.3)
    found = attack.run(images, PROMPTS, editor=ToyEditor(), seeds=[3, 4])
    draws = Draws([3, 4])
    rows = [draws.integer("rollout_seed", 0, 2**31 - 1).tolist() for _ in range(3)]
    clean = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1).double() / 255 for i in images])
    theirs = photoguard.diffusion_step_l2(
        toy(("epsilon", "cond")), clean, torch.zeros_like(clean), ["", ""], seeds=rows, alpha=0.5, radius=0.3
    )
    torch.testing.assert_close(torch.stack(list(found.deltas)).double(), theirs.pixels - clean, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------------------------------- EditShield


@pytest.mark.parametrize("kind", [("epsilon", "cond"), ("flow", "latent")])
@pytest.mark.parametrize("tau", [Identity(), Blur(size=5, sigma=1.5)], ids=["identity", "blur"])
def test_editshield_paper(kind: tuple[str, str], tau: Any) -> None:
    editor = toy(kind)
    mine = ours("editshield", editor, transforms=EOT([tau]))
    # ours is the mean of squares, the source's ‖·‖² their sum
    compare(mine, editshield.paper_step(editor, *start(), transform=tau, **walk("editshield")), scale=1 / LATENT)


@pytest.mark.parametrize("kind", [("epsilon", "cond"), ("v_prediction", "cond"), ("flow", "cond")])
@pytest.mark.parametrize("range_bug", [False, True])
def test_editshield_released(kind: tuple[str, str], range_bug: bool) -> None:
    editor = toy(kind)
    clean, delta = start()
    delta = delta * 0.9  # Adam's first step is 1e-3: the walls that the release does not have stay out of reach
    delta = (clean + delta).clamp(0.002, 0.998) - clean
    draws = {
        "noise": normal(2, 4, 2, 2, seed=1), "timestep": torch.tensor([310, 870]),
        "clean_noise": normal(2, 4, 2, 2, seed=2), "clean_timestep": torch.tensor([42, 600]),
    }  # fmt: skip
    attack = ATTACKS.create("editshield", preset="native", range_bug=range_bug)
    mine = one_step(attack.objective, editor, clean, PROMPTS, delta=delta, settings=attack.pgd, given=draws)
    # A flow's t is held in float32, and Adam divides by gradients that are nearly 0.
    theirs = editshield.released_step(editor, clean, delta, **draws, pixels_as_they_are=range_bug)
    compare(mine, theirs, atol=1e-9 if kind[0] == "flow" else 1e-12)


# ---------------------------------------------------------------------------------------------------------- Semantic


@pytest.mark.parametrize("kind", [*CONDITIONED, ("flow", "latent"), ("epsilon", "own")])
@pytest.mark.parametrize("word", [None, "zombie"])
def test_semantic(kind: tuple[str, str], word: str | None) -> None:
    editor, n = toy(kind), normal(2, 10, 4, 2, 2, seed=1)
    words = None if word is None else {PROMPTS[0]: "zombie", PROMPTS[1]: "snow"}
    columns = [(1, 2, 3, 4) if word is None else (4,), (1,)]  # after the start token
    mine = ours("semantic", editor, given={"noise": n}, words=words)
    theirs = semantic.step(
        editor, *start(), PROMPTS, times=[float(t) for t in editor.timesteps(10)], noise=n, columns=columns, **walk("semantic")
    )  # fmt: skip
    # ours is a mean over the map's 2 × 2 places (as the attack on joint attention is stated), the U-Net form a sum
    compare(mine, theirs, scale=1 / 4)


# --------------------------------------------------------------------------------------------- on the denoising loss


def drawn(low: bool = False) -> dict[str, Tensor]:
    return {"noise": normal(2, 4, 2, 2, seed=1), "timestep": torch.tensor([150, 420] if low else [310, 870])}


def test_flow_times_have_the_same_signal_to_noise_ratio() -> None:
    """The table of the 1000-step scale, three digits."""
    table = {0: 0.028, 100: 0.256, 200: 0.364, 300: 0.454, 400: 0.538, 500: 0.618, 600: 0.696, 751: 0.805, 999: 0.936}
    assert {t: round(sigma_of_timestep(t), 3) for t in table} == table


@pytest.mark.parametrize("kind", EVERY_EDITOR)
@pytest.mark.parametrize("direction", ["+", "-"])
def test_advdm(kind: tuple[str, str], direction: str) -> None:
    editor, draws = toy(kind), drawn(low=kind[1] == "latent")
    mine = ours("advdm", editor, given=draws, direction=direction)
    compare(mine, denoising.advdm_step(editor, *start(), PROMPTS, **draws, direction=direction, **walk("advdm")))


@pytest.mark.parametrize("kind", [("epsilon", "own"), ("flow", "own")])
@pytest.mark.parametrize("path", ["lat", "cond"])
def test_advdm_paths(kind: tuple[str, str], path: str) -> None:
    editor, draws = toy(kind), drawn()
    mine = ours("advdm", editor, given=draws, path=path, preset="native")
    compare(mine, denoising.advdm_step(editor, *start(), PROMPTS, **draws, path=path, **walk("advdm", "native")))


@pytest.mark.parametrize("kind", EVERY_EDITOR)
@pytest.mark.parametrize("direction", ["-", "+"])
def test_sds(kind: tuple[str, str], direction: str) -> None:
    editor, draws = toy(kind), drawn(low=kind[1] == "latent")
    mine = ours("sds", editor, given=draws, direction=direction)
    compare(mine, denoising.sds_step(editor, *start(), PROMPTS, **draws, direction=direction, **walk("sds")))


@pytest.mark.parametrize("direction", ["-", "+"])
def test_sds_with_a_target(direction: str) -> None:
    editor, draws = toy(("epsilon", "cond")), drawn()
    picture, pixels = target_picture()
    mine = ours("sds", editor, given=draws, direction=direction, target_weight=1.0, target=picture, preset="native")
    theirs = denoising.sdst_step(
        editor, *start(), PROMPTS, **draws, target=pixels, direction=direction, **walk("sds", "native")
    )
    compare(mine, theirs, losses=False)


@pytest.mark.parametrize("kind", EVERY_EDITOR)
def test_mist(kind: tuple[str, str]) -> None:
    editor, draws = toy(kind), drawn(low=kind[1] == "latent")
    picture, pixels = target_picture()
    mine = ours("mist", editor, given=draws, target=picture)
    compare(mine, denoising.mist_step(editor, *start(), PROMPTS, **draws, target=pixels, **walk("mist")))


@pytest.mark.parametrize(("mode", "path"), [("textural", "both"), ("semantic", "both"), ("fused", "cond")])
def test_mist_modes(mode: str, path: str) -> None:
    editor, draws = toy(("flow", "own")), drawn()
    picture, pixels = target_picture()
    name = "texture" if mode == "textural" else mode
    mine = ours("mist", editor, given=draws, target=picture, mode=name, path=path, preset="native")
    theirs = denoising.mist_step(
        editor, *start(), PROMPTS, **draws, target=pixels, mode=mode, path=path, **walk("mist", "native")
    )
    compare(mine, theirs)


@pytest.mark.parametrize("kind", EVERY_EDITOR)
@pytest.mark.parametrize("fused", [False, True])
def test_ace(kind: tuple[str, str], fused: bool) -> None:
    editor, low = toy(kind), kind[1] == "latent"
    draws = drawn(low=low) if low else {**drawn(), "timestep": torch.tensor([640, 910])}
    picture, pixels = target_picture()
    mine = ours("ace", editor, given=draws, target=picture, fused=fused)
    compare(mine, denoising.ace_step(editor, *start(), PROMPTS, **draws, target=pixels, fused=fused, **walk("ace")))


def test_ace_velocity() -> None:
    editor, draws = toy(("flow", "cond")), {**drawn(), "timestep": torch.tensor([640, 910])}
    picture, pixels = target_picture()
    mine = ours("ace", editor, given=draws, target=picture, of="velocity", preset="native")
    theirs = denoising.ace_step(
        editor, *start(), PROMPTS, **draws, target=pixels, of="velocity", **walk("ace", "native")
    )
    # start() lies outside the authors' smaller box: the step projects it first
    compare(mine, theirs)


@pytest.mark.parametrize(
    "kind", [("epsilon", "cond"), ("epsilon", "own"), *FLOW_AND_EPSILON[1:], ("epsilon", "latent")]
)
@pytest.mark.parametrize("preset", ["paper", "native"])
def test_diffusionguard(kind: tuple[str, str], preset: str) -> None:
    editor, n = toy(kind), normal(2, 4, 2, 2, seed=1)
    mine = ours("diffusionguard", editor, given={"noise": n}, preset=preset)
    prompts = PROMPTS if preset == "paper" else ["", ""]
    compare(mine, denoising.diffusionguard_step(editor, *start(), prompts, noise=n, **walk("diffusionguard", preset)))


class Grid(ToyEditor):
    """Image-to-image as real schedulers have it: where an edit starts depends on the number of steps asked for."""

    def timesteps(self, n: int) -> Tensor:
        return torch.linspace(1, 900, n).flip(0)[n - max(int(n * 0.6), 1) :]


def test_diffusionguard_of_img2img_is_at_the_first_timestep_of_the_editors_own_edit() -> None:
    """σ₀ of the edit (10 steps: 6 of them run, from 500.4), not that of a 4-step schedule (from 300.7)."""
    editor, n = Grid("epsilon", "latent", dtype=torch.float64), normal(2, 4, 2, 2, seed=1)
    first = [float(editor.timesteps(k)[0]) for k in (10, 4)]
    assert first == pytest.approx([500.444, 300.667], abs=0.01)
    mine = ours("diffusionguard", editor, given={"noise": n})
    compare(mine, denoising.diffusionguard_step(editor, *start(), PROMPTS, noise=n, steps=10, **walk("diffusionguard")))


# ---------------------------------------------------------------------------------------------- further options

PATHS = ["both", "lat", "cond"]
# Where pixels have two ways in. "own": a condition that is not the latent, so that the two cannot be mistaken for each other.
TWO_WAYS = [*CONDITIONED, ("epsilon", "own"), ("flow", "own")]
# A flow from pure noise has n̂ = n at σ = 1, whatever the network says (see the test of that).
ESTIMATES = [
    (kind, of)
    for kind in EVERY_EDITOR
    for of in ("output", "noise", "clean")
    if of != "noise" or kind[0] != "flow" or kind[1] == "latent"
]


def noisy_draws() -> dict[str, Tensor]:
    """Timesteps of ACE's range."""
    return {**drawn(), "timestep": torch.tensor([640, 910])}


# -------------------------------------------------------------------------------------------------------------- SIFM


@pytest.mark.parametrize("kind", [("epsilon", "cond"), ("flow", "own")])
@pytest.mark.parametrize("reduction", ["mean_mean", "mean_sum", "relative"])
@pytest.mark.parametrize("dist", ["mse", "l1", "cosine"])
def test_sifm_frobenius_reductions(kind: tuple[str, str], reduction: str, dist: str) -> None:
    """At the λ that stands where none is given: 0.1, and 1 for relative."""
    compare(*sifm_pair(kind, feature_norm="frobenius", reduction=reduction, dist=dist), keeps_delta=True)


@pytest.mark.parametrize("kind", [("epsilon", "cond"), ("flow", "own")])
@pytest.mark.parametrize("feature_norm", ["l1", "frobenius"])
@pytest.mark.parametrize("reduction", ["mean_mean", "mean_sum", "relative"])
@pytest.mark.parametrize(("dist", "lam"), [("mse", 7.0), ("l1", 3.0), ("cosine", 20.0)])
def test_sifm_dist_reductions(kind: tuple[str, str], feature_norm: str, reduction: str, dist: str, lam: float) -> None:
    """At a λ where Dist has a say of its own."""
    options = {"feature_norm": feature_norm, "reduction": reduction, "dist": dist, "lam": lam}
    compare(*sifm_pair(kind, **options), keeps_delta=True)


@pytest.mark.parametrize("dist", ["mse", "l1", "cosine"])
@pytest.mark.parametrize(
    ("reduction", "lam"), [("paper", 0.1), ("mean_mean", 0.1), ("mean_sum", 0.1), ("relative", 1.0)]
)
def test_sifm_lambda_where_none_is_given(reduction: str, lam: float, dist: str) -> None:
    mine, _ = sifm_pair(("epsilon", "cond"), reduction=reduction, dist=dist)
    _, theirs = sifm_pair(("epsilon", "cond"), reduction=reduction, dist=dist, lam=lam)
    compare(mine, theirs, keeps_delta=True)


@pytest.mark.parametrize("feature_norm", ["l1", "frobenius"])
@pytest.mark.parametrize("dist", ["mse", "l1"])
def test_sifm_relative_starts_from_the_norm_alone(feature_norm: str, dist: str) -> None:
    """At δ = 0 the relative norm is 1 and Dist 0, whatever λ."""
    options = {"feature_norm": feature_norm, "dist": dist, "reduction": "relative", "zero": True}
    mine, theirs = sifm_pair(("epsilon", "cond"), **options)
    torch.testing.assert_close(mine.losses, torch.ones_like(mine.losses), rtol=1e-12, atol=0)
    compare(mine, theirs, keeps_delta=True)


# ---------------------------------------------------------------------------------------------------------- Semantic


@pytest.mark.parametrize(
    ("kind", "path"),
    [*((k, p) for k in TWO_WAYS for p in PATHS), (("flow", "latent"), "lat"), (("epsilon", "latent"), "lat")],
)
def test_semantic_paths(kind: tuple[str, str], path: str) -> None:
    editor, n = toy(kind), normal(2, 10, 4, 2, 2, seed=1)
    mine = ours("semantic", editor, given={"noise": n}, path=path)
    theirs = semantic.step(
        editor, *start(), PROMPTS, times=[float(t) for t in editor.timesteps(10)], noise=n,
        columns=[(1, 2, 3, 4), (1,)], path=path, **walk("semantic"),
    )  # fmt: skip
    compare(mine, theirs, scale=1 / 4)  # as in test_semantic


# --------------------------------------------------------------------------------------------- on the denoising loss


@pytest.mark.parametrize("kind", TWO_WAYS)
@pytest.mark.parametrize("mode", ["fused", "semantic", "textural"])
@pytest.mark.parametrize("path", PATHS)
def test_mist_paths(kind: tuple[str, str], mode: str, path: str) -> None:
    """The texture term is about the picture under attack on every path."""
    editor, draws = toy(kind), drawn()
    picture, pixels = target_picture()
    name = "texture" if mode == "textural" else mode
    mine = ours("mist", editor, given=draws, target=picture, mode=name, path=path)
    theirs = denoising.mist_step(
        editor, *start(), PROMPTS, **draws, target=pixels, mode=mode, path=path, **walk("mist")
    )
    compare(mine, theirs)


@pytest.mark.parametrize("kind", TWO_WAYS)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_ace_paths(kind: tuple[str, str], fused: bool, path: str) -> None:
    """ACE+'s latent term is about the picture under attack on every path, as MIST's texture term is."""
    editor, draws = toy(kind), noisy_draws()
    picture, pixels = target_picture()
    mine = ours("ace", editor, given=draws, target=picture, fused=fused, path=path)
    theirs = denoising.ace_step(
        editor, *start(), PROMPTS, **draws, target=pixels, fused=fused, path=path, **walk("ace")
    )
    compare(mine, theirs)


@pytest.mark.parametrize("image", ["cond", "own"])
@pytest.mark.parametrize("path", PATHS)
def test_ace_velocity_paths(image: str, path: str) -> None:
    editor, draws = toy(("flow", image)), noisy_draws()
    picture, pixels = target_picture()
    mine = ours("ace", editor, given=draws, target=picture, of="velocity", path=path)
    theirs = denoising.ace_step(
        editor, *start(), PROMPTS, **draws, target=pixels, of="velocity", path=path, **walk("ace")
    )
    compare(mine, theirs)


@pytest.mark.parametrize("name", ["ace", "mist"])
@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
def test_latent_path_of_img2img_is_the_only_one(name: str, prediction: str) -> None:
    editor, draws = toy((prediction, "latent")), drawn(low=True)
    picture, pixels = target_picture()
    mine = ours(name, editor, given=draws, target=picture, path="lat")
    step = {"ace": denoising.ace_step, "mist": denoising.mist_step}[name]
    compare(mine, step(editor, *start(), PROMPTS, **draws, target=pixels, path="both", **walk(name)))


@pytest.mark.parametrize(("kind", "of"), ESTIMATES)
def test_diffusionguard_of(kind: tuple[str, str], of: str) -> None:
    editor, n = toy(kind), normal(2, 4, 2, 2, seed=1)
    mine = ours("diffusionguard", editor, given={"noise": n}, of=of)
    compare(mine, denoising.diffusionguard_step(editor, *start(), PROMPTS, noise=n, of=of, **walk("diffusionguard")))


@pytest.mark.parametrize("image", ["cond", "own"])
def test_diffusionguard_of_the_noise_of_a_flow_from_pure_noise_is_constant(image: str) -> None:
    """n̂ = z_σ + (1−σ) v̂ is n itself at σ = 1: nothing reaches the pixels, and −‖n‖₂ is the loss."""
    editor, n = toy(("flow", image)), normal(2, 4, 2, 2, seed=1)
    mine = ours("diffusionguard", editor, given={"noise": n}, of="noise")
    theirs = denoising.diffusionguard_step(editor, *start(), PROMPTS, noise=n, of="noise", **walk("diffusionguard"))
    for found in (mine, theirs):
        assert not found.gradient.any()
        torch.testing.assert_close(found.losses, -n.flatten(1).norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("of", ["noise", "clean"])
def test_diffusionguard_of_an_estimate_is_at_the_noise_level_of_the_same_timestep(of: str) -> None:
    """Image-to-image: z is noised to the edit's first timestep, and n̂ and ẑ are solved for at that one."""
    editor, n = Grid("epsilon", "latent", dtype=torch.float64), normal(2, 4, 2, 2, seed=1)
    mine = ours("diffusionguard", editor, given={"noise": n}, of=of)
    theirs = denoising.diffusionguard_step(
        editor, *start(), PROMPTS, noise=n, steps=10, of=of, **walk("diffusionguard")
    )
    compare(mine, theirs)


# ------------------------------------------------------------------------------------------- the comparison can fail


@pytest.mark.parametrize("path", ["lat", "cond"])
def test_another_path_is_seen(path: str) -> None:
    editor, draws = toy(("epsilon", "own")), noisy_draws()
    picture, pixels = target_picture()
    theirs = denoising.ace_step(editor, *start(), PROMPTS, **draws, target=pixels, path="both", **walk("ace"))
    with pytest.raises(AssertionError):
        compare(ours("ace", editor, given=draws, target=picture, path=path), theirs)


@pytest.mark.parametrize("of", ["output", "clean"])
def test_another_estimate_is_seen(of: str) -> None:
    editor, n = toy(("v_prediction", "cond")), normal(2, 4, 2, 2, seed=1)
    theirs = denoising.diffusionguard_step(editor, *start(), PROMPTS, noise=n, of="noise", **walk("diffusionguard"))
    with pytest.raises(AssertionError):
        compare(ours("diffusionguard", editor, given={"noise": n}, of=of), theirs)


# ------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("eps", [0.03, 8 / 255, 0.12])
@pytest.mark.parametrize("kind", ["sign", "uniform"])
def test_noise(kind: str, eps: float) -> None:
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8))
    (saved,) = ATTACKS.create("noise", kind=kind, eps=eps).immunize([picture], [None], seeds=[9])
    stream = np.random.default_rng(9)
    random = 2 * stream.integers(0, 2, size=(8, 8, 3)) - 1 if kind == "sign" else stream.random((8, 8, 3))
    clean = torch.from_numpy(np.array(picture)).permute(2, 0, 1).long()
    expected = noise.noisy_bytes(clean, torch.from_numpy(random.astype(np.float64)).permute(2, 0, 1), kind, eps)
    assert torch.equal(torch.from_numpy(np.array(saved)).permute(2, 0, 1).long(), expected)


# ------------------------------------------------------------------------------------------- the comparison can fail


def test_a_wrong_sign_is_seen() -> None:
    editor, draws = toy(("epsilon", "cond")), drawn()
    theirs = denoising.sds_step(editor, *start(), PROMPTS, **draws, direction="-", **walk("sds"))
    with pytest.raises(AssertionError):
        compare(ours("sds", editor, given=draws, direction="+"), theirs)


def test_a_small_error_in_one_weight_is_seen() -> None:
    editor, draws = toy(("epsilon", "cond")), drawn()
    picture, pixels = target_picture()
    theirs = denoising.mist_step(editor, *start(), PROMPTS, **draws, target=pixels, **walk("mist"))
    with pytest.raises(AssertionError):
        compare(ours("mist", editor, given=draws, target=picture, weight=0.611), theirs)
