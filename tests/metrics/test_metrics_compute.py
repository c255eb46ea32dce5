"""`compute`: names, inputs, missing values, injected networks, records."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image
from skimage import data

torch = pytest.importorskip("torch")

from isr.errors import UsageError  # noqa: E402
from isr.metrics import METRICS, MetricResult, NotAvailable, compute, metric_names, psnr, ssim, vifp  # noqa: E402

PHOTO = Image.fromarray(data.astronaut()).resize((64, 56))
OTHER = PHOTO.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float() / 255


def test_pictures_and_tensors_give_the_same_and_carry_the_convention():
    names = ["psnr", "ssim", "vifp", "fsim", "fsimc"]
    pictures = compute(names, [OTHER, PHOTO], [PHOTO, PHOTO])
    tensors = compute(names, torch.cat([tensor(OTHER), tensor(PHOTO)]), torch.cat([tensor(PHOTO)] * 2))
    assert pictures == tensors
    assert list(pictures) == names
    for name, result in pictures.items():
        assert isinstance(result, MetricResult)
        assert result.convention == METRICS[name].convention
        assert len(result.values) == 2
    assert pictures["psnr"].values[0] == pytest.approx(float(psnr(tensor(OTHER), tensor(PHOTO))))
    assert pictures["ssim"].values[0] == pytest.approx(float(ssim(tensor(OTHER), tensor(PHOTO))))
    # a is the judged picture, b the reference.
    assert pictures["vifp"].values[0] == pytest.approx(float(vifp(tensor(OTHER), tensor(PHOTO))))


def test_paths_bytes_and_arrays_are_pictures_too(tmp_path):
    file = tmp_path / "x.png"
    OTHER.save(file)
    expected = compute(["ssim"], [OTHER], [PHOTO])
    assert compute(["ssim"], [file], [np.asarray(PHOTO)]) == expected
    assert compute(["ssim"], [file.read_bytes()], [PHOTO]) == expected


def test_pairs_may_differ_in_size_but_not_within():
    small = PHOTO.resize((48, 48))
    result = compute(["psnr"], [PHOTO, small], [OTHER, small])
    assert result["psnr"].values[1] == math.inf
    with pytest.raises(UsageError, match=r"a\[1\] is 48×48 and b\[1\] is 64×56 pixels"):
        compute(["psnr"], [PHOTO, small], [PHOTO, PHOTO])


def test_what_is_undefined_is_missing_with_the_reason():
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    tiny = PHOTO.resize((20, 20))
    result = compute(["vifp", "fsim", "psnr"], [grey, tiny], [grey, tiny])
    constant, small = result["vifp"].values
    assert isinstance(constant, NotAvailable)
    assert "constant" in constant.reason
    assert isinstance(small, NotAvailable)
    assert "needs at least 41×41 pixels, the picture has 20×20" in small.reason
    assert result["vifp"].reason == f"{constant.reason}; {small.reason}"
    assert isinstance(result["fsim"].values[0], NotAvailable)
    assert result["fsim"].values[1] == pytest.approx(1.0)
    record = result["vifp"].to_json()
    assert record["values"] == [None, None]
    assert json.loads(json.dumps(result["psnr"].to_json(), allow_nan=False))["values"] == ["inf", "inf"]


def test_injected_networks_are_run_and_named():
    class Distance:
        def __call__(self, a, b):
            return (a - b).abs().mean((1, 2, 3))

    class Score:
        def __call__(self, x, prompts):
            return torch.tensor([float(len(p)) for p in prompts])

    class Means:
        def __call__(self, x):
            return x.mean((2, 3))

    models = {"lpips": Distance(), "clip": Score(), "inception": Means()}
    a = [Image.fromarray(np.roll(np.asarray(PHOTO), i, axis=1)) for i in range(8)]
    b = [Image.fromarray(255 - np.asarray(x) // 2) for x in a]
    result = compute(["lpips", "clip", "fid", "precision"], a, b, prompts=["x" * i for i in range(8)], models=models)
    assert result["clip"].values == tuple(float(i) for i in range(8))
    assert result["lpips"].values[0] == pytest.approx(float((tensor(a[0]) - tensor(b[0])).abs().mean()), rel=1e-5)
    assert "given by the caller (Distance)" in result["lpips"].convention
    assert result["fid"].per == result["precision"].per == "set"
    assert len(result["fid"].values) == 1
    # Rolled copies share their means: one point per set, at a distance; no judged point lies in a ball of radius about 0.
    assert result["precision"].values == (0.0,)
    assert compute(["precision"], b, b, models=models)["precision"].values == (1.0,)
    few = compute(["precision"], a[:5], b[:5], models=models)["precision"].values[0]
    assert isinstance(few, NotAvailable)
    assert "at least 6 pictures" in few.reason


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compute(["sism"], [PHOTO], [PHOTO]), "no metric is called 'sism'; there are psnr, ssim"),
        (lambda: compute("ssim", [PHOTO], [PHOTO]), r"sequence of metric names, such as \['ssim'\]"),
        (lambda: compute(["ssim"], [PHOTO], []), "same number of pictures, not 1 and 0"),
        (lambda: compute(["ssim"], [PHOTO], tensor(PHOTO)), "both be tensors or both be sequences"),
        (lambda: compute(["clip"], [PHOTO], [PHOTO]), "give prompts="),
        (
            lambda: compute(["clip"], [PHOTO], [PHOTO], prompts=["a", "b"]),
            "one prompt per picture: 1 pictures, 2 prompts",
        ),
        (lambda: compute(["lpips"], [PHOTO], [PHOTO], models={"alex": 1}), "unknown keys"),
        (lambda: compute(["ssim"], tensor(PHOTO) * 255, tensor(PHOTO)), r"values of a must lie in \[0, 1\]"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_the_table_of_metrics_is_complete():
    assert metric_names() == ("psnr", "ssim", "vifp", "fsim", "fsimc", "lpips", "lpips-vgg", "clip", "fid", "precision")
    for name, metric in METRICS.items():
        assert metric.name == name
        assert len(metric.convention) > 30
        assert (metric.pair is None) == bool(metric.model)
