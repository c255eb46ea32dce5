"""The probe: a judge that knows the answers scores full marks, one that guesses or obeys the picture does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from evaluate_help import Scripted, pictures, text, verdict

import isr
from isr.cli import main
from isr.errors import UsageError
from isr.images import as_image
from isr.probing import battery, card_key, find_card
from isr.schema import NoVerdict


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISR_CACHE", str(tmp_path / "isr-cache"))


def originals(n: int = 3) -> list[PIL.Image.Image]:
    made = []
    for i in range(n):
        rng = np.random.default_rng(i)
        coarse = PIL.Image.fromarray(rng.integers(30, 226, (5, 5, 3), dtype=np.uint8))
        made.append(coarse.resize((64, 48), PIL.Image.Resampling.BICUBIC))
    return made


def knowing(**wrong: Any) -> Scripted:
    """Answers from the battery itself; kinds named in `wrong` get that verdict instead."""
    known = {}
    for item in battery(originals()):
        answer = verdict(bool(item.mismatch), bool(item.degradation))
        known[as_image(item.case.edited, name="x").digest, item.case.prompt] = wrong.get(
            item.kind.replace(" ", "_"), answer
        )
    return Scripted(lambda q: known[q.picture("edited").digest, q.prompt], "a")


def run(judge: Any, **options: Any) -> Any:
    return isr.probe(judge, originals(), cache=False, progress=False, **options)[0]


def test_the_battery_is_balanced_and_deterministic() -> None:
    items = battery(originals())
    again = battery(originals())
    assert [i.kind for i in items] == [i.kind for i in again]
    known = [i for i in items if i.twin is None and i.defeated is not None]
    working = sum(not i.defeated for i in known)
    assert 0.4 <= working / len(known) <= 0.6
    for item, same in zip(items, again, strict=True):
        assert as_image(item.case.edited, name="x").digest == as_image(same.case.edited, name="x").digest


def test_a_perfect_judge() -> None:
    card = run(knowing())
    assert card.passed
    for measure in ("defeated", "working", "failing", "semantic_mismatch", "degradation", "consistency", "answered"):
        assert card.value(measure) == 1.0, measure
    assert card.wrong == ()


def test_a_judge_that_always_says_defeated_is_half_right() -> None:
    card = run(Scripted(lambda q: verdict(True, True), "a"))
    assert (card.value("working"), card.value("failing")) == (0.0, 1.0)
    assert not card.passed
    assert card.value("integrity: hostile prompt") == 1.0  # never moved, and useless: both figures are needed


def test_a_judge_that_obeys_the_prompt_or_the_picture_shows_it() -> None:
    card = run(knowing(hostile_prompt=verdict(True, True), text_in_the_picture=verdict()))
    assert card.value("integrity: hostile prompt") == 0.0
    assert card.value("integrity: text in the picture") == 0.0
    assert card.value("defeated") == 1.0


def test_an_inconsistent_judge_shows_it() -> None:
    card = run(Scripted(lambda q: verdict(q.vote == 1), "a"))
    assert card.value("consistency") == 0.0


def test_missing_verdicts_are_no_wrong_answers() -> None:
    good = knowing()
    inner = good.script

    def answer(question: Any) -> Any:
        return NoVerdict(reason="blocked") if question.prompt.startswith("Mirror") else inner(question)  # type: ignore[operator]

    good.script = answer
    card = run(good)
    assert card.value("defeated") == 1.0
    assert card.value("answered") < 1.0  # type: ignore[operator]


def test_the_card_goes_into_the_lock_and_the_report_warns_without_one() -> None:
    class Model(Scripted):
        def identity(self) -> dict[str, Any]:
            return {"provider": "gemini", "model": "m"}

    def evaluate() -> isr.Report:
        return isr.evaluate(
            pictures(2), ["x", "y"], originals=pictures(2, 9), judges=[Model(lambda q: text(), "m")], cache=False
        )

    assert any("was not probed" in w for w in evaluate().warnings)
    run(Model(lambda q: text(True), "m"))
    report = evaluate()
    assert report.lock["judges"][0]["probe"]["passed"] is False
    assert any("did not pass its probe" in w for w in report.warnings)
    judge = Model(lambda q: text(), "m")
    assert find_card(judge.identity(), isr.Rubric.default().hash) is not None
    assert find_card({"provider": "gemini", "model": "other"}, isr.Rubric.default().hash) is None
    assert len(card_key(judge.identity(), "r")) == 16


def test_it_needs_usable_pictures() -> None:
    with pytest.raises(UsageError, match="at least two"):
        battery(originals(1))
    with pytest.raises(UsageError, match="32 × 32"):
        battery([*originals(1), PIL.Image.new("RGB", (16, 64))])


def test_from_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from isr.registry import JUDGES

    monkeypatch.setattr(JUDGES, "_local", {"perfect": lambda *a, **k: knowing()})
    for i, p in enumerate(originals()):
        p.save(tmp_path / f"{i}.png")
    assert main(["probe", "perfect", "--originals", str(tmp_path), "--json", str(tmp_path / "cards.json")]) == 0
    assert "passed" in capsys.readouterr().out
    assert (tmp_path / "cards.json").stat().st_size > 100
