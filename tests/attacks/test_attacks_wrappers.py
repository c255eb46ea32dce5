"""EOT, prompt pools, ensembles: each around any method, each checked against doing it by hand."""

from __future__ import annotations

import pytest
import torch
from isr.attacks.ace import ACE
from isr.attacks.pgd import PGD, one_step, to_tensor
from isr.attacks.photoguard_encoder import PhotoGuardEncoder, photoguard_encoder
from isr.attacks.sifm import SIFM, sifm
from isr.attacks.wrappers import EOT, EditorEnsemble, PromptPool, with_editors, with_eot, with_prompts
from torch import Tensor
from toy import ToyEditor, pictures

from isr.errors import UsageError
from isr.protocols import Traits
from isr.registry import ATTACKS
from isr.transforms import Blur, Identity

PROMPTS = ["make the sky red", "a cat"]


def grad(objective: object, editor: ToyEditor, clean: Tensor, **more: object) -> Tensor:
    return one_step(objective, editor, clean, PROMPTS, seeds=[0, 1], **more).gradient  # type: ignore[arg-type]


def setup() -> tuple[ToyEditor, Tensor]:
    return ToyEditor(dtype=torch.float64), to_tensor(pictures(2)).double()


def test_identity_changes_nothing() -> None:
    editor, clean = setup()
    for inner in (SIFM(), PhotoGuardEncoder(), SIFM(reduction="grad_balanced")):
        plain = grad(inner, editor, clean)
        assert torch.equal(grad(EOT(inner, lambda x, _: x), editor, clean), plain)
        assert torch.allclose(grad(EOT(inner, lambda x, _: x, 3), editor, clean), plain, rtol=1e-12)
        assert torch.equal(grad(PromptPool(inner, ()), editor, clean), plain)


def test_eot_is_the_chain_rule_through_the_transform() -> None:
    editor, clean = setup()
    blur = Blur(1.0, size=5)
    found = grad(EOT(PhotoGuardEncoder(), lambda x, g: blur(x)), editor, clean)
    x = clean.clone().requires_grad_(True)
    (want,) = torch.autograd.grad(editor.latents(blur(x)).flatten(1).norm(dim=1).sum(), x)
    assert torch.allclose(found, want, rtol=1e-9)


def test_eot_draws_per_picture_from_its_own_seed() -> None:
    attack = with_eot(photoguard_encoder(iterations=3, batch_size=2))
    images = pictures(2)
    both = attack.immunize(images, PROMPTS, editor=ToyEditor(), seeds=[4, 5])
    second = attack.immunize(images[1:], PROMPTS[1:], editor=ToyEditor(), seeds=[5])
    assert both[1].tobytes() == second[0].tobytes()
    assert attack.name == "photoguard-encoder+eot"
    assert attack.settings()["objective"]["inner"]["target"] == "zeros"
    with pytest.raises(UsageError, match="must keep the shape"):
        with_eot(photoguard_encoder(), lambda x, g: x[..., :8]).immunize(
            images, PROMPTS, editor=ToyEditor(), seeds=[0, 1]
        )


def test_prompt_pool_all_is_the_mean_and_cycle_takes_turns() -> None:
    editor, clean = setup()
    inner, pool = SIFM(), ["a dog", ""]

    def with_prompt(prompts: list[str]) -> Tensor:
        return one_step(inner, editor, clean, prompts, given=noise).gradient

    noise = {"noise": torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))}
    each = [with_prompt(PROMPTS), with_prompt(["a dog"] * 2), with_prompt([""] * 2)]
    found = one_step(PromptPool(inner, pool, mode="all"), editor, clean, PROMPTS, given=noise).gradient
    assert torch.allclose(found, torch.stack(each).mean(0), rtol=1e-9)
    for iteration in range(4):
        turn = one_step(PromptPool(inner, pool), editor, clean, PROMPTS, given=noise, iteration=iteration).gradient
        assert torch.allclose(turn, each[iteration % 3], rtol=1e-9)
    with pytest.raises(UsageError, match="prompts must be a list of at least one prompt"):
        PromptPool(inner, (), own=False)


def test_ensemble_is_the_mean_of_members_balanced_or_not() -> None:
    first, second = (
        ToyEditor(dtype=torch.float64),
        ToyEditor("flow", "latent", dtype=torch.float64, name="other", seed=9),
    )
    clean = to_tensor(pictures(2)).double()
    a, b = grad(PhotoGuardEncoder(), first, clean), grad(PhotoGuardEncoder(), second, clean)
    plain = grad(EditorEnsemble(PhotoGuardEncoder(), (second,), balance=False), first, clean)
    assert torch.allclose(plain, (a + b) / 2, rtol=1e-9)
    size = lambda g: g.abs().sum((1, 2, 3), keepdim=True)  # noqa: E731
    balanced = grad(EditorEnsemble(PhotoGuardEncoder(), (second,)), first, clean)
    assert torch.allclose(balanced, (a / size(a) + b / size(b)) / 2, rtol=1e-9)
    attack = with_editors(sifm(iterations=2), [second])
    assert attack.settings()["objective"]["editors"][0]["name"] == "other"
    with pytest.raises(UsageError, match=r"'other'.*enters it only through the noisy latent"):
        with_editors(sifm(path="cond", iterations=1), [second]).immunize(pictures(1), [""], editor=first, seeds=[0])


@pytest.mark.parametrize("name", [p.name for p in ATTACKS.list() if p.name != "noise"])
def test_every_method_runs_inside_all_three(name: str) -> None:
    attack: PGD = ATTACKS.create(name, iterations=2)
    wrapped = with_eot(with_prompts(with_editors(attack, [ToyEditor(seed=3)]), ["a dog"]), lambda x, g: Identity()(x))
    result = wrapped.run(pictures(1), ["a cat"], editor=ToyEditor(), seeds=[0])
    assert result.deltas[0].any()
    assert wrapped.name == f"{name}+ensemble+prompts+eot"


def test_only_gradient_attacks_can_be_wrapped() -> None:
    noise = ATTACKS.create("noise")
    wraps = {
        "with_eot": with_eot,
        "with_prompts": lambda a: with_prompts(a, ["a dog"]),
        "with_editors": lambda a: with_editors(a, [ToyEditor()]),
    }
    for name, wrap in wraps.items():
        with pytest.raises(UsageError, match=rf"{name} wraps gradient attacks .* but noise\), and 'noise' is none"):
            wrap(noise)
        with pytest.raises(UsageError, match=rf"{name} wraps an attack that is made .*; call it first"):
            wrap(sifm)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=rf"{name} wraps an attack that is made .*, not 'sifm'"):
            wrap("sifm")  # type: ignore[arg-type]


def test_lists_of_wrappers_are_lists() -> None:
    with pytest.raises(UsageError, match=r"prompts must be a list of at least one prompt .*, not 'a dog'"):
        with_prompts(sifm(), "a dog")
    with pytest.raises(UsageError, match=r"prompts must be a list of at least one prompt .*, not \[3\]"):
        with_prompts(sifm(), [3])  # type: ignore[list-item]
    for wrong in (ToyEditor(), "ip2p", []):
        with pytest.raises(UsageError, match="editors must be a list of at least one further white-box editor"):
            with_editors(sifm(), wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"editors must hold loaded editors .*, not 'ip2p'"):
        with_editors(sifm(), ["ip2p"])  # type: ignore[list-item]
    with pytest.raises(UsageError, match=r"transforms must be a distribution of isr\.transforms, a function"):
        with_eot(sifm(), "jpeg")
    with pytest.raises(UsageError, match="samples must be at least 1, not 0"):
        with_eot(sifm(), samples=0)


def test_every_member_takes_every_picture() -> None:
    """Known from `size_multiple`, so said before any member's encoder fails on it."""

    class Coarse(ToyEditor):
        traits = Traits(white_box=True, size_multiple=8, family="toy", steps=10)

        def latents(self, x: Tensor) -> Tensor:
            raise RuntimeError("inside the encoder")

    images, first, second = pictures(2, (12, 12)), ToyEditor(), Coarse(name="coarse")
    plain = with_editors(photoguard_encoder(iterations=1), [second])
    for attack in (plain, with_eot(plain), with_prompts(plain, ["a dog"])):
        with pytest.raises(
            UsageError,
            match=r"images\[0\] is 12×12, but 'coarse' works on sides that are multiples of 8; give 'coarse' as editor=",
        ):
            attack.immunize(images, PROMPTS, editor=first, seeds=[0, 1])


def test_wrapped_runs_resume(tmp_path: object) -> None:
    attack = with_prompts(with_eot(PGD(ACE(), sifm(iterations=6).pgd, name="ace")), ["a dog"])
    whole = attack.immunize(pictures(2), PROMPTS, editor=ToyEditor(), seeds=[0, 1])

    def stop(progress: object) -> None:
        if progress.iteration == 4:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    attack.checkpoint, attack.checkpoint_every, attack.progress = tmp_path, 3, stop  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        attack.immunize(pictures(2), PROMPTS, editor=ToyEditor(), seeds=[0, 1])
    attack.progress = False
    again = attack.immunize(pictures(2), PROMPTS, editor=ToyEditor(), seeds=[0, 1])
    assert [i.tobytes() for i in again] == [i.tobytes() for i in whole]
