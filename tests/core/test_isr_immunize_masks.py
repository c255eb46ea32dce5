"""Masks of isr.immunize: which are read and how, and |change| ≤ mask · ε on the saved levels, whatever the immunizer does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from immunize_toys import Plain
from isr.attacks.noise import Noise

from isr.cli import main
from isr.errors import IntegrityError, IsrError, ProblemsError, UsageError
from isr.images import as_image
from isr.immunization import immunize
from isr.masks import working_mask
from isr.photos import immunize_photos


class Stranger:
    """Adds or takes `levels` at random everywhere, whatever the mask says."""

    name = "stranger"

    def __init__(self, levels: int = 7, eps: float = 0.03, norm: str = "linf") -> None:
        self.levels, self.budget = levels, {"norm": norm, "eps": eps}

    def immunize(
        self,
        images: Sequence[PIL.Image.Image],
        prompts: Sequence[str | None],
        *,
        editor: Any = None,
        seeds: Sequence[int],
        masks: Any = None,
    ) -> list[PIL.Image.Image]:
        out = []
        for image, seed in zip(images, seeds, strict=True):
            sign = np.random.default_rng(seed).integers(0, 2, (image.height, image.width, 3)) * 2 - 1
            moved = np.clip(np.asarray(image).astype(int) + self.levels * sign, 0, 255)
            out.append(PIL.Image.fromarray(moved.astype(np.uint8)))
        return out

    def settings(self) -> Mapping[str, Any]:
        return {"attack": "stranger", "budget": self.budget}


GREY = PIL.Image.new("RGB", (16, 16), (128, 128, 128))


def change(masks: Sequence[Any], image: PIL.Image.Image = GREY, **more: Any) -> Any:
    (protected,) = immunize([image], attack=Stranger(), masks=masks, **more)
    return np.asarray(protected).astype(int) - np.asarray(image)


@pytest.mark.parametrize(("share", "allowed"), [(255, 7), (128, 3), (127, 3), (34, 1), (33, 0), (20, 0), (0, 0)])
@pytest.mark.filterwarnings("ignore:stranger left")
def test_grey_is_a_share_of_the_budget_on_the_saved_levels(share: int, allowed: int) -> None:
    # ⌊255 · m/255 · 0.03⌋: 128 · 0.03 = 3.84 → 3; 34 · 0.03 = 1.02 → 1; 33 · 0.03 = 0.99 → 0; 255 · 0.03 = 7.65 → 7.
    moved = change([PIL.Image.new("L", (16, 16), share)])
    assert np.abs(moved).max() == allowed
    assert set(np.unique(moved)) == {-allowed, allowed}, "as far as the mask lets it"


def test_a_budget_of_whole_levels_is_reached_under_a_white_mask() -> None:
    (protected,) = immunize([GREY], attack=Stranger(8, 8 / 255), masks=[PIL.Image.new("L", (16, 16), 255)])
    assert np.abs(np.asarray(protected).astype(int) - 128).max() == 8


def test_grey_holds_where_the_perturbation_is_carried_over() -> None:
    """The strong change beside a faint region is spread over it by resampling."""
    photo = PIL.Image.new("RGB", (64, 64), (128, 128, 128))
    mask = PIL.Image.new("L", (64, 64), 255)
    mask.paste(10, (0, 0, 32, 64))  # 10 · 0.03 = 0.3 levels
    mask.paste(100, (32, 0, 48, 64))  # 3 levels
    moved = np.abs(change([mask], photo, editor=Plain(16)))
    assert moved[:, :32].max() == 0
    assert moved[:, 32:48].max() == 3
    assert moved[:, 48:].max() == 7


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.004, 0.3), st.sampled_from([8, 24]))
def test_no_level_is_beyond_its_share(seed: int, eps: float, native: int) -> None:
    rng = np.random.default_rng(seed)
    photo = PIL.Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    mask = rng.integers(0, 256, (24, 24), dtype=np.uint8)
    attack = Stranger(int(255 * eps), eps)
    (protected,) = immunize([photo], attack=attack, editor=Plain(native), masks=[mask], seeds=[seed])
    moved = np.abs(np.asarray(protected).astype(int) - np.asarray(photo)).max(axis=2)
    assert (moved <= mask * eps + 1e-9).all()


def test_an_l2_budget_is_held_to_black_only() -> None:
    mask = PIL.Image.new("L", (16, 16), 100)
    mask.paste(0, (0, 0, 16, 8))
    (protected,) = immunize([GREY], attack=Stranger(5, 3.0, "l2"), masks=[mask])
    moved = np.abs(np.asarray(protected).astype(int) - 128)
    assert moved[:8].max() == 0
    assert moved[8:].max() == 5


# ------------------------------------------------------------------------------------------------ what is a mask

LEFT = np.zeros((16, 16), bool)
LEFT[:, :8] = True


@pytest.mark.parametrize(
    "mask",
    [
        LEFT, LEFT[None], LEFT[:, :, None], LEFT.astype(np.uint8) * 255, LEFT.astype(np.float32), LEFT.astype(np.uint16) * 65535,
        PIL.Image.fromarray(LEFT), PIL.Image.fromarray(LEFT.astype(np.uint8) * 255),
        PIL.Image.fromarray(LEFT.astype(np.uint8) * 255).convert("RGB"),
        PIL.Image.fromarray(LEFT.astype(np.uint8) * 255).convert("P"),
    ],
    ids=["bool", "bool 1HW", "bool HW1", "uint8", "float", "uint16", "PIL 1", "PIL L", "PIL RGB", "PIL P"],
)  # fmt: skip
def test_masks_of_every_kind_say_the_same(mask: Any) -> None:
    moved = change([mask])
    assert not moved[:, 8:].any()
    assert np.abs(moved[:, :8]).min() == 7


def test_bool_tensors_are_masks() -> None:
    torch = pytest.importorskip("torch")
    for mask in (torch.from_numpy(LEFT), torch.from_numpy(LEFT)[None]):
        moved = change([mask])
        assert not moved[:, 8:].any()
        assert np.abs(moved[:, :8]).min() == 7


def drawn_in_alpha() -> PIL.Image.Image:
    picture = PIL.Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.putalpha(PIL.Image.fromarray(LEFT.astype(np.uint8) * 255))
    return picture


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (PIL.Image.fromarray(LEFT.astype(np.float32)), r"masks\[0\] is a picture of mode 'F'.*8-bit grey"),
        (PIL.Image.fromarray(LEFT.astype(np.int32)), r"masks\[0\] is a picture of mode 'I'"),
        (PIL.Image.fromarray(LEFT.astype(np.uint16) * 65535), r"masks\[0\] is a picture of mode 'I;16'"),
        (drawn_in_alpha(), r"masks\[0\] is a picture of mode 'RGBA'.*transparency is not read"),
        (drawn_in_alpha().convert("LA"), r"masks\[0\] is a picture of mode 'LA'.*transparency is not read"),
        (np.asarray(drawn_in_alpha()), r"masks\[0\] has four channels.*transparency is not read"),
        (np.asarray(drawn_in_alpha()).transpose(2, 0, 1), r"masks\[0\] has four channels.*transparency is not read"),
        (LEFT.astype(np.uint8), r"masks\[0\] holds whole numbers of 0 and 1 only.*8 bits: 255\): multiply it"),
        (LEFT.astype(np.uint16), r"masks\[0\] holds whole numbers of 0 and 1 only"),
        (PIL.Image.fromarray(LEFT.astype(np.uint8)), r"masks\[0\] holds whole numbers of 0 and 1 only"),
        (LEFT.astype(np.int64), r"masks\[0\].*uint8"),
    ],
)
def test_masks_that_would_silently_say_something_else_are_refused(mask: Any, match: str) -> None:
    attack = Stranger()
    with pytest.raises(IsrError, match=match):
        immunize([GREY], attack=attack, masks=[mask])


def test_mask_files(tmp_path: Path) -> None:
    right = tmp_path / "right.png"
    PIL.Image.fromarray(LEFT.astype(np.uint8) * 255).save(right)
    for mask in (right, str(right), right.read_bytes()):
        assert np.abs(change([mask])[:, :8]).min() == 7
    PIL.Image.fromarray(LEFT.astype(np.uint16) * 65535).save(right)
    assert np.abs(change([right])[:, :8]).min() == 7, "16 bits in a file are read in full"
    drawn_in_alpha().save(tmp_path / "alpha.png")
    with pytest.raises(UsageError, match=r"alpha\.png is a picture of mode 'RGBA'.*transparency is not read"):
        change([tmp_path / "alpha.png"])
    with pytest.raises(UsageError, match=r"masks\[0\] is a picture of mode 'RGBA'"):
        change([(tmp_path / "alpha.png").read_bytes()])
    PIL.Image.fromarray(LEFT.astype(np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(UsageError, match=r"labels\.png holds whole numbers of 0 and 1 only"):
        change([tmp_path / "labels.png"])


def test_masks_come_in_a_list() -> None:
    for one in (PIL.Image.new("L", (16, 16), 255), "m"):
        with pytest.raises(UsageError, match=r"masks must be a list of one entry per image, not one (Image|str)"):
            immunize([GREY], attack=Stranger(), masks=one)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="seeds must be a list of one entry per image, not one int"):
        immunize([GREY], attack=Stranger(), seeds=3)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- folders of photos, the command


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Photos one.png and two.jpg (turned by its EXIF orientation: 30 wide, 20 high), and a mask of each: its left half white."""
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    masks.mkdir()
    PIL.Image.new("RGB", (24, 16), (90, 120, 150)).save(photos / "one.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (20, 30), (90, 120, 150)).save(photos / "two.jpg", exif=exif)
    for name, size in (("one.jpg", (24, 16)), ("two.png", (30, 20))):
        mask = PIL.Image.new("L", size, 0)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        mask.save(masks / name, quality=100)
    return photos, masks


def test_a_folder_of_masks_says_where_photos_change(folders: tuple[Path, Path], tmp_path: Path) -> None:
    photos, masks = folders
    out = tmp_path / "out"
    assert (
        main(["immunize", str(photos), "--attack", "noise", "--masks", str(masks), "--out", str(out), "--quiet"]) == 0
    )
    for name, width in (("one", 24), ("two", 30)):
        original = as_image(next(photos.glob(f"{name}.*"))).pil()
        moved = (np.asarray(as_image(out / f"{name}.png").pil()) != np.asarray(original)).any(2)
        assert original.width == width
        assert moved[:, : width // 2].mean() > 0.9
        assert not moved[
            :, width // 2 + (1 if name == "one" else 0) :
        ].any()  # the mask of one.png is a JPEG, soft at its edge


def test_another_mask_makes_a_photo_anew_and_the_same_one_does_not(folders: tuple[Path, Path], tmp_path: Path) -> None:
    photos, masks = folders

    def made(given: Any) -> list[dict[str, Any]]:
        return immunize_photos([photos], tmp_path / "out", attack="noise", masks=given, progress=False)

    first = made(masks)
    assert made(str(masks)) == first  # seconds and all: nothing was made again
    PIL.Image.new("L", (24, 16), 255).save(masks / "one.jpg")
    again = made(masks)
    assert again[0]["changed"] > first[0]["changed"]
    assert again[1] == first[1]
    assert made({"one.png": None, "two": masks / "two.png"})[1] == first[1]
    assert made(None)[0]["mask"] is None


class Maskless(Stranger):
    name = "maskless"

    def immunize(self, images: Any, prompts: Any, *, editor: Any = None, seeds: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError


def test_masks_that_lack_or_do_not_fit_are_listed_before_anything_is_made(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    photos, masks = folders

    def refused(given: Any, kind: type[IsrError], match: str, attack: Any = "noise") -> None:
        with pytest.raises(kind, match=match):
            immunize_photos([photos], tmp_path / "out", attack=attack, masks=given, progress=False)
        assert not (tmp_path / "out").exists()

    refused(
        {"two.jpg": masks / "two.png"}, ProblemsError, r"one\.png.*has no mask; where all may change, give a white one"
    )
    refused({"one.png": masks / "two.png", "two.jpg": None}, ProblemsError, "is 24×16, its mask 30×20")
    for odd in (masks / "one.jpg", "", ["one.jpg"], True):
        refused(odd, UsageError, "masks must be a folder with one mask per photo, or a mapping")
    refused(photos, UsageError, r"one\.png is one of the photos; give masks a folder of their own")
    clear = PIL.Image.new("RGBA", (24, 16), (255, 255, 255, 0))
    with pytest.raises(ProblemsError) as both:  # all that is wrong at once
        immunize_photos(
            [photos], tmp_path / "out", attack="noise", masks={"one": clear, "two": tmp_path / "no.png"}, progress=False
        )
    assert [problem.item for problem in both.value.problems] == ["one.png", "two.jpg"]
    with pytest.raises(UsageError, match="one of the folders of photos or masks"):
        immunize_photos([photos], masks, attack="noise", masks=masks, progress=False)
    refused(masks, UsageError, "maskless takes no masks", attack=Maskless())
    (masks / "one.png").write_bytes((masks / "one.jpg").read_bytes())
    refused(masks, UsageError, "have one name; keep one of them")


def test_a_black_mask_is_named_where_a_photo_stays_as_it_was(folders: tuple[Path, Path], tmp_path: Path) -> None:
    photos, masks = folders
    PIL.Image.new("L", (24, 16), 0).save(masks / "one.jpg")
    with pytest.warns(UserWarning, match=r"left 1 of 2 .*: one\.png \(its mask is black\)"):
        immunize_photos([photos], tmp_path / "out", attack="noise", masks=masks, progress=False)


def test_each_photo_gets_the_mask_of_its_own_name(tmp_path: Path) -> None:
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    masks.mkdir()
    left = PIL.Image.new("L", (16, 16), 0)
    left.paste(255, (0, 0, 8, 16))
    for name, mask in (("x.jpg", left), ("x.jpg.png", left.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT))):
        GREY.save(photos / name)
        mask.save(masks / f"{name.rsplit('.', 1)[0]}.png")
    immunize_photos([photos], tmp_path / "out", attack="noise", masks=masks, progress=False)
    for name, side in (("x.png", slice(0, 8)), ("x.jpg.png", slice(8, 16))):
        moved = (np.asarray(as_image(tmp_path / "out" / name).pil()) != 128).any(2)
        assert moved[:, side].all()
        assert moved.mean() == 0.5
    paths = {photos / "x.jpg": left, "any/folder/x.jpg.png": None}
    rows = immunize_photos([photos], tmp_path / "more", attack="noise", masks=paths, progress=False)  # type: ignore[arg-type]
    assert [row["mask"] is None for row in rows] == [False, True]


def test_a_mask_that_changes_meanwhile_stops_the_run(folders: tuple[Path, Path], tmp_path: Path) -> None:
    photos, masks = folders

    class Meddler(Stranger):
        def immunize(self, images: Any, prompts: Any, *, editor: Any = None, seeds: Any, masks: Any = None) -> Any:
            PIL.Image.new("L", (30, 20), 255).save(folders[1] / "two.png")
            return super().immunize(images, prompts, editor=editor, seeds=seeds, masks=masks)

    with pytest.raises(IntegrityError, match=r"the mask of two\.jpg has changed since this run began"):
        immunize_photos([photos], tmp_path / "out", attack=Meddler(), masks=masks, progress=False)


# ------------------------------------------------------------------------------------- whoever reads a mask reads it alike


def _turned(path: Path) -> PIL.Image.Image:
    """Stored with its left half white, and an EXIF orientation that says it is upside down: shown, its right half is."""
    mask = PIL.Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    exif = PIL.Image.Exif()
    exif[0x0112] = 3
    mask.save(path, exif=exif)
    return PIL.Image.open(path)


def test_a_picture_of_a_mask_is_turned_as_a_file_is(tmp_path: Path) -> None:
    opened = _turned(tmp_path / "mask.png")
    for mask in (opened, tmp_path / "mask.png", (tmp_path / "mask.png").read_bytes()):
        moved = change([mask])
        assert not moved[:, :8].any()
        assert moved[:, 8:].all()


@pytest.mark.parametrize("top", [1, 100, 255])
def test_sixteen_bits_that_hold_eight_are_refused_in_files_and_arrays(tmp_path: Path, top: int) -> None:
    mask = np.zeros((16, 16), np.uint16)
    mask[:, 8:] = top
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    for form in (mask, tmp_path / "mask.png", (tmp_path / "mask.png").read_bytes()):
        with pytest.raises(UsageError, match="white is their largest"):
            change([form])


def test_noise_reads_masks_as_the_framework_does() -> None:
    half = np.zeros((16, 16), bool)
    half[:, :8] = True
    whole = np.asarray(Noise().immunize([GREY], [None], seeds=[3])[0])
    for mask in (half, half.astype(np.float32), PIL.Image.fromarray(half)):
        (found,) = Noise().immunize([GREY], [None], seeds=[3], masks=[mask])
        np.testing.assert_array_equal(np.asarray(found)[:, :8], whole[:, :8])
        assert (np.asarray(found)[:, 8:] == 128).all()
    with pytest.raises(UsageError, match=r"16×16, got 16×1 \(masks\[0\]\)"):
        Noise().immunize([GREY], [None], seeds=[3], masks=[half[:1]])


def test_a_mask_that_fades_at_the_working_size_is_no_table_of_zeros_and_ones() -> None:
    mask = PIL.Image.new("L", (64, 64), 0)
    mask.putpixel((5, 5), 60)  # a sixteenth of it and less is left in each pixel of 16 × 16
    made = working_mask(mask, (16, 16))
    assert made is not None
    assert np.asarray(made).max() != 1
