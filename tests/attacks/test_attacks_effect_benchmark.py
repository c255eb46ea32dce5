"""benchmarks/bench_attacks_effect.py: what it keeps, that it goes on where it stopped, and what making imports."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from isr.attacks.pgd import to_tensor
from isr.editors.pixels import to_pictures
from toy import ToyEditor

from isr.data import miniworld

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench_attacks_effect as bench
from attacks_effect_store import Arm, Store

ROOT = Path(__file__).resolve().parents[2]


class Editing(ToyEditor):
    """The toy with an edit, and a count of edited pictures."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.edited = 0
        self.threads: set[int] = set()

    def edit(
        self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], *, seeds: Sequence[int], **settings: Any
    ) -> list[PIL.Image.Image]:
        self.edited += len(images)
        self.threads.add(torch.get_num_threads())
        with torch.no_grad():
            return to_pictures(self.rollout(to_tensor(images), prompts, 2, seeds=seeds))


def dark(case: Any) -> dict[str, bool]:
    """A judge: an edit is off where its mean is below that of the original."""
    return {
        "semantic_mismatch": bool(np.asarray(case.edited).mean() < np.asarray(case.original).mean()),
        "degradation": False,
    }


def noise(image: PIL.Image.Image, by: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.clip(np.asarray(image).astype(int) + by, 0, 255).astype(np.uint8))


def test_a_store_gives_back_the_bytes_it_was_given(tmp_path: Path) -> None:
    world = miniworld(n=3, split="design")
    store = Store(tmp_path, {i.image_id: np.asarray(i.image) for i in world})
    arm, ids = Arm("sifm", 0.03, {"eps": 0.03, "layers": ("a", "b")}), [i.image_id for i in world]
    protected, edits = [noise(i.image, 7) for i in world], [noise(i.image, -200) for i in world]
    assert store.missing(arm) == ids
    store.add(arm, ids[:2], protected[:2], edits[:2], seconds_protect=4.0, seconds_edit=2.0, about={})
    assert store.missing(arm) == ids[2:]
    store.add(arm, ids[2:], protected[2:], edits[2:], seconds_protect=5.0, seconds_edit=1.0, about={})
    made = store.load(arm)
    assert made is not None
    for i, p, e in zip(ids, protected, edits, strict=True):
        assert made.picture("protected", i).tobytes() == p.tobytes()
        assert made.picture("edits", i).tobytes() == e.tobytes()
    assert (made.seconds_protect, made.seconds_edit) == (3.0, 1.0)  # (4 + 5) / 3, (2 + 1) / 3
    assert [a.name for a in store.arms()] == ["sifm@0.03"]
    with pytest.raises(SystemExit, match="give another --out"):
        store.load(Arm("sifm", 0.03, {"eps": 0.03, "lam": 1.0}))


def test_changes_beyond_127_levels_are_kept(tmp_path: Path) -> None:
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    store, arm = Store(tmp_path, {"a": black}), Arm("photoguard-diffusion", 8.0)
    picture = PIL.Image.fromarray(white)
    store.add(arm, ["a"], [picture], [picture], seconds_protect=1.0, seconds_edit=1.0, about={})
    made = store.load(arm)
    assert made is not None
    assert (made.protected["a"] == 255).all()
    assert (made.edits["a"] == 255).all()


@pytest.mark.slow
def test_make_goes_on_and_judge_may_be_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "--images", "3", "--iterations", "2", "--methods", "noise,end-to-end,sifm", "--epsilons", "0.03,0.12",
        "--batch", "2", "--out", str(tmp_path), "--editor", "toy",
    ]  # fmt: skip
    editor = Editing()
    assert bench.main([*args, "--make", "--limit", "0.000001"], editor=editor) == 3
    assert bench.main([*args, "--make", "--methods", "noise", "--no-reductions"], editor=editor) == 0
    assert editor.edited == 3 * 3  # control and noise at two ε
    assert bench.main([*args, "--make"], editor=editor) == 0
    assert editor.edited == 3 * (1 + 6 + 14)  # six arms in all, and fourteen of the reductions
    assert bench.main([*args, "--make"], editor=editor) == 0
    assert editor.edited == 3 * (1 + 6 + 14)
    capsys.readouterr()
    first = bench.judge(bench.parse([*args, "--judge"]), [dark])
    assert bench.main([*args, "--judge"], judges=[dark]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["arms"] == [{k: row[k] for k in bench.SHOWN} for row in first["arms"]]
    assert printed["reductions"] == first["reductions"]
    assert printed["n_pairs"] == 3
    assert json.loads((tmp_path / "results.json").read_text("utf-8")) == first
    assert {r["arm"] for r in first["arms"]} == {
        f"{a}@{e}" for a in ("noise", "end-to-end", "sifm") for e in (0.03, 0.12)
    }
    assert all(r["levels_max"] <= int(255 * r["eps"] + 1e-9) for r in first["arms"])
    assert all(r["n"] == 3 and r["n_pairs"] == 3 for r in first["arms"])
    assert len(first["reductions"]) == 14
    same = {r["setting"]: r["same_sign_as_lambda_0"] for r in first["reductions"]}
    assert same["sifm-mean_sum-0@0.03"] == 1.0
    assert same["sifm-dist-only@0.03"] < 0.9
    with pytest.raises(SystemExit, match="another editor"):
        bench.main([*args, "--make"], editor=Editing(prediction="flow"))


def test_the_instructed_transformer_has_settings_of_its_own(tmp_path: Path) -> None:
    sd3 = importlib.import_module("bench_attacks_effect_sd3")
    args = ["--make", "--iterations", "1", "--methods", "noise", "--images", "2", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        found: list[Any] = []
        patch.setattr(bench, "make", lambda options, editor=None: found.append(options) or True)
        assert sd3.main(args) == 0
    (options,) = found
    assert (options.editor, options.working, options.reductions) == ("mini-sd3-instruct", 0.045, False)
    assert options.images == 2  # what is given comes last and counts


@pytest.mark.parametrize(
    ("excesses", "expected"),
    [
        ((0.1, 0.3, 0.6, 0.9, 0.9), (0.06, True)),  # the smallest that reaches 60 points
        ((0.94 - 0.34, 0.7, 0.8, 0.9, 0.9), (0.03, True)),  # 60 points, in floats 0.5999999999999999
        ((0.1, 0.3, 0.59, 0.5, 0.59), (0.12, False)),  # none does: 0.12, and that is said
        ((0.1, 0.3, 0.7), (0.06, True)),  # what lies above decides nothing
        ((0.1, None, 0.7, 0.9, 0.9), (None, False)),  # 0.045 might be it: not known yet
        ((0.1, 0.3, 0.4, 0.5), (None, False)),  # 0.12 is not made yet
        ((), (None, False)),
    ],
)
def test_working_eps(excesses: tuple[float | None, ...], expected: tuple[float | None, bool]) -> None:
    """Issue text: the smallest of 0.03, 0.045, 0.06, 0.09, 0.12 with an excess of 60 points; if none has, 0.12."""
    rows = [
        {"attack": "end-to-end", "eps": e, "excess": x}
        for e, x in zip((0.03, 0.045, 0.06, 0.09, 0.12), excesses, strict=False)
    ]
    others = [{"attack": "sifm", "eps": 0.03, "excess": 1.0}, {"attack": "end-to-end", "eps": 0.01, "excess": 0.9}]
    assert bench.working_eps([*rows, *others]) == expected


def names_of(options: Any, working: float | None) -> list[str]:
    return [arm.name for arm in bench.arms_of(options, working)]


def test_every_method_is_made_at_003_and_at_the_working_eps_and_three_along_the_curve() -> None:
    options = bench.parse(["--methods", "ace,noise,end-to-end,sifm"])
    curve = [f"{m}@{e}" for m in ("noise", "end-to-end", "sifm") for e in (0.03, 0.045, 0.06, 0.09, 0.12)]
    assert names_of(options, None) == [*curve, "ace@0.03"]
    assert names_of(options, 0.06) == [*curve, "ace@0.03", "ace@0.06"]
    assert names_of(options, 0.03) == [*curve, "ace@0.03"]
    told = bench.parse(["--methods", "ace,noise", "--epsilons", "0.06,0.03"])
    assert names_of(told, 0.12) == ["ace@0.06", "ace@0.03", "noise@0.06", "noise@0.03"]
    assert set(bench.parse([]).methods) >= {"mist", "photoguard-diffusion", "semantic"}


def test_judging_decides_what_is_made_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make, judge, make the rest at the working ε, judge again; --make by itself takes it from the last judging."""
    monkeypatch.setattr(bench, "EPS", (0.03, 0.06, 0.12))
    monkeypatch.setattr(bench, "TARGET_EXCESS", -2.0)  # reached by anything, so at the first ε that counts
    args = ["--images", "2", "--iterations", "1", "--methods", "end-to-end,photoguard-encoder", "--out", str(tmp_path)]
    args += ["--editor", "toy", "--no-reductions"]
    made = lambda: sorted(p.stem for p in tmp_path.glob("*.npz"))  # noqa: E731
    assert bench.main([*args, "--make"], editor=Editing()) == 0
    first = ["control", "end-to-end@0.03", "end-to-end@0.06", "end-to-end@0.12", "photoguard-encoder@0.03"]
    assert made() == first
    monkeypatch.setattr(bench, "working_eps", lambda rows: (0.06, True))
    assert bench.main(args, editor=Editing(), judges=[dark]) == 0
    assert made() == [*first, "photoguard-encoder@0.06"]
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert "photoguard-encoder@0.06" in {r["arm"] for r in results["arms"]}
    (tmp_path / "photoguard-encoder@0.06.npz").unlink()
    assert bench.main([*args, "--make"], editor=Editing()) == 0
    assert made() == [*first, "photoguard-encoder@0.06"]


def test_a_working_eps_of_another_editor_can_be_given(tmp_path: Path) -> None:
    """The other methods are made at it in one go; this editor's own figure stands beside it."""
    args = ["--images", "2", "--iterations", "1", "--methods", "photoguard-encoder", "--working", "0.06"]
    args += ["--editor", "toy", "--out", str(tmp_path), "--no-reductions"]
    assert bench.main(args, editor=Editing(), judges=[dark]) == 0
    made = sorted(p.stem for p in tmp_path.glob("*.npz"))
    assert made == ["control", "photoguard-encoder@0.03", "photoguard-encoder@0.06"]
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert (results["working_eps"], results["working_eps_given"]) == (None, 0.06)


def test_a_plan_says_how_long_it_takes_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--images", "3", "--batch", "2", "--iterations", "50", "--methods", "noise,sifm", "--out", str(tmp_path)]
    args += ["--editor", "toy"]
    before, editor = torch.get_num_threads(), Editing()
    try:
        torch.set_num_threads(2)
        assert bench.main([*args, "--plan"], editor=editor) == 0
        assert (1 in editor.threads, torch.get_num_threads()) == (True, 2)
    finally:
        torch.set_num_threads(before)
    assert not list(tmp_path.iterdir())
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["arm"]: row["missing"] for row in plan["arms"]}["sifm@0.12"] == 3
    assert len(plan["arms"]) == 1 + 10 + 14  # control, the curves of both, the reductions
    assert plan["seconds"] == pytest.approx(sum(row["seconds"] for row in plan["arms"]))
    assert plan["seconds_alone"] > 0
    sifm, noise = (next(r for r in plan["arms"] if r["arm"] == f"{name}@0.03") for name in ("sifm", "noise"))
    assert sifm["seconds"] > noise["seconds"] > 0
    assert sifm["measured"] == "now"
    assert bench.main([*args, "--make", "--iterations", "2", "--no-reductions"], editor=Editing()) == 0
    capsys.readouterr()
    assert bench.main([*args, "--iterations", "2", "--no-reductions", "--plan"], editor=Editing()) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["seconds"] == 0
    assert {row["missing"] for row in plan["arms"]} == {0}


#: A machine with PyTorch and the model libraries, but without what judges, studies and command lines need.
BARE = """
import sys
class Missing:
    NAMES = {"diskcache", "fastapi", "google", "jinja2", "openai", "pandas", "sqlalchemy", "tenacity", "uvicorn"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.path[:0] = sys.argv[1:4]
import bench_attacks_effect as bench
import isr.editors.mmdit, isr.editors.unet
from isr.editors.pixels import to_pictures
from isr.attacks.pgd import to_tensor
from toy import ToyEditor
class Editing(ToyEditor):
    def edit(self, images, prompts, *, seeds):
        return to_pictures(self.rollout(to_tensor(images), prompts, 2, seeds=seeds))
args = ["--make", "--images", "2", "--iterations", "1", "--methods", "noise,sifm", "--epsilons", "0.03", "--no-reductions"]
sys.exit(bench.main([*args, "--out", sys.argv[4]], editor=Editing()))
"""


@pytest.mark.slow
def test_making_needs_no_client_package(tmp_path: Path) -> None:
    folders = [str(ROOT / "benchmarks"), str(ROOT), str(ROOT / "tests" / "attacks")]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *folders, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "sifm@0.03.npz").is_file()
