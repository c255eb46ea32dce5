"""The training tool runs all its stages on tiny sizes, resumes, and exports what the package and the referees can load."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

EDITORS = ("mini-hq", "mini-ip2p", "mini-sd3", "mini-sd3-instruct")
ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "train_miniworld.py"
sys.path.insert(0, str(ROOT / "tools"))


def _run(*arguments: str, ok: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=1200,  # against hanging alone
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode == 0) is ok, done.stderr[-2000:]
    return done.stdout + done.stderr


def _curve(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage, ten steps each, in one process (imports take longer than the training)."""
    folder = tmp_path_factory.mktemp("mini")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from train_miniworld import main\n"
        "def run(stage, *more): main([stage, '--work', sys.argv[2], '--tiny', '--workers', '1', *more])\n"
        "for name in ('mini-ip2p', 'mini-hq'): run('pairs', '--model', name)\n"
        "for name in ('mini-ip2p', 'mini-hq', 'mini-sd3'): run('autoencoder', '--model', name)\n"
        "for name in ('mini-ip2p', 'mini-sd3'): run('decoder', '--model', name)\n"
        "for name in ('mini-ip2p', 'mini-hq', 'mini-sd3', 'mini-sd3-instruct'): run('editor', '--model', name)\n"
        "for stage in ('attributes', 'disturbed', 'degradation'): run(stage)\n"
        "main(['export', '--work', sys.argv[2], '--package', sys.argv[2] + '/package'])\n"
    )
    _run("-c", code, str(ROOT / "tools"), str(folder))
    return folder


@pytest.mark.slow
def test_ten_steps_of_every_stage(work: Path) -> None:
    for place in (
        "autoencoder",
        "autoencoder-canvas",
        "autoencoder-flow",
        "autoencoder/decoder",
        "autoencoder-flow/decoder",
        *EDITORS,
        *(f"referee-{n}/{p}" for n in "abc" for p in ("attributes", "degradation")),
    ):
        points = _curve(work / place / "curve.jsonl")
        assert points[-1]["final"] is True
        assert points[-1]["step"] == 10
        assert all(np.isfinite(p["loss"]) for p in points if "loss" in p)
    names = sorted(p.name for p in (work / "package").iterdir())
    assert names == [*EDITORS, "referee-a", "referee-b", "referee-c"]
    for name in names:
        assert "orderings need not carry over" in (work / "package" / name / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_what_is_exported_loads(work: Path) -> None:
    from isr.judges.referee import RefereeJudge

    from isr.data.miniworld import miniworld

    told = [p for p in (work / "package").rglob("*.json") if str(work) in p.read_text("utf-8")]
    assert told == []  # no folder of the machine that trained
    item = miniworld(1, "design")[0]
    for name in ("a", "b", "c"):
        judge = RefereeJudge(name, folder=work / "package" / f"referee-{name}")
        assert len(judge.judge([(item.image, item.image, item.prompt)])) == 1
    from isr.editors import load_editor

    for name in EDITORS:
        editor = load_editor(name, source=str(work / "package" / name), device="cpu", defaults={"steps": 2})
        assert [e.size for e in editor.edit([item.image], [item.prompt], seeds=[0])] == [(64, 64)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini-ip2p", "mini-sd3-instruct"])
def test_the_training_sampler_is_the_editor(work: Path, name: str) -> None:
    """What the disturbances and checks sample with gives the bytes of the shipped editor."""
    import torch
    from isr.editors import load_editor
    from miniworld_training.models import MODELS
    from miniworld_training.trained import Trained

    from isr.data.miniworld import miniworld

    item = miniworld(1, "design")[0]
    model = MODELS[name]
    trained = Trained(model, work, torch.device("cpu"))
    raw = trained.latents(np.asarray(item.image)[None])
    mine = trained.edit(raw, [item.prompt], torch.Generator().manual_seed(5), steps=4)
    editor = load_editor(name, source=str(model.pipeline(work)), device="cpu", defaults={"steps": 4})
    theirs = np.asarray(editor.edit([item.image], [item.prompt], seeds=[5])[0])
    assert np.abs(mine[0].astype(int) - theirs.astype(int)).max() <= 1


@pytest.mark.slow
def test_a_finished_stage_resumes_and_stops(work: Path) -> None:
    before = _curve(work / "mini-ip2p" / "curve.jsonl")[-1]["step"]
    _run(str(TOOL), "editor", "--work", str(work), "--tiny", "--steps", "12")
    assert (before, _curve(work / "mini-ip2p" / "curve.jsonl")[-1]["step"]) == (10, 12)


@pytest.mark.slow
def test_label_sheets_and_their_measure(work: Path, tmp_path: Path) -> None:
    import miniworld_label_measure
    import miniworld_label_sheets

    miniworld_label_sheets.main(
        [
            "--editor",
            f"mini-ip2p={work / 'package' / 'mini-ip2p'}",
            f"mini-hq={work / 'package' / 'mini-hq'}",
            "--style",
            "plain",
            "canvas",
            "--out",
            str(tmp_path),
            "--per-method",
            "3",
            "1",
            "--attack-steps",
            "2",
        ]
    )
    with (tmp_path / "hidden" / "key.csv").open(encoding="utf-8", newline="") as file:
        key = list(csv.DictReader(file))
    assert len(key) == 16
    assert {row["method"] for row in key} == {"none", "noise", "encoder", "sifm"}
    pictures = sorted({(row["editor"], row["image_id"].rsplit("-", 1)[0]) for row in key})
    assert pictures == [("mini-hq", "miniworld-canvas-validation-0"), ("mini-ip2p", "miniworld-validation-0")]
    with pytest.raises(SystemExit, match="one for each of the 1 editors"):
        miniworld_label_sheets.main(["--style", "plain", "canvas", "--out", str(tmp_path / "none")])
    assert "method" not in (tmp_path / "form.csv").read_text("utf-8")
    rules = (lambda i: (i % 2, i % 3 == 0), lambda i: (i % 2, i % 4 == 0))
    for number, rule in enumerate(rules, 1):
        rows = [["item", "mismatch", "degraded"], *([i, int(rule(i)[0]), int(rule(i)[1])] for i in range(1, 17))]
        with (tmp_path / f"{number}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    common = [
        "--sheets",
        str(tmp_path),
        "--labeller",
        "a rule",
        "--referees",
        str(work / "package"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert miniworld_label_measure.main([*common, "--labels", str(tmp_path / "1.csv"), str(tmp_path / "2.csv")]) == 0
    card = json.loads((tmp_path / "out" / "miniworld_labels.json").read_text("utf-8"))
    assert card["labeller"] == "a rule"
    assert card["threshold_half"]["n"] == 12
    assert card["measuring_half"]["all"]["n"] == 4
    assert card["measuring_half"]["all"]["mismatch"]["labellings_agree"]["share"] == 1.0
    both = [*common, "--labels", str(tmp_path / "1.csv"), str(tmp_path / "2.csv")]
    rows = [["item", "mismatch", "degraded"], *([i, i % 2, 1] for i in range(1, 17))]
    with (tmp_path / "all.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    earlier = ["--earlier", *map(str, (tmp_path, tmp_path / "all.csv", tmp_path / "all.csv"))]
    assert miniworld_label_measure.main([*both, *(3 * earlier)]) == 0
    more = json.loads((tmp_path / "out" / "miniworld_labels.json").read_text("utf-8"))
    assert more["threshold_half"] == {"n": 48, "of_this_set": 12}
    for name, found in card["thresholds"].items():  # three sets that call everything degraded outvote one that does not
        assert more["thresholds"][name]["degradation"] < found["degradation"]
    assert more["measuring_half"]["all"]["degraded"]["referee_a"]["says"] == 1.0
    with (tmp_path / "out" / "miniworld_labels.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [sum(row["set"] == number for row in table) for number in "0123"] == [16, 12, 12, 12]
    assert {row["half"] for row in table if row["set"] == "1"} == {"threshold"}
    assert miniworld_label_measure.main([*both, "--held", "mini-other"]) == 0
    held = json.loads((tmp_path / "out" / "miniworld_labels_mini-other.json").read_text("utf-8"))
    found = held["at_the_referees_own_thresholds"]
    assert (found["all"]["n"], found["sifm"]["n"]) == (16, 4)
    wanted = [sum(1 - max(rule(i)) for i in range(1, 17)) / 16 for rule in rules]
    assert [row["share"] for row in found["all"]["ok_by_labels"]] == pytest.approx(wanted, abs=1e-4)
    assert {name: part["all"]["n"] for name, part in held["by_editor"].items()} == {"mini-hq": 4, "mini-ip2p": 12}
    parts = [part["all"]["degraded"]["labellings_agree"] for part in held["by_editor"].values()]
    assert sum(part["n"] * part["share"] for part in parts) == pytest.approx(
        16 * found["all"]["degraded"]["labellings_agree"]["share"], abs=0.01
    )
    with (tmp_path / "out" / "miniworld_labels_mini-other.csv").open(encoding="utf-8", newline="") as file:
        assert [row["half"] for row in csv.DictReader(file)] == ["measure"] * 16
    assert np.load(tmp_path / "out" / "miniworld_labels_mini-other.npz")["edited"].shape == (16, 64, 64, 3)
    with pytest.raises(SystemExit, match="--held sets no thresholds"):
        miniworld_label_measure.main([*both, "--held", "mini-other", "--set"])
    (tmp_path / "3.csv").write_text("item,mismatch,degraded\n1,0,2\n", "utf-8")
    with pytest.raises(SystemExit, match="not answered with 0 or 1"):
        miniworld_label_measure.main([*common, "--labels", str(tmp_path / "1.csv"), str(tmp_path / "3.csv")])


@pytest.mark.slow
def test_success_counts_edits_that_are_ok_and_judges_kept_ones_again(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import miniworld_success
    from isr.editors.base import DiffusionEditor

    weights = tmp_path / "weights"
    shutil.copytree(work / "package", weights)
    common = [
        "--weights",
        str(weights),
        "--split",
        "validation",
        "--images",
        "3",
        "--keep",
        str(tmp_path / "edits.npz"),
    ]
    assert miniworld_success.main(common) == 0
    found = json.loads((weights / "mini-ip2p" / "success_validation.json").read_text("utf-8"))
    assert (found["edits"], found["ok_by_a_and_b"]["all"]["n"]) == (6, 6)
    for letter in "ab":
        path = weights / f"referee-{letter}" / "config.json"
        config = json.loads(path.read_text("utf-8"))
        config["thresholds"] = {"asked": -1e6, "degradation": 1e6}  # everything is there, nothing is degraded
        path.write_text(json.dumps(config), "utf-8")
    again = [*common, "--suffix", "_again"]
    monkeypatch.setattr(DiffusionEditor, "edit", None)  # what was kept is judged, not made again
    assert miniworld_success.main(again) == 0
    kept = json.loads((weights / "mini-ip2p" / "success_validation_again.json").read_text("utf-8"))
    assert kept["referee_a"]["no_degradation"]["all"]["ok"] == 6
    lost = 6 - kept["referee_a"]["no_mismatch"]["all"]["ok"]  # of those whose category these networks do not see kept
    assert 6 - kept["ok_by_a_and_b"]["all"]["ok"] >= lost
    with np.load(tmp_path / "edits.npz") as file:
        assert file["edits"].shape == (6, 64, 64, 3)
    with pytest.raises(SystemExit, match="holds edits of another editor, other pictures or other settings"):
        miniworld_success.main([*again, "--seed", "1"])
    (tmp_path / "cut.npz").write_bytes(b"PK")
    for name, said in (
        ("cut.npz", "no edits that this tool kept"),
        ("edits", "expected a file name that ends in .npz"),
    ):
        with pytest.raises(SystemExit, match=said):
            miniworld_success.main(["--weights", str(weights), "--images", "1", "--keep", str(tmp_path / name)])


def test_thresholds_are_where_most_labels_agree() -> None:
    from miniworld_label_measure import best_threshold

    scores = np.array([0.0, 1.0, 2.0, 3.0])
    # both labellings split between 1 and 2: the cut at 1.5 agrees with all eight labels
    assert best_threshold(scores, [scores > 1.5, scores > 1.5]) == 1.5
    # one says ≥ 1, the other ≥ 3: cuts 0.5, 1.5 and 2.5 agree with 6 of 8 each; the middle one is taken
    assert best_threshold(scores, [scores >= 1, scores >= 3]) == 1.5


def test_the_shipped_cards_are_those_of_the_files_beside_them() -> None:
    from miniworld_training.export import editor_card, referee_card
    from miniworld_training.models import MODELS

    package = ROOT / "packages" / "miniworld" / "isr_miniworld" / "weights"
    shipped = sorted(p.name for p in package.iterdir())
    assert {"mini-ip2p", "referee-a", "referee-b"} <= set(shipped)
    for name in shipped:
        folder = package / name
        card = editor_card(MODELS[name], folder) if name in MODELS else referee_card(name[-1], folder)
        assert (folder / "README.md").read_text("utf-8") == card, name


def test_a_referee_whose_thresholds_no_labels_set_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from miniworld_training import export

    (tmp_path / "config.json").write_text(
        '{"kind": "plain", "thresholds": {"asked": 0.0, "degradation": -2.0}}', "utf-8"
    )
    for part in ("attributes", "degradation"):
        (tmp_path / f"curve_{part}.jsonl").write_text('{"step": 10, "accuracy_hair": 0.5}\n', "utf-8")
    row = {"where_labellings_agree": {"n": 8, "share": 0.75, "low": 0.5, "high": 0.875}}
    record = {
        "labeller": "a rule", "items": 16, "thresholds": {"a": {"asked": 1.0, "degradation": -2.0}},
        "threshold_half": {"n": 14, "of_this_set": 8},
        "measuring_half_at_the_referees_own_thresholds":
            {"all": {c: {"referee_a": row} for c in ("mismatch", "degraded")}},
    }  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps(record), "utf-8")
    monkeypatch.setattr(export, "LABELS", tmp_path / "labels.json")
    told = export.referee_card("a", tmp_path)
    assert "one half of 16 edits, each labelled twice, and on 6 of earlier editors" in told
    assert "75.0 % (50 to 88) on mismatch" in told
    assert "Who labelled: a rule." in told
    record["thresholds"] = {"a": {"asked": 1.0, "degradation": -2.5}}  # the labels of other weights
    (tmp_path / "labels.json").write_text(json.dumps(record), "utf-8")
    for name in ("labels.json", "absent.json"):
        monkeypatch.setattr(export, "LABELS", tmp_path / name)
        told = export.referee_card("a", tmp_path)
        assert "No record of labels belongs to them." in told
        assert "a rule" not in told


def test_shipped_configurations_name_no_folder_of_the_machine_that_trained() -> None:
    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [t for pair in value.items() for part in pair for t in texts(part)]
        if isinstance(value, list):
            return [t for part in value for t in texts(part)]
        return [value] if isinstance(value, str) else []

    folder = ROOT / "packages" / "miniworld" / "isr_miniworld"
    places = [p for p in folder.rglob("*.json") if p.name != "tokenizer.json"]  # whose words may begin with a stroke
    places.append(ROOT / "tests" / "data" / "miniworld_labels.json")
    assert len(places) > 8
    told = [
        (p.name, t) for p in places for t in texts(json.loads(p.read_text("utf-8"))) if t.startswith(("/", "~", "C:"))
    ]
    assert told == []


def test_the_training_knows_no_attack() -> None:
    """No module of the training imports attacks or immunization, so no attacked picture can be in it."""
    import ast

    files = [*sorted((ROOT / "tools" / "miniworld_training").glob("*.py")), TOOL]
    assert len(files) > 10
    imported = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported |= {f"{node.module or ''}.{alias.name}" for alias in node.names}
    assert any("isr.data.miniworld" in name for name in imported)
    assert [
        name for name in sorted(imported) if "attack" in name or "immuni" in name or name.startswith("isr.run")
    ] == []


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    assert "run the stage `pairs` first" in _run(str(TOOL), "autoencoder", "--work", str(tmp_path), ok=False)
    assert "invalid choice" in _run(str(TOOL), "everything", "--work", str(tmp_path), ok=False)
