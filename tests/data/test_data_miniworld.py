"""MiniWorld: the same seed draws the same bytes, every edit can be seen and changes nothing else, splits share nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

import isr.data
from isr.data.miniworld import (
    ATTRIBUTES,
    CATEGORIES,
    CATEGORY_OF,
    CATEGORY_SHARES,
    EDITS,
    SIZE,
    SPLITS,
    applicable,
    caption,
    edits_for_prompt,
    families,
    miniworld,
    render_array,
    sample_scene,
)
from isr.errors import UsageError


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_the_public_call_is_the_function_and_the_module_still_imports() -> None:
    assert callable(isr.data.miniworld)
    assert len(isr.data.miniworld(n=3, split="design")) == 3
    from isr.data.miniworld import dataset

    assert dataset.miniworld is isr.data.miniworld


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, isr.data; isr.data.miniworld(1)[0].image; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_same_seed_same_bytes_and_a_longer_set_begins_with_the_shorter() -> None:
    short, long = miniworld(6, "design", seed=4), miniworld(11, "design", seed=4)
    for a, b in zip(short, long, strict=False):
        assert a.image_id == b.image_id
        assert a.prompts == b.prompts
        assert a.image.tobytes() == b.image.tobytes()
        assert a.target_image(3).tobytes() == b.target_image(3).tobytes()
    assert long[-1].image_id == "miniworld-design-4-00010"
    assert [item.image_id for item in long[9:]] == [long[9].image_id, long[10].image_id]


def test_splits_and_seeds_share_no_picture() -> None:
    seen: Counter[str] = Counter()
    for split in SPLITS:
        for seed in (0, 1):
            seen.update(_digest(render_array(item.scene)) for item in miniworld(40, split, seed))
    assert len(seen) == 4 * 2 * 40
    assert set(seen.values()) == {1}


def test_pictures_are_64_pixel_rgb_and_not_flat() -> None:
    for item in miniworld(30, "design"):
        assert item.image.mode == "RGB"
        assert item.image.size == (SIZE, SIZE) == (64, 64)
        assert render_array(item.scene).dtype == np.uint8
        assert render_array(item.scene).std() > 10


def test_categories_come_in_their_shares() -> None:
    counts = Counter(miniworld(1500, "train", seed=9).categories)
    for category, share in CATEGORY_SHARES.items():
        # standard error of a share near 0.35 at n = 1500 is 0.0123; four of them
        assert abs(counts[category] / 1500 - share) < 0.05


def test_one_original_and_five_unseen_prompts_of_six_families() -> None:
    for item in miniworld(120, "validation"):
        assert len(item.prompts) == 6
        assert item.prompt == item.prompts[0]
        assert item.unseen == item.prompts[1:]
        assert len({edit.family for edit in item.edits}) == 6
        for edit, prompt in zip(item.edits, item.prompts, strict=True):
            assert prompt in edit.wordings
            assert edit.applies(item.scene)


def test_families_are_balanced_and_tones_take_no_more_than_their_share() -> None:
    drawn: dict[str, Counter[str]] = {c: Counter() for c in CATEGORIES}
    for item in miniworld(1500, "train", seed=5):
        drawn[item.category][item.edits[0].family] += 1
    for category, counts in drawn.items():
        names = families(category)
        assert set(counts) == set(names)
        total = sum(counts.values())
        for name in names:  # one in seven of about 500: 0.143, standard error 0.016; four of them
            assert abs(counts[name] / total - 1 / len(names)) < 0.065, (category, name)


@pytest.mark.parametrize("name", sorted(EDITS))
def test_every_edit_is_drawn_visible_and_changes_one_attribute(name: str) -> None:
    edit = EDITS[name]
    rng = np.random.default_rng(17)
    scenes = []
    while len(scenes) < 3:
        scene = sample_scene(rng, edit.category)
        if edit.applies(scene):
            scenes.append(scene)
    for scene in scenes:
        target = edit.target(scene)
        assert {k for k in scene.attributes if scene[k] != target[k]} == {edit.attribute}
        assert (target.layout, target.noise_seed) == (scene.layout, scene.noise_seed)
        before, after = render_array(scene).astype(int), render_array(target).astype(int)
        changed = (np.abs(before - after).max(-1) > 20).mean()
        assert changed > 0.008, f"{changed:.4f} of the picture changes by more than 20 grey levels"
        assert caption(target) != caption(scene)
        if edit.family not in {"tone", "backdrop", "ground", "pattern", "time", "season", "frame"}:
            assert (before == after).all(-1).mean() > 0.3  # the rest stays as it is, to the byte


def test_an_edit_that_would_change_nothing_does_not_apply() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        scene = sample_scene(rng)
        for options in applicable(scene).values():
            for edit in options:
                assert scene[edit.attribute] != edit.value
                if edit.attribute in {"color", "ground"}:
                    target = edit.target(scene)
                    assert target["color"] != target["ground"]


def test_wordings_mean_one_edit_per_category() -> None:
    for edit in EDITS.values():
        assert len(edit.wordings) >= 4
        for words in edit.wordings:
            found = edits_for_prompt(words)
            assert [e.name for e in found if e.category == edit.category] == [edit.name]


def test_prompts_are_read_whatever_case_and_closing_stop() -> None:
    assert [e.name for e in edits_for_prompt("  Make the  hair RED. ")] == ["portrait/hair/red"]
    assert edits_for_prompt("make the hair plaid") == ()
    assert {e.category for e in edits_for_prompt("make the background blue")} == {"portrait", "artwork"}


def test_attributes_belong_to_one_category_each() -> None:
    assert set(ATTRIBUTES) == {"tone", *CATEGORY_OF}
    rng = np.random.default_rng(0)
    for category in CATEGORIES:
        scene = sample_scene(rng, category)
        assert set(scene.attributes) == {"tone", *(a for a, c in CATEGORY_OF.items() if c == category)}
        assert all(value in ATTRIBUTES[name] for name, value in scene.attributes.items())


def test_captions_say_what_an_edit_asks_for() -> None:
    rng = np.random.default_rng(8)
    scene = sample_scene(rng, "portrait")
    assert "wearing a crown" in caption(scene.changed("headwear", "crown"))
    assert "a black and white portrait" in caption(scene.changed("tone", "bw"))
    artwork = sample_scene(rng, "artwork").changed("ground", "orange")
    assert "on an orange background" in caption(artwork)


def test_wrong_arguments_say_what_is_expected() -> None:
    with pytest.raises(UsageError, match="split must be one of train, design, validation, test; got 'dev'"):
        miniworld(3, "dev")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="n must be an integer of 0 or more; got -1"):
        miniworld(-1)
    with pytest.raises(IndexError, match=r"index 3 is outside 0\.\.2"):
        miniworld(3)[3]
    with pytest.raises(ValueError, match="category must be one of"):
        families("sculpture")  # type: ignore[arg-type]


#: Mean colour of one block of the first three pictures of each split, when the world was fixed: weights and labels
#: were made with it.
FIXED: dict[str, list[list[int]]] = {
    "train": [[192, 157, 90], [135, 181, 232], [47, 46, 66]],
    "design": [[162, 196, 234], [199, 176, 95], [122, 135, 137]],
    "validation": [[152, 89, 96], [42, 46, 69], [18, 22, 49]],
    "test": [[199, 86, 65], [172, 120, 74], [207, 181, 116]],
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_world_has_not_changed(split: str) -> None:
    pixels = np.stack([np.asarray(item.image) for item in miniworld(3, split)])  # type: ignore[arg-type]
    # means over 16×16 blocks, so that a Pillow that rounds one edge pixel differently does not fail
    blocks = pixels.reshape(3, 4, 16, 4, 16, 3).mean((2, 4)).round(0)
    assert np.abs(blocks[:, 1, 1] - np.array(FIXED[split])).max() <= 1
