"""An experiment file that changed: it may grow; what would mix two experiments in one folder is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from bench_help import plan_of, run, toy

from isr.bench.dataset import load_items
from isr.bench.experiment import Experiment
from isr.bench.files import ExperimentFiles
from isr.bench.judging import experiment_judges, judge_open, judge_run
from isr.bench.results import Results
from isr.bench.status import status_text
from isr.errors import IntegrityError, ProblemsError, UsageError
from isr.report import Report
from isr.store import RunFiles

TWO: list[dict[str, Any]] = [{"name": "toy-shift"}, {"name": "toy-shift", "label": "strong", "options": {"levels": 9}}]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attacks": [{"name": "toy-shift", "options": {"levels": 5}}, TWO[1]]}, "toy-shift"),
        ({"attacks": TWO[:1]}, "strong"),
        ({"attacks": [TWO[0], {**TWO[1], "label": "stronger"}]}, "strong"),
        ({"attacks": [TWO[0], {**TWO[1], "table": "components"}]}, "strong"),
        ({"attacks": TWO, "seeds": {"base": 1}}, "noise"),
        ({"attacks": TWO, "data": {"source": "miniworld", "n": 2}}, "noise"),
        ({"attacks": TWO, "editors": [{"name": "toy", "settings": {"steps": 3}}]}, "noise"),
    ],
)
def test_a_change_that_leaves_judged_edits_without_a_place_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    run(toy(attacks=TWO), tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    with pytest.raises(
        UsageError, match=rf"judged edits are not in this experiment any more .*{named}.*another folder"
    ):
        run(toy(**changes), tmp_path / "run")
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == before


def test_what_is_not_judged_may_change_and_tables_show_what_the_file_says(tmp_path: Path) -> None:
    run(toy(attacks=TWO, judging={}, metrics=["psnr"]), tmp_path / "run", judge=False)
    changed = toy(attacks=[{"name": "toy-shift", "options": {"levels": 5}}], judging={}, metrics=["psnr"])
    run(changed, tmp_path / "run", judge=False)
    long = Results(tmp_path / "run").long
    assert set(long["method"]) == {"noise", "toy-shift"}
    assert long["n"].eq(3).all()
    told = status_text(tmp_path / "run")
    # 3 pictures × 2 arms, and 6 × 3 edits; 6 immunizations and 12 edits are of the file as it was.
    assert "immunize   6 of 6" in told
    assert "edit       18 of 18" in told
    assert "further    30 steps of earlier states of the experiment" in told


def test_an_experiment_grows_in_every_direction(tmp_path: Path) -> None:
    run(toy(), tmp_path / "run")
    grown = toy(
        attacks=TWO, purifiers=["jpeg:50"], prompts={"unseen": 2}, seeds={"redraws": 2}, data={"source": "miniworld", "n": 4},
        editors=[{"name": "toy"}, {"name": "toy", "label": "other", "options": {"weights": "w1"}}],
    )  # fmt: skip
    run(grown, tmp_path / "run")
    run(grown, tmp_path / "whole")
    frames = [Results(tmp_path / n, n_boot=200).long.to_csv() for n in ("run", "whole")]
    assert frames[0] == frames[1]


def test_a_prompt_that_stands_twice_for_one_picture_is_refused(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "image_id": "x", "prompt": "make it snow", "unseen": ["make it rain", "make it rain"]},
        {"image": "a.png", "image_id": "y", "prompt": "make it snow", "unseen": ["make it hail", "make it snow"]},
        {
            "image": "a.png",
            "image_id": "z",
            "prompt": "make it snow",
            "unseen": ["make it hail", "add a hat", "add a hat"],
        },
    ]
    (tmp_path / "images.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    table = toy(data={"source": "manifest", "path": "images.jsonl"}, prompts={"unseen": 2}).record()
    with pytest.raises(ProblemsError) as caught:
        load_items(Experiment.of(table, source="x", folder=tmp_path))
    text = str(caught.value)
    assert "row 1: the unseen prompt 'make it rain' stands twice" in text
    assert "row 2: the unseen prompt 'make it snow' is the original one" in text
    assert "row 3" not in text  # the third one is not used


def test_manifests_as_spreadsheets_write_them(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    head = "image,image_id,category,prompt," + ",".join(f"unseen_{i}" for i in range(1, 12))
    texts = ",".join(f"unseen text {i}" for i in range(1, 12))
    (tmp_path / "images.csv").write_text(f'{head}\na.png, ,  ,"make it snow,\nheavily",{texts}\n')

    def items(unseen: int) -> Any:
        table = toy(data={"source": "manifest", "path": "images.csv"}, prompts={"unseen": unseen}).record()
        return load_items(Experiment.of(table, source="x", folder=tmp_path))

    (item,) = items(10)
    assert item.prompt == "make it snow,\nheavily"
    assert [p for _, p in item.prompts[1:]] == [f"unseen text {i}" for i in range(1, 11)]
    assert (item.image_id, item.category) == ("a.png", None)
    (tmp_path / "images.csv").write_text("image,prompt,unseen_1\na.png,make it snow, heavily,make it rain\n")
    with pytest.raises(UsageError, match="line 2: more fields than the head names; quote texts that hold commas"):
        items(1)


def test_only_pictures_of_which_something_is_open_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(toy(), tmp_path / "run")
    whole = (tmp_path / "run" / "judgements.jsonl").read_text()
    read: list[str] = []
    plain = RunFiles.image_bytes

    def image_bytes(files: RunFiles, digest: str) -> bytes | None:
        read.append(digest)
        return plain(files, digest)

    monkeypatch.setattr(RunFiles, "image_bytes", image_bytes)
    run(toy(), tmp_path / "run")
    assert read == []
    # Killed between a case and its control: the control is judged, and nothing else.
    path = tmp_path / "run" / "cases.jsonl"
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    gone = next(r for r in rows if r["arm"] == "control")
    path.write_text("".join(json.dumps(r) + "\n" for r in rows if r != gone))
    run(toy(), tmp_path / "run")
    assert {r["case_id"] for r in rows} == {json.loads(x)["case_id"] for x in path.read_text().splitlines()}
    its = {r["edited"] for r in rows if r["original"] == gone["original"]} | {gone["original"]}
    assert read
    assert set(read) <= its
    added = (tmp_path / "run" / "judgements.jsonl").read_text().removeprefix(whole).splitlines()
    assert {json.loads(x)["case_id"] for x in added} == {gone["case_id"]}
    # A picture more: only its own edits.
    read.clear()
    run(toy(data={"source": "miniworld", "n": 4}), tmp_path / "run")
    fourth = {c.original for c in Report.load(tmp_path / "run").case_records} - {r["original"] for r in rows}
    assert len(fourth) == 1
    assert not set(read) & ({r["edited"] for r in rows} | {r["original"] for r in rows})


def test_an_open_judgement_is_asked_again_without_reading_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = toy()
    run(experiment, tmp_path / "run")
    files = ExperimentFiles.at(tmp_path / "run")
    path = tmp_path / "run" / "judgements.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    case = next(c for c in files.run.cases() if c.case_id == row["case_id"])
    with path.open("a") as file:
        file.write(
            json.dumps(row | {"answer": {"kind": "no_verdict", "reason": "exhausted", "detail": ""}, "calls": []})
            + "\n"
        )
    read: set[str] = set()
    plain = RunFiles.image_bytes

    def image_bytes(files: RunFiles, digest: str) -> bytes | None:
        read.add(digest)
        return plain(files, digest)

    monkeypatch.setattr(RunFiles, "image_bytes", image_bytes)
    with files.writing():
        assert judge_open(plan_of(experiment), files, experiment_judges(experiment), cache=False) == 1
    assert not Report.load(tmp_path / "run").no_verdicts
    control = next((c for c in files.run.cases() if c.case_id == case.control), case)
    assert read <= {case.edited, case.original, control.edited}


def test_killed_between_judgements_and_their_cases_while_others_are_open(tmp_path: Path) -> None:
    experiment = toy()
    run(experiment, tmp_path / "run")
    files = ExperimentFiles.at(tmp_path / "run")
    whole = {c.case_id for c in files.run.cases()}
    cases, judgements = tmp_path / "run" / "cases.jsonl", tmp_path / "run" / "judgements.jsonl"
    rows = [json.loads(x) for x in judgements.read_text().splitlines()]
    unsettled = {"kind": "no_verdict", "reason": "exhausted", "detail": ""}
    last = cases.read_text().splitlines()[-1]
    lost = json.loads(last)["case_id"]
    for row in rows:
        if row["case_id"] in (lost, rows[0]["case_id"]):
            row |= {"answer": unsettled, "calls": []}
    judgements.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cases.write_text(cases.read_text().removesuffix(last + "\n"))
    with pytest.raises(IntegrityError, match=f"case {lost} is not in cases.jsonl; if the run was interrupted"):
        Report.load(tmp_path / "run")
    # What the command does: first what is open of the judged cases, then what is not judged.
    judges = experiment_judges(experiment)
    with files.writing():
        assert judge_open(plan_of(experiment), files, judges, cache=False) == 1
        assert judge_run(plan_of(experiment), files, judges, cache=False).cases == 1
    report = Report.load(tmp_path / "run")
    assert {c.case_id for c in report.case_records} == whole
    assert not report.no_verdicts
