"""Tables: figures worked by hand, published numbers as printed, escaping, and what never mixes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from bench_help import run, toy

from isr.bench.papertable import PaperTable, TextCell
from isr.bench.reported import reported_for, reported_rows
from isr.bench.results import Results, mean_of
from isr.bench.tables import _at_k, make_tables, write_tables
from isr.bench.worst_case import worst_case_table


def frame(rows: list[tuple[str, str, str, str]], either: list[str] | None = None) -> pd.DataFrame:
    """Rows (image, purifier, outcome, control) of one method, judged by strict consensus; either: outcomes under any, None after
    `lazy`."""
    return pd.DataFrame(
        [
            {"table": "main", "source": "e", "target": "e", "method": "m", "prompt_kind": "original", "image_id": i, "prompt": "p",
             "redraw": 0, "purifier": p, "outcome": o, "control": c, "strict": o, "any": other}
            for (i, p, o, c), other in zip(rows, either or [None] * len(rows), strict=True)
        ]
    )  # fmt: skip


def worst(rows: list[tuple[str, str, str, str]], either: list[str] | None = None) -> dict[str, Any]:
    fake = SimpleNamespace(frame=frame(rows, either), experiment=toy(purifiers=["jpeg:50"]))
    return dict(worst_case_table(cast(Results, fake)).iloc[0])


def test_worst_case_by_hand() -> None:
    s, f, u = "success", "failure", "undetermined"
    rows = (
        [
            ("a", "none", s, f), ("a", "jpeg:50", s, f),  # stands under both: success; control fails under both
            ("b", "none", s, s), ("b", "jpeg:50", f, s),  # JPEG breaks the protection; the control is defeated under both
            ("c", "none", s, f), ("c", "jpeg:50", u, s),  # undetermined; the control fails once, so it fails
            ("d", "none", u, f), ("d", "jpeg:50", f, f),  # a failure decides whatever the other is
            ("e", "none", s, f),                          # no JPEG edit: left out and counted
        ]
    )  # fmt: skip
    # Under any, b stands after JPEG too, and c is decided: a, b and c of four.
    found = worst(rows, [s, s, s, s, s, s, u, f, s])
    assert (found["band_low"], found["band_high"]) == (0.25, 0.75)
    assert (worst(rows)["band_low"], worst(rows)["band_high"]) == (0.25, None)
    # a, b, c, d: 1 success of 4; the undetermined c could make it 2 of 4.
    assert (found["n"], found["isr"], found["bound_low"], found["bound_high"]) == (4, 0.25, 0.25, 0.5)
    assert found["n_incomplete"] == 1
    # Complete pairs a, b, d: immunized 1/3, control 1/3 (b), excess 0.
    assert (found["n_pairs"], found["excess"]) == (3, 0.0)
    assert found["paired_control"] == pytest.approx(1 / 3)


def test_isr_at_k_by_hand_in_every_rendering() -> None:
    s, f, u = "success", "failure", "undetermined"
    # image: two redraws, each (immunized, control)
    redraws = {
        "a": [(s, f), (s, f)],  # success; its control fails
        "b": [(s, s), (u, s)],  # undetermined; its control is defeated twice
        "c": [(f, s), (u, u)],  # a failure decides; its control is undetermined
        "d": [(f, f), (s, u)],  # failure; so is its control, whatever the other redraw is
        "e": [(u, u), (u, u)],  # undetermined; so is its control
    }
    rows = [
        {"table": "main", "source": "e", "target": "e", "purifier": "none", "method": "m", "prompt_kind": "original", "image_id": i,
         "prompt": "p", "redraw": n, "outcome": o, "control": c}
        for i, pairs in redraws.items() for n, (o, c) in enumerate(pairs)
    ]  # fmt: skip
    fake: Any = SimpleNamespace(frame=pd.DataFrame(rows), experiment=toy(seeds={"redraws": 2}), report=object())
    fake._rows = lambda where: Results._rows(fake, where)
    found = Results._at_k(fake, ("main", "e", "e", "none", "m", "original"))
    # 5 pairs. Immunized: 1 success, 2 undetermined: [1/5, 3/5]. Control: 1 (b), 2 undetermined (c, e): [1/5, 3/5].
    assert (found["isr_at_k_n"], found["isr_at_k"], found["control_at_k"]) == (5, 0.2, 0.2)
    assert (found["isr_at_k_bound_low"], found["isr_at_k_bound_high"]) == (0.2, 0.6)
    assert (found["control_at_k_bound_low"], found["control_at_k_bound_high"]) == (0.2, 0.6)
    # 4 of the 10 edits succeed: a twice, b and d once.
    fake.long = pd.DataFrame([{**rows[0], **found, "isr": 0.4}])
    (table,) = _at_k(fake)
    cells = dict(zip(table.columns, (c.text for c in table.rows[0]), strict=True))
    low, high = (f"{100 * found[f'isr_at_k_{end}']:.1f}" for end in ("low", "high"))
    assert cells == {
        "source": "e", "target": "e", "purifier": "none", "method": "m", "prompts": "original", "ISR ↑": "40.0", "ISR@2 ↑": "20.0",
        "interval": f"[{low}, {high}]", "bounds": "[20.0, 60.0]", "control@2": "20.0", "control@2 bounds": "[20.0, 60.0]", "pairs": "5",
    }  # fmt: skip
    for text in (table.markdown(), table.latex(), table.html(), table.csv()):
        plain = text.replace("\\", "").replace("{}", "")
        assert plain.count("[20.0, 60.0]") == 2
        assert "bounds: whatever the missing verdicts were" in plain or text == table.csv()


def test_isr_at_k_that_does_not_exist_has_no_bounds() -> None:
    row = {
        "source": "e",
        "target": "e",
        "purifier": "none",
        "method": "m",
        "prompt_kind": "original",
        "table": "main",
        "isr": 0.5,
    }
    long = pd.DataFrame([{**row, "isr_at_k": None, "isr_at_k_reason": "an edit is missing"}])
    (table,) = _at_k(cast(Any, SimpleNamespace(long=long, experiment=toy(seeds={"redraws": 2}), report=object())))
    assert [c.text for c in table.rows[0]][6:] == ["n/a", "", "", "n/a", "", "–"]
    assert table.notes[-1] == "an edit is missing"


def test_means_never_hide_what_is_missing_or_infinite() -> None:
    assert mean_of([{"value": 1.0}, {"value": 3.0}]) == (2.0, 2, "")
    assert mean_of([{"value": 1.0}, {"value": None, "reason": "too small"}]) == (1.0, 1, "too small")
    assert mean_of([{"value": None, "reason": "no weights"}]) == (None, 0, "no weights")
    value, n, reason = mean_of([{"value": "inf"}, {"value": 1.0}, None])
    assert (value, n, reason) == (math.inf, 2, "not measured yet")


def test_published_tables_as_printed() -> None:
    every = reported_rows()
    # Tables II: 5 methods × 2, III and IV: 8 × 2 each, V: 4 × 2 directions, VI: 3, VII: 7.
    assert every.groupby("id").size().to_dict() == {"II": 10, "III": 16, "IV": 16, "V": 8, "VI": 3, "VII": 7}
    assert set(every["origin"]) == {"reported"}

    def one(table: str, method: str, kind: str, **where: str) -> dict[str, Any]:
        rows = every[(every["id"] == table) & (every["method"] == method) & (every["prompt_kind"] == kind)]
        for column, value in where.items():
            rows = rows[rows[column] == value]
        assert len(rows) == 1
        return dict(rows.iloc[0])

    sifm = one("II", "SIFM", "original")
    assert (sifm["psnr"], sifm["ssim"], sifm["vifp"], sifm["fsim"], sifm["lpips"], sifm["isr"]) == (
        15.79,
        0.4747,
        0.1237,
        0.7162,
        0.5046,
        0.79,
    )
    hq = one("IV", "SIFM", "unseen")
    assert (hq["psnr"], hq["lpips"], hq["isr"]) == (8.47, 0.6599, 0.71)
    # Table V prints LPIPS before VIFp.
    transfer = one("V", "SIFM", "unstated", source="ip2p")
    assert (transfer["ssim"], transfer["lpips"], transfer["vifp"], transfer["isr"]) == (0.6569, 0.3496, 0.2411, 0.49)
    assert one("VII", "λ = 0.1", "original")["isr"] == one("II", "SIFM", "original")["isr"]
    assert one("III", "ED", "unseen")["isr"] == 0.36


def test_published_rows_stand_beside_the_same_editors_only() -> None:
    experiment = toy(editors=[{"name": "sd3", "label": "mine"}, {"name": "toy"}])
    assert set(reported_for(experiment, "mine", "mine", "main")["id"]) == {"II"}
    assert reported_for(experiment, "toy", "toy", "main").empty
    asked = toy(tables={"reported": ["III"]})
    assert set(reported_for(asked, "toy", "toy", "main")["id"]) == {"III"}


def test_foreign_text_is_escaped_in_every_form() -> None:
    nasty = r"=1+1 <script>x</script> \input{/etc/passwd} | a_b %"
    table = PaperTable(
        "k", nasty, (("", nasty), ("g", "ISR")), ((TextCell(nasty), TextCell("1", bold=True)),), (nasty,)
    )
    assert "<script>" not in table.html()
    assert r"\input" not in table.latex()
    assert "<script" not in table.markdown().replace(r"\<script", "")
    assert "'=1+1" in table.csv()
    assert "**1**" in table.markdown()
    assert r"\textbf{1}" in table.latex()
    rows = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert all(line.replace(r"\|", "").count("|") == 3 for line in rows)


def test_tables_of_a_run(tmp_path: Path) -> None:
    run(
        toy(
            data={"source": "miniworld", "n": 4}, purifiers=["jpeg:50"], seeds={"redraws": 2}, metrics=["psnr"], protection=["psnr"],
            tables={"reported": ["III"]},
        ),
        tmp_path / "run",
    )  # fmt: skip
    results = Results(tmp_path / "run", n_boot=200)
    tables = {t.key: t for t in make_tables(results)}
    assert {"main-toy", "control", "isr-at-k", "protection", "similarity"} <= set(tables)
    # A row per method and purifier, each with all that stands beside an ISR.
    purified = next(t for k, t in tables.items() if k.startswith("purifiers-"))
    assert purified.columns == [
        "method", "purifier", "n", "ISR ↑", "interval", "bounds", "band", "control", "excess", "excess interval", "excess bounds",
    ]  # fmt: skip
    assert [row[1].text for row in purified.rows[:3]] == ["none", "jpeg:50", "worst case per image"]
    assert all(cell.text not in ("", "–", "n/a") for row in purified.rows for cell in row)
    main = tables["main-toy"]
    origins = [row[0].text for row in main.rows]
    assert origins[:2] == ["measured", "measured"]
    assert set(origins[2:]) == {"reported, Table III"}
    assert main.reported == frozenset(range(2, len(origins)))
    # Every measured figure is the report's own.
    long = results.long
    report = results.report
    assert report is not None
    by = report.by("method", "prompt_kind", "purifier")
    for row in by.to_dict("records"):
        purifier = row["purifier"] if isinstance(row["purifier"], str) else "none"
        mine = long[
            (long["method"] == row["method"])
            & (long["prompt_kind"] == row["prompt_kind"])
            & (long["purifier"] == purifier)
        ]
        assert float(mine["isr"].iloc[0]) == row["isr"]
        assert int(mine["n"].iloc[0]) == 8  # 4 pictures × 2 redraws
    assert set(long["isr_at_k_n"]) == {4}
    assert (long["isr_at_k"] <= long["isr"]).all()
    # Counted: pairs of which both redraws without protection are defeated, over all four.
    for row in long.to_dict("records"):
        mine = results.frame
        for column in ("method", "prompt_kind", "purifier"):
            mine = mine[mine[column] == row[column]]
        each = mine.groupby(["image_id", "prompt"])["control"].agg(lambda c: set(c) == {"success"})
        assert (len(each), row["control_at_k"]) == (4, each.sum() / 4)
    names = {p.name for p in write_tables(results, tmp_path / "tables")}
    assert {"tables.md", "tables.tex", "tables.html", "long.csv"} <= names
    page = (tmp_path / "tables" / "tables.html").read_text()
    assert "Content-Security-Policy" in page
    assert "<script" not in page


def test_a_method_that_several_tables_show_is_one_row_where_there_is_one_table(tmp_path: Path) -> None:
    attacks = [
        {"name": "toy-shift", "label": "S", "also_in": ["components"]},
        {"name": "toy-shift", "label": "S9", "options": {"levels": 9}, "table": "components"},
    ]
    run(toy(attacks=attacks, noise=None, seeds={"redraws": 2}), tmp_path / "run")
    tables = {t.key: t for t in make_tables(Results(tmp_path / "run", n_boot=200))}
    for key, place in (("control", 3), ("isr-at-k", 3)):
        assert [row[place].text for row in tables[key].rows] == ["S", "S", "S9", "S9"]  # two kinds of prompts each
    similar = [(row[3].text, row[4].text) for row in tables["similarity"].rows]
    assert len(similar) == len(set(similar))
    assert {method for method, _ in similar} == {"S", "S9"}
    assert {"main-toy", "components-toy"} <= set(tables)


def test_noise_is_held_against_the_methods_and_is_none_of_them() -> None:
    # 40 images, one prompt: a succeeds on 32, b on the first 20 of these, noise on all 40.
    wins = {"a": 32, "b": 20, "noise": 40}
    rows = [
        {"table": "main", "source": "e", "target": "e", "purifier": "none", "method": m, "prompt_kind": "original", "image_id": f"i{i}",
         "prompt": "p", "redraw": 0, "arm": "noise" if m == "noise" else "immunized", "outcome": "success" if i < n else "failure"}
        for m, n in wins.items() for i in range(40)
    ]  # fmt: skip
    fake = SimpleNamespace(report=object(), frame=pd.DataFrame(rows), n_boot=500)
    found = {key[4]: told for key, told in Results._bold(cast(Results, fake)).items()}
    assert set(found) == {"a", "b"}
    assert found["a"] == {"bold": True, "p_below_best": None}
    # One pair, so Holm leaves McNemar's mid-p as it is: 12 images for a alone, none for b alone, 2 · (1/2) · 2^-12.
    assert found["b"] == {"bold": False, "p_below_best": pytest.approx(2.0**-12)}
