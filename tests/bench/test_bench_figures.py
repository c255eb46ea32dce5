"""Grids: chosen by a stated rule, with the stored pixels in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from bench_help import run, toy
from hypothesis import given
from hypothesis import strategies as st

from isr.bench.card import make_card
from isr.bench.figures import choose, grid, misleading_grid, write_grid
from isr.bench.misleading import auc, misleading, ranked
from isr.bench.results import Results
from isr.bench.tables import make_tables
from isr.errors import UsageError


def test_a_grid_by_rule_and_by_id(tmp_path: Path) -> None:
    run(toy(), tmp_path / "run")
    results = Results(tmp_path / "run", n_boot=200)
    rows = choose(results, n=2)
    assert len(rows) == 2
    for rule, wanted in (("all-defeated", "success"), ("none-defeated", "failure")):
        for image, prompt, _ in choose(results, rule=rule, n=99):  # type: ignore[arg-type]
            mine = results.frame[(results.frame["image_id"] == image) & (results.frame["prompt"] == prompt)]
            assert set(mine.loc[mine["arm"] == "immunized", "outcome"]) == {wanted}
    sheet = grid(results, rows, side=128)
    # The first cell is the original, twice its size, nearest neighbour.
    report = results.report
    assert report is not None
    original = next(c.original for c in report.case_records if c.image_id == rows[0][0])
    with PIL.Image.open(tmp_path / "run" / "images" / f"{original}.png") as stored:
        assert np.array_equal(np.asarray(sheet.crop((6, 34, 134, 162)))[::2, ::2], np.asarray(stored))
    image_id = results.frame["image_id"].iloc[-1]
    assert write_grid(results, tmp_path / "grid.png", ids=[image_id]) == 2
    # The rule stands under the figure.
    told = grid(results, rows, side=128, chosen="rows: by a rule")
    assert told.height > sheet.height
    below = np.asarray(told.crop((0, told.height - 38, told.width, told.height - 20)))
    assert (below < 200).any()
    with pytest.raises(UsageError, match="ids: no image 'nobody'"):
        choose(results, ids=["nobody"])
    with pytest.raises(UsageError, match="no white-box edits by 'sd3'; there are toy"):
        choose(results, target="sd3")


def test_edits_on_which_a_metric_misleads(tmp_path: Path) -> None:
    run(toy(data={"source": "miniworld", "n": 6}, metrics=["psnr", "clip"]), tmp_path / "run")
    results = Results(tmp_path / "run", n_boot=200)
    cases = misleading(results, "psnr", n=3)
    assert len(cases) == 3
    assert cases["image_id"].is_unique
    every = ranked(results, "psnr", "toy")
    # Counted: how many of the other edits are closer to their control (a higher PSNR), equal ones half.
    for row in every.to_dict("records"):
        others = every[every["case_id"] != row["case_id"]]["value"]
        far = ((others > row["value"]).sum() + (others == row["value"]).sum() / 2) / len(others)
        assert row["far"] == pytest.approx(far)
        assert row["disagreement"] == pytest.approx(1 - far if row["outcome"] == "success" else far)
    assert cases["disagreement"].iloc[0] == every["disagreement"].max()
    sheet = misleading_grid(results, "psnr", n=3, side=64)
    first = cases.iloc[0]
    edited = results.records[first["case_id"]].edited
    with PIL.Image.open(tmp_path / "run" / "images" / f"{edited}.png") as stored:
        left = 6 + 3 * (64 + 6)
        assert np.array_equal(np.asarray(sheet.crop((left, 34, left + 64, 98))), np.asarray(stored))
    with pytest.raises(UsageError, match=r"clip is n/a in this run: .*clip-vit-large"):
        misleading(results, "clip")
    with pytest.raises(UsageError, match="'lpips' has no value per edit in this run; it has psnr, clip"):
        misleading(results, "lpips")


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_that_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    from sklearn.metrics import roc_auc_score

    far, defeated = [f for f, _ in rows], [d for _, d in rows]
    mine = auc(far, defeated)
    if len(set(defeated)) < 2:
        assert mine is None
    else:
        assert mine == pytest.approx(roc_auc_score(defeated, far))


def test_a_run_without_judges_has_metric_tables_and_a_grid(tmp_path: Path) -> None:
    experiment = toy(metrics=["psnr"], protection=["psnr"], judging={}, purifiers=["jpeg:50"])
    run(experiment, tmp_path / "run", judge=False)
    results = Results(tmp_path / "run")
    tables = {t.key: t for t in make_tables(results)}
    assert set(tables) == {"main-toy", "main-toy-jpeg-50", "protection"}
    main = tables["main-toy"]
    assert [h for _, h in main.heads] == ["origin", "method", "PSNR ↓", "n", "PSNR ↓", "n"]
    assert [r[1].text for r in main.rows] == ["noise", "toy-shift"]
    assert "Not judged: image metrics only, and there is no ISR." in main.notes
    # The mean of the three edits on the original prompt, from the stored pictures.
    mine = [c for c in results.cases if c.record.method == "toy-shift" and c.record.prompt_kind == "original" and c.purifier == "none"]  # fmt: skip
    values = []
    for case in mine:
        a, b = (
            _pixels(tmp_path / "run", d)
            for d in (case.record.edited, results.records[case.record.control or ""].edited)
        )
        values.append(10 * np.log10(255**2 / np.mean((a - b) ** 2)))
    assert main.rows[1][2].text == f"{np.mean(values):.2f}"
    assert main.rows[1][3].text == "3"
    assert make_card(results)["results"][0]["n"] == 3
    assert write_grid(results, tmp_path / "grid.png", n=2) == 2
    with pytest.raises(UsageError, match="rule: 'differ' needs outcomes, and this run is not judged"):
        choose(results, rule="differ")
    with pytest.raises(UsageError, match="this run is not judged"):
        misleading(results, "psnr")


def _pixels(folder: Path, digest: str | None) -> Any:
    with PIL.Image.open(folder / "images" / f"{digest}.png") as image:
        return np.asarray(image, dtype=float)
