"""The training tool runs all its stages on tiny sizes, resumes, and exports what the package and the referees can load."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "train_miniworld.py"
sys.path.insert(0, str(ROOT / "tools"))


def _run(*arguments: str, ok: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
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
        "for stage in ('pairs', 'autoencoder', 'decoder', 'editor', 'attributes', 'disturbed', 'degradation'):\n"
        "    main([stage, '--work', sys.argv[2], '--tiny', '--workers', '1'])\n"
        "main(['export', '--work', sys.argv[2], '--package', sys.argv[2] + '/package'])\n"
    )
    _run("-c", code, str(ROOT / "tools"), str(folder))
    return folder


@pytest.mark.slow
def test_ten_steps_of_every_stage(work: Path) -> None:
    for place in (
        "autoencoder",
        "autoencoder/decoder",
        "editor",
        *(f"referee-{n}/{p}" for n in "abc" for p in ("attributes", "degradation")),
    ):
        points = _curve(work / place / "curve.jsonl")
        assert points[-1]["final"] is True
        assert points[-1]["step"] == 10
        assert all(np.isfinite(p["loss"]) for p in points if "loss" in p)
    names = sorted(p.name for p in (work / "package").iterdir())
    assert names == ["mini-ip2p", "referee-a", "referee-b", "referee-c"]
    for name in names:
        assert "orderings need not carry over" in (work / "package" / name / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_what_is_exported_loads(work: Path) -> None:
    from isr.judges.referee import RefereeJudge

    from isr.data.miniworld import miniworld

    item = miniworld(1, "design")[0]
    for name in ("a", "b", "c"):
        judge = RefereeJudge(name, folder=work / "package" / f"referee-{name}")
        assert len(judge.judge([(item.image, item.image, item.prompt)])) == 1
    from miniworld_training.editor import load_editor

    pipe = load_editor(work / "package" / "mini-ip2p")
    done = pipe([item.prompt], image=[item.image], num_inference_steps=2, output_type="np").images
    assert done.shape == (1, 64, 64, 3)


@pytest.mark.slow
def test_a_finished_stage_resumes_and_stops(work: Path) -> None:
    before = _curve(work / "editor" / "curve.jsonl")[-1]["step"]
    _run(str(TOOL), "editor", "--work", str(work), "--tiny", "--steps", "12")
    assert (before, _curve(work / "editor" / "curve.jsonl")[-1]["step"]) == (10, 12)


@pytest.mark.slow
def test_label_sheets_and_their_measure(work: Path, tmp_path: Path) -> None:
    import miniworld_label_measure
    import miniworld_label_sheets

    miniworld_label_sheets.main(
        [
            "--editor",
            str(work / "package" / "mini-ip2p"),
            "--out",
            str(tmp_path),
            "--per-method",
            "4",
            "--attack-steps",
            "2",
        ]
    )
    with (tmp_path / "hidden" / "key.csv").open(encoding="utf-8", newline="") as file:
        key = list(csv.DictReader(file))
    assert len(key) == 16
    assert {row["method"] for row in key} == {"none", "noise", "encoder", "sifm"}
    assert "method" not in (tmp_path / "form.csv").read_text("utf-8")
    for number, rule in ((1, lambda i: (i % 2, i % 3 == 0)), (2, lambda i: (i % 2, i % 4 == 0))):
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
    assert card["threshold_half"]["n"] == 8
    assert card["measuring_half"]["all"]["n"] == 8
    assert card["measuring_half"]["all"]["mismatch"]["labellings_agree"]["share"] == 1.0
    (tmp_path / "3.csv").write_text("item,mismatch,degraded\n1,0,2\n", "utf-8")
    with pytest.raises(SystemExit, match="not answered with 0 or 1"):
        miniworld_label_measure.main([*common, "--labels", str(tmp_path / "1.csv"), str(tmp_path / "3.csv")])


def test_thresholds_are_where_most_labels_agree() -> None:
    from miniworld_label_measure import best_threshold

    scores = np.array([0.0, 1.0, 2.0, 3.0])
    # both labellings split between 1 and 2: the cut at 1.5 agrees with all eight labels
    assert best_threshold(scores, [scores > 1.5, scores > 1.5]) == 1.5
    # one says ≥ 1, the other ≥ 3: cuts 0.5, 1.5 and 2.5 agree with 6 of 8 each; the middle one is taken
    assert best_threshold(scores, [scores >= 1, scores >= 3]) == 1.5


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    assert "run the stage `pairs` first" in _run(str(TOOL), "autoencoder", "--work", str(tmp_path), ok=False)
    assert "invalid choice" in _run(str(TOOL), "everything", "--work", str(tmp_path), ok=False)


def test_perturbations_keep_their_budget_on_eight_bits() -> None:
    import torch
    from miniworld_training.disturbances import perturb

    x = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)) / 255
    eps = torch.tensor([0.03, 0.06, 16 / 255])
    y = perturb(None, x, ["", "", ""], "noise", eps=eps, steps=1, seed=0)
    moved = (y - x).abs().amax((1, 2, 3))
    # the largest whole number of grey levels within each budget: 7/255 = 0.0275, 15/255 = 0.0588, 16/255
    assert torch.allclose(moved, torch.tensor([7, 15, 16]) / 255, atol=1e-6)
    assert torch.allclose((y * 255).round(), y * 255, atol=1e-4)
