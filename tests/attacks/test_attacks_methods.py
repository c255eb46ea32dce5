"""Every method on every kind of white-box editor: loss falls, gradients are right, passes are counted, errors are clear."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from isr.attacks.pgd import PGD, one_step, to_tensor
from torch import Tensor
from toy import ToyEditor, pictures

from isr.errors import UsageError
from isr.registry import ATTACKS

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")
KINDS = ("cond", "own", "latent")
GRADIENT_METHODS = (
    "sifm", "photoguard-encoder", "photoguard-diffusion", "editshield", "semantic", "sds", "advdm", "mist", "ace",
    "diffusionguard", "end-to-end",
)  # fmt: skip
PROMPTS = ["make the sky red", "a cat"]


def make(name: str, **settings: Any) -> PGD:
    attack: PGD = ATTACKS.create(name, **settings)
    return attack


def test_every_paper_method_and_the_extra_ones_are_registered() -> None:
    names = {p.name for p in ATTACKS.list()}
    assert {*GRADIENT_METHODS, "noise"} <= names
    for alias, name in {
        "PhotoGE": "photoguard-encoder",
        "PhotoGD": "photoguard-diffusion",
        "ED": "editshield",
        "SA": "semantic",
        "ACE": "ace",
        "SDS": "sds",
        "MIST": "mist",
        "SIFM": "sifm",
    }.items():
        assert ATTACKS.resolve(alias) == name


@pytest.mark.parametrize("name", [*GRADIENT_METHODS, "noise"])
def test_unknown_settings_are_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} has no setting 'epss' \\(did you mean 'eps'\\?\\)"):
        make(name, epss=0.1)
    with pytest.raises(UsageError, match=f"^{name} has no preset 'papers'; it has paper"):
        make(name, preset="papers")


def own_loss(attack: PGD, editor: ToyEditor, clean: Tensor, delta: Tensor) -> Tensor:
    """The method's own loss with the same random numbers at every δ, averaged over draws where it is stochastic."""
    draws = 6 if attack.objective.stochastic and attack.name not in ("sifm", "end-to-end") else 1
    total = torch.zeros(len(clean))
    for k in range(draws):
        total += one_step(attack.objective, editor, clean, PROMPTS, delta=delta, seeds=[100 + k, 200 + k]).losses
    return total / draws


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", [n for n in GRADIENT_METHODS if n != "sds"])
def test_loss_falls(name: str, prediction: str, kind: str) -> None:
    editor, images = ToyEditor(prediction, kind), pictures(2)
    attack = make(name, eps=0.12, alpha=0.015, iterations=8)
    result = attack.run(images, PROMPTS, editor=editor, seeds=[0, 1])
    clean = to_tensor(images)
    before = own_loss(attack, editor, clean, torch.zeros_like(clean))
    after = own_loss(attack, editor, clean, torch.stack(result.deltas))
    assert bool((after < before).all()), (before, after)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sds_moves_the_latent_against_the_score(prediction: str, kind: str) -> None:
    """⟨g, z⟩ at the same (t, n) falls over steps. (That the *denoising loss* falls needs a trained denoiser: SDS drops the
    Jacobian, so for random weights nothing promises it.)"""
    editor, clean = ToyEditor(prediction, kind), to_tensor(pictures(2))
    given = {
        "noise": torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor([300, 500]),
    }
    attack, delta, losses = make("sds", eps=0.12, alpha=0.015), torch.zeros_like(clean), []
    for _ in range(6):
        step = one_step(attack.objective, editor, clean, PROMPTS, delta=delta, settings=attack.pgd, given=given)
        delta = step.delta
        losses.append(step.losses)
    assert bool((losses[-1] < losses[0]).all()), losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", [n for n in GRADIENT_METHODS if n != "sds"])
def test_gradient_equals_central_differences(name: str, prediction: str, kind: str) -> None:
    """float64, along a random direction: (f(x + hu) − f(x − hu)) / 2h = ⟨∇f, u⟩. (sds has its identity in its own test.)"""
    editor = ToyEditor(prediction, kind, dtype=torch.float64)
    clean = 0.2 + 0.6 * to_tensor(pictures(2)).double()
    g = torch.Generator().manual_seed(1)
    delta = 0.03 * (2 * torch.rand(clean.shape, generator=g, dtype=torch.float64) - 1)
    direction = torch.randn(clean.shape, generator=g, dtype=torch.float64)
    objective = make(name).objective

    def losses(at: Tensor) -> Any:
        return one_step(objective, editor, clean, PROMPTS, delta=at, seeds=[0, 1])

    h = 1e-6
    numeric = (losses(delta + h * direction).losses - losses(delta - h * direction).losses) / (2 * h)
    found = losses(delta)
    analytic = (found.gradient * direction).flatten(1).sum(dim=1)
    assert found.gradient.dtype == torch.float64
    assert torch.allclose(numeric, analytic, rtol=1e-5, atol=1e-7), (numeric, analytic)


#: (encoder passes, denoiser passes) per iteration at one picture; K = 4 for edits of the toy, whose rollout encodes x for
#: the latent and again for the condition.
PASSES = {
    "sifm": (1, 1), "photoguard-encoder": (1, 0), "editshield": (2, 0), "semantic": (1, 1), "sds": (1, 1), "advdm": (1, 1),
    "mist": (1, 1), "ace": (1, 1), "diffusionguard": (1, 1), "photoguard-diffusion": (2, 4), "end-to-end": (2, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_passes_per_iteration(name: str) -> None:
    """All timesteps share one encoder pass and, memory allowing, one denoiser pass; text is embedded once."""

    def calls(iterations: int) -> Counter[str]:
        editor = ToyEditor()
        make(name, iterations=iterations).immunize(pictures(1), ["a b"], editor=editor, seeds=[0])
        return editor.calls

    short, long = calls(2), calls(5)
    encoder, denoiser = PASSES[name]
    assert (long["encoder"] - short["encoder"]) / 3 == encoder
    assert (long["denoiser"] - short["denoiser"]) / 3 == denoiser
    if "rollout" not in long:
        assert long["text"] == short["text"] <= 1
    if name == "sifm":
        assert long["full"] == 0, "the pass stops after the deepest layer asked for"
        assert long["rows"] == 4 * 6, "4 timesteps, 5 iterations and the clean features"


@pytest.mark.parametrize(("policy", "walks", "features"), [("fixed", 0, 1), ("fresh_imm", 1, 1), ("fresh_both", 1, 2)])
def test_a_trajectory_costs_a_clean_edit_once_or_with_fresh_noise_each_time(
    policy: str, walks: int, features: int
) -> None:
    """Default T ends at the 6th of 10 timesteps: 5 full passes lead there."""

    def calls(iterations: int) -> Counter[str]:
        editor = ToyEditor()
        attack = make("sifm", iterations=iterations, path="trajectory", noise=policy)
        attack.immunize(pictures(1), ["a b"], editor=editor, seeds=[0])
        return editor.calls

    short, long = calls(2), calls(5)
    assert (long["full"] - short["full"]) / 3 == 5 * walks
    assert (long["denoiser"] - short["denoiser"]) / 3 == 5 * walks + features
    assert short["full"] == 5 + 2 * 5 * walks


def test_rows_bound_the_denoiser_pass_and_leave_one_encoder_pass() -> None:
    editor = ToyEditor()
    make("sifm", iterations=1, rows=2).immunize(pictures(1), ["a b"], editor=editor, seeds=[0])
    assert editor.calls["denoiser"] == 2 + 2, "4 timesteps in 2 parts, for the clean picture and for one iteration"
    assert editor.calls["encoder"] == 2 + 1


def test_an_editor_that_offers_condition_of_is_encoded_once() -> None:
    class Shared(ToyEditor):
        def condition_of(self, raw: Tensor) -> Tensor:
            return torch.tanh(torch.nn.functional.conv2d(raw, self.w_cond))

    plain, shared = ToyEditor(image="own"), Shared(image="own")
    a = make("sifm", iterations=3).immunize(pictures(1), ["a b"], editor=plain, seeds=[0])
    b = make("sifm", iterations=3).immunize(pictures(1), ["a b"], editor=shared, seeds=[0])
    assert a[0].tobytes() == b[0].tobytes()
    assert plain.calls["encoder"] == 2 + 2 * 3
    assert shared.calls["encoder"] == 1 + 3


@pytest.mark.parametrize(
    ("name", "lacks"),
    [("semantic", "attention"), ("photoguard-diffusion", "rollout"), ("sifm", "features"), ("advdm", "predict")],
)
def test_not_defined_for_this_editor(name: str, lacks: str) -> None:
    editor = ToyEditor()
    setattr(editor, lacks, None)
    with pytest.raises(
        UsageError, match=rf"{name} is not defined for this editor \('toy', family 'toy'\): it needs {lacks}"
    ):
        make(name).immunize(pictures(1), ["a"], editor=editor, seeds=[0])


@pytest.mark.parametrize("name", ["sifm", "advdm", "mist", "ace", "semantic"])
def test_condition_path_is_not_defined_where_there_is_no_condition(name: str) -> None:
    with pytest.raises(UsageError, match=r"is not defined for this editor.*enters it only through the noisy latent"):
        make(name, path="cond").immunize(pictures(1), ["a"], editor=ToyEditor(image="latent"), seeds=[0])


@pytest.mark.parametrize("name", ["advdm", "mist", "ace", "semantic"])
def test_trajectory_is_for_sifm(name: str) -> None:
    with pytest.raises(UsageError, match="path must be one of both, lat, cond, not 'trajectory'"):
        make(name, path="trajectory").immunize(pictures(1), ["a"], editor=ToyEditor(), seeds=[0])


def test_paths_carry_the_gradient_they_name() -> None:
    """∇(both) is not ∇(lat) nor ∇(cond); with the denoiser blind to its condition, ∇(cond) is 0 and ∇(both) = ∇(lat)."""
    clean = to_tensor(pictures(2)).double()

    def gradient(editor: ToyEditor, path: str) -> Tensor:
        return one_step(make("advdm", path=path).objective, editor, clean, PROMPTS, seeds=[0, 1]).gradient

    editor = ToyEditor(dtype=torch.float64)
    both, lat, cond = (gradient(editor, p) for p in ("both", "lat", "cond"))
    assert torch.allclose(both, lat + cond, atol=1e-12), "two additive routes at δ = 0"
    assert float(lat.abs().max()) > 0
    assert float(cond.abs().max()) > 0
    editor.w1[:, 4:] = 0
    assert float(gradient(editor, "cond").abs().max()) == 0


# ------------------------------------------------------------------------------------------------ options of methods


def test_semantic_lowers_attention_on_the_word_it_is_given() -> None:
    editor, images, prompt = ToyEditor(), pictures(1), ["make the sky red"]
    clean = to_tensor(images)
    by_word = one_step(make("semantic", words="sky").objective, editor, clean, prompt)
    by_column = one_step(make("semantic", columns=[3]).objective, editor, clean, prompt)
    everything = one_step(make("semantic").objective, editor, clean, prompt)
    assert torch.equal(by_word.gradient, by_column.gradient), "sky is the third word, column 3 after the start token"
    assert not torch.equal(by_word.gradient, everything.gradient)
    named = one_step(make("semantic", words={"make the sky red": "sky"}).objective, editor, clean, prompt)
    assert torch.equal(named.gradient, by_word.gradient)
    with pytest.raises(UsageError, match="needs a prompt with at least one word, not ''"):
        one_step(make("semantic").objective, editor, clean, [""])


def test_semantic_batches_pictures_with_different_columns() -> None:
    editor, clean = ToyEditor(dtype=torch.float64), to_tensor(pictures(2)).double()
    both = one_step(make("semantic").objective, editor, clean, PROMPTS, seeds=[0, 1])
    first = one_step(make("semantic").objective, editor, clean[:1], PROMPTS[:1], seeds=[0])
    second = one_step(make("semantic").objective, editor, clean[1:], PROMPTS[1:], seeds=[1])
    assert torch.allclose(both.losses, torch.cat([first.losses, second.losses]))
    assert torch.allclose(both.gradient, torch.cat([first.gradient, second.gradient]))


def test_editshield_gradient_is_zero_at_zero_and_the_preset_therefore_starts_beside_it() -> None:
    step = one_step(make("editshield").objective, ToyEditor(), to_tensor(pictures(1)), [""])
    assert not step.gradient.any()
    assert not step.delta.any()
    assert make("editshield").pgd.start == "small"
    assert make("end-to-end").pgd.start == "small"


def test_editshield_range_bug_feeds_the_encoder_unit_pixels() -> None:
    seen: list[Tensor] = []

    class Spy(ToyEditor):
        def latents(self, x: Tensor) -> Tensor:
            seen.append(2 * x.detach() - 1)  # what an encoder of [-1, 1] pixels gets
            return super().latents(x)

    clean = to_tensor(pictures(1))
    one_step(make("editshield", preset="native", range_bug=True).objective, Spy(), clean, [""])
    assert torch.allclose(seen[0], clean, atol=1e-6)


def test_mist_weight_is_the_authors_balance_in_means() -> None:
    # Σ(z−z_T)² − 10⁴ · mean over 4·64·64 = 16384 elements is 16384 · (MSE − 0.6104 · L).
    assert make("mist").objective.options()["weight"] == pytest.approx(0.6103515625)
    editor, clean = ToyEditor(dtype=torch.float64), to_tensor(pictures(2)).double()
    parts = {
        mode: one_step(make("mist", mode=mode).objective, editor, clean, PROMPTS, seeds=[0, 1])
        for mode in ("fused", "texture", "semantic")
    }
    want = parts["texture"].gradient + 0.6103515625 * parts["semantic"].gradient
    assert torch.allclose(parts["fused"].gradient, want, rtol=1e-10, atol=1e-14)


def test_ace_plus_adds_the_latent_pull() -> None:
    editor, clean = ToyEditor(dtype=torch.float64), to_tensor(pictures(2)).double()
    plain = one_step(make("ace").objective, editor, clean, PROMPTS, seeds=[0, 1])
    fused = one_step(make("ace", fused=True).objective, editor, clean, PROMPTS, seeds=[0, 1])
    texture = one_step(make("mist", mode="texture").objective, editor, clean, PROMPTS, seeds=[0, 1])
    assert torch.allclose(fused.losses, plain.losses + 100 * texture.losses)
    with pytest.raises(UsageError, match="of='velocity' is for flow editors"):
        one_step(make("ace", of="velocity").objective, editor, clean, PROMPTS)
    velocity = one_step(make("ace", of="velocity").objective, ToyEditor("flow", dtype=torch.float64), clean, PROMPTS)
    assert torch.isfinite(velocity.gradient).all()
    assert velocity.gradient.any()


def test_directions_are_opposite() -> None:
    editor, clean = ToyEditor(), to_tensor(pictures(2))
    for name in ("advdm", "sds"):
        up, down = (one_step(make(name, direction=d).objective, editor, clean, PROMPTS, seeds=[0, 1]) for d in "+-")
        assert torch.allclose(up.gradient, -down.gradient)


def test_diffusionguard_sees_pure_noise_at_the_first_timestep() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(ToyEditor):
        def predict(self, noisy: Tensor, t: Tensor, text: Any, cond: Tensor | None) -> Tensor:
            seen.append((noisy.detach(), t))
            return super().predict(noisy, t, text, cond)

    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    editor = Spy()
    one_step(make("diffusionguard").objective, editor, to_tensor(pictures(1)), ["a"], given={"noise": noise})
    ((noisy, t),) = seen
    assert torch.equal(noisy, noise)
    assert t.tolist() == [editor.timesteps(4)[0].item()]


def test_photoguard_targets() -> None:
    editor, clean = ToyEditor(), to_tensor(pictures(1))
    raw = editor.latents(clean)

    def loss(**options: Any) -> float:
        return float(one_step(make("photoguard-encoder", **options).objective, editor, clean, [""]).losses)

    assert loss() == pytest.approx(float(raw.norm()), rel=1e-6)
    assert loss(target="scaled-zeros") == pytest.approx(float(editor.scaled(raw).norm()), rel=1e-6)
    grey = editor.latents(torch.full_like(clean, 0.5))
    assert loss(target="grey") == pytest.approx(float((raw - grey).norm()), rel=1e-6)
    assert loss(target=pictures(1)[0]) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(UsageError, match="target must be 'zeros'"):
        make("photoguard-encoder", target="black")


def test_docstrings_say_formula_source_randomness_cost_and_difference() -> None:
    for name in GRADIENT_METHODS:
        text = ATTACKS.load(name).__doc__ or ""
        for word in ("Random:", "Cost per", "Options:"):
            assert word in text, (name, word)
        if name not in ("sifm", "end-to-end"):
            assert "Source:" in text, name
            assert "Ours differs" in text, name
