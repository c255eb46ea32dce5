"""What is recorded of an option: never the same for two things that may act differently, and stable where that is sure."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from isr.attacks import record
from isr.attacks.record import plain
from torch import Tensor
from toy import ToyEditor, pictures

from isr.photos import immunize_photos
from isr.registry import ATTACKS

STRENGTH = 0.5
MANY = [0.5]


class J:
    """A transformation with state and no settings()."""

    def __init__(self, s: float) -> None:
        self.s = s

    def __call__(self, x: Tensor, _: Any) -> Tensor:
        return x * self.s


class Told(J):
    def settings(self) -> dict[str, Any]:
        return {"s": self.s}


class ToldToo(Told):
    pass


@dataclass(frozen=True)
class Fields:
    s: float
    pool: tuple[float, ...] = ()

    def __call__(self, x: Tensor, _: Any) -> Tensor:
        return x * self.s


def flipped(x: Tensor, _: Any) -> Tensor:
    return x.flip(-1)


def strong(x: Tensor, _: Any) -> Tensor:
    return x * STRENGTH


def many(x: Tensor, _: Any) -> Tensor:
    return x * MANY[0]


def scaled(factor: Any) -> Any:
    return lambda x, _: x * (factor.s if isinstance(factor, J) else factor)


def cyclic() -> Any:
    held: list[Any] = []

    def inner(x: Tensor, _: Any) -> Tensor:
        return x * len(held)

    held.append(inner)
    return inner


def big(value: float) -> np.ndarray[Any, Any]:
    array = np.zeros(5000)
    array[2500] = value
    return array


def wide(pixels: bytes, size: tuple[int, int]) -> PIL.Image.Image:
    return PIL.Image.frombytes("RGB", size, pixels)


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda: monkeypatch.setattr(record, "_TOKENS", {})


STABLE = {
    "function": lambda: flipped,
    "partial": lambda: functools.partial(flipped, _=1.0),
    "settings": lambda: Told(0.5),
    "dataclass": lambda: Fields(0.5),
    "array": lambda: big(1.0),
    "tensor": lambda: torch.from_numpy(big(1.0)),
    "half": lambda: torch.ones(3, dtype=torch.bfloat16),
    "picture": lambda: pictures(1)[0],
    "numbers": lambda: [np.float32(0.5), np.int64(3), None, "a", {"k": (1, True)}],
}
UNKNOWN = {
    "object": lambda: J(0.5),
    "method": lambda: J(0.5).__call__,
    "lambda": lambda: lambda x, _: x,
    "closure": lambda: scaled(0.5),
    "over an object": lambda: scaled(J(0.5)),
    "over itself": cyclic,
    "module": lambda: torch.nn.Linear(1, 1),
    "in a partial": lambda: functools.partial(J(0.5)),
    "in a dataclass": lambda: Fields(J(0.5)),  # type: ignore[arg-type]
    "pointers": lambda: np.array([J(0.5), None]),
    "slots": object,
    "reads a list": lambda: many,
}


@pytest.mark.parametrize("name", STABLE)
def test_the_same_in_every_process(name: str, another_process: Any) -> None:
    before = json.dumps(plain(STABLE[name]()))
    another_process()
    assert json.dumps(plain(STABLE[name]())) == before
    assert "0x" not in before


@pytest.mark.parametrize("name", UNKNOWN)
def test_never_the_same_in_another_process(name: str, another_process: Any) -> None:
    thing = UNKNOWN[name]()
    before = json.dumps(plain(thing))
    assert json.dumps(plain(thing)) == before, "but always the same in this one"
    another_process()
    assert json.dumps(plain(thing)) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (J(1.0), J(0.1)),
        (J(1.0), J(1.0)),
        (J(1.0).__call__, J(0.1).__call__),
        (scaled(1.0), scaled(0.1)),
        (scaled(J(1.0)), scaled(J(0.1))),
        (Told(1.0), Told(0.1)),
        (Told(1.0), ToldToo(1.0)),
        (Fields(1.0), Fields(0.1)),
        (big(1.0), big(2.0)),
        (torch.from_numpy(big(1.0)), torch.from_numpy(big(2.0))),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (flipped, strong),
        (functools.partial(flipped, _=1), functools.partial(flipped, _=2)),
        (wide(bytes(48), (4, 4)), wide(bytes(48), (2, 8))),
    ],
)
def test_what_acts_differently_is_recorded_differently(one: Any, other: Any) -> None:
    assert plain(one) != plain(other)


def test_an_object_that_is_gone_leaves_its_token_to_nobody() -> None:
    """At the same address, as often as not."""
    assert len({plain(J(1.0)) for _ in range(50)}) == 50


def test_a_function_is_recorded_with_its_module_and_what_it_reads_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = plain(strong)
    assert before.startswith(f"{__name__}.strong#")
    monkeypatch.setattr(sys.modules[__name__], "STRENGTH", 0.1)
    assert plain(strong) != before
    assert plain(flipped) == plain(flipped)

    def of_file(constant: str) -> Any:
        import linecache

        source = f"C = {constant}\ndef helper(x):\n    return x * C\ndef f(x, _):\n    return helper(x)\n"
        module, path = ModuleType("written"), tmp_path / "written.py"
        path.write_text(source)
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, "written", module)
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102
        linecache.clearcache()
        return plain(module.f)

    assert of_file("1.0") == of_file("1.0")
    assert of_file("1.0") != of_file("2.0"), "a constant that a helper reads"


def runs(transform: Any, folder: Path, stop_at: int | None = None) -> tuple[list[int], bytes]:
    seen: list[int] = []

    def note(progress: Any) -> None:
        seen.append(progress.iteration)
        if progress.iteration == stop_at:
            raise KeyboardInterrupt

    made = ATTACKS.create("photoguard-encoder", iterations=6, progress=note, checkpoint=folder, checkpoint_every=2)
    try:
        (found,) = made.with_eot(transform).immunize(pictures(1), [""], editor=ToyEditor(), seeds=[0])
    except KeyboardInterrupt:
        return seen, b""
    return seen, found.tobytes()


@pytest.mark.parametrize("make", [J, scaled, lambda s: J(s).__call__])
def test_another_attack_is_never_resumed(make: Any, tmp_path: Path) -> None:
    first = make(1.0)
    _, bytes_1 = runs(first, tmp_path)
    assert runs(first, tmp_path) == ([], bytes_1), "itself it is, in one process"
    seen, bytes_2 = runs(make(-1.0), tmp_path)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert bytes_2 != bytes_1


@pytest.mark.parametrize("make", [lambda: flipped, lambda: Told(0.5), lambda: Fields(0.5)])
def test_what_is_sure_to_be_the_same_goes_on(make: Any, tmp_path: Path, another_process: Any) -> None:
    runs(make(), tmp_path, stop_at=5)
    another_process()
    assert runs(make(), tmp_path)[0] == [5, 6]


def test_photos_made_with_another_transformation_are_made_again(tmp_path: Path) -> None:
    pictures(1)[0].save(tmp_path / "a.png")

    def digest(transform: Any) -> bytes:
        attack = ATTACKS.create("photoguard-encoder", iterations=3).with_eot(transform)
        immunize_photos(
            [tmp_path / "a.png"], tmp_path / "out", attack=attack, editor=ToyEditor(), progress=False, preview=False
        )
        return (tmp_path / "out" / "a.png").read_bytes()

    assert digest(J(1.0)) != digest(J(-1.0))
