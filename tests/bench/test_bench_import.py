"""`isr import`: other repositories' folders by rules, and everything that does not fit named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isr.bench.importing import Rules, import_folder, load_rules
from isr.bench.naming import ways
from isr.cases import prepare
from isr.errors import ProblemsError, UsageError

RULES = {
    "files": {
        "edited": "out/{method}/{image}_{seed}",
        "original": "data/{image}",
        "control": "out/clean/{image}_{seed}",
        "immunized": "safe/{method}/{image}.png",
    },
    "prompts": {"file": "prompts.csv"},
    "columns": {"editor": "ip2p", "prompt_kind": "original"},
    "rename": {"method": {"ours": "sifm"}},
}


def picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 8), (level, level, level)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tmp_path / "repo"
    for i, image in enumerate(("cat", "dog")):
        picture(base / "data" / f"{image}.jpg", 100 + i)
        picture(base / "out" / "clean" / f"{image}_7.png", 10 + i)
        for m, method in enumerate(("ours", "mist")):
            picture(base / "out" / method / f"{image}_7.png", 50 + 10 * m + i)
            picture(base / "safe" / method / f"{image}.png", 104 + i)
    picture(base / "figures" / "teaser.png", 1)
    (base / "prompts.csv").write_text("image,prompt\ncat,make it snow\ndog,make it rain\n")
    return base


def test_pairs_by_name_and_the_manifest_is_judgeable(folder: Path, tmp_path: Path) -> None:
    found = import_folder(folder, Rules.model_validate(RULES))
    assert len(found.rows) == 4
    assert found.unmatched == ("figures/teaser.png",)
    assert (found.without_original, found.without_control, found.without_immunized) == (0, 0, 0)
    row = next(r for r in found.rows if r["edited"] == "out/ours/cat_7.png")
    assert row["method"] == "sifm"
    assert (row["original"], row["control"], row["prompt"], row["seed"]) == (
        "data/cat.jpg",
        "out/clean/cat_7.png",
        "make it snow",
        7,
    )
    assert row["levels"] == 4
    manifest = found.write(tmp_path / "lists" / "manifest.jsonl", folder)
    prepared = prepare(manifest)
    # 4 edits and one control per picture, shared by the methods.
    assert len(prepared.cases) == 6
    assert sum(c.record.control is not None for c in prepared.cases) == 4
    assert {c.record.image_id for c in prepared.cases} == {"cat", "dog"}


def test_everything_that_does_not_fit_is_named(folder: Path) -> None:
    (folder / "data" / "dog.jpg").unlink()
    (folder / "prompts.csv").write_text("image,prompt\ncat,make it snow\ncat,make it hail\n")
    picture(folder / "data" / "cat.png", 3)
    with pytest.raises(ProblemsError) as caught:
        import_folder(folder, Rules.model_validate(RULES))
    text = str(caught.value)
    assert "are both original of" in text
    assert "another prompt for ('cat',) than before" in text
    assert "no prompt for" in text
    assert "has no original" in text


def test_what_the_table_of_prompts_says_beside_them_goes_along(folder: Path) -> None:
    table = folder / "prompts.csv"
    table.write_text(
        "image,prompt,prompt_kind,category,id\ncat,make it snow,original,animal,x\ndog,make it rain,unseen,,\n"
    )
    rules = Rules.model_validate(
        {**RULES, "columns": {"prompt_kind": "unstated"}, "rename": {"category": {"animal": "A"}}}
    )
    rows = {r["image_id"]: r for r in import_folder(folder, rules).rows}
    assert (rows["cat"]["prompt_kind"], rows["cat"]["category"], rows["cat"]["tag_id"]) == ("original", "A", "x")
    assert rows["cat"]["id"].startswith("out/")
    assert (rows["dog"]["prompt_kind"], rows["dog"].get("category")) == ("unseen", None)
    table.write_text("image,prompt,prompt_kind\ncat,make it snow,original\ncat,make it snow,unseen\ndog,hail,unseen\n")
    with pytest.raises(ProblemsError, match=r"prompts\.csv:3: says something else of \('cat',\) than before"):
        import_folder(folder, rules)


def test_rules_errors_name_the_key(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('[files]\nedited = "out/{method}.png"\n[prompts]\n')
    with pytest.raises(UsageError, match=r"(?s)files\.edited: .*has no \{image\}.*prompts: give either file or text"):
        load_rules(path)
    path.write_text('[files]\nedited = "../{image}"\n[prompts]\ntext = "x"\n')
    with pytest.raises(UsageError, match="must be a path below the folder"):
        load_rules(path)
    none = Rules.model_validate({"files": {"edited": "edits/{image}"}, "prompts": {"text": "x"}})
    with pytest.raises(UsageError, match=r"no picture below .* fits 'edits/\{image\}'"):
        import_folder(folder, none)


def test_links_are_not_followed(folder: Path) -> None:
    (folder / "out" / "ours" / "fox_7.png").symlink_to(folder / "figures" / "teaser.png")
    found = import_folder(folder, Rules.model_validate(RULES))
    assert not any("fox" in json.dumps(r) for r in found.rows)


def test_prompts_come_whole_or_not_at_all(folder: Path) -> None:
    prompts = folder / "prompts.csv"
    prompts.write_text('image,prompt\ncat,"make it snow,\nheavily"\ndog,make it rain\n')
    found = import_folder(folder, Rules.model_validate(RULES))
    assert {r["prompt"] for r in found.rows} == {"make it snow,\nheavily", "make it rain"}
    prompts.write_text("image,prompt\ncat,make it snow, heavily\ndog,make it rain\n")
    with pytest.raises(UsageError, match=r"prompts\.csv, line 2: more fields than the head names"):
        import_folder(folder, Rules.model_validate(RULES))
    prompts.write_text("image,prompt\ncat\ndog,make it rain\n")
    with pytest.raises(ProblemsError, match=r"prompts\.csv:2: no prompt for \('cat',\)"):
        import_folder(folder, Rules.model_validate(RULES))


def test_names_with_the_separator_in_them_are_read_as_prompts_and_originals_say(tmp_path: Path) -> None:
    base = tmp_path / "repo"
    for image in ("img_001", "img_002", "img"):
        picture(base / "data" / f"{image}.png", 100)
        picture(base / "edits" / f"{image}_p_1.png", 50)
    rules: dict[str, Any] = {"files": {"edited": "edits/{image}_{prompt_id}.png"}, "prompts": {"file": "prompts.csv"}}
    (base / "prompts.csv").write_text("prompt_id,prompt\np_1,make it snow\n")
    found = import_folder(base, Rules.model_validate(rules))
    assert [(r["image_id"], r["prompt_id"]) for r in found.rows] == [
        ("img_001", "p_1"),
        ("img_002", "p_1"),
        ("img", "p_1"),
    ]
    # One prompt for all says nothing about names; originals do, up to img_001_p and 1.
    rules = {"files": rules["files"], "prompts": {"text": "make it snow"}}
    with pytest.raises(
        ProblemsError, match=r"img_001_p_1\.png.*can be read as \{'image': 'img', .* and as \{'image': 'img_001'"
    ):
        import_folder(base, Rules.model_validate(rules))
    (base / "data" / "img.png").unlink()
    (base / "edits" / "img_p_1.png").unlink()
    rules["files"]["original"] = "data/{image}"
    found = import_folder(base, Rules.model_validate(rules))
    assert [r["image_id"] for r in found.rows] == ["img_001", "img_002"]


@given(st.text("ab_.", min_size=1, max_size=6), st.text("ab_.", min_size=1, max_size=6), st.text("ab_/", max_size=4))
def test_every_way_of_reading_spells_the_name_and_the_right_one_is_among_them(
    image: str, number: str, before: str
) -> None:
    pattern = f"{before}{{image}}_{{n}}-{{image}}.png"
    name = f"{before}{image}_{number}-{image}.png"
    found = list(ways(pattern, name))
    assert {"image": image, "n": number} in found
    assert all(f"{before}{w['image']}_{w['n']}-{w['image']}.png" == name for w in found)
    assert len({tuple(w.items()) for w in found}) == len(found)
