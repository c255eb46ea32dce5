"""The Ray engine with actors on this machine's processors: the same bytes as the local engine, and lost actors are replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_help import run, toy, use_plugins

from isr.bench.checking import content_hash
from isr.bench.engine import InlineEngine
from isr.bench.ray_engine import RayEngine


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.needs("ray")
def test_one_and_two_actors_give_the_bytes_of_the_local_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_plugins(monkeypatch)
    dying = toy(editors=[{"name": "toy", "options": {"die_once": str(tmp_path / "died")}}])
    small = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    made = run(dying, tmp_path / "two", RayEngine(2, **small), judge=False)
    assert (tmp_path / "died").exists()
    assert (made.done, made.differing) == (24, 0)
    run(dying, tmp_path / "one", RayEngine(1, **small), judge=False)
    run(dying, tmp_path / "inline", InlineEngine(), judge=False)
    assert len({content_hash(tmp_path / n) for n in ("one", "two", "inline")}) == 1
