"""Runs: the same bytes with any number of workers, nothing done twice, nothing lost, nothing corrupted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_help import plan_of, run, toy, use_plugins

from isr.bench.card import make_card
from isr.bench.checking import check_run, content_hash
from isr.bench.driver import begin, make_pictures
from isr.bench.engine import InlineEngine, StepError
from isr.bench.figures import choose, grid
from isr.bench.files import ExperimentFiles
from isr.bench.judging import experiment_judges, judge_open, judge_run
from isr.bench.local_engine import LocalEngine
from isr.bench.results import Results
from isr.bench.tables import write_tables
from isr.cli import main
from isr.errors import IntegrityError, UsageError
from isr.report import Report


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plugins(monkeypatch)


def editor(**options: Any) -> list[dict[str, Any]]:
    return [{"name": "toy", "options": options}]


def test_one_and_two_workers_and_none_give_the_same_bytes(tmp_path: Path) -> None:
    engines = {"inline": InlineEngine(), "one": LocalEngine(1, ()), "two": LocalEngine(2, ())}
    for name, engine in engines.items():
        made = run(toy(), tmp_path / name, engine)
        assert (made.done, made.skipped, made.differing) == (24, 0, 0)  # 6 immunizations, 18 edits
    assert len({content_hash(tmp_path / name) for name in engines}) == 1
    tables = [Results(tmp_path / name, n_boot=200).long.to_csv() for name in engines]
    assert tables[0] == tables[1] == tables[2]
    rows = ExperimentFiles.at(tmp_path / "two").steps().values()
    assert {r.worker for r in rows} <= {"local-0", "local-1"}


def test_everything_read_back_is_in_the_order_of_the_plan_whatever_finished_first(tmp_path: Path) -> None:
    """Rows in the order in which another machine, or another number of workers, might have finished them."""
    experiment = toy(
        editors=[{"name": "toy"}, {"name": "toy", "label": "other", "options": {"weights": "w1"}}],
        attacks=[{"name": "toy-shift", "label": "b"}, {"name": "toy-shift", "label": "a", "options": {"levels": 9}}],
        pairs=[{"source": s, "target": t} for s, t in (("toy", "toy"), ("other", "toy"), ("toy", "other"))],
        purifiers=["jpeg:50"], metrics=["ssim", "psnr"], protection=["psnr"],
    )  # fmt: skip
    run(experiment, tmp_path / "run")
    other = tmp_path / "other" / "run"
    shutil.copytree(tmp_path / "run", other)
    for name in ("steps.jsonl", "cases.jsonl", "judgements.jsonl"):
        lines = (other / name).read_bytes().splitlines(keepends=True)
        (other / name).write_bytes(b"".join(lines[::-1]))

    def everything(folder: Path) -> dict[str, Any]:
        results = Results(folder, n_boot=200)
        report = results.report
        assert report is not None
        card = make_card(results)
        del card["made"]
        texts = {p.name: p.read_bytes() for p in write_tables(results, folder / "tables")}
        rows = [(c.method, c.editor, c.arm, c.image_id, c.prompt) for c in report.case_records]
        return {
            "card": json.dumps(card), **texts, "rows": rows, "frame": results.frame.to_csv(), "by": report.by("method").to_csv(),
            "judgements": [(j.case_id, j.judge) for j in report.judgement_records], "grid": grid(results, choose(results)).tobytes(),
            "html": report.to_html(),
        }  # fmt: skip

    first, second = everything(tmp_path / "run"), everything(other)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    # And it is the plan's order: noise, then pair by pair and attack by attack, pictures as the plan lists them.
    plan = plan_of(experiment)
    edits = [(c.method, c.target, c.arm, c.image_id, c.prompt) for c in plan.cases]
    assert [r for r in first["rows"] if r[2] != "control"] == edits


def test_a_finished_run_does_nothing_and_a_grown_one_only_what_is_new(tmp_path: Path) -> None:
    log = tmp_path / "log"
    experiment = toy(editors=editor(log=str(log)))
    run(experiment, tmp_path / "run")
    assert len(log.read_text().splitlines()) == 18
    before = (tmp_path / "run" / "judgements.jsonl").read_bytes()
    assert run(experiment, tmp_path / "run").done == 0
    assert len(log.read_text().splitlines()) == 18
    assert (tmp_path / "run" / "judgements.jsonl").read_bytes() == before
    grown = toy(editors=editor(log=str(log)), data={"source": "miniworld", "n": 4})
    run(grown, tmp_path / "run")
    # The fourth picture brings 6 edits; batches of two keep their composition, and finished rows stay as they were.
    assert Report.load(tmp_path / "run").n == 8
    assert check_run(tmp_path / "run").ok
    assert json.loads((tmp_path / "run" / "experiment.json").read_text())["history"] == [experiment.hash]


def test_a_moved_run_goes_on(tmp_path: Path) -> None:
    run(toy(), tmp_path / "here", judge=False)
    shutil.move(tmp_path / "here", tmp_path / "there")
    made = run(toy(), tmp_path / "there")
    assert made.done == 0
    shutil.move(tmp_path / "there", tmp_path / "elsewhere")
    run(toy(), tmp_path / "elsewhere")
    assert check_run(tmp_path / "elsewhere").ok
    assert str(tmp_path) not in (tmp_path / "elsewhere" / "cases.jsonl").read_text()


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    options = {"die_once": str(tmp_path / "died")}
    made = run(toy(editors=editor(**options)), tmp_path / "killed", LocalEngine(2, ()))
    assert (tmp_path / "died").exists()
    assert made.done == 24
    (tmp_path / "again").touch()
    whole = toy(editors=editor(**options))
    run(whole, tmp_path / "whole", InlineEngine())  # the file is there, so nothing dies
    assert content_hash(tmp_path / "killed") == content_hash(tmp_path / "whole")


def test_a_batch_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"its worker died 3 times \(exit status -9\)"):
        run(toy(editors=editor(always_die=True)), tmp_path / "run", LocalEngine(1, ()), judge=False)


def test_a_failing_batch_names_its_step_and_the_rest_is_kept(tmp_path: Path) -> None:
    plan = plan_of(toy())
    bad = plan.cases[0].prompt
    experiment = toy(editors=editor(fail_on=bad), batch={"edit": 1})
    with pytest.raises(StepError, match=r"(?s)1 batch failed.*ValueError: the toy editor fails on .*in the step edit"):
        run(experiment, tmp_path / "stop", judge=False)
    with pytest.raises(StepError, match=r"3 batches failed; 21 steps were done"):
        run(experiment, tmp_path / "on", judge=False, keep_going=True)


def test_a_broken_budget_is_found(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="toy-shift broke its own L∞ budget"):
        run(toy(attacks=[{"name": "toy-shift", "options": {"over": True}}]), tmp_path / "run", judge=False)


def test_other_weights_never_enter_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(toy(), tmp_path / "run", judge=False)
    monkeypatch.setenv("TOY_WEIGHTS", "w9")
    told = r"is not what it was when this run started \(differing: weights; weights: 'w0' then, 'w9' now\)"
    with pytest.raises(IntegrityError, match=told):
        run(toy(data={"source": "miniworld", "n": 4}), tmp_path / "run", judge=False)


def test_the_same_weights_in_another_place_are_the_same_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, place in enumerate(("/home/anna/weights/toy", r"C:\Users\bert\weights\toy", "maker/toy"), 1):
        monkeypatch.setenv("TOY_SOURCE", place)
        run(toy(data={"source": "miniworld", "n": n}), tmp_path / "run", judge=False)
    rows = (tmp_path / "run" / "steps.jsonl").read_text()
    assert "anna" not in rows
    assert "bert" not in rows
    assert '"source":"toy"' in rows
    # A run that was made when the place was recorded goes on, too.
    (tmp_path / "run" / "steps.jsonl").write_text(rows.replace('"source":"toy"', '"source":"/elsewhere/toy"'))
    run(toy(data={"source": "miniworld", "n": 4}), tmp_path / "run", judge=False)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no experiment"):
        run(toy(), tmp_path)
    run(toy(), tmp_path / "run", judge=False)
    with pytest.raises(UsageError, match="holds the experiment 'toy', not 'other'"):
        run(toy(name="other"), tmp_path / "run")


HOLD = """
import sys
from isr.bench.files import ExperimentFiles
with ExperimentFiles.at(sys.argv[1]).writing():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_and_changes_nothing(tmp_path: Path) -> None:
    run(toy(), tmp_path / "run", judge=False)
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"another process \(id {process.pid}\) works on"):
            run(toy(), tmp_path / "run")
        process.kill()  # the lock goes with the process
    assert run(toy(), tmp_path / "run", judge=False).done == 0


def test_torn_rows_are_written_again(tmp_path: Path) -> None:
    run(toy(), tmp_path / "run", judge=False)
    path = tmp_path / "run" / "steps.jsonl"
    whole = content_hash(tmp_path / "run")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]) + lines[10][:40])
    made = run(toy(), tmp_path / "run", judge=False)
    assert made.skipped == 10
    assert made.done == 14
    assert made.differing == 0
    assert content_hash(tmp_path / "run") == whole


def test_check_finds_every_kind_of_tampering(tmp_path: Path) -> None:
    run(toy(), tmp_path / "run")
    good = check_run(tmp_path / "run")
    assert good.ok
    assert good.looked["perturbations measured"] == 6

    def tampered(change: Any) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "run", copy)
        change(copy)
        found = check_run(copy)
        assert not found.ok
        return "\n".join(found.wrong)

    def replace(name: str, old: str, new: str) -> Any:
        def change(copy: Path) -> None:
            text = (copy / name).read_text()
            assert old in text
            (copy / name).write_text(text.replace(old, new, 1))

        return change

    def swap_pictures(copy: Path) -> None:
        rows = [r for r in ExperimentFiles.at(copy).steps().values() if r.kind == "immunize"]
        a, b = (copy / "images" / f"{r.digest}.png" for r in rows[:2])
        a.write_bytes(b.read_bytes())

    assert "not the hash of its content" in tampered(replace("steps.jsonl", '"seed":', '"seed":1'))
    assert "its pixels have the digest" in tampered(swap_pictures)
    assert "records 6 levels, the pictures differ by 7" in tampered(
        replace("steps.jsonl", '"levels":7,"psnr"', '"levels":6,"psnr"')
    )
    assert "over its budget" in tampered(
        replace(
            "steps.jsonl",
            '"budget":{"norm":"linf","eps":0.03},"measured"',
            '"budget":{"norm":"linf","eps":0.01},"measured"',
        )
    )
    # Another method's name on an edit: the figures would be credited to somebody else.
    assert "the plan calls its edit something else" in tampered(
        replace("cases.jsonl", '"method":"toy-shift"', '"method":"noise"')
    )

    def other_control(copy: Path) -> None:
        # Another picture's control: every row stays as it was made, and the excess is another.
        rows = [json.loads(x) for x in (copy / "cases.jsonl").read_text().splitlines()]
        edits = [r for r in rows if r["control"]]
        other = next(r["control"] for r in edits if r["control"] != edits[0]["control"])
        edits[0]["control"] = other
        (copy / "cases.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    assert "its control is not the edit that the plan pairs with it" in tampered(other_control)
    assert "hash is not that of its content" in tampered(replace("experiment.json", '"redraws": 1', '"redraws": 2'))
    assert "judgements are missing" in tampered(lambda c: (c / "judgements.jsonl").write_text(""))


def test_open_judgements_are_asked_again(tmp_path: Path) -> None:
    experiment = toy()
    plan, files = plan_of(experiment), ExperimentFiles.at(tmp_path / "run")
    with files.writing():
        begin(files, plan)
        make_pictures(plan, files, InlineEngine())
        judges = experiment_judges(experiment)
        judge_run(plan, files, judges, cache=False)
        row = json.loads((files.folder / "judgements.jsonl").read_text().splitlines()[0])
        row["answer"] = {"kind": "no_verdict", "reason": "exhausted", "detail": ""}
        row["calls"] = []
        with open(files.folder / "judgements.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        assert Report.load(files.folder).no_verdicts["exhausted"] == 1
        assert judge_open(plan, files, judges, cache=False) == 1
        assert not Report.load(files.folder).no_verdicts
        assert judge_open(plan, files, judges, cache=False) == 0


TOML = """
name = "toy"
prompts = {{ unseen = 1 }}
noise = {{}}
[data]
source = "miniworld"
n = 8
[[editors]]
name = "toy"
options = {{ log = "{log}", sleep = 0.02 }}
[[attacks]]
name = "toy-shift"
[judging]
judges = ["toy-judge:a", "toy-judge:b"]
"""


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "isr", *map(str, words)]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy.toml").write_text(TOML.format(log=tmp_path / "log").replace("n = 8", "n = 2"))
    run_folder = tmp_path / "out"

    def isr(*words: object, status: int = 0) -> str:
        assert main([str(w) for w in words]) == status
        captured = capsys.readouterr()
        return str(captured.out + captured.err)

    told = isr("run", tmp_path / "toy.toml", "--out", run_folder, "--dry-run")
    assert "immunizations  4" in told
    assert "money          unknown" in told
    assert not run_folder.exists()
    told = isr("run", tmp_path / "toy.toml", "--out", run_folder, "--workers", "0", "--quiet")
    assert "16 steps done, 0 were there" in told
    assert "judged     12 of 12" in isr("status", run_folder)
    assert "# " not in isr("tables", run_folder, "--resamples", "200", "--reported", "V")
    assert "Nothing is wrong." in isr("check", run_folder)
    (run_folder / "card.json").unlink()  # killed before its end
    isr("pack", run_folder)
    shutil.unpack_archive(tmp_path / "out.zip", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "out" / "card.json").is_file()
    assert check_run(tmp_path / "unpacked" / "out").ok
    card = json.loads((run_folder / "card.json").read_text())
    assert card["origin"] == "measured"
    assert card["verified_budget"][0]["levels_max"] in (4, 7)
    assert "Immunization Success Rate" in isr("report", run_folder)
    assert "is none of II" in isr("tables", run_folder, "--reported", "XX", status=1)


@pytest.mark.kill
@pytest.mark.slow
def test_kill_and_resume_of_an_experiment(tmp_path: Path) -> None:
    """SIGKILL of the whole process group at random points: only work in flight is done twice."""
    import random
    import signal
    import time

    log = tmp_path / "log"
    (tmp_path / "toy.toml").write_text(TOML.format(log=log))
    words = command("run", tmp_path / "toy.toml", "--out", tmp_path / "run", "--workers", "2", "--quiet", "--no-cache")
    rng = random.Random(3)

    def edits() -> int:
        return len(log.read_text().splitlines()) if log.exists() else 0

    kills = 0
    for _ in range(3):
        process = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL)
        target = edits() + rng.randint(3, 12)
        while process.poll() is None and edits() < target:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        kills += 1
    assert kills >= 2
    subprocess.run(words, check=True, timeout=300, stdout=subprocess.DEVNULL)
    assert check_run(tmp_path / "run").ok
    assert Report.load(tmp_path / "run").n == 16
    # 48 edits; each kill costs at most two workers × two batches × four pictures.
    assert edits() <= 48 + kills * 16
    experiment_log = edits()
    subprocess.run(words, check=True, timeout=300, stdout=subprocess.DEVNULL)
    assert edits() == experiment_log
