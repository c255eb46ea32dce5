"""`Report.control_by`: the control arm by group, beside the noise arm of the same cases."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from evaluate_help import Scripted, pictures, text
from PIL import Image

import isr

N = 80  # 40 pictures of each of two categories


def report() -> isr.Report:
    """Method m breaks 30 of 40 "faces" and 10 of 40 "cats"; noise breaks 20 and 4 of them; every control is fine."""
    wins = {"m": {*range(30), *range(40, 50)}, "noise": {*range(20), *range(40, 44)}, "control": set()}

    def answer(question: Any) -> str:
        number = int(question.prompt.split()[1])
        return text(number in wins[arm_of[Image.open(BytesIO(question.picture("edited").png)).tobytes()]])

    prompts = [f"edit {i}" for i in range(N)]
    columns = {
        "method": ["m"] * N + ["random"] * N,
        "arm": ["immunized"] * N + ["noise"] * N,
        "category": (["face"] * 40 + ["cat"] * 40) * 2,
        "seed": list(range(N)) * 2,
    }
    sets = {"m": pictures(N), "noise": pictures(N, 300), "control": pictures(N, 600)}
    arm_of = {p.tobytes(): arm for arm, its in sets.items() for p in its}
    return isr.evaluate(
        sets["m"] + sets["noise"], prompts * 2, originals=pictures(N, 900) * 2, controls=sets["control"] * 2,
        columns=columns, judges=[Scripted(answer, "a")], cache=False, progress=False,
    )  # fmt: skip


def test_by_method_by_hand() -> None:
    row = report().control_by("method").iloc[0]
    assert (row["method"], row["n"], row["n_pairs"], row["broken"], row["mended"], row["ok_ok"]) == (
        "m",
        80,
        80,
        40,
        0,
        40,
    )
    assert row["excess"] == pytest.approx(40 / 80)
    assert row["broken_share"] == pytest.approx(40 / 80)
    assert row["noise_broken_share"] == pytest.approx(24 / 80)
    assert row["abbott"] == pytest.approx(40 / 80)


def test_the_noise_beside_a_category_is_that_categorys() -> None:
    rows = report().control_by("category").set_index("category")
    assert rows["broken_share"].to_dict() == pytest.approx({"face": 30 / 40, "cat": 10 / 40})
    assert rows["noise_broken_share"].to_dict() == pytest.approx({"face": 20 / 40, "cat": 4 / 40})
