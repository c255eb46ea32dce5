"""Purifiers without a model: names, chains, what they do to pixels, seeds, errors."""

from __future__ import annotations

import io
import json

import numpy as np
import PIL.Image
import pytest
from skimage import data

torch = pytest.importorskip("torch")

from isr.editors.purify import LADDER, BasePurifier, Chain, derived_seed, make_purifier  # noqa: E402

from isr.errors import RegistryError, UsageError  # noqa: E402
from isr.protocols import Purifier  # noqa: E402
from isr.registry import PURIFIERS  # noqa: E402
from isr.transforms import JPEG  # noqa: E402

PHOTO = PIL.Image.fromarray(data.astronaut()).resize((96, 64))
SECOND = PHOTO.transpose(PIL.Image.Transpose.ROTATE_180)


def pixels(image: PIL.Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", LADDER)
def test_ladder_of_every_purifier_without_a_model(name):
    p = make_purifier(name)
    assert isinstance(p, Purifier)
    assert p.name == name
    assert make_purifier(p.name).settings() == p.settings()
    assert json.loads(json.dumps(p.settings()))["purifier"] == name
    out = p.purify([PHOTO, SECOND], seeds=[1, 2])
    assert [o.size for o in out] == [PHOTO.size] * 2
    assert all(o.mode == "RGB" for o in out)
    assert not np.array_equal(pixels(out[0]), pixels(PHOTO)), "something happened"
    # The same alone, again, and in any order.
    assert [o.tobytes() for o in p.purify([SECOND, PHOTO], seeds=[2, 1])] == [o.tobytes() for o in reversed(out)]
    assert p.purify([PHOTO], seeds=[1])[0].tobytes() == out[0].tobytes()
    assert p.purify([], seeds=[]) == []


def test_jpeg_is_a_real_file():
    file = io.BytesIO()
    PHOTO.save(file, "JPEG", quality=75)
    expected = PIL.Image.open(file).convert("RGB")
    (out,) = make_purifier("jpeg:75").purify([PHOTO], seeds=[0])
    assert out.tobytes() == expected.tobytes()
    # The differentiable one that attacks may train against is close to it.
    x = torch.tensor(np.asarray(PHOTO)).permute(2, 0, 1)[None] / 255
    near = (JPEG(75)(x)[0].permute(1, 2, 0) * 255).round().numpy()
    assert np.abs(near - pixels(out)).mean() < 0.5


def test_metadata_does_not_travel():
    tagged = PHOTO.copy()
    tagged.info["icc_profile"] = b"not a profile"
    (out,) = make_purifier("jpeg:75").purify([tagged], seeds=[0])
    assert "icc_profile" not in out.info


def test_stronger_is_further_away():
    def moved(name: str) -> float:
        return float(np.square(pixels(make_purifier(name).purify([PHOTO], seeds=[3])[0]) - pixels(PHOTO)).mean())

    for kind, strengths in {
        "jpeg": (90, 75, 50, 30),
        "resize": (0.75, 0.5, 0.25),
        "noise": (0.05, 0.1),
        "blur": (0.5, 1, 2),
        "bit-depth": (6, 4, 2),
    }.items():
        distances = [moved(f"{kind}:{s}") for s in strengths]
        assert distances == sorted(distances), kind


def test_noise_follows_the_seed_and_has_its_sigma():
    grey = PIL.Image.new("RGB", (128, 128), (128, 128, 128))
    p = make_purifier("noise:0.05")
    a, b, c = p.purify([grey] * 3, seeds=[7, 7, 8])
    assert a.tobytes() == b.tobytes() != c.tobytes()
    assert (pixels(a) - 128).std() == pytest.approx(0.05 * 255, rel=0.03)


def test_a_purifiers_noise_is_not_the_editors():
    # An editor that seeds a generator with the case's own seed must not draw the numbers that the purifier drew.
    assert derived_seed(7, "purify-noise") != 7
    assert derived_seed(7, "purify-noise") != derived_seed(7, "chain-1")
    assert 0 <= derived_seed(-5, "x") < 2**56


def test_rotation_and_its_way_back():
    turned, back = (make_purifier(n).purify([PHOTO], seeds=[0])[0] for n in ("rotation:5", "rotation:5,back=true"))
    inner = (slice(16, -16), slice(16, -16))
    assert (
        np.abs(pixels(back)[inner] - pixels(PHOTO)[inner]).mean()
        < np.abs(pixels(turned)[inner] - pixels(PHOTO)[inner]).mean() / 2
    )
    assert make_purifier("rotation:5,back=true").name == "rotation:5,back=true"


def test_chains_run_in_order_and_record_every_link():
    p = make_purifier("jpeg:50+resize:0.5")
    assert isinstance(p, Chain)
    assert p.name == "jpeg:50+resize:0.5"
    by_hand = make_purifier("resize:0.5").purify(make_purifier("jpeg:50").purify([PHOTO], seeds=[0]), seeds=[0])
    assert p.purify([PHOTO], seeds=[0])[0].tobytes() == by_hand[0].tobytes()
    assert [link["purifier"] for link in p.settings()["chain"]] == ["jpeg:50", "resize:0.5"]
    # Twice the same noise would be twice the same numbers; a chain draws anew.
    grey = PIL.Image.new("RGB", (64, 64), (128, 128, 128))
    twice = pixels(make_purifier("noise:0.05+noise:0.05").purify([grey], seeds=[0])[0]) - 128
    assert twice.std() == pytest.approx(0.05 * 255 * 2**0.5, rel=0.1)


def test_options_in_names():
    assert make_purifier("blur:1.5,size=5").settings()["size"] == 5
    assert make_purifier("resize:0.5,mode=area").settings()["mode"] == "area"
    assert make_purifier("resize", scale=0.25).name == "resize:0.25"
    assert make_purifier("jpeg:80,subsampling=4:4:4").settings()["subsampling"] == "4:4:4"
    made = make_purifier("jpeg")
    assert made.name == "jpeg:75"
    assert make_purifier(made) is made


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make_purifier("jpg:75"), RegistryError, "no purifier is called 'jpg'. Did you mean 'jpeg'"),
        (lambda: make_purifier("jpeg:0"), UsageError, "quality must be a whole number from 1 to 100, got 0"),
        (lambda: make_purifier("jpeg:7.5"), UsageError, "quality must be a whole number"),
        (lambda: make_purifier("jpeg:75,dct=fast"), UsageError, "has no option dct; it takes: quality, subsampling"),
        (lambda: make_purifier("resize:0.5,area"), UsageError, "'area' has no name"),
        (lambda: make_purifier("resize:0.5", scale=0.5), UsageError, "scale is given twice"),
        (lambda: make_purifier("75"), UsageError, "a purifier is written name, name:value"),
        (lambda: make_purifier("noise:-1"), UsageError, "sigma must be a number ≥ 0"),
        (lambda: make_purifier(3), UsageError, "must be a name or a purifier, got int"),
        (lambda: make_purifier(make_purifier("jpeg:75"), quality=3), UsageError, "is made already"),
        (lambda: make_purifier("jpeg:75").purify([PHOTO], seeds=[]), UsageError, "1 pictures and 0 seeds"),
        (lambda: make_purifier("jpeg:75").purify([PHOTO.convert("L")], seeds=[1]), UsageError, "a picture of mode L"),
        (lambda: make_purifier("jpeg:75").purify([PHOTO], seeds=["1"]), UsageError, "must be a whole number, got str"),
        (lambda: make_purifier("jpeg:75+resize:0.5", source="x"), UsageError, "no link of .* takes source"),
        (lambda: Chain([]), UsageError, "at least one purifier"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_entry_points_are_factories_of_this_kind():
    names = {p.name for p in PURIFIERS.list()}
    assert {name.partition(":")[0] for name in LADDER} <= names
    assert {"vae", "img2img", "noisy-upscale", "impress", "diffpure", "gridpure"} <= names
    for name in names:
        assert callable(PURIFIERS.load(name))


def test_a_strangers_purifier_joins_by_registration():
    class Grey(BasePurifier):
        def one(self, image, seed):
            return image.convert("L").convert("RGB")

    PURIFIERS.register("test-grey", lambda: Grey("test-grey", {}))
    try:
        out = make_purifier("test-grey+jpeg:90").purify([PHOTO], seeds=[0])[0]
    finally:
        PURIFIERS.unregister("test-grey")
    assert np.ptp(pixels(out), axis=2).max() <= 2
