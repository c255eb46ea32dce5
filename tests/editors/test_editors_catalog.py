"""Names, the command, and functions as editors."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from isr.editors import load_editor
from isr.editors.catalog import entries, entry, traits_of
from isr.editors.command import human, rows
from isr.editors.function import FunctionEditor
from isr.editors.hub import EditorLoadError

from isr.cli import main
from isr.errors import MissingExtraError, RegistryError, UsageError
from isr.protocols import Editor, Traits
from isr.registry import EDITORS


def picture(size: tuple[int, int] = (16, 12)) -> PIL.Image.Image:
    rng = np.random.default_rng(0)
    return PIL.Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


# ------------------------------------------------------------------------------------------------- catalogue


def test_every_row_is_registered_and_its_class_exists() -> None:
    pytest.importorskip("diffusers")
    registered = {p.name for p in EDITORS.list()}
    assert set(entries()) | {"function"} <= registered
    for row in entries().values():
        module, _, name = row.target.partition(":")
        cls = getattr(importlib.import_module(f"isr.editors.{module}"), name)
        assert row.family == cls.FAMILY
        assert set(row.defaults) <= set(cls.DEFAULTS)
        assert callable(EDITORS.load(row.name))
        assert row.licence
        assert row.gpu_dtype in ("float32", "bfloat16", "float16")
        assert traits_of(row).source == row.source


def test_the_papers_editors_are_there() -> None:
    assert {"ip2p", "hq-edit", "sd3", "ultraedit-sd3", "kontext"} <= set(entries())
    assert entry("sd3").gated
    assert not entry("qwen-edit").white_box
    with pytest.raises(UsageError, match="no editor 'sd4'; it has: hq-edit, ip2p"):
        entry("sd4")


def test_nothing_heavy_is_imported_before_an_editor_is_made() -> None:
    code = (
        "import sys\nfrom isr.cli import main\nfrom isr.editors import load_editor\nmain(['editors'])\n"
        "load_editor(lambda image, prompt, seed: image)\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The size of the hub's cache is read by the hub's own library, which is light.
    assert done.stdout.splitlines()[-1] in ("[]", "['huggingface_hub']")


def test_the_command_lists_every_editor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["editors"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["name", "family", "size", "licence", "white-box", "cached", "source"]
    (line,) = [x for x in out.splitlines() if x.startswith("kontext ")]
    assert "12 B, 1024 px" in line
    assert "Non-Commercial License (gated)" in line
    assert {row["name"] for row in rows()} >= {"function", "mini-ip2p"}


def test_plugins_show_what_their_traits_say(monkeypatch: pytest.MonkeyPatch) -> None:
    class Brighten:
        traits = Traits(
            white_box=False, family="function", licence="MIT", native_size=256, source="https://example.org"
        )

    def factory() -> Any:
        raise AssertionError("a plugin is not made to be listed")

    def broken(name: str) -> Any:
        if name == "broken":
            raise RegistryError("cannot be loaded")
        return EDITORS._local[name]

    for name, target in (
        ("brighten", Brighten),
        ("white", type("White", (), {"traits": Traits(white_box=True)})),
        ("some", factory),
        ("broken", 3),
    ):
        monkeypatch.setitem(EDITORS._local, name, target)
    monkeypatch.setattr(EDITORS, "load", broken)
    found = {row["name"]: row for row in rows()}
    assert [found["brighten"][c] for c in ("family", "size", "licence", "white-box", "source")] == [
        "function", "–, 256 px", "MIT", "no", "https://example.org"
    ]  # fmt: skip
    assert [found["white"][c] for c in ("family", "size", "licence", "white-box")] == ["plugin", "–", "?", "yes"]
    for name in ("some", "broken"):
        assert [found[name][c] for c in ("family", "licence", "white-box")] == ["plugin", "?", "?"]


def test_a_plugin_that_fails_on_import_is_a_row_like_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    (tmp_path / "editor_plugin_that_raises.py").write_text("raise RuntimeError('no licence server')\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("unlucky", "editor_plugin_that_raises:Editor", "isr.editors")
    found = list(EDITORS._found())
    monkeypatch.setattr(EDITORS, "_found", lambda: [*found, (point, "unlucky-editors")])
    table = {row["name"]: row for row in rows()}
    assert [table["unlucky"][c] for c in ("family", "licence", "white-box")] == ["plugin", "?", "?"]
    assert table["ip2p"]["family"] == "unet"


def test_sizes_for_a_reader() -> None:
    assert [human(n) for n in (12, 4321, 9_650_000, 4_300_000_000)] == ["12 B", "4 kB", "10 MB", "4 GB"]


def test_cached_files_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    from isr.editors.catalog import cached_bytes

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert cached_bytes(entry("ip2p")) is None
    blobs = tmp_path / "models--timbrooks--instruct-pix2pix" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc").write_bytes(b"12345")
    (blobs / "def.incomplete").write_bytes(b"cut off")
    assert cached_bytes(entry("ip2p")) == 5


# ---------------------------------------------------------------------------------------------- load_editor


def test_names_that_are_none() -> None:
    with pytest.raises(RegistryError, match=r"no editor is called 'ip2q'. Did you mean 'ip2p'"):
        load_editor("ip2q")
    with pytest.raises(UsageError, match=r"neither a folder nor a catalogued hub name.*source='someone/finetune'"):
        load_editor("someone/finetune")
    with pytest.raises(UsageError, match="must be a name, a folder, a function or an editor, got int"):
        load_editor(3)  # type: ignore[arg-type]


def test_miniworld_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isr_miniworld", None)
    with pytest.raises(
        MissingExtraError, match=r"MiniWorld's weights.*immunization-success-rate\[mini\].*packages/miniworld"
    ):
        load_editor("mini-ip2p")


def test_checkpoints_by_name_folder_and_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    import tiny
    from isr.editors.unet import InstructPix2Pix

    folder = tiny.build("ip2p", tmp_path / "some-finetune")
    by_folder = load_editor(folder, device="cpu")
    assert isinstance(by_folder, InstructPix2Pix)
    assert by_folder.name == "some-finetune"
    assert load_editor(by_folder) is by_folder
    with pytest.raises(UsageError, match="is made already"):
        load_editor(by_folder, device="cpu")

    hq = load_editor("hq-edit", source=str(folder), device="cpu", defaults={"guidance": 5.0})
    record = hq.settings()
    assert (hq.name, record["steps"], record["guidance"], record["image_guidance"]) == ("hq-edit", 30, 5.0, 1.5)
    assert record["scheduler"] == "EulerAncestralDiscreteScheduler"
    assert hq.traits.native_size == 512
    assert (hq.traits.licence, record["licence"]) == ("unknown", "")  # of a folder the catalogue knows none

    package = tmp_path / "site" / "isr_miniworld"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"def path(name):\n    return {str(tmp_path)!r} + '/' + name\n")
    folder.rename(tmp_path / "mini-ip2p")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "isr_miniworld", raising=False)
    mini = load_editor("mini-ip2p", device="cpu")
    (package / "__init__.py").write_text("def path(name):\n    raise LookupError('there are none')\n")
    monkeypatch.delitem(sys.modules, "isr_miniworld", raising=False)
    importlib.invalidate_caches()
    shutil.rmtree(package / "__pycache__", ignore_errors=True)
    with pytest.raises(UsageError, match=r"do not hold 'mini-ip2p' \(there are none\)"):
        load_editor("mini-ip2p")
    monkeypatch.delitem(sys.modules, "isr_miniworld", raising=False)
    assert mini.name == "mini-ip2p"
    assert mini.traits.native_size == 64
    assert mini.traits.source == "miniworld:mini-ip2p"


def test_another_checkpoint_has_a_licence_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue speaks for its own checkpoint; of somebody's fine-tune it knows neither licence nor gate."""
    pytest.importorskip("diffusers")
    hub = pytest.importorskip("huggingface_hub")
    import tiny
    from isr.editors.hub import log

    folder = tiny.build("sd3", tmp_path, with_t5=False)

    def download(name: str, **options: Any) -> str:
        if options.get("local_files_only"):
            raise hub.errors.LocalEntryNotFoundError("not cached")
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    said: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: said.append(text % values))
    own = load_editor("sd3", device="cpu")
    assert "licence: Stability AI Community License" in said[0]
    assert "gated" in said[0]
    other = load_editor("sd3", source="me/mine", device="cpu")
    assert "licence: see its page, terms: https://huggingface.co/me/mine)" in said[1]
    told = load_editor("sd3", source="me/mine", device="cpu", licence="MIT")
    assert "licence: MIT" in said[2]
    licences = [e.settings()["licence"] for e in (own, other, told)]
    assert licences == ["Stability AI Community License", "", "MIT"]
    assert [e.traits.licence for e in (own, other, told)] == ["Stability AI Community License", "unknown", "MIT"]
    assert [e.traits.gated for e in (own, other, told)] == [True, False, False]
    assert load_editor("sd3", source="stabilityai/stable-diffusion-3-medium-diffusers", device="cpu").traits.gated


def test_defaults_are_the_pipelines_own() -> None:
    """What a family does unasked is what its diffusers pipeline does unasked (UltraEdit has none: its authors' page)."""
    diffusers = pytest.importorskip("diffusers")
    import inspect

    pipelines = {
        "unet:InstructPix2Pix": "StableDiffusionInstructPix2PixPipeline",
        "unet_xl:InstructPix2PixXL": "StableDiffusionXLInstructPix2PixPipeline",
        "img2img:Img2Img": "StableDiffusionImg2ImgPipeline",
        "img2img:Img2ImgXL": "StableDiffusionXLImg2ImgPipeline",
        "mmdit:SD3Img2Img": "StableDiffusion3Img2ImgPipeline",
        "kontext:Kontext": "FluxKontextPipeline",
        "qwen:QwenEdit": "QwenImageEditPipeline",
    }
    names = {
        "steps": "num_inference_steps", "guidance": "guidance_scale", "image_guidance": "image_guidance_scale", "strength": "strength",
        "true_guidance": "true_cfg_scale", "eta": "eta",
    }  # fmt: skip
    assert set(pipelines) | {"mmdit:SD3Instruct"} == {row.target for row in entries().values()}
    for target, name in pipelines.items():
        module, _, attribute = target.partition(":")
        ours = getattr(importlib.import_module(f"isr.editors.{module}"), attribute).DEFAULTS
        theirs = inspect.signature(getattr(diffusers, name).__call__).parameters
        for key in set(ours) - {"negative_prompt"}:
            # Qwen's one guidance is classifier-free.
            wanted = "true_cfg_scale" if (attribute, key) == ("QwenEdit", "guidance") else names[key]
            assert ours[key] == theirs[wanted].default, (target, key)
    # Where the catalogue departs from them, it is on purpose: HQ-Edit's card, and the miniatures' own.
    departing = {name for name, row in entries().items() if row.defaults and not row.is_mini}
    assert departing == {"hq-edit"}


def test_sizes_that_the_cards_ask_for() -> None:
    """The cards of HQ-Edit and UltraEdit bring pictures to 512 first; larger ones are not what these two were trained on."""
    found = {name: row.load.get("resolution") for name, row in entries().items() if "resolution" in row.load}
    assert found == {
        "hq-edit": 512,
        "ultraedit-sd3": 512,
        "sdxl-ip2p": 768,
        "sdxl-img2img": 1024,
        "sd3": 1024,
        "sd35": 1024,
    }


def test_a_folder_is_told_which_settings_it_does_not_get(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("diffusers")
    import tiny

    ip2p, sd15 = tiny.build("ip2p", tmp_path / "a"), tiny.build("sd15", tmp_path / "b")
    with caplog.at_level("INFO", logger="isr.editors"):
        assert load_editor(ip2p, device="cpu").settings()["scheduler"] == "DDIMScheduler"
        (said,) = [record.getMessage() for record in caplog.records]
        assert caplog.records[0].levelname == "INFO", "nothing is wrong with a folder of one's own"
        assert "is loaded with the settings of the checkpoint and its class" in said
        assert "load_editor('ip2p', source=…) or 'hq-edit'" in said
        caplog.clear()
        load_editor(sd15, device="cpu")  # the catalogue has none for this family
        load_editor("ip2p", source=str(ip2p), device="cpu")
    assert caplog.records == []


def test_a_folder_of_no_known_family_is_told_so(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    (tmp_path / "model_index.json").write_text('{"_class_name": "AudioPipeline"}')
    with pytest.raises(EditorLoadError, match="holds a AudioPipeline, which no editor here serves"):
        load_editor(tmp_path)


def test_a_folder_in_the_way_does_not_win_over_a_registered_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be edited with other settings than the catalogue's, and nobody would notice."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "model_index.json").write_text('{"_class_name": "AudioPipeline"}')
    monkeypatch.chdir(tmp_path)
    registered = FunctionEditor(lambda image, prompt, seed: image)
    monkeypatch.setitem(EDITORS._local, "mirror", lambda: registered)
    assert load_editor("mirror") is registered
    pytest.importorskip("diffusers")
    for folder in ("./mirror", Path("mirror")):
        with pytest.raises(EditorLoadError, match="holds a AudioPipeline"):
            load_editor(folder)


def test_a_class_is_not_an_editor_yet() -> None:
    class Brighten:
        name = "brighten"
        traits = Traits()

        def settings(self, **overrides: Any) -> dict[str, Any]:
            return {}

        def edit(self, images: Any, prompts: Any, *, seeds: Any, **settings: Any) -> list[PIL.Image.Image]:
            return list(images)

    with pytest.raises(UsageError, match=r"Brighten is a class, not an editor; call it: load_editor\(Brighten\(…\)\)"):
        load_editor(Brighten)
    assert load_editor(Brighten()).name == "brighten"


# ------------------------------------------------------------------------------------------------ functions


def test_a_function_is_an_editor_in_one_line() -> None:
    editor = load_editor(lambda image, prompt, seed: image.point(lambda v: (v + seed) % 256))
    assert isinstance(editor, Editor)
    assert (editor.name, editor.traits.white_box, editor.traits.family) == ("function", False, "function")
    one, two = editor.edit([picture(), picture()], ["a", "b"], seeds=[1, 2])
    assert np.array_equal(np.asarray(one) + np.uint8(1), np.asarray(two))
    assert editor.settings()["family"] == "function"


def test_a_function_may_draw_on_its_picture_but_not_on_ours() -> None:
    def draws(image: PIL.Image.Image, prompt: str, seed: int) -> PIL.Image.Image:
        image.paste((255, 0, 0), (0, 0, 4, 4))
        return image

    original = picture()
    before = original.tobytes()
    (edited,) = load_editor(draws).edit([original], ["x"], seeds=[0])
    assert original.tobytes() == before
    assert edited.tobytes() != before
    assert load_editor(draws).name == "draws"


def test_a_function_takes_any_whole_number_as_seed() -> None:
    """Only torch's generators end at 64 bits; what a function does with its seed is its own."""
    seen: list[int] = []
    editor = load_editor(lambda image, prompt, seed: seen.append(seed) or image)
    editor.edit([picture()] * 2, ["x"] * 2, seeds=[2**70, -(2**63) - 1])
    assert seen == [2**70, -(2**63) - 1]


def test_sizes_and_seedless_functions() -> None:
    def halve(image: PIL.Image.Image, prompt: str) -> PIL.Image.Image:
        return image.resize((image.width // 2, image.height // 2))

    editor = load_editor(halve, seedable=False, name="halver", settings={"version": 3})
    assert not editor.traits.seedable
    assert editor.settings()["version"] == 3
    assert editor.edit([picture()], ["x"], seeds=[0])[0].size == (16, 12)
    assert FunctionEditor(halve, seedable=False, restore_size=False).edit([picture()], ["x"], seeds=[0])[0].size == (
        8,
        6,
    )


def test_what_traits_and_settings_cannot_take_back() -> None:
    """Tables read the traits: an editor without seeds must not pass for one that has them."""

    def seedless(image: PIL.Image.Image, prompt: str) -> PIL.Image.Image:
        return image

    editor = load_editor(seedless, seedable=False, traits=Traits(licence="MIT", white_box=True))
    assert (editor.traits.seedable, editor.traits.white_box) == (False, False)
    assert (editor.traits.licence, editor.traits.family) == ("MIT", "function")
    assert editor.settings()["seedable"] is False
    takes_one_in_vain = load_editor(lambda image, prompt, seed: image, traits=Traits(seedable=False))
    assert (takes_one_in_vain.traits.seedable, takes_one_in_vain.settings()["seedable"]) == (False, False)
    for key in ("editor", "family", "seedable", "restore_size"):
        with pytest.raises(UsageError, match=rf"must not name '{key}', which are recorded anyway"):
            load_editor(seedless, seedable=False, settings={key: "other"})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda i, p, s: None, r"'function' must return an 8-bit RGB PIL.Image for images\[0\], got NoneType"),
        (lambda i, p, s: np.asarray(i), "got ndarray"),
        (lambda i, p, s: i.convert("RGBA"), r"got mode RGBA; end the function with .convert\('RGB'\)"),
    ],
)
def test_what_a_function_returns_is_checked(function: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_editor(function).edit([picture()], ["x"], seeds=[0])


def test_a_function_that_raises_names_the_picture() -> None:
    def fails(image: PIL.Image.Image, prompt: str, seed: int) -> PIL.Image.Image:
        if seed:
            raise ValueError("no such prompt")
        return image

    with pytest.raises(ValueError, match="no such prompt") as caught:
        load_editor(fails).edit([picture()] * 2, ["x", "y"], seeds=[0, 1])
    assert caught.value.__notes__ == ["raised by the editor 'fails' on images[1]"]


def test_a_function_of_another_shape_is_told_so_before_the_first_edit() -> None:
    def seedless(image: PIL.Image.Image, prompt: str) -> PIL.Image.Image:
        return image

    with pytest.raises(UsageError, match=r"'seedless' cannot be called as \(image, prompt, seed\).*seedable=False"):
        load_editor(seedless)
    with pytest.raises(UsageError, match=r"cannot be called as \(image, prompt\)"):
        load_editor(lambda image, prompt, seed: image, seedable=False)
    # Further arguments with defaults, and callables without a signature, are fine.
    assert load_editor(lambda image, prompt, seed, steps=3: image).edit([picture()], ["x"], seeds=[0])
    assert load_editor(max).name == "max"


def test_wrong_options_of_functions_are_named() -> None:
    with pytest.raises(
        UsageError, match=r"that is a function takes no option 'device'; it takes: name, restore_size, seedable"
    ):
        load_editor(lambda image, prompt, seed: image, device="cpu")
    with pytest.raises(UsageError, match=r"load_editor\(my_function\), not the name 'function'"):
        load_editor("function")


def test_functions_take_no_settings() -> None:
    editor = load_editor(lambda image, prompt, seed: image)
    with pytest.raises(UsageError, match="takes no settings, got 'steps'"):
        editor.edit([picture()], ["x"], seeds=[0], steps=3)
    with pytest.raises(UsageError, match="needs a function"):
        FunctionEditor("not callable")  # type: ignore[arg-type]
