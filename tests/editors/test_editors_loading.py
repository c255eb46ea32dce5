"""Loading: hub names and folders, licence before download, safetensors only, and every failure's way on."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
huggingface_hub = pytest.importorskip("huggingface_hub")

import editor_surface as surface  # noqa: E402
import tiny  # noqa: E402
from isr.editors import load_editor  # noqa: E402
from isr.editors.hub import check_environment, locate  # noqa: E402
from isr.editors.loading import EditorLoadError, EditorMemoryError, fingerprint, memory_hint  # noqa: E402
from isr.editors.unet import InstructPix2Pix  # noqa: E402
from isr.editors.unet_xl import InstructPix2PixXL  # noqa: E402

from isr.errors import MissingExtraError, UsageError  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("ip2p", tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "checkpoint"))


def load(where: Path | str, **options: Any) -> Any:
    return InstructPix2Pix.from_pretrained(str(where), device="cpu", **options)


# ------------------------------------------------------------------------------------------------ folders


def test_wrong_folders_say_what_is_wrong(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(EditorLoadError, match=r"has no model_index.json \(it holds: checkpoint, notes.txt\)"):
        load(tmp_path)
    with pytest.raises(EditorLoadError, match="there is no folder '/nowhere/at/all'"):
        load("/nowhere/at/all")
    with pytest.raises(EditorLoadError, match=r"there is no folder './missing'"):
        load("./missing")
    with pytest.raises(
        EditorLoadError, match="holds a StableDiffusionInstructPix2PixPipeline, but InstructPix2PixXL loads"
    ):
        InstructPix2PixXL.from_pretrained(str(folder))
    with pytest.raises(UsageError, match="revision='main' goes with a hub name"):
        load(folder, revision="main")
    (folder / "model_index.json").write_text("{")
    with pytest.raises(EditorLoadError, match="is not valid JSON"):
        load(folder)


def test_missing_parts_and_weights_say_which(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "elsewhere")
    with pytest.raises(EditorLoadError, match=r"missing weights: .*unet' holds no \*.safetensors"):
        load(folder)
    (folder / "elsewhere").rename(weights)
    shutil.rmtree(folder / "vae")
    with pytest.raises(EditorLoadError, match="has no 'vae' part"):
        InstructPix2Pix.from_pretrained(str(folder))


def test_code_in_a_checkpoint_is_never_run(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["my_pipeline", "Surprise"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "my_pipeline.py").write_text("raise SystemExit('ran')")
    with pytest.raises(
        EditorLoadError, match=r"asks for my_pipeline.Surprise as its 'unet', expected diffusers.UNet2DConditionModel"
    ):
        load(folder)
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    index["scheduler"] = ["diffusers", "DiffusionPipeline"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(EditorLoadError, match=r"expected diffusers.…Scheduler"):
        load(folder)


def test_pickled_weights_need_consent(folder: Path, made: Path) -> None:
    from safetensors.torch import load_file

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(
        EditorLoadError, match=r"only pickled weights \(diffusion_pytorch_model.bin\).*allow_pickle=True"
    ):
        load(folder)
    trusted, safe = load(folder, allow_pickle=True), load(made)
    for a, b in zip(trusted.denoiser.parameters(), safe.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)


def test_damaged_pickles_say_so(folder: Path) -> None:
    path = _weights(folder, "vae")
    path.unlink()
    for content in (b"not a pickle", b""):
        path.with_suffix(".bin").write_bytes(content)
        with pytest.raises(EditorLoadError, match=r"the 'vae' part of .* cannot be read"):
            load(folder, allow_pickle=True)


def test_fingerprint_tells_checkpoints_apart(folder: Path, made: Path) -> None:
    same = fingerprint(folder, InstructPix2Pix.PARTS)
    assert same == fingerprint(made, InstructPix2Pix.PARTS)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(folder, InstructPix2Pix.PARTS) != same


# --------------------------------------------------------------------------------- what is incomplete or damaged

#: what a tokenizer reads its words from, in the two layouts
VOCABULARIES = [["tokenizer.json"], ["vocab.json", "merges.txt"]]


def _without_vocabulary(tokenizer: Path) -> None:
    for names in VOCABULARIES:
        for name in names:
            (tokenizer / name).unlink(missing_ok=True)
    assert [*tokenizer.iterdir()], "the rest of it stays"


@pytest.mark.parametrize(("family", "role"), [("ip2p", "tokenizer"), ("sd3", "tokenizer_2"), ("sd3", "tokenizer_3")])
def test_a_tokenizer_without_its_vocabulary_is_refused(family: str, role: str, tmp_path: Path) -> None:
    """It would load empty, and every prompt would read the same."""
    from isr.editors.mmdit import SD3Img2Img

    folder = tiny.build(family, tmp_path)
    _without_vocabulary(folder / role)
    cls: Any = InstructPix2Pix if family == "ip2p" else SD3Img2Img
    with pytest.raises(EditorLoadError, match=rf"'{role}' part of .* has no vocabulary .*tokenizer.json.*spiece.model"):
        cls.from_pretrained(str(folder), device="cpu")


def test_a_vocabulary_in_the_older_layout_will_do(folder: Path, made: Path) -> None:
    inner = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(inner["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in inner["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    prompt = ["make the hat red"]
    assert torch.equal(load(folder).embed(prompt).hidden, load(made).embed(prompt).hidden)
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(EditorLoadError, match="has no vocabulary"):
        load(folder)


@pytest.mark.parametrize(
    "gone",
    [
        "tokenizer/tokenizer.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ],
)  # fmt: skip
def test_a_cache_that_lacks_one_file_is_completed(
    gone: str, made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other files of the part are there: a download that was cut off is taken up again."""
    (folder / gone).unlink()
    (folder / gone).with_name("README.md").write_text("x")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(made, cached=folder))
    assert locate("owner/name", InstructPix2Pix.PARTS).folder == made
    with pytest.raises(EditorLoadError, match="offline=True"):
        locate("owner/name", InstructPix2Pix.PARTS, offline=True)


def _weights(folder: Path, role: str) -> Path:
    (path,) = (folder / role).glob("*.safetensors")
    return path


@pytest.mark.parametrize("role", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("how", ["missing", "of another shape"])
def test_weights_that_lack_a_tensor_are_refused(role: str, how: str, folder: Path) -> None:
    """Both libraries would fill the gap with random numbers, under the same fingerprint each time."""
    from safetensors.torch import load_file, save_file

    path = _weights(folder, role)
    tensors = load_file(path)
    name = sorted(tensors)[len(tensors) // 2]
    if how == "missing":
        tensors.pop(name)
    else:
        tensors[name] = torch.zeros(tensors[name].numel() + 3)
    save_file(tensors, path, metadata={"format": "pt"})
    said = rf"lacks {name}" if how == "missing" else "cannot be read"
    with pytest.raises(EditorLoadError, match=rf"the '{role}' part of .* {said}.*download .* again"):
        load(folder)


def test_what_may_be_absent_from_a_file_of_weights(tmp_path: Path) -> None:
    """T5's two names of one tensor, and CLIP's position numbers, which older files hold and newer ones do not."""
    from isr.editors.mmdit import SD3Img2Img
    from safetensors.torch import load_file, save_file

    folder = tiny.build("sd3", tmp_path)
    options: dict[str, Any] = {"device": "cpu", "max_sequence_length": 8}
    want = SD3Img2Img.from_pretrained(str(folder), **options).embed(["make the hat red"]).hidden
    path = _weights(folder, "text_encoder_3")
    tensors = load_file(path)
    embedding = tensors.pop("shared.weight" if "shared.weight" in tensors else "encoder.embed_tokens.weight")
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        save_file({**tensors, name: embedding}, path, metadata={"format": "pt"})
        got = SD3Img2Img.from_pretrained(str(folder), **options).embed(["make the hat red"]).hidden
        assert torch.equal(got, want)
    path = _weights(folder, "text_encoder")
    old = {**load_file(path), "text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(old, path, metadata={"format": "pt"})
    assert torch.equal(SD3Img2Img.from_pretrained(str(folder), **options).embed(["make the hat red"]).hidden, want)


@pytest.mark.parametrize("role", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
@pytest.mark.parametrize("content", [b"not what it should be", b"", b'{"model": 3}'])
def test_damaged_files_say_so(role: str, content: bytes, folder: Path) -> None:
    names = {"tokenizer": "tokenizer.json", "scheduler": "scheduler_config.json"}
    path = folder / role / names[role] if role in names else _weights(folder, role)
    path.write_bytes(content)
    if (role, content) == ("scheduler", b'{"model": 3}'):
        return  # a scheduler without settings is one with diffusers' own
    with pytest.raises(EditorLoadError, match=rf"the '{role}' part of .* cannot be read .* download them again"):
        load(folder)


@pytest.mark.parametrize("role", ["unet", "vae", "text_encoder"])
def test_damaged_configurations_say_so(role: str, folder: Path) -> None:
    for content in ("{", "[]"):
        (folder / role / "config.json").write_text(content)
        with pytest.raises(EditorLoadError, match=rf"the '{role}' part of .* cannot be read"):
            load(folder)
    (folder / role / "config.json").unlink()
    with pytest.raises(EditorLoadError, match=rf"the '{role}' part of .* has no config.json"):
        load(folder)


@pytest.mark.parametrize(
    ("raised", "both"),
    [
        (OSError("bad file"), False),
        (EOFError("cut off"), False),
        (ValueError("Unrecognized model"), True),
        (TypeError("__init__() got an unexpected keyword argument 'rope'"), True),
        (AttributeError("no attribute 'pad_token'"), True),
        (KeyError("rope_type"), True),
        (RuntimeError("size mismatch"), True),
    ],
)
def test_what_may_be_a_version_is_not_called_damage_alone(
    raised: Exception, both: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    def fails(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", fails)
    with pytest.raises(EditorLoadError) as caught:
        load(folder)
    said = str(caught.value)
    assert f"({type(raised).__name__}: {raised})" in said
    assert "the files are incomplete or damaged: download them again" in said
    assert ("or the installed diffusers does not fit them: pip install -U diffusers" in said) == both


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
)  # fmt: skip
def test_too_little_memory_for_the_weights_is_not_damage(
    raised: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    def fails(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", fails)
    with pytest.raises(EditorMemoryError, match=r"no memory for the 'unet' part of .*dtype='bfloat16'") as caught:
        load(folder)
    assert "download" not in str(caught.value)


def test_paths_that_are_no_folders(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(EditorLoadError, match="there is no folder '/nowhere/at/all'"):
        load_editor(Path("/nowhere/at/all"))
    with pytest.raises(EditorLoadError, match=r"model.safetensors' is a file.*folder that contains model_index.json"):
        load_editor(file)


def test_a_failed_download_says_what_the_hub_said_but_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "403 Forbidden for https://me:hunter2@proxy.example/x with hf_abcDEF123456 and Bearer abc.def"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(ConnectionError(said)))
    with pytest.raises(EditorLoadError) as caught:
        locate("a/b", InstructPix2Pix.PARTS)
    assert "(ConnectionError: 403 Forbidden for https://…@proxy.example/x with hf_… and Bearer …)" in str(caught.value)


# -------------------------------------------------------------------------------------------------- hub


class Hub:
    """Stands in for the hub: nothing cached, then an error or a folder on download."""

    def __init__(self, outcome: Exception | Path, cached: Path | None = None) -> None:
        self.outcome, self.cached = outcome, cached
        self.calls: list[dict[str, Any]] = []

    def __call__(self, name: str, **options: Any) -> str:
        self.calls.append({"name": name, **options})
        if options.get("local_files_only"):
            if self.cached is None:
                raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
            return str(self.cached)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return str(self.outcome)


#: what a hub repository may hold: first what this editor needs, then what it does not
REPOSITORY = [
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
    "README.md",
    "v1-5-pruned.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "text_encoder/model.fp16-00001-of-00002.safetensors",
    "safety_checker/model.safetensors",
    "checkpoint-25000/unet/diffusion_pytorch_model.safetensors",
    "unet/pipeline.py",
]
NEEDED = 9


def response(status: int) -> Any:
    """What the hub's errors hold: any object with headers and a request."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


def test_a_download_takes_only_what_is_needed_and_shows_the_licence_first(
    made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    with caplog.at_level(logging.WARNING, logger="isr.editors"):
        editor = load("owner/name", revision="abc", licence="MIT", gated=True, cache_dir="/somewhere")
    assert (
        "downloading owner/name (licence: MIT, terms: https://huggingface.co/owner/name; gated: its terms"
        in caplog.text
    )
    probe, download = hub.calls
    assert probe["local_files_only"] is True
    assert download["revision"] == "abc"
    assert download["cache_dir"] == "/somewhere"
    wanted = dict.fromkeys(REPOSITORY, True)
    kept = huggingface_hub.utils.filter_repo_objects(
        wanted, allow_patterns=download["allow_patterns"], ignore_patterns=download["ignore_patterns"]
    )
    assert list(kept) == REPOSITORY[:NEEDED]
    assert editor.settings()["source"] == "owner/name"
    assert editor.settings()["revision"] == made.name


def test_a_variant_replaces_the_plain_weights(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    locate("owner/name", InstructPix2Pix.PARTS, variant="fp16")
    asked = hub.calls[1]
    kept = huggingface_hub.utils.filter_repo_objects(
        REPOSITORY, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert [name for name in kept if name.endswith(".safetensors")] == [
        "unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16-00001-of-00002.safetensors",
    ]  # fmt: skip


def test_what_is_cached_is_used_without_a_word(
    made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(RuntimeError("the network was used"), cached=made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    with caplog.at_level(logging.WARNING, logger="isr.editors"):
        assert locate("owner/name", InstructPix2Pix.PARTS, offline=True).folder == made
    assert "downloading" not in caplog.text


@pytest.mark.parametrize("absent", ["text_encoder_3", "text_encoder_3/model-00002-of-00002.safetensors", "tokenizer_3"])
def test_a_half_cached_checkpoint_is_completed(absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SD3 once loaded without T5, or a download that was cut off: never silently an editor without its third text encoder."""
    from isr.editors.mmdit import SD3Img2Img

    whole = tiny.build("sd3", tmp_path / "whole")
    encoder = whole / "text_encoder_3"
    (encoder / "model.safetensors").rename(encoder / "model-00001-of-00002.safetensors")
    (encoder / "model-00002-of-00002.safetensors").write_bytes(b"")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (encoder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    half = Path(shutil.copytree(whole, tmp_path / "half"))
    gone = half / absent
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    hub = Hub(whole, cached=half)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert locate("owner/name", SD3Img2Img.PARTS).folder == whole
    with pytest.raises(EditorLoadError, match=r"not \(completely\) in the cache and offline=True"):
        locate("owner/name", SD3Img2Img.PARTS, offline=True)
    hub.cached = whole
    assert locate("owner/name", SD3Img2Img.PARTS, offline=True).folder == whole
    without = [part for part in SD3Img2Img.PARTS if part.role not in ("text_encoder_3", "tokenizer_3")]
    hub.cached = half
    assert locate("owner/name", without, offline=True).folder == half


def test_another_variant_in_the_cache_is_not_what_was_asked(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Path(shutil.copytree(made, tmp_path / "half"))
    for path in [*half.rglob("*.safetensors")]:
        path.rename(path.with_suffix(".fp16.safetensors"))
    parts = InstructPix2Pix.PARTS
    for cached, variant in ((made, "fp16"), (half, None)):
        monkeypatch.setattr(
            huggingface_hub, "snapshot_download", Hub(RuntimeError("the network was used"), cached=cached)
        )
        with pytest.raises(EditorLoadError, match="offline=True"):
            locate("owner/name", parts, variant=variant, offline=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(made, cached=half))
    assert locate("owner/name", parts, variant="fp16", offline=True).folder == half
    assert locate("owner/name", parts).folder == made


def test_a_listed_part_that_is_absent_is_never_left_out_silently(tmp_path: Path) -> None:
    from isr.editors.mmdit import SD3Img2Img

    folder = tiny.build("sd3", tmp_path)
    shutil.rmtree(folder / "text_encoder_3")
    with pytest.raises(EditorLoadError, match=r"lists a 'text_encoder_3' part that is not there.*without=\["):
        SD3Img2Img.from_pretrained(str(folder), device="cpu")
    editor: Any = SD3Img2Img.from_pretrained(str(folder), device="cpu", without=["text_encoder_3", "tokenizer_3"])
    assert editor.settings()["t5"] is False


def test_the_variant_is_recorded(made: Path, folder: Path) -> None:
    """Two variants may lie in one folder: its fingerprint cannot tell which was read."""
    assert "variant" not in load(made).settings()
    for role in ("unet", "vae", "text_encoder"):
        (plain,) = (folder / role).glob("*.safetensors")
        shutil.copy(plain, plain.with_name(plain.name.replace(".safetensors", ".fp16.safetensors")))
    assert load(folder, variant="fp16").settings()["variant"] == "fp16"


def test_wrong_options_are_named_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(RuntimeError("the network was used"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    with pytest.raises(UsageError, match=r"InstructPix2Pix has no option 'batchsize'; it takes: .*batch_size"):
        load("a/b", batchsize=2)
    with pytest.raises(UsageError, match=r"has no setting 'stepps'"):
        load("a/b", defaults={"stepps": 2})
    with pytest.raises(UsageError, match="dtype must be one of"):
        load("a/b", dtype="int8")
    with pytest.raises(
        UsageError, match="device must be a device of torch such as 'cpu', 'cuda' or 'cuda:1', got 'gpu'"
    ):
        InstructPix2Pix.from_pretrained("a/b", device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UsageError, match=r"device='cuda:0' is not here: torch .* sees 0 CUDA devices; use device='cpu'"
    ):
        InstructPix2Pix.from_pretrained("a/b", device="cuda:0")
    assert hub.calls == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            huggingface_hub.errors.GatedRepoError("x", response=response(403)),
            "is gated: accept its terms at https://huggingface.co/a/b .* hf auth login",
        ),
        (
            huggingface_hub.errors.RepositoryNotFoundError("x", response=response(401)),
            r"the hub knows no 'a/b' \(or it is private\)",
        ),
        (huggingface_hub.errors.RevisionNotFoundError("x", response=response(404)), "has no revision 'r1'"),
        (
            huggingface_hub.errors.LocalEntryNotFoundError("x"),
            "is not cached and could not be downloaded .* check the network",
        ),
        (ConnectionError("no route"), r"could not be downloaded \(ConnectionError: no route\)"),
    ],
)
def test_hub_errors_say_what_to_do(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(error))
    with pytest.raises(EditorLoadError, match=message):
        locate("a/b", InstructPix2Pix.PARTS, revision="r1")


def test_offline_never_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(RuntimeError("the network was used"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    with pytest.raises(EditorLoadError, match=r"not \(completely\) in the cache and offline=True"):
        locate("a/b", InstructPix2Pix.PARTS, offline=True)


# ------------------------------------------------------------------------------------------ environment


def test_a_broken_torchvision_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(
        EditorLoadError, match=r"torchvision does not match .*nms does not exist.*pip uninstall torchvision"
    ):
        check_environment()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"InstructPix2Pix needs the package 'diffusers'.*\[attacks\]"):
        load("a/b")


def test_out_of_memory_says_what_to_try() -> None:
    with (
        pytest.raises(
            EditorMemoryError, match=r"ip2p ran out of device memory \(CUDA out of memory.*batch_size=1.*offload"
        ),
        memory_hint("ip2p"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


# ---------------------------------------------------------------------------------------------- options


def test_offload_edits_the_same(made: Path) -> None:
    """On the CPU every part is home already; what is tested is the bookkeeping and the refusal of gradients."""
    images = surface.pictures(1)
    want = np.asarray(load(made).edit(images, ["x"], seeds=[1], steps=2)[0])
    for offload in ("text", "model"):
        editor = load(made, offload=offload, vae_slicing=True)
        assert np.array_equal(np.asarray(editor.edit(images, ["x"], seeds=[1], steps=2)[0]), want)
    with pytest.raises(UsageError, match="offload='model' serves edits only"):
        editor.latents(surface.pixels(1, grad=True))
    with pytest.raises(UsageError, match="offload must be None, 'text' or 'model' for InstructPix2Pix, got 'disk'"):
        load(made, offload="disk")


def test_offload_moves_each_part_once_per_edit(made: Path) -> None:
    """The denoiser stays on the device from step to step: sending it home after each one would take longer than the steps."""
    editor = load(made, offload="model")
    moves: list[str] = []
    for role in ("unet", "vae"):
        part = editor.parts[role]

        def to(*where: Any, role: str = role, part: Any = part) -> Any:
            moves.append(f"{role} {where[0]}")
            return part

        object.__setattr__(part, "to", to)
    editor._device = torch.device("cpu", 0)  # a device by another name than home
    editor.edit(surface.pictures(2), ["x", "y"], seeds=[1, 2], steps=3)
    one = ["vae cpu:0", "vae cpu", "unet cpu:0", "unet cpu", "vae cpu:0", "vae cpu"]
    assert moves == [*one, *one]
    moves.clear()
    with torch.no_grad():
        editor.latents(surface.pixels(1))
    assert moves == ["vae cpu:0", "vae cpu"]


def test_tiling_equals_the_pipeline_with_tiling(made: Path) -> None:
    """Sides of 96 are more than the 64 that this VAE takes in one tile."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    images = surface.pictures(1, (96, 80))
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(str(made), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    edits = {}
    for tiled in (False, True):
        if tiled:
            pipeline.vae.enable_tiling()
        editor = load(made, vae_tiling=tiled)
        assert editor.settings()["vae_tiling"] is tiled
        want = pipeline(
            "x", image=images[0], num_inference_steps=2, generator=surface.generators([1]), output_type="np"
        ).images[0]
        edits[tiled] = np.asarray(editor.edit(images, ["x"], seeds=[1], steps=2)[0]) / 255
        assert np.abs(edits[tiled] - want).max() <= 0.5 / 255 + 1e-4
    assert (edits[True] != edits[False]).any()


def test_half_precision_keeps_the_surface_in_float32(made: Path) -> None:
    editor = load(made, dtype="bfloat16")
    assert editor.settings()["dtype"] == "bfloat16"
    assert next(editor.denoiser.parameters()).dtype == torch.bfloat16
    x = surface.pixels(1, grad=True)
    args = surface.inputs(editor, x, 1)
    values = [editor.predict(*args), editor.latents(x), *editor.features(*args, editor.default_layers()).values()]
    assert {v.dtype for v in values} == {torch.float32}
    assert torch.isfinite(torch.autograd.grad(values[-1].square().mean(), x)[0]).all()
    with pytest.raises(UsageError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        load(made, dtype="int8")


def test_other_samplers_and_wrong_names(made: Path) -> None:
    assert load(made, scheduler="EulerDiscreteScheduler").settings()["scheduler"] == "EulerDiscreteScheduler"
    with pytest.raises(UsageError, match="scheduler must be a scheduler class of diffusers"):
        load(made, scheduler="Euler")
    with pytest.raises(UsageError, match="batch_size must be a whole number of at least 1, got 0"):
        load(made, batch_size=0)


def test_a_prompt_that_is_cut_is_said_so(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="isr.editors"):
        load(made).embed(["a " * 100])
    assert "reads only the first 77 tokens of a prompt of 102" in caplog.text
