"""Toy experiments for the tests of the benchmark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bench_toys  # noqa: F401 - registers the toys in this process
import pytest

from isr.bench.dataset import load_items
from isr.bench.driver import Making, begin, make_pictures
from isr.bench.engine import Engine, InlineEngine
from isr.bench.experiment import Experiment
from isr.bench.files import ExperimentFiles
from isr.bench.judging import experiment_judges, judge_run
from isr.bench.plan import Plan, make_plan

HERE = Path(__file__).parent


def use_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and commands of this test know the toys."""
    monkeypatch.setenv("ISR_PLUGINS", "bench_toys")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))


def toy(**changes: Any) -> Experiment:
    """Three pictures, one unseen prompt, one attack, the noise arm, two judges."""
    table: dict[str, Any] = {
        "name": "toy",
        "data": {"source": "miniworld", "n": 3},
        "prompts": {"unseen": 1},
        "editors": [{"name": "toy"}],
        "attacks": [{"name": "toy-shift"}],
        "noise": {},
        "batch": {"edit": 2},
        "judging": {"judges": ["toy-judge:a", "toy-judge:b"]},
    }
    return Experiment.of({**table, **changes}, source="toy")


def plan_of(experiment: Experiment) -> Plan:
    return make_plan(experiment, load_items(experiment))


def run(
    experiment: Experiment, folder: Path, engine: Engine | None = None, *, judge: bool = True, **options: Any
) -> Making:
    """Pictures and, unless told otherwise, judgements of an experiment."""
    plan, files = plan_of(experiment), ExperimentFiles.at(folder)
    with files.writing():
        begin(files, plan)
        made = make_pictures(plan, files, engine or InlineEngine(), **options)
        if judge:
            judge_run(plan, files, experiment_judges(experiment), cache=False)
    return made


def toy_toml(*, metrics: str = "psnr", judged: bool = True) -> str:
    """An experiment file of two pictures, one prompt, the toy editor and the toy attack."""
    judging = '[judging]\njudges = ["toy-judge:a", "toy-judge:b"]\n' if judged else ""
    return f"""
name = "toy"
metrics = ["{metrics}"]
[data]
source = "miniworld"
n = 2
[prompts]
kinds = ["original"]
[[editors]]
name = "toy"
[[attacks]]
name = "toy-shift"
{judging}"""
