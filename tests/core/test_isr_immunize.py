"""isr.immunize and `isr immunize`: any size, any immunizer, verified on the saved file, resumable, no metadata."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from immunize_toys import Plain

from isr import perturbation
from isr.cli.immunize import register
from isr.errors import BudgetError, IsrError, ProblemsError, RegistryError, UsageError
from isr.immunization import immunize
from isr.perturbation import Budget, measure
from isr.photos import immunize_photos, photo_seed, preview, read_prompts
from isr.registry import ATTACKS
from isr.working import carry_over, working_size


class Checker:
    """A stranger's immunizer: ± `levels` in a checkerboard; remembers what it was given."""

    name = "checker"

    def __init__(self, levels: int = 7, budget: Any = None, mode: str = "RGB", fail: int | None = None) -> None:
        self.levels, self.mode, self.fail = levels, mode, fail
        self.budget = {"norm": "linf", "eps": 0.03} if budget is None else budget
        self.seen: list[tuple[tuple[int, int], str | None, int]] = []

    def immunize(
        self,
        images: Sequence[PIL.Image.Image],
        prompts: Sequence[str | None],
        *,
        editor: Any = None,
        seeds: Sequence[int],
    ) -> list[PIL.Image.Image]:
        out = []
        for image, prompt, seed in zip(images, prompts, seeds, strict=True):
            if self.fail is not None and len(self.seen) == self.fail:
                raise KeyboardInterrupt
            self.seen.append((image.size, prompt, seed))
            y, x = np.mgrid[: image.height, : image.width]
            sign = np.where((y // 4 + x // 4) % 2 == 0, 1, -1)[:, :, None]
            levels = np.clip(np.asarray(image).astype(int) + self.levels * sign, 0, 255).astype(np.uint8)
            out.append(PIL.Image.fromarray(levels).convert(self.mode))
        return out

    def settings(self) -> Mapping[str, Any]:
        return {"attack": "checker", "levels": self.levels, "budget": self.budget}


def smooth(size: tuple[int, int] = (64, 64), seed: int = 0) -> PIL.Image.Image:
    small = np.random.default_rng(seed).integers(60, 196, (4, 4, 3)).astype(np.uint8)
    return PIL.Image.fromarray(small).resize(size, PIL.Image.Resampling.BICUBIC)


# --------------------------------------------------------------------------------------------------- isr.immunize


def test_pictures_keep_their_size_and_the_budget_whatever_the_aspect() -> None:
    images = [smooth((64, 64)), smooth((200, 90)), smooth((37, 251)), smooth((65, 64))]
    attack = Checker()
    found = immunize(images, ["a", "b", "c", None], attack=attack, editor=Plain())
    assert [i.size for i in found] == [i.size for i in images]
    # 64/200 · 90 = 28.8 → 29 → 24; 64/251 · 37 = 9.4 → 9 → 8; 64/65 · 64 = 63.02 → 63 → 56.
    assert found.working_sizes == ((64, 64), (64, 24), (8, 64), (64, 56))
    assert [s for s, _, _ in attack.seen] == list(found.working_sizes)
    assert all(m.levels == 7 for m in found.measured), "bicubic peaks are cut to the budget, and reach it"
    assert [(p, s) for _, p, s in attack.seen] == [("a", 0), ("b", 1), ("c", 2), (None, 3)]
    assert found.budget == Budget("linf", 0.03)
    assert len(found) == 4
    alone = Checker().immunize([images[0]], [""], seeds=[0])[0]
    assert found[0].tobytes() == alone.tobytes(), "no resampling where none is needed"


def test_a_carried_perturbation_comes_back_when_the_editor_shrinks_the_photo() -> None:
    photo = smooth((256, 192))
    found = immunize([photo], attack=Checker(), editor=Plain())
    (work,) = found.working_sizes
    bicubic = PIL.Image.Resampling.BICUBIC
    seen = np.asarray(found[0].resize(work, bicubic)).astype(float) - np.asarray(photo.resize(work, bicubic))
    y, x = np.mgrid[: work[1], : work[0]]
    made = np.where((y // 4 + x // 4) % 2 == 0, 7.0, -7.0)[:, :, None].repeat(3, 2)
    assert np.corrcoef(seen.ravel(), made.ravel())[0, 1] > 0.9


def test_working_sizes() -> None:
    assert working_size(640, 480, Plain(512, 8)) == (512, 384)
    assert working_size(300, 200, Plain(512, 8)) == (296, 200), "never enlarged, sides cut to the multiple"
    assert working_size(3000, 10, Plain(512, 8)) == (512, 8), "at least one multiple"
    assert working_size(640, 480, Plain(None, 8)) == (640, 480)
    assert working_size(640, 480, Plain(512, 8), 256) == (256, 192)
    assert working_size(641, 480, None) == (641, 480)

    class Own(Plain):
        def working_size(self, height: int, width: int) -> tuple[int, int]:
            return height // 2, width // 4

    assert working_size(640, 480, Own(None)) == (160, 240)
    assert working_size(640, 480, Own(512)) == (160, 240)
    assert working_size(4000, 3000, Own(512)) == (512, 384), "1000×1500 is far beyond what a 512 editor was made for"
    assert working_size(640, 480, Own(512), 256) == (256, 192)


def test_noise_needs_no_editor_and_works_on_the_picture_itself() -> None:
    found = immunize([smooth((37, 51))], attack="noise", editor=Plain(), seeds=[5])
    assert found.working_sizes == ((37, 51),)
    assert found.measured[0].levels == 7
    assert immunize([smooth((37, 51))], attack="noise", seeds=[5])[0].tobytes() == found[0].tobytes()


def test_rounding_is_cut_back_and_more_than_rounding_is_an_error() -> None:
    image = smooth()
    one_level = immunize([image], attack=Checker(levels=8))
    assert one_level.measured[0].levels == 7
    assert one_level.cut[0] == image.width * image.height * 3
    with pytest.raises(
        BudgetError, match=r"checker broke its own L∞ budget on images\[0\]: the saved picture changes by 9 levels"
    ):
        immunize([image], attack=Checker(levels=9))
    with pytest.raises(BudgetError):
        immunize([image], attack=Checker(levels=8), over_budget="raise")
    assert immunize([image], attack=Checker(levels=40), over_budget="project").measured[0].levels == 7
    with pytest.raises(UsageError, match="over_budget must be one of rounding, project, raise"):
        immunize([image], attack=Checker(), over_budget="ignore")  # type: ignore[arg-type]


def test_l2_budgets_hold_on_the_saved_pixels_and_a_carried_one_is_warned_about() -> None:
    attack = Checker(levels=5, budget={"norm": "l2", "eps": 3.0})
    with pytest.warns(UserWarning, match="the L2 budget holds on its 128×128 pixels"):
        found = immunize([smooth((128, 128))], attack=attack, editor=Plain())
    assert 2.5 < found.measured[0].l2 <= 3.0


def test_an_immunizer_without_a_budget_is_only_measured() -> None:
    class Free(Checker):
        def settings(self) -> Mapping[str, Any]:
            return {"attack": "free", "budget": None}

    found = immunize([smooth()], attack=Free(levels=50))
    assert found.budget is None
    assert found.measured[0].levels == 50


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_returned_picture_of_another_mode_is_refused(mode: str) -> None:
    with pytest.raises(UsageError, match=f"checker returned mode {mode}, 64×64 for .*it must keep 8-bit RGB 64×64"):
        immunize([smooth()], attack=Checker(mode=mode))


def test_returned_lists_and_types_are_checked() -> None:
    class Short(Checker):
        def immunize(self, images: Any, prompts: Any, *, editor: Any = None, seeds: Any) -> Any:
            return []

    class Arrays(Checker):
        def immunize(self, images: Any, prompts: Any, *, editor: Any = None, seeds: Any) -> Any:
            return [np.asarray(i) for i in images]

    with pytest.raises(UsageError, match="returned 0 pictures for 1"):
        immunize([smooth()], attack=Short())
    with pytest.raises(UsageError, match="returned ndarray for"):
        immunize([smooth()], attack=Arrays())


class Inside(Checker):
    """Changes the very picture it was handed, and hands that back."""

    def immunize(self, images: Any, prompts: Any, *, editor: Any = None, seeds: Any) -> Any:
        for image in images:
            image.paste((0, 0, 0), (0, 0, image.width, image.height))
        return list(images)


def test_an_immunizer_that_draws_on_its_input_is_caught() -> None:
    """Else it would be measured against its own changes: nothing changed, budget kept."""
    image = smooth()
    before = image.tobytes()
    with pytest.raises(BudgetError, match="checker broke its own L∞ budget"):
        immunize([image], attack=Inside())
    assert image.tobytes() == before
    assert immunize([image], attack=Inside(), over_budget="project").measured[0].levels == 7
    found = immunize([image], attack=Inside(), editor=Plain(32), over_budget="project")
    assert found.originals[0].tobytes() == before


def test_a_budget_that_grows_while_it_is_used_is_refused() -> None:
    class Growing(Checker):
        def immunize(self, images: Any, prompts: Any, *, editor: Any = None, seeds: Any) -> Any:
            self.budget = {"norm": "linf", "eps": 1.0}
            return super().immunize(images, prompts, editor=editor, seeds=seeds)

    with pytest.raises(BudgetError, match=r"checker declared .*0\.03.* before it ran and .*1\.0.* after"):
        immunize([smooth()], attack=Growing(levels=60))


def test_arguments_are_checked_before_anything_runs(tmp_path: Path) -> None:
    attack = Checker()
    with pytest.raises(UsageError, match="images must be a list of pictures"):
        immunize("a.png", attack=attack)
    with pytest.raises(UsageError, match="prompts must hold one entry per image: 1 images, 2 prompts"):
        immunize([smooth()], ["a", "b"], attack=attack)
    with pytest.raises(UsageError, match="seeds must hold one entry per image"):
        immunize([smooth()], attack=attack, seeds=[1, 2])
    with pytest.raises(ProblemsError, match="no such file"):
        immunize([str(tmp_path / "missing.png")], attack=attack)
    with pytest.raises(RegistryError, match=r"no attack is called 'siffm'.*Did you mean 'sifm'\?"):
        immunize([smooth()], attack="siffm")
    with pytest.raises(UsageError, match=r"attack is made already; settings \['eps'\]"):
        immunize([smooth()], attack=attack, eps=0.1)
    with pytest.raises(UsageError, match="must be a registered name or an Immunizer, not int"):
        immunize([smooth()], attack=3)  # type: ignore[arg-type]
    assert attack.seen == []


def test_sources_of_any_kind_and_one_prompt_for_all(tmp_path: Path) -> None:
    smooth((20, 30)).save(tmp_path / "a.png")
    array = np.asarray(smooth((20, 30)))
    found = immunize([tmp_path / "a.png", array, array / 255.0], "make it red", attack=Checker(), seed=7)
    assert len({i.tobytes() for i in found}) == 1
    assert found.prompts == ("make it red",) * 3
    assert found.seeds == (7, 8, 9)


def test_masks_follow_the_working_size() -> None:
    class Masked(Checker):
        masks: Any = None

        def immunize(self, images: Any, prompts: Any, *, editor: Any = None, seeds: Any, masks: Any = None) -> Any:
            self.masks = masks
            return super().immunize(images, prompts, editor=editor, seeds=seeds)

    attack = Masked()
    immunize([smooth((128, 64))], attack=attack, editor=Plain(), masks=[PIL.Image.new("L", (128, 64), 255)])
    assert attack.masks[0].size == (64, 32)
    # Black in the mask: not one pixel changes, whatever the immunizer does and however far resampling spreads it.
    mask = PIL.Image.new("L", (128, 64), 0)
    mask.paste(255, (30, 20, 70, 41))
    for native in (64, 256):  # carried over from half the size, and made at the size itself
        photo = smooth((128, 64))
        (protected,) = immunize([photo], attack=Masked(), editor=Plain(native), masks=[mask])
        change = np.asarray(protected).astype(int) - np.asarray(photo)
        assert not change[np.asarray(mask) == 0].any()
        assert change[np.asarray(mask) == 255].any()
    with pytest.raises(UsageError, match="masks must have the size of their pictures: 128×64, got 10×10"):
        immunize([smooth((128, 64))], attack=attack, editor=Plain(), masks=[PIL.Image.new("L", (10, 10))])
    with pytest.raises(UsageError, match="checker takes no masks"):
        immunize([smooth()], attack=Checker(), masks=[PIL.Image.new("L", (64, 64))])


def test_carry_over_keeps_a_constant_change() -> None:
    original, work = smooth((96, 96)), smooth((96, 96)).resize((48, 48), PIL.Image.Resampling.BICUBIC)
    shifted = PIL.Image.fromarray((np.asarray(work).astype(int) + 3).astype(np.uint8))
    full = carry_over(original, work, shifted, Budget("linf", 0.03))
    assert set(np.unique(np.asarray(full).astype(int) - np.asarray(original))) == {3}


# ------------------------------------------------------------------------------------------------- isr immunize


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    smooth((40, 30), 1).save(folder / "one.png")
    exif = PIL.Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = 6  # orientation: rotated
    exif[0x010E] = "at home, 52.5 N"  # ImageDescription: free text
    exif[0x013B] = "Jane Doe, 1 Home Street"  # Artist
    exif[0x8298] = "(c) Jane Doe, jane@example.org"  # Copyright
    exif.get_ifd(0x8769)[0xA434] = "50 mm"
    exif.get_ifd(0x8769)[0x927C] = b"maker's notes"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)
    smooth((50, 20), 2).save(folder / "two.jpg", exif=exif, quality=95)
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture
def checker() -> Iterator[Checker]:
    attack = Checker()
    ATTACKS.register("checker", lambda **_: attack)
    yield attack
    ATTACKS.unregister("checker")


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "immunized.jsonl").read_text("utf-8").splitlines()]


def test_command_protects_a_folder_and_says_what_it_did(
    photos: Path, tmp_path: Path, checker: Checker, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = tmp_path / "prompts.csv", tmp_path / "protected"
    table.write_text("image,prompt\none.png,make it red\ntwo,a dog\n")
    status = command(
        "immunize", str(photos), "--attack", "checker", "--prompts", str(table), "--out", str(out), "--quiet"
    )
    assert status == 0
    printed = capsys.readouterr().out
    assert "one.png" in printed
    assert "0.02745" in printed, "L-inf of 7 levels"
    assert sorted(p.name for p in out.iterdir()) == ["immunized.jsonl", "one.png", "previews", "two.png"]
    rows = records(out)
    assert [(r["file"], r["prompt"], r["levels"]) for r in rows] == [
        ("one.png", "make it red", 7),
        ("two.png", "a dog", 7),
    ]
    two = PIL.Image.open(out / "two.png")
    assert two.size == (20, 50), "orientation is applied"
    assert not two.getexif()
    assert not two.info, "no metadata at all, location included"
    assert PIL.Image.open(out / "previews" / "one.png").size == (3 * 40 + 16, 30)
    assert [p for _, p, _ in checker.seen] == ["make it red", "a dog"]


@pytest.mark.usefixtures("checker")
def test_keep_exif_keeps_the_camera_and_drops_the_place(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    flags = ["--quiet", "--no-preview", "--keep-exif"]
    command("immunize", str(photos / "two.jpg"), "--attack", "checker", "--out", str(out), *flags)
    exif = PIL.Image.open(out / "two.png").getexif()
    assert exif[0x010F] == "Maker"
    assert exif.get_ifd(0x8769) == {0xA434: "50 mm"}, "no maker's notes"
    assert set(exif) == {0x010F, 0x8769}, "no location, no free text, no names"
    assert 0x0112 not in exif, "the pixels are upright already"
    assert b"Jane" not in (out / "two.png").read_bytes()
    assert not (out / "previews").exists()


def test_a_second_run_makes_only_what_is_missing_changed_or_set_anew(
    photos: Path, tmp_path: Path, checker: Checker
) -> None:
    out = tmp_path / "o"

    def run(prompt: str = "x") -> list[dict[str, Any]]:
        return immunize_photos([photos], out, attack="checker", prompts=prompt, progress=False)

    first = run()
    assert len(checker.seen) == 2
    assert run() == first
    assert len(checker.seen) == 2
    (out / "one.png").unlink()
    run()
    assert len(checker.seen) == 3, "a deleted file is made again"
    PIL.Image.new("RGB", (40, 30)).save(out / "one.png")
    run()
    assert len(checker.seen) == 4, "a file that was tampered with is made again"
    run("y")
    assert len(checker.seen) == 6, "another prompt"
    checker.levels = 3
    run("y")
    assert len(checker.seen) == 8, "other settings"
    assert records(out)[-1]["levels"] == 3
    sheet = np.asarray(PIL.Image.open(out / "previews" / "one.png"))
    assert int(sheet[:, 96:].max()) == 128 + 3 * 16, "the preview is that of the file beside it"


def test_an_interrupted_run_goes_on(photos: Path, tmp_path: Path, checker: Checker) -> None:
    checker.fail = 1
    with pytest.raises(KeyboardInterrupt):
        immunize_photos([photos], tmp_path / "o", attack="checker", progress=False)
    assert (tmp_path / "o" / "one.png").is_file()
    with (tmp_path / "o" / "immunized.jsonl").open("a") as record:
        record.write('{"file": "two.p')  # a line that a kill cut off
    checker.fail = None
    rows = immunize_photos([photos], tmp_path / "o", attack="checker", progress=False)
    assert len(checker.seen) == 2
    assert [r["file"] for r in rows] == ["one.png", "two.png"]
    assert immunize_photos([photos], tmp_path / "o", attack="checker", progress=False) == rows
    assert len(checker.seen) == 2, "the row after the cut-off line can be read"


KILLED = """
import os, signal, sys
from pathlib import Path
import PIL.Image
from isr.photos import immunize_photos

save = PIL.Image.Image.save
def dying(self, target, *args, **more):
    if sys.argv[3] in str(target):
        Path(target).write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, target, *args, **more)
PIL.Image.Image.save = dying
immunize_photos([sys.argv[1]], sys.argv[2], attack="noise", progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
@pytest.mark.parametrize("inside", ["", "previews"])
def test_half_written_files_of_a_killed_run_are_swept_up(photos: Path, tmp_path: Path, inside: str) -> None:
    out = tmp_path / "o"
    where = out / inside
    killed = subprocess.run([sys.executable, "-c", KILLED, str(photos), str(out), str(where)], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(where.glob(".*.part"))) == 1
    (out / ".unfinished").mkdir()
    half = out / ".unfinished" / f"{'0a' * 16}.{2**22 + 1}.part"  # beyond the highest process number of Linux
    half.touch()
    mine, running = out / "notes.part", out / f".x.png.{os.getppid()}.part"
    mine.touch()
    running.touch()
    immunize_photos([photos], out, attack="noise", progress=False)
    assert set(out.rglob("*.part")) == {mine, running}, "only names of our own, and none that a process may be writing"
    assert not half.exists()


def test_photos_are_not_mixed_with_protected_ones(photos: Path, tmp_path: Path, checker: Checker) -> None:
    """A second run would take the first one's pictures for photos."""
    with pytest.raises(UsageError, match=r"out .* is one of the folders of photos or masks; give another folder"):
        immunize_photos([photos], photos / ".", attack="checker", progress=False)
    assert checker.seen == []
    (inside,) = immunize_photos([photos / "two.jpg"], photos, attack="checker", progress=False)
    assert inside["file"] == "two.png"


def test_pictures_of_a_folder_that_cannot_be_read_are_named(photos: Path, tmp_path: Path, checker: Checker) -> None:
    (photos / "phone.HEIC").write_bytes(b"x")
    (photos / "raw.dng").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"2 pictures .* are not protected .* phone\.HEIC, raw\.dng"):
        rows = immunize_photos([photos], tmp_path / "o", attack="checker", progress=False)
    assert [r["file"] for r in rows] == ["one.png", "two.png"]
    assert len(checker.seen) == 2


def test_a_method_that_lacks_its_editor_says_so_before_anything_is_made(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sifm looks inside an editing model: give editor="):
        immunize_photos([photos], tmp_path / "o", attack="sifm", progress=False)
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("checker")
def test_command_says_what_an_earlier_run_had_made(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    for made in ("2 photos protected", "2 photos protected (2 of them by an earlier run)"):
        command("immunize", str(photos), "--attack", "checker", "--out", str(out), "--quiet")
        assert f"{made} in {out}" in capsys.readouterr().out
    (photos / "x.heic").write_bytes(b"x")
    command("immunize", str(photos), "--attack", "checker", "--out", str(out), "--quiet")
    told = capsys.readouterr().err
    assert told.startswith("isr immunize: 1 picture ")
    assert "UserWarning" not in told


@pytest.mark.usefixtures("checker")
def test_seeds_follow_the_pixels_not_the_folder(photos: Path, tmp_path: Path) -> None:
    together = immunize_photos([photos], tmp_path / "a", attack="checker", progress=False)
    alone = immunize_photos([photos / "two.jpg"], tmp_path / "b", attack="checker", progress=False)
    other = immunize_photos([photos / "two.jpg"], tmp_path / "c", attack="checker", seed=1, progress=False)
    assert together[1]["seed"] == alone[0]["seed"] == photo_seed(0, alone[0]["source_digest"])
    assert other[0]["seed"] != alone[0]["seed"]


def test_what_is_wrong_with_photos_and_prompts_is_listed_first(photos: Path, tmp_path: Path, checker: Checker) -> None:
    def run(*more: Any, **settings: Any) -> None:
        immunize_photos([photos, *more], tmp_path / "o", attack="checker", progress=False, **settings)

    with pytest.raises(ProblemsError, match=r"two\.jpg: has no prompt"):
        run(prompts={"one.png": "x"})
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(ProblemsError, match=r"broken\.png"):
        run(broken)
    smooth().save(tmp_path / "one.webp")
    with pytest.raises(ProblemsError, match=r"would be written to one\.png as"):
        run(tmp_path / "one.webp")
    with pytest.raises(ProblemsError, match="would be overwritten; give another --out"):
        immunize_photos([photos / "one.png"], photos, attack="checker", progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no photos"):
        immunize_photos([tmp_path / "empty"], tmp_path / "o", attack="checker")
    (tmp_path / "mine").mkdir()
    smooth().save(tmp_path / "mine" / "one.png")
    with pytest.raises(ProblemsError, match="is there already and no earlier run made it"):
        immunize_photos([photos], tmp_path / "mine", attack="checker", progress=False)
    assert checker.seen == []
    assert not (tmp_path / "o").exists()


def test_accents_may_be_spelled_apart(tmp_path: Path, checker: Checker) -> None:
    """A file name with a combining diaeresis, as some systems write it, and a table with the letter in one."""
    (tmp_path / "photos").mkdir()
    smooth().save(tmp_path / "photos" / "Mu\u0308ller.png")
    immunize_photos(
        [tmp_path / "photos"], tmp_path / "o", attack="checker", prompts={"M\u00fcller.png": "x"}, progress=False
    )
    assert [p for _, p, _ in checker.seen] == ["x"]
    smooth().save(tmp_path / "photos" / "m\u00fcller.webp")
    with pytest.raises(ProblemsError, match="rename one of them"):
        immunize_photos([tmp_path / "photos"], tmp_path / "o", attack="checker", progress=False)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file,prompt\na.png,x\n", "must have the columns image and prompt; it has file, prompt"),
        ("image,prompt\na.png,\n", "line 2: image and prompt must both be filled in"),
        ("image,prompt\na.png,x\na.png,y\n", r"line 3: a second prompt for a\.png"),
        ("", "it has none"),
    ],
)
def test_prompt_files(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UsageError, match=match):
        read_prompts(tmp_path / "p.csv")
    with pytest.raises(UsageError, match="is not there"):
        read_prompts(tmp_path / "q.csv")
    (tmp_path / "p.csv").write_bytes("image,prompt\na.png,caf\u00e9\n".encode("cp1252"))
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_prompts(tmp_path / "p.csv")


def test_large_pictures_are_worked_on_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes and figures as at once, whatever the band."""
    original, work = smooth((50, 37), 3), smooth((16, 12), 4)
    protected = PIL.Image.fromarray(np.clip(np.asarray(work).astype(int) - 9, 0, 255).astype(np.uint8))
    found = []
    for size in (2**20, 70, 1):
        monkeypatch.setattr(perturbation, "_BAND", size)
        carried = [carry_over(original, work, protected, b) for b in (Budget("linf", 0.02), Budget("l2", 0.5), None)]
        found.append([(c.tobytes(), perturbation.measure(original, c)) for c in carried])
    assert found[0] == found[1] == found[2]
    assert found[0][0][1].levels == 5  # floor(255 · 0.02)


def test_settings_reach_the_attack_by_flag_and_by_set(photos: Path, tmp_path: Path) -> None:
    out, one = tmp_path / "o", str(photos / "one.png")
    command(
        "immunize", one, "--attack", "noise", "--eps", "0.06", "--set", "kind=uniform", "--out", str(out), "--quiet"
    )
    (row,) = records(out)
    assert row["attack"]["kind"] == "uniform"
    assert row["attack"]["budget"] == {"norm": "linf", "eps": 0.06}
    assert row["levels"] == 15
    with pytest.raises(UsageError, match="--set takes NAME=VALUE"):
        command("immunize", one, "--attack", "noise", "--set", "kind", "--out", str(out))
    with pytest.raises(UsageError, match="noise cannot be wrapped in transformations"):
        command("immunize", one, "--attack", "noise", "--eot", "--out", str(out))


def test_attacks_command_shows_presets_and_defaults_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("attacks", "PhotoGE") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("photoguard-encoder\n")
    assert "Pulls the image's latent to a target" in printed
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    assert rows["setting"] == ["paper", "native"]
    assert rows["iterations"] == ["100", "1000"]
    assert rows["alpha"] == ["0.00392", "0.01"]
    assert rows["schedule"] == ["constant", "linear"]
    assert rows["target"] == ["zeros", "zeros"]
    assert "--set NAME=VALUE" in printed
    assert command("attacks", "noise") == 0
    printed = capsys.readouterr().out
    assert "kind" in printed


def test_attacks_command_lists_names_aliases_and_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("attacks") == 0
    printed = capsys.readouterr().out
    assert "isr attacks NAME" in printed
    for part in ("sifm ", "photoguard-encoder [photoge]", "semantic [sa]", "noise ", "Shrinks the denoiser's deep"):
        assert part in printed
    assert command("attacks", "sifm") == 0
    assert "Algorithm 1" in capsys.readouterr().out
    with pytest.raises(IsrError, match="Did you mean"):
        command("attacks", "siffm")


def test_preview_shows_original_protected_and_difference() -> None:
    a = smooth((40, 30))
    sheet = np.asarray(preview(a, Checker(levels=2).immunize([a], [""], seeds=[0])[0]))
    assert np.array_equal(sheet[:, :40], np.asarray(a))
    assert set(np.unique(sheet[:, 96:])) == {128 - 32, 128 + 32}, "± 2 levels × 16 about mid grey"
    assert preview(smooth((2000, 1000)), smooth((2000, 1000))).size == (3 * 512 + 16, 256)


def test_photos_in_batches_are_the_same_photos(photos: Path, tmp_path: Path, checker: Checker) -> None:
    one = immunize_photos([photos], tmp_path / "a", attack="checker", progress=False)
    two = immunize_photos([photos], tmp_path / "b", attack="checker", batch=8, progress=False)
    assert [r["digest"] for r in one] == [r["digest"] for r in two]
    assert len(checker.seen) == 4
    with pytest.raises(UsageError, match="batch must be at least 1 photo, not 0"):
        immunize_photos([photos], tmp_path / "c", attack="checker", batch=0)


@pytest.mark.usefixtures("checker")
def test_figures_are_those_of_the_file_on_disk(photos: Path, tmp_path: Path) -> None:
    (row, _) = immunize_photos([photos], tmp_path / "o", attack="checker", progress=False)
    found = measure(PIL.Image.open(photos / "one.png"), PIL.Image.open(tmp_path / "o" / "one.png"))
    assert (found.psnr, found.linf, found.l2) == (row["psnr"], row["linf"], row["l2"])
