"""Options that make no sense are refused by name, with what was expected and what came, before anything runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from isr.attacks.ace import ACE
from isr.attacks.advdm import AdvDM
from isr.attacks.context import Context, Draws
from isr.attacks.editshield import EditShield
from isr.attacks.factory import attack
from isr.attacks.mist import Mist
from isr.attacks.objective import Objective
from isr.attacks.pgd import PGD, one_step, to_tensor
from isr.attacks.settings import PGDSettings
from isr.attacks.sifm import SIFM, sifm
from isr.attacks.targets import picture_tensor
from isr.attacks.wrappers import PromptPool
from torch import Tensor
from toy import ToyEditor, pictures

from isr.errors import UsageError
from isr.registry import ATTACKS

METHODS = tuple(p.name for p in ATTACKS.list() if p.name != "noise")

PROMPTS = ["make the sky red", "a cat"]


def make(name: str, **settings: Any) -> PGD:
    made: PGD = ATTACKS.create(name, **settings)
    return made


# ----------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("name", ["mist", "ace", "sds", "photoguard-encoder", "photoguard-diffusion"])
@pytest.mark.parametrize("wrong", ["gery", "logo.png", "", 3, np.zeros((4, 4, 3), np.uint8)])
def test_a_mistyped_target_is_no_picture(name: str, wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"target must be .*'grey'.* or a picture \(PIL\.Image\), not "):
        make(name, target=wrong)


def test_zeros_is_a_latent_and_no_picture() -> None:
    with pytest.raises(UsageError, match=r"target must be 'tile', 'grey' or a picture.*not 'zeros'"):
        make("mist", target="zeros")
    with pytest.raises(UsageError, match=r"target must be 'tile', 'grey' or a picture.*not 'zeros'"):
        picture_tensor("zeros", torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("name", ["mist", "ace"])
def test_grey_tile_and_a_picture_are_three_targets(name: str) -> None:
    clean = to_tensor(pictures(1))
    losses = [
        float(one_step(make(name, target=t).objective, ToyEditor(), clean, ["a"]).losses)
        for t in ("grey", "tile", pictures(1, seed=8)[0])
    ]
    assert len(set(losses)) == 3


# ------------------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("name", "bad", "match"),
    [
        ("ace", {"fused": "False"}, r"fused must be True or False, not 'False'"),
        ("ace", {"fused": 0}, r"fused must be True or False, not 0"),
        ("ace", {"low": 600.5}, r"low must be a whole number, not 600\.5"),
        ("editshield", {"range_bug": "no"}, r"range_bug must be True or False, not 'no'"),
        ("editshield", {"pixel_weight": "x"}, r"pixel_weight must be a number or None, not 'x'"),
        ("sifm", {"reclip": "False"}, r"reclip must be True or False, not 'False'"),
        ("sifm", {"lam": "abc"}, r"lam must be a number or None, not 'abc'"),
        ("sifm", {"lam": float("nan")}, r"lam must be a number or None, not nan"),
        ("sifm", {"lam": True}, r"lam must be a number or None, not True"),
        ("sifm", {"lam": -1}, r"lam must be at least 0, not -1"),
        ("sifm", {"lam": float("inf")}, r"lam must be at least 0 and finite, not inf"),
        ("sifm", {"count": 2.5}, r"count must be a whole number, not 2\.5"),
        ("sifm", {"count": "4"}, r"count must be a whole number, not '4'"),
        ("sifm", {"fraction": "x"}, r"fraction must be a number, not 'x'"),
        ("sifm", {"timesteps": 500}, r"timesteps must be a list of numbers from 0 to 1000, at least one, not 500"),
        ("sifm", {"timesteps": "500"}, r"timesteps must be a list of numbers .* not '500'"),
        ("sifm", {"timesteps": ["500"]}, r"timesteps must be a list of numbers .* not \['500'\]"),
        ("sifm", {"layers": "one"}, r"layers must be a list of names, .* not 'one'; write \['one'\]"),
        ("sifm", {"layers": []}, r"layers must be a list of names, at least one, not \[\]; None: the editor's default"),
        ("sifm", {"layers": [1]}, r"layers must be a list of names"),
        ("semantic", {"columns": 3}, r"columns must be a list of whole numbers from 0, at least one, not 3"),
        ("semantic", {"columns": []}, r"columns must be a list of whole numbers from 0, at least one, not \[\]"),
        ("semantic", {"columns": [-1]}, r"columns must be a list of whole numbers from 0"),
        ("semantic", {"columns": [1.5]}, r"columns must be a list of whole numbers from 0"),
        ("semantic", {"count": 0}, r"count must be at least 1, not 0"),
        ("semantic", {"words": 3}, r"words must be one word, a mapping \{prompt: word\} or None, not 3"),
        ("mist", {"weight": "x"}, r"weight must be a number, not 'x'"),
        ("mist", {"weight": -0.5}, r"weight must be at least 0, not -0\.5"),
        ("sds", {"target_weight": -1}, r"target_weight must be at least 0"),
        ("end-to-end", {"steps": 0}, r"steps must be at least 1, not 0"),
        ("end-to-end", {"steps": -2}, r"steps must be at least 1, not -2"),
        ("end-to-end", {"steps": "4"}, r"steps must be a whole number, not '4'"),
        ("diffusionguard", {"steps": 0}, r"steps must be at least 1, not 0"),
        ("photoguard-diffusion", {"steps": 2.0}, r"steps must be a whole number, not 2\.0"),
        ("advdm", {"patience": 2.5}, r"patience must be a whole number or None, not 2\.5"),
        ("advdm", {"tolerance": "x"}, r"tolerance must be a number, not 'x'"),
        ("advdm", {"tolerance": float("nan")}, r"tolerance must be a number, not nan"),
        ("advdm", {"tolerance": -1e-3}, r"tolerance must be at least 0"),
        ("advdm", {"iterations": True}, r"iterations must be a whole number, not True"),
        ("advdm", {"checkpoint_every": "3"}, r"checkpoint_every must be a whole number of at least 1, not '3'"),
        ("advdm", {"progress": "False"}, r"progress must be True, False or a function, not 'False'"),
        ("advdm", {"path": "trajectory"}, r"path must be one of both, lat, cond, not 'trajectory'"),
    ],
)  # fmt: skip
def test_what_an_option_cannot_be(name: str, bad: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        make(name, **bad)


def test_objectives_made_without_the_factory_are_checked_too() -> None:
    for made in (
        lambda: SIFM(lam="abc"),  # type: ignore[arg-type]
        lambda: ACE(fused="False"),  # type: ignore[arg-type]
        lambda: PGDSettings(reclip="no"),  # type: ignore[arg-type]
        lambda: PromptPool(SIFM(), ["a"], own="yes"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match=r"must be (a number or None|True or False), not"):
            made()


def test_settings_of_a_strangers_attack_are_checked_before_its_own_code_sees_them() -> None:
    @dataclass(frozen=True)
    class Strange(Objective):
        """Strange."""

        power: float = 1.0
        often: bool = False
        marks: Mapping[str, Unknown] | None = None  # type: ignore[name-defined]  # noqa: F821

        def __post_init__(self) -> None:
            _ = self.power * 2.0 + self.often

    strange = attack("strange", Strange, presets={"paper": {}})
    with pytest.raises(UsageError, match="power must be a number, not '2'"):
        strange(power="2")
    with pytest.raises(UsageError, match="often must be True or False, not 'no'"):
        strange(often="no")
    assert strange(power=2, marks={"a": 1}).settings()["objective"]["power"] == 2


def test_numbers_of_numpy_are_numbers() -> None:
    import json

    made = sifm(lam=np.float32(0.5), count=np.int64(3), reclip=np.True_, timesteps=np.linspace(700, 300, 3))
    recorded = json.loads(json.dumps(made.settings()))
    assert recorded["objective"]["lam"] == 0.5
    assert recorded["objective"]["count"] == 3
    assert recorded["pgd"]["reclip"] is True
    assert recorded["objective"]["timesteps"] == [700.0, 500.0, 300.0]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_numbers_are_numbers_without_the_factory_too(kind: Any) -> None:
    import json

    made = SIFM(lam=np.float32(0.5), count=np.int64(3), timesteps=kind([700, 300]))  # type: ignore[arg-type]
    recorded = json.loads(json.dumps(made.options()))
    assert recorded["lam"] == 0.5
    assert recorded["count"] == 3
    assert recorded["timesteps"] == [700, 300]
    assert SIFM(timesteps=kind([700, 300])) == SIFM(timesteps=(700, 300)), "plain Python inside as well"
    assert make("semantic", columns=kind([1, 2])).settings()["objective"]["columns"] == [1, 2]
    assert sifm(lam=torch.tensor(0.5), timesteps=kind([700, 300])).settings()["objective"] == made.options() | {
        "count": 4
    }
    walk = PGDSettings(iterations=np.int64(3), eps=np.float32(0.25), reclip=np.False_)  # type: ignore[arg-type]
    assert json.loads(json.dumps(walk.as_dict()))["iterations"] == 3
    assert walk == PGDSettings(iterations=3, eps=0.25, reclip=False)
    assert PGD(made, checkpoint_every=np.int64(3)).checkpoint_every == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        np.array([[1, 2]]),
        np.array(500),
        np.array([True]),
        np.array([float("nan")]),
        torch.tensor([]),
        {500: 1},
        {500},
        b"5",
    ],
)
def test_what_is_no_list_of_numbers(wrong: Any) -> None:
    with pytest.raises(UsageError, match="timesteps must be a list of numbers from 0 to 1000"):
        SIFM(timesteps=wrong)
    with pytest.raises(UsageError, match="columns must be a list of whole numbers from 0"):
        make("semantic", columns=wrong)
    with pytest.raises(UsageError, match="count must be a whole number, not"):
        SIFM(count=np.True_)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- what an editor does not allow


class Counting(ToyEditor):
    """Fails where an attack looks at a user's picture: refusals must come before."""

    def latents(self, x: Tensor) -> Tensor:
        assert not x.any(), "the picture was encoded before the refusal"
        return super().latents(x)


@pytest.mark.parametrize(
    ("objective", "editor", "match"),
    [
        (ACE(of="velocity"), Counting(), "of='velocity' is for flow editors"),
        (ACE(path="cond"), Counting(image="latent"), "ace with path='cond' is not defined for this editor"),
        (AdvDM(path="cond"), Counting(image="latent"), "advdm with path='cond' is not defined"),
        (Mist(path="cond"), Counting(image="latent"), "mist with path='cond' is not defined"),
        (SIFM(path="trajectory"), Counting(image="latent"), "sifm with path='trajectory' is not defined"),
        (
            SIFM(timesteps=[990]),
            Counting(image="latent"),
            r"timesteps of sifm must be at most 570\.6 on 'toy', not \[990\]: an edit starts there",
        ),
        (SIFM(timesteps=[990]), Counting("flow", "latent"), r"must be at most 600 on 'toy', not \[990\]"),
    ],
)
def test_check_refuses_before_anything_is_made(objective: Objective, editor: ToyEditor, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        objective.check(editor)
    with pytest.raises(UsageError, match=match):
        PGD(objective).immunize(pictures(1), ["a"], editor=editor, seeds=[0])


def test_what_an_editor_does_allow_passes() -> None:
    texture = Mist(mode="texture", path="cond")
    for objective, editor in (
        (ACE(of="velocity"), ToyEditor("flow")),
        (ACE(path="cond"), ToyEditor()),
        (texture, ToyEditor(image="latent")),  # no semantic term, so no path
        (SIFM(timesteps=[990]), ToyEditor()),
        (SIFM(timesteps=[570.0]), ToyEditor(image="latent")),
        (SIFM(path="trajectory"), ToyEditor(image="own")),
    ):
        objective.check(editor)
        assert torch.isfinite(one_step(objective, editor, to_tensor(pictures(1)), ["a"]).gradient).all()


SURFACE = (
    "latents", "scaled", "condition", "embed", "timesteps", "noisy", "predict", "layers", "default_layers", "features",
    "attention", "rollout",
)  # fmt: skip
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sifm", {}),
    ("sifm", {"layers": ["one"]}),
    ("sifm", {"path": "trajectory"}),
    ("photoguard-encoder", {}),
    ("photoguard-encoder", {"target": "scaled-zeros"}),
    ("photoguard-diffusion", {}),
    ("editshield", {}),
    ("editshield", {"preset": "native"}),
    ("semantic", {}),
    ("sds", {}),
    ("advdm", {}),
    ("mist", {}),
    ("mist", {"mode": "texture"}),
    ("ace", {"of": "noise"}),
    ("diffusionguard", {}),
    ("end-to-end", {}),
)


@pytest.mark.parametrize("image", ["cond", "latent"])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_whatever_a_method_touches_is_checked_for_first(name: str, options: dict[str, Any], image: str) -> None:
    if options.get("path") == "trajectory" and image == "latent":
        pytest.skip("not defined there")
    touched: set[str] = set()
    ready = False

    class Watched(ToyEditor):
        def __getattribute__(self, attribute: str) -> Any:
            if attribute in SURFACE and ready:
                touched.add(attribute)
            return super().__getattribute__(attribute)

        def rollout(self, *args: Any, **more: Any) -> Tensor:
            nonlocal ready
            ready = False  # what the editor's own edit uses is its own business
            try:
                return super().rollout(*args, **more)
            finally:
                ready = True

    editor, method = Watched(image=image), make(name, **options)
    ready = True
    one_step(method.objective, editor, to_tensor(pictures(1)), ["a b"])
    ready = False
    assert touched
    for attribute in touched:
        lacking = ToyEditor(image=image)
        setattr(lacking, attribute, None)
        with pytest.raises(UsageError, match=rf"is not defined for this editor .*{attribute}"):
            method.objective.check(lacking)


def test_an_encoder_alone_is_enough_for_what_only_encodes() -> None:
    editor = ToyEditor()
    for attribute in SURFACE[1:]:
        setattr(editor, attribute, None)
    for objective in (EditShield(), make("photoguard-encoder").objective):
        assert torch.isfinite(one_step(objective, editor, to_tensor(pictures(1)), ["a"]).gradient).all()


def test_an_editor_may_list_what_it_withholds() -> None:
    class Withholding(ToyEditor):
        undefined = ("attention",)

    with pytest.raises(UsageError, match=r"semantic is not defined for this editor \('toy'.*it needs attention"):
        make("semantic").check(Withholding())
    make("sifm").check(Withholding())


# -------------------------------------------------------------------------------------------------- semantic's words


def test_a_prompt_without_a_word_in_the_mapping_is_named() -> None:
    words = {"make the sky red": "sky"}
    with pytest.raises(UsageError, match=r"words has no entry for the prompt 'a cat'; it has 'make the sky red'"):
        one_step(make("semantic", words=words).objective, ToyEditor(), to_tensor(pictures(2)), PROMPTS)
    both = make("semantic", words={**words, "a cat": None}).objective  # None said aloud: every content token
    assert one_step(both, ToyEditor(), to_tensor(pictures(2)), PROMPTS).gradient.any()


# --------------------------------------------------------------------------------------------------- SIFM's defaults


def test_more_timesteps_than_the_schedule_holds_is_said() -> None:
    clean = to_tensor(pictures(1))
    with pytest.warns(UserWarning, match=r"sifm: count=50, but the first 60 % of 'toy''s schedule of 10 .* hold 6"):
        one_step(SIFM(count=50), ToyEditor(), clean, ["a"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_step(SIFM(count=6), ToyEditor(), clean, ["a"])


def test_lambda_follows_the_reduction_unless_named() -> None:
    """0.1 is the paper's, for its own loss; terms brought to one scale are weighed 1 : 1."""
    for reduction, lam in {
        "paper": 0.1, "mean_mean": 0.1, "mean_sum": 0.1, "relative": 1.0, "grad_balanced": 1.0,
    }.items():  # fmt: skip
        assert sifm(reduction=reduction).settings()["objective"]["lam"] == lam, reduction
        assert sifm(reduction=reduction, lam=0.3).settings()["objective"]["lam"] == 0.3
    assert replace(SIFM(), reduction="relative").options()["lam"] == 1.0
    clean = to_tensor(pictures(2)).double()
    delta = 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for reduction in ("relative", "grad_balanced"):
        plain, named, small = (
            one_step(
                SIFM(reduction=reduction, **more), ToyEditor(dtype=torch.float64), clean, PROMPTS, delta=delta
            ).gradient
            for more in ({}, {"lam": 1.0}, {"lam": 0.1})
        )  # type: ignore[arg-type]
        assert torch.equal(plain, named)
        assert not torch.allclose(plain, small)


# ---------------------------------------------------------------------------------------- what an editor does not have


def test_layers_are_what_features_knows() -> None:
    """`layers()` lists the useful ones; an editor may know more, and says itself which it does not know."""

    class Deeper(ToyEditor):
        def layers(self) -> tuple[str, ...]:
            return ("one",)

    clean = to_tensor(pictures(1))
    assert one_step(SIFM(layers=["two"]), Deeper(), clean, ["a"]).gradient.any()
    with pytest.raises(UsageError, match=r"'toy' has no layers \['three'\]"):
        one_step(SIFM(layers=["two", "three"]), Deeper(), clean, ["a"])


class Deterministic(Objective):
    """Not a dataclass of its own: class attributes are read."""

    method: ClassVar[str] = "deterministic"
    stochastic: ClassVar[bool] = False


def test_which_objectives_are_random() -> None:
    for name, options, random in (
        ("sifm", {}, False),
        ("sifm", {"noise": "fresh_imm"}, True),
        ("photoguard-encoder", {}, False),
        ("end-to-end", {}, False),
        ("end-to-end", {"noise": "fresh"}, True),
        ("mist", {}, True),
        ("mist", {"mode": "texture"}, False),
        ("advdm", {}, True),
        ("editshield", {}, True),
        ("semantic", {}, True),
    ):  # fmt: skip
        objective = make(name, **options).objective  # type: ignore[arg-type]
        assert objective.stochastic is random, (name, options)
        # Evaluations in one run, at the same pixels.
        clean = to_tensor(pictures(1))
        context = Context(editor=ToyEditor(), clean=clean, prompts=("a",), draws=Draws([0]))
        objective.prepare(context)
        values = {float(objective(0.9 * clean, context)) for _ in range(6)}
        assert (len(values) > 1) is random, (name, options)
    assert Deterministic().stochastic is False


def test_an_editor_with_an_encoder_alone_takes_the_methods_that_need_no_more() -> None:
    class EncoderOnly:
        """latents and scaled of the toy, and nothing else of the white-box surface."""

        def __init__(self) -> None:
            toy = ToyEditor()
            self.name, self.traits, self.settings, self.device = toy.name, toy.traits, toy.settings, toy.device
            self.latents, self.scaled = toy.latents, toy.scaled

    fit = [name for name in METHODS if _defined(ATTACKS.create(name), EncoderOnly())]
    assert fit == ["editshield", "photoguard-encoder"]
    texture = ATTACKS.create("mist", mode="texture", iterations=2)
    (made,) = texture.immunize(pictures(1), [""], editor=EncoderOnly(), seeds=[0])
    assert made.tobytes() != pictures(1)[0].tobytes()
    with pytest.raises(UsageError, match=r"mist is not defined for this editor.*it needs condition, embed"):
        ATTACKS.create("mist", mode="semantic").check(EncoderOnly())


def _defined(attack: Any, editor: Any) -> bool:
    try:
        attack.check(editor)
    except UsageError:
        return False
    return True
