"""benchmarks/bench_attacks_effect.py: what it keeps, that it goes on where it stopped, and what making imports."""

from __future__ import annotations

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

    def edit(
        self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], *, seeds: Sequence[int], **settings: Any
    ) -> list[PIL.Image.Image]:
        self.edited += len(images)
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
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["arms"] == first["arms"]
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


@pytest.mark.parametrize(
    ("excesses", "expected"),
    [
        ({0.03: 0.1, 0.06: 0.6, 0.12: 0.9}, (0.06, True)),  # the smallest that reaches 60 points
        ({0.03: 0.1, 0.06: 0.59, 0.12: None}, (0.12, False)),  # none does: the largest
        ({}, (None, False)),
    ],
)
def test_working_eps(excesses: dict[float, float | None], expected: tuple[float | None, bool]) -> None:
    rows = [{"attack": "end-to-end", "eps": e, "excess": x} for e, x in excesses.items()]
    assert bench.working_eps([*rows, {"attack": "sifm", "eps": 0.03, "excess": 1.0}]) == expected


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
