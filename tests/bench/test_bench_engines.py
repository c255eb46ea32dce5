"""How batches are handed out: no batch waits behind a long one while another worker is idle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest
from bench_help import plan_of, run, toy, use_plugins

from isr.bench.engine import InlineEngine
from isr.bench.local_engine import LocalEngine, gpus
from isr.bench.ray_engine import _start
from isr.bench.work import Batch


def test_a_worker_of_long_batches_gets_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_plugins(monkeypatch)
    plan = plan_of(toy(batch={"edit": 2}))
    pictures = {f"picture:{i.original.digest}": i.original.png() for i in plan.items}
    ready = [(n, j) for n, j in enumerate(plan.jobs) if not j.needs and j.kind == "edit"]
    assert len(ready) >= 2
    with LocalEngine(1, ()) as engine:
        for number, job in ready[:2]:
            assert engine.room() == [""] or engine.room() == [job.resource]
            given = tuple(tuple(pictures[i] for i in s.inputs) for s in job.steps)
            engine.submit(Batch(number, job.steps, given, job.resource))
            assert engine.room() == []
            assert [r.number for r in engine.wait()] == [number]
        for number, job in ready[:2]:
            given = tuple(tuple(pictures[i] for i in s.inputs) for s in job.steps)
            engine.submit(Batch(number, job.steps, given, job.resource, quick=number == ready[0][0]))
        assert engine.room() == []
        assert [engine.wait()[0].number for _ in range(2)] == [n for n, _ in ready[:2]]


def test_a_worker_leaves_no_semaphore_behind() -> None:
    code = (
        "import multiprocessing as mp; mp.set_start_method('spawn')  # as in a worker\n"
        "from multiprocessing import resource_tracker; from isr.bench.local_engine import own_locks; from tqdm import tqdm\n"
        "{}list(tqdm(range(3)))\nprint(resource_tracker._resource_tracker._fd is None)"
    )
    for line, wanted in (("", "False"), ("own_locks(); ", "True")):
        words = [sys.executable, "-c", code.format(line)]
        assert subprocess.run(words, check=True, timeout=120, capture_output=True, text=True).stdout.strip() == wanted


def test_a_torch_for_processors_is_not_imported_to_count_gpus() -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda is not None or torch.version.hip is not None:
        pytest.skip("this torch is built for GPUs")
    assert gpus() == ()
    code = "import sys; from isr.bench.local_engine import gpus; assert gpus() == (); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_worker_loads_a_purifier_and_its_editor_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench_toys import ToyEditor

    loaded: list[str] = []

    class Counting(ToyEditor):
        def __init__(self, **options: str) -> None:
            super().__init__(weights=options["weights"])
            loaded.append(options["weights"])

    class Purifier:
        name = "toy-purifier"

        def __init__(self, editor: ToyEditor) -> None:
            loaded.append(f"purifier with {editor.weights}")

        def settings(self) -> dict[str, str]:
            return {}

        def purify(self, images: list[PIL.Image.Image], *, seeds: list[int]) -> list[PIL.Image.Image]:
            return list(images)

    monkeypatch.setattr(
        "isr.bench.work.RESOLVERS",
        SimpleNamespace(
            load=lambda kind: lambda name, **options: (Counting if kind == "editors" else Purifier)(**options)
        ),
    )
    editors = [
        {"name": "toy", "options": {"weights": "a"}},
        {"name": "toy", "label": "cleaner", "options": {"weights": "b"}},
    ]
    experiment = toy(
        editors=editors, pairs=[{"source": "toy", "target": "toy"}], noise=None, batch={"edit": 1},
        purifiers=[{"name": "jpeg:50", "editor": "cleaner"}],
    )  # fmt: skip
    run(experiment, tmp_path / "run", InlineEngine(), judge=False)
    assert sorted(loaded) == ["a", "b", "purifier with b"]


class _Ray:
    """What `ray.init` does on a busy machine."""

    def __init__(self, *errors: str) -> None:
        self.errors, self.calls = list(errors), 0

    def init(self, **arguments: object) -> None:
        self.calls += 1
        if self.errors:
            raise Exception(self.errors.pop(0))

    def shutdown(self) -> None:
        pass


def test_a_slow_start_of_ray_is_tried_again_and_another_error_is_not() -> None:
    slow = "The current node timed out during startup. This could happen …"
    ray = _Ray(slow, slow)
    _start(ray, {})
    assert ray.calls == 3
    with pytest.raises(Exception, match="timed out during startup"):
        _start(_Ray(slow, slow, slow), {})
    broken = _Ray("no such address")
    with pytest.raises(Exception, match="no such address"):
        _start(broken, {})
    assert broken.calls == 1
