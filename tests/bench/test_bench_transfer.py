"""Rows that differ by the editor that a perturbation was made on: never one row, in whatever order they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench_help import run, toy

import isr
from isr.bench.checking import check_run
from isr.bench.experiment import Experiment
from isr.bench.merging import merge_experiments
from isr.bench.records import load_report
from isr.bench.results import Results
from isr.bench.tables import make_tables, write_tables
from isr.bench.worst_case import worst_case_table
from isr.report import Report

# The toy immunizer does not look at its editor: perturbations made on either are the same pixels, and so are their edits by
# one target (as for Gaussian noise, or an encoder that two editors share).
EDITORS = [{"name": "toy"}, {"name": "toy", "label": "other", "options": {"weights": "w1"}}]
WHITE, TRANSFER = {"source": "toy", "target": "toy"}, {"source": "other", "target": "toy"}


def experiment(*pairs: dict[str, str], **more: Any) -> Experiment:
    return toy(editors=EDITORS, pairs=list(pairs), **more)


def edits(folder: Path) -> dict[str, tuple[Any, ...]]:
    """case_id → what the case is, of the immunized arm."""
    return {
        c.case_id: (c.tags["source"], c.editor, c.method, c.image_id, c.prompt, c.seed)
        for c in Report.load(folder).case_records
        if c.arm == "immunized"
    }


def test_the_source_editor_is_part_of_a_cases_name_whatever_came_first(tmp_path: Path) -> None:
    run(experiment(WHITE, TRANSFER), tmp_path / "a")
    run(experiment(TRANSFER, WHITE), tmp_path / "b")
    found = edits(tmp_path / "a")
    # 3 pictures × 2 prompts × 2 sources, with equal pixels in pairs.
    assert len(found) == len(set(found.values())) == 12
    assert len({(*told[1:],) for told in found.values()}) == 6
    assert len({c.edited for c in Report.load(tmp_path / "a").case_records if c.arm == "immunized"}) == 6
    assert edits(tmp_path / "b") == found
    assert not any("duplicates" in note for note in Report.load(tmp_path / "a").lock["notes"])


def test_a_source_that_is_added_in_front_does_not_take_another_ones_rows(tmp_path: Path) -> None:
    run(experiment(TRANSFER), tmp_path / "run")
    before = edits(tmp_path / "run")
    run(experiment(WHITE, TRANSFER), tmp_path / "run")
    after = edits(tmp_path / "run")
    assert len(after) == 12
    assert before.items() < after.items()
    assert check_run(tmp_path / "run").ok
    run(experiment(WHITE, TRANSFER), tmp_path / "whole")
    names = [{p.name: p.read_bytes() for p in write_tables(Results(tmp_path / n, n_boot=200), tmp_path / n / "tables")} for n in ("run", "whole")]  # fmt: skip
    assert {n: names[0][n] for n in names[0] if n != "protection.csv"} == {
        n: names[1][n] for n in names[1] if n != "protection.csv"
    }


def test_every_table_keeps_the_sources_apart(tmp_path: Path) -> None:
    more = {"purifiers": ["jpeg:50"], "metrics": ["psnr"], "seeds": {"redraws": 2}}
    run(experiment(WHITE, TRANSFER, **more), tmp_path / "run")
    results = Results(tmp_path / "run", n_boot=200)
    long = results.long[results.long["arm"] == "immunized"]
    # 2 sources × 2 purifiers × 2 prompt kinds, each with 3 pictures × 2 redraws.
    assert len(long) == 8
    assert long["n"].eq(6).all()
    assert long["psnr_n"].eq(6).all()
    assert long["isr_at_k_n"].eq(3).all()
    tables = {t.key: t for t in make_tables(results)}
    assert {"main-toy", "main-other-to-toy"} <= set(tables)
    worst = worst_case_table(results)
    assert worst[worst["method"] == "toy-shift"].groupby("source")["n"].sum().to_dict() == {"other": 12, "toy": 12}
    assert len(results.protection) == 3  # noise, and the immunizer on either editor
    # A run that is not judged tells its rows apart as well.
    run(experiment(WHITE, TRANSFER, judging={}, **more), tmp_path / "bare", judge=False)
    bare = Results(tmp_path / "bare").long
    assert bare[bare["arm"] == "immunized"]["n"].tolist() == [6] * 8


def test_shares_and_repeated_parts_are_merged_row_by_row(tmp_path: Path) -> None:
    whole = experiment(WHITE, TRANSFER)
    run(whole, tmp_path / "whole")
    run(whole, tmp_path / "part")
    # A machine that stopped while it judged: the rows of one source, with their judgements, are not there yet.
    gone = {c for c, told in edits(tmp_path / "part").items() if told[0] == "toy"}
    for name in ("cases.jsonl", "judgements.jsonl"):
        path = tmp_path / "part" / name
        lines = [x for x in path.read_text().splitlines(keepends=True) if json.loads(x)["case_id"] not in gone]
        path.write_text("".join(lines))
    merge_experiments([tmp_path / "part", tmp_path / "whole"], tmp_path / "merged")
    assert edits(tmp_path / "merged") == edits(tmp_path / "whole")
    assert check_run(tmp_path / "merged").ok
    run(whole, tmp_path / "part")  # and the machine goes on
    assert edits(tmp_path / "part") == edits(tmp_path / "whole")
    assert len(Report.load(tmp_path / "part").judgement_records) == len(
        Report.load(tmp_path / "whole").judgement_records
    )


def test_two_labels_of_one_editor_are_two_targets(tmp_path: Path) -> None:
    twins = [{"name": "toy"}, {"name": "toy", "label": "again"}]
    pairs = [{"source": "toy", "target": "toy"}, {"source": "toy", "target": "again"}]
    for name, judging in (("bare", {}), ("judged", {"judges": ["toy-judge:a"]})):
        run(toy(editors=twins, pairs=pairs, judging=judging, noise=None), tmp_path / name, judge=bool(judging))
        assert Results(tmp_path / name, n_boot=200).long.groupby("target")["n"].sum().to_dict() == {
            "again": 6,
            "toy": 6,
        }


def test_a_case_that_stands_twice_under_one_name_is_found(tmp_path: Path) -> None:
    run(experiment(WHITE, TRANSFER), tmp_path / "run")
    first = ""
    for name in ("cases.jsonl", "judgements.jsonl"):
        path = tmp_path / "run" / name
        rows = [json.loads(x) for x in path.read_text().splitlines()]
        first = (
            next(r["case_id"] for r in rows if r.get("arm", "immunized") == "immunized") if "cases" in name else first
        )
        again = [{**r, "case_id": f"{first}-1"} for r in rows if r["case_id"] == first]
        path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, *again]))
    assert (
        f"case {first}-1: stands twice, also as {first}: one edit would count two times"
        in check_run(tmp_path / "run").wrong
    )


def test_a_figure_over_several_editors_or_purifiers_says_so(tmp_path: Path) -> None:
    def pooled(name: str, made: Experiment) -> list[str]:
        run(made, tmp_path / name)
        return [w for w in load_report(tmp_path / name).warnings if "pool" in w]

    assert pooled("one", toy()) == []
    (told,) = pooled("transfer", experiment(WHITE, TRANSFER))
    assert told.startswith("The figures above pool 2 editors that the perturbations were made on:")
    (told,) = pooled("purified", toy(purifiers=["jpeg:75"]))
    assert told == "The figures above pool 2 purifiers: see each by itself (--by method,editor,purifier; isr tables)."


def test_isr_compare_tells_the_sources_apart(tmp_path: Path) -> None:
    run(experiment(WHITE, TRANSFER), tmp_path / "run")
    found = isr.compare(tmp_path / "run", n_boot=200)
    assert set(found.rates["method"]) == {"noise", "toy-shift", "toy-shift (made on other)"}
    assert set(found.rates["n"]) == {3}
