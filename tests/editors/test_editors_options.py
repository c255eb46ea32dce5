"""Arguments: what is refused, with which words, and before any weights are read."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import editor_surface as surface  # noqa: E402
import tiny  # noqa: E402
from isr.editors import base, qwen  # noqa: E402
from isr.editors.img2img import Img2Img  # noqa: E402
from isr.editors.kontext import Kontext  # noqa: E402
from isr.editors.mmdit import SD3Img2Img, SD3Instruct  # noqa: E402
from isr.editors.qwen import QwenEdit  # noqa: E402
from isr.editors.unet import InstructPix2Pix  # noqa: E402

from isr.errors import UsageError  # noqa: E402

CLASSES: dict[str, Any] = {
    "ip2p": InstructPix2Pix, "sd15": Img2Img, "sd3": SD3Img2Img, "ultraedit-sd3": SD3Instruct, "kontext": Kontext,
}  # fmt: skip
SHORT = {"device": "cpu", "max_sequence_length": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tiny.build(family, tmp_path_factory.mktemp(family)) for family in CLASSES}


def load(folders: dict[str, Path], family: str, **options: Any) -> Any:
    short = {} if family in ("ip2p", "sd15") else {"max_sequence_length": 8}
    size = {"resolution": 32} if family == "kontext" else {}
    return CLASSES[family].from_pretrained(str(folders[family]), device="cpu", **{**short, **size, **options})


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything that goes as far as looking for weights fails."""

    def never(*_args: Any, **_options: Any) -> Any:
        raise AssertionError("weights were looked for")

    monkeypatch.setattr(base, "locate", never)
    monkeypatch.setattr(qwen, "locate", never)


# ------------------------------------------------------------------------------------------- before weights are read


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("value", [0, -5, True, 3.5, "32"])
@pytest.mark.parametrize("name", ["resolution", "batch_size"])
def test_sizes_are_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"{name} must be a whole number of at least 1, got {value!r}"):
        InstructPix2Pix.from_pretrained("a/b", device="cpu", **{name: value})


@pytest.mark.usefixtures("unread")
def test_ways_of_offloading() -> None:
    with pytest.raises(UsageError, match="offload must be None, 'text' or 'model' for Kontext, got 'disk'"):
        Kontext.from_pretrained("a/b", device="cpu", offload="disk")
    with pytest.raises(UsageError, match="offload must be None or 'model' for QwenEdit, got 'text'"):
        QwenEdit.from_pretrained("a/b", device="cpu", offload="text")
    with pytest.raises(UsageError, match="max_sequence_length must be a whole number of at least 0, got '8'"):
        Kontext.from_pretrained("a/b", device="cpu", max_sequence_length="8")


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "hpu"])
def test_devices_that_are_not_here(device: str) -> None:
    if device in ("mps", "xpu") and getattr(torch, device).is_available():
        pytest.skip(f"this machine has {device}")
    with pytest.raises(UsageError, match=rf"device='{device}' is not here: torch .*use device='cpu'"):
        InstructPix2Pix.from_pretrained("a/b", device=device)


FLOW = ["sd3", "ultraedit-sd3", "kontext"]
VP_ONLY = ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "EDMEulerScheduler", "UniPCMultistepScheduler"]  # fmt: skip
REFUSED = [
    *((family, name, "it is not for rectified flow") for family in FLOW for name in VP_ONLY),
    ("kontext", "FlowMatchHeunDiscreteScheduler", "its steps cannot be set from mu and sigmas"),
    ("ip2p", "FlowMatchEulerDiscreteScheduler", "it is not for variance-preserving diffusion"),
    ("ip2p", "FlowMatchHeunDiscreteScheduler", "it is not for variance-preserving diffusion"),
    ("sd15", "RePaintScheduler", "it is not for variance-preserving diffusion"),
    ("ip2p", "DDIMInverseScheduler", "it runs towards noise"),
    ("ip2p", "DPMSolverSDEScheduler", "its noise does not follow the pictures' seeds"),
]


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(("family", "name", "why"), REFUSED)
def test_schedulers_of_another_kind_of_model(family: str, name: str, why: str) -> None:
    """Most of these would run, and take a velocity for noise."""
    with pytest.raises(UsageError, match=rf"the scheduler {name} cannot sample for \w+: {why}.*choose another, e.g."):
        CLASSES[family].from_pretrained("a/b", device="cpu", scheduler=name)


@pytest.mark.usefixtures("unread")
def test_names_that_are_no_schedulers() -> None:
    for name in ("Euler", 3, "DiffusionPipeline"):
        with pytest.raises(
            UsageError, match=f"scheduler must be a scheduler class of diffusers such as .*, got {name!r}"
        ):
            Kontext.from_pretrained("a/b", device="cpu", scheduler=name)


# ------------------------------------------------------------------------------------------------- schedulers that fit


def _edits(editor: Any) -> None:
    """A finite edit that follows its seed."""
    with torch.no_grad():
        first, again = (editor.rollout(surface.pixels(1), ["x"], 6, seeds=[1], guidance=1.0) for _ in range(2))
    assert torch.isfinite(first).all()
    assert torch.equal(first, again), f"{editor.settings()['scheduler']} does not follow the seed"


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("ip2p", "DPMSolverMultistepScheduler"), ("sd3", "FlowMatchHeunDiscreteScheduler"), ("sd3", "FlowMatchLCMScheduler"),
        ("kontext", "FlowMatchLCMScheduler"),
    ],
)  # fmt: skip
def test_other_samplers_of_the_same_kind(family: str, name: str, folders: dict[str, Path]) -> None:
    _edits(load(folders, family, scheduler=name))


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
def test_every_scheduler_that_is_let_in_edits(family: str, folders: dict[str, Path]) -> None:
    """Every class of diffusers is either refused at once or makes an edit."""
    editor = load(folders, family)
    tried = []
    for name in sorted(n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")):
        with contextlib.suppress(UsageError):
            made = type(editor)(editor.parts, scheduler=name, **({"resolution": 32} if family == "kontext" else {}))
            tried.append(name)
            _edits(made)
    wanted = {"kontext": 2}.get(family, 3 if family in FLOW else 12)
    assert len(tried) >= wanted, tried


def test_a_sampler_of_another_schedule_is_refused_beside_the_checkpoints_own(tmp_path: Path) -> None:
    """CosXL-Edit samples with Karras' noise levels: it edits, but ᾱ is not defined there."""
    folder = tiny.build("ip2p", tmp_path, scheduler="DDIMScheduler")
    vp = InstructPix2Pix.from_pretrained(str(folder), device="cpu")
    with pytest.raises(UsageError, match="its noise levels are not those of the checkpoint's own DDIMScheduler"):
        InstructPix2Pix(vp.parts, scheduler="EDMEulerScheduler")
    edm = InstructPix2Pix({**vp.parts, "scheduler": diffusers.EDMEulerScheduler()})
    assert torch.isfinite(edm.rollout(surface.pixels(1), ["x"], 3, seeds=[1])).all()
    with pytest.raises(UsageError, match=r"levels are not defined for this editor .* EDMEulerScheduler has no table"):
        edm.noisy(edm.latents(surface.pixels(1)), edm.timesteps(3)[:1], torch.zeros(1, 4, 16, 16))
    with pytest.raises(UsageError, match="the scheduler FlowMatchEulerDiscreteScheduler cannot sample"):
        InstructPix2Pix({**vp.parts, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler()})
    shifted: Any = SD3Img2Img  # a checkpoint whose shift follows the size needs a sampler that can be told
    own = tiny.flow_scheduler(use_dynamic_shifting=True)
    assert "mu" in shifted.scheduler_problem(diffusers.FlowMatchHeunDiscreteScheduler, own)
    assert shifted.scheduler_problem(diffusers.FlowMatchHeunDiscreteScheduler, tiny.flow_scheduler()) == ""


# ---------------------------------------------------------------------------------------------- once weights are read


def test_a_resolution_holds_one_cell(folders: dict[str, Path]) -> None:
    with pytest.raises(
        UsageError, match=r"resolution must be a whole number of at least 4 \(this model's multiple\), got 3"
    ):
        load(folders, "sd3", resolution=3)
    assert load(folders, "sd3", resolution=np.int64(32)).settings()["resolution"] == 32


def test_texts_and_seeds_of_the_surface(folders: dict[str, Path]) -> None:
    for family in CLASSES:
        editor = load(folders, family)
        with pytest.raises(UsageError, match="prompts must be a list with one text per picture, got one text"):
            editor.embed("dogs")
        with pytest.raises(UsageError, match=r"prompts\[0\] must be a text, got int"):
            editor.embed([3])
    x = surface.pixels(1)
    for prompts, seeds, message in (
        ("z", [1], "prompts must be a list"),
        (["z"], [1.7], r"seeds\[0\] must be a whole number, got float"),
        (["z"], 1, r"seeds must be a list with one whole number per picture, got 1; write \[1\]"),
        (["z"], [2**64], r"seeds\[0\] must be a whole number from −2⁶³ to 2⁶⁴ − 1, got 18446744073709551616"),
    ):
        with pytest.raises(UsageError, match=message):
            editor.rollout(x, prompts, 2, seeds=seeds)
    with pytest.raises(UsageError, match=r"images must be a list of pictures, got one picture; write \[image\]"):
        editor.edit(surface.pictures(1)[0], ["x"], seeds=[1])
    with pytest.raises(UsageError, match=r"seeds\[1\] must be a whole number from"):
        editor.edit(surface.pictures(2), ["x", "y"], seeds=[2**64 - 1, -(2**63) - 1])


@pytest.mark.parametrize("family", CLASSES)
def test_no_more_steps_than_timesteps(family: str, folders: dict[str, Path]) -> None:
    editor = load(folders, family)
    for asked in (
        lambda: editor.edit(surface.pictures(1), ["x"], seeds=[1], steps=1001),
        lambda: editor.timesteps(1001),
        lambda: load(folders, family, defaults={"steps": 1001}),
    ):
        with pytest.raises(
            UsageError, match=r"steps must be at most 1000, the timesteps .* was trained with, got 1001"
        ):
            asked()
    with pytest.raises(UsageError, match="steps must be a whole number of at least 1, got 0"):
        editor.timesteps(0)


def test_a_word_past_the_cut_is_named(folders: dict[str, Path]) -> None:
    prompt = "a " * 100 + "hat"
    for family, read in (("ip2p", 77), ("sd3", 77), ("kontext", 8)):
        with pytest.raises(UsageError, match=rf"word='hat' has no token among the first {read} of the prompt"):
            load(folders, family).word_columns(prompt, "hat")
    # Past CLIP's cut, but not past T5's.
    assert min(load(folders, "sd3", max_sequence_length=300).word_columns(prompt, "hat")) > 77 + 100
    assert load(folders, "ip2p").word_columns("") == ()


def test_pictures_beyond_the_position_table(folders: dict[str, Path]) -> None:
    """48 positions of 2 latent cells of 2 pixels: 192 pixels a side."""
    editor = load(folders, "sd3")
    with pytest.raises(
        UsageError, match=r"at most 192 pixels a side, got 32×256 .*; load it with resolution=192 or less"
    ):
        editor.edit(surface.pictures(1, (256, 32)), ["x"], seeds=[1], steps=2)
    assert load(folders, "sd3", resolution=192).edit(surface.pictures(1, (256, 32)), ["x"], seeds=[1], steps=2)


@pytest.mark.parametrize("without", [["tokenizer_3"], ["text_encoder_3"], ["text_encoder_3", "tokenizer_3"]])
def test_a_text_encoder_and_its_tokenizer_are_left_out_together(without: list[str], folders: dict[str, Path]) -> None:
    editor = load(folders, "sd3", without=without)
    assert (editor.parts["text_encoder_3"], editor.parts["tokenizer_3"]) == (None, None)
    assert editor.embed(["x"]).hidden.shape == (1, 77 + 8, 64)
    with pytest.raises(
        UsageError, match=r"without must be a list of parts, got 'tokenizer_3'; write \['tokenizer_3'\]"
    ):
        load(folders, "sd3", without="tokenizer_3")
    whole = load(folders, "sd3").parts
    with pytest.raises(UsageError, match="text_encoder_3 needs tokenizer_3; give both, or leave both out"):
        SD3Img2Img({**whole, "tokenizer_3": None}, **SHORT)


def test_an_edit_that_cannot_see_the_picture_is_said_once(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """SD3 skips floor(steps·(1 − strength)) steps: of 2 at strength .6 none, so the edit starts at σ = 1."""
    editor = load(folders, "sd3")
    with caplog.at_level(logging.WARNING, logger="isr.editors"):
        editor.edit(surface.pictures(1), ["x"], seeds=[1], steps=3)
        assert caplog.records == []
        one = editor.edit(surface.pictures(1, seed=1), ["x"], seeds=[1], steps=2)
        (said,) = [r.getMessage() for r in caplog.records]
        assert "starts an edit of steps=2 at strength=0.6 from pure noise, so the picture has no part in it" in said
        other = editor.edit(surface.pictures(1, seed=2), ["x"], seeds=[1], steps=2)
        assert len(caplog.records) == 1
    assert one[0].tobytes() == other[0].tobytes(), "two pictures, one edit"
