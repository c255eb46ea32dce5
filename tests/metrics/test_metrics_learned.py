"""Metrics that need weights: the formulas on given features, the networks with random weights, and the ways of not being available."""

from __future__ import annotations

import hashlib
import sys
from types import ModuleType

import pytest
from metrics_oracles import load_piq

torch = pytest.importorskip("torch")
torchmetrics = pytest.importorskip("torchmetrics")

from isr.errors import IntegrityError, UsageError  # noqa: E402
from isr.metrics import NotAvailable, compute, frechet_distance, precision  # noqa: E402
from isr.metrics.clip import ClipScore, load_clip  # noqa: E402
from isr.metrics.inception import InceptionFeatures, load_inception  # noqa: E402
from isr.metrics.lpips import LPIPS, load_lpips, set_weights  # noqa: E402
from isr.metrics.weights import load_hub_state  # noqa: E402

piq = load_piq()


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------ precision


def test_precision_by_hand():
    # Reference on a line: 0, 1, 2, 10. With k = 1 the radii (distance to the nearest other) are 1, 1, 1, 8.
    # Judged: 2.9 (within 1 of 2: in), 3.5 (2 is 1.5 away, but 10 is 6.5 ≤ 8 away: in), 18.5 (8.5 > 8: out), −2 (2 > 1: out) → 2/4.
    b = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    a = torch.tensor([[2.9], [3.5], [18.5], [-2.0]])
    assert precision(a, b, k=1) == 0.5
    assert precision(b, b, k=1) == 1.0
    assert precision(b, a, k=1) != precision(a, b, k=1), "not symmetric"


def test_precision_with_equal_features_is_exact():
    # Two reference points coincide: radius 0 with k = 1, and a judged point on top of them counts.
    b = torch.tensor([[0.3, 0.7]] * 2 + [[5.0, 5.0]] * 2)
    assert precision(torch.tensor([[0.3, 0.7], [0.3, 0.70001]]), b, k=1) == 0.5


@pytest.mark.skipif(piq is None, reason="piq is not installed (pip install --no-deps piq)")
@pytest.mark.parametrize("k", [3, 5])
def test_precision_is_piqs(k):
    a, b = rand(40, 8, seed=1) * 1.1, rand(30, 8, seed=2)
    theirs, recall = piq.PR(nearest_k=k).compute_metric(b, a)  # piq: (real, fake)
    assert precision(a, b, k=k) == pytest.approx(float(theirs))
    assert precision(b, a, k=k) == pytest.approx(float(recall)), "recall is precision the other way round"


def test_precision_permutation_and_errors():
    a, b = rand(20, 4, seed=1), rand(20, 4, seed=2)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert precision(a[order], b) == precision(a, b[order]) == precision(a, b)
    with pytest.raises(UsageError, match="at least 6 reference pictures in b, not 5"):
        precision(a, b[:5], k=5)
    with pytest.raises(UsageError, match="features of one width"):
        precision(a, b[:, :3])
    with pytest.raises(UsageError, match="must be finite"):
        precision(a * float("nan"), b)


# ------------------------------------------------------------------------------------------------------- Fréchet distance


def test_frechet_by_hand():
    # One dimension: a = {0, 2} (mean 1, variance 2), b = {3, 5, 7} (mean 5, variance 4): (1 − 5)² + 2 + 4 − 2√8 = 16.343146.
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0], [7.0]])
    assert frechet_distance(a, b) == pytest.approx(22 - 2 * 8**0.5)
    assert frechet_distance(b, a) == pytest.approx(22 - 2 * 8**0.5)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


class Flat(torch.nn.Module):
    """Features for torchmetrics' FID: the picture's mean over 2×2 tiles."""

    num_features = 12

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1)


@pytest.mark.parametrize("n", [40, 8])
def test_frechet_is_torchmetrics(n):
    # n = 8 pictures of 12 features: both covariances singular.
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = rand(n, 3, 4, 4, seed=3), rand(n, 3, 4, 4, seed=4) ** 2
    fid = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(3, 4, 4))
    fid.set_dtype(torch.float64)
    fid.update(real, real=True)
    fid.update(fake, real=False)
    flat = Flat()
    a, b = flat(fake), flat(real)
    assert frechet_distance(a, b) == pytest.approx(float(fid.compute()), rel=2e-3)


# ------------------------------------------------------------------------------------------------------------- Inception


def test_inception_has_the_published_size_and_names():
    model = InceptionFeatures()
    # Inception-v3 without the auxiliary head and with 1000 classes has 23,834,568 parameters; its classifier 2048·1000 + 1000.
    assert sum(p.numel() for p in model.parameters()) == 23_834_568 - 2_049_000
    names = set(model.state_dict())
    assert {
        "Conv2d_1a_3x3.conv.weight",
        "Mixed_5b.branch5x5_2.bn.running_var",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
    } <= names
    # 94 convolutions, each with a kernel and a batch norm of 5 entries.
    assert len(names) == 94 * 6
    out = model(rand(2, 3, 40, 56))
    assert out.shape == (2, 2048)
    assert bool(torch.isfinite(out).all())
    assert not any(p.requires_grad for p in model.parameters())


# ----------------------------------------------------------------------------------------------------------------- LPIPS


def torchvision_with(features: torch.nn.Sequential, net: str) -> dict[str, ModuleType]:
    """A stand-in torchvision whose classifier holds our backbone: torchmetrics' LPIPS then runs on the same weights."""

    class Classifier:
        def __init__(self) -> None:
            self.features = features

    models = ModuleType("torchvision.models")
    setattr(models, {"alex": "alexnet", "vgg": "vgg16"}[net], lambda **_: Classifier())
    weights = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights"}[net]
    setattr(models, weights, type(weights, (), {"IMAGENET1K_V1": None}))
    root = ModuleType("torchvision")
    root.models = models
    return {"torchvision": root, "torchvision.models": models}


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_torchmetrics_on_the_same_random_weights(net, monkeypatch):
    from pathlib import Path

    from torchmetrics.functional.image import lpips as theirs

    torch.manual_seed(0)
    ours = LPIPS(net)
    path = Path(theirs.__file__).parent / "lpips_models" / f"{net}.pth"
    heads = torch.load(path, map_location="cpu", weights_only=True)
    backbone = {f"features.{k}": v for k, v in ours.features.state_dict().items()}
    set_weights(ours, backbone, heads)
    # torchvision's AlexNet and VGG end their features with one more pool, after the last tap; it changes nothing here.
    features = torch.nn.Sequential(*ours.features, torch.nn.MaxPool2d(2))
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_, **__: features)
    monkeypatch.setattr(theirs, "_TORCHVISION_AVAILABLE", True, raising=False)
    reference = theirs._LPIPS(net=net, pretrained=True)
    a, b = rand(2, 3, 64, 48, seed=1), rand(2, 3, 64, 48, seed=2)
    assert torch.allclose(ours(a, b), reference(a, b, normalize=True).flatten(), rtol=1e-4, atol=1e-6)
    assert ours(a, a).tolist() == [0.0, 0.0]
    assert torch.allclose(ours(a, b), ours(b, a))
    assert torch.allclose(ours(a, b), torch.cat([ours(a[:1], b[:1]), ours(a[1:], b[1:])]), rtol=1e-4)
    with pytest.raises(UsageError, match="at least 32×32"):
        ours(a[..., :31], b[..., :31])


def test_lpips_loads_a_planted_cache(tmp_path, monkeypatch):
    """The whole path from the hub cache: a file whose name carries its digest is loaded, another is refused."""
    from isr.metrics import lpips as module

    torch.manual_seed(1)
    source = LPIPS("alex")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    plain = folder / "x.pth"
    torch.save(
        {f"features.{k}": v for k, v in source.features.state_dict().items()} | {"classifier.0.weight": torch.zeros(1)},
        plain,
    )
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
    right = folder / f"alexnet-owt-{digest}.pth"
    plain.rename(right)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(module._FILES, "alex", right.name)
    loaded = load_lpips("alex")
    assert isinstance(loaded, LPIPS)
    assert torch.equal(loaded.features[0].weight, source.features[0].weight)
    wrong = folder / "alexnet-owt-00000000.pth"
    right.rename(wrong)
    with pytest.raises(IntegrityError, match="not the file its name claims"):
        load_hub_state(wrong)
    with pytest.raises(IntegrityError, match="carries no digest"):
        load_hub_state(folder / "weights.pth")


# ------------------------------------------------------------------------------------------------------------------ CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{c}</w>" for c in "abcdefgh"), *"abcdefgh"]
    tokenizer = transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=16)
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "projection_dim": 8,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
            "patch_size": 16, "projection_dim": 8,
        },
        projection_dim=8,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_clip_score_is_transformers_own_cosine(clip_folder):
    import transformers

    score = load_clip(clip_folder)
    assert isinstance(score, ClipScore)
    x, prompts = rand(3, 3, 40, 32, seed=5), ["a b", "c d e", "h"]
    ours = score(x, prompts)
    # CLIP's own image processor on 8-bit pictures, and the model's logits / scale = cosine.
    from PIL import Image

    images = [Image.fromarray((p.permute(1, 2, 0) * 255).round().byte().numpy()) for p in x]
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    text = score.tokenizer(prompts, padding=True, return_tensors="pt")
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = score.model(pixel_values=pixels, input_ids=text["input_ids"], attention_mask=text["attention_mask"])
    cosine = out.logits_per_image.diagonal() / score.model.logit_scale.exp()
    assert torch.allclose(ours, (100 * cosine).clamp_min(0), atol=0.2)
    assert torch.allclose(torch.cat([score(x[i : i + 1], prompts[i : i + 1]) for i in range(3)]), ours, atol=1e-3)
    with pytest.raises(UsageError, match="one prompt per picture"):
        score(x, ["a"])


# --------------------------------------------------------------------------------------------------------- not available


def test_without_weights_each_says_why_and_nothing_stands_in(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for missing, word in [
        (load_lpips("alex"), "alexnet-owt-7be5be79.pth"),
        (load_lpips("vgg"), "vgg16-397923af.pth"),
        (load_inception(), "pt_inception-2015-12-05-6726825d.pth"),
        (load_clip(tmp_path / "nowhere"), "safetensors"),
    ]:
        assert isinstance(missing, NotAvailable)
        assert word in missing.reason
        assert str(missing) == "n/a"
        with pytest.raises(TypeError, match="not available"):
            float(missing)
        with pytest.raises(TypeError, match="not available"):
            bool(missing)
    x = rand(6, 3, 64, 64)
    results = compute(["lpips", "fid", "precision"], x, x)
    assert [len(r.values) for r in results.values()] == [6, 1, 1]
    assert all(isinstance(v, NotAvailable) for r in results.values() for v in r.values)
    assert results["lpips"].available == ()
    assert "torchvision" not in sys.modules
