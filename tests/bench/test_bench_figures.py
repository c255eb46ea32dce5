"""Grids: chosen by a stated rule, with the stored pixels in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from bench_help import run, toy

from isr.bench.figures import choose, grid, write_grid
from isr.bench.results import Results
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
    with pytest.raises(UsageError, match="ids: no image 'nobody'"):
        choose(results, ids=["nobody"])
    with pytest.raises(UsageError, match="no white-box edits by 'sd3'; there are toy"):
        choose(results, target="sd3")
