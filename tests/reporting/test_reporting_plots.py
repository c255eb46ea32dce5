"""Pictures: what is drawn is what the table says, names are plain text, no global state, and a clear error without matplotlib."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from isr.errors import MissingExtraError, UsageError
from isr.reporting.plots import disagreement_table, plot_agreement, plot_differences, plot_disagreement, plot_isr
from isr.stats.agreement_table import agreement
from isr.stats.intervals import wilson

matplotlib = pytest.importorskip("matplotlib")

RATES = pd.DataFrame(
    {"method": ["sifm", "mist"], "isr": [0.79, 0.64], "low": [0.70, 0.54], "high": [0.86, 0.73],
     "band_low": [0.79, 0.64], "band_high": [0.95, 0.88]}
)  # fmt: skip
PAIRS = pd.DataFrame(
    {
        "a": ["x", "x"],
        "b": ["y", "z"],
        "difference": [0.2, 0.01],
        "low": [0.1, -0.05],
        "high": [0.3, 0.07],
        "p_holm": [0.001, 0.8],
    }
)


def svg(figure: object) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")  # type: ignore[attr-defined]
    return buffer.getvalue()


def points(figure: object) -> list[tuple[float, float]]:
    """Centres of the drawn dots."""
    return [tuple(xy) for line in figure.axes[0].lines if line.get_marker() == "o" for xy in line.get_xydata()]  # type: ignore[attr-defined]


def test_isr_by_method() -> None:
    figure = plot_isr(RATES, title="SD3, original prompts")
    axes = figure.axes[0]
    assert points(figure) == [(79.0, 1.0), (64.0, 0.0)]
    segments = [s.tolist() for s in axes.collections[0].get_segments()]
    assert segments == [[[70.0, 1.0], [86.0, 1.0]], [[54.0, 0.0], [73.0, 0.0]]]
    bars = [(b.get_x(), b.get_width()) for b in axes.patches]
    assert bars == [(79.0, pytest.approx(16.0)), (64.0, pytest.approx(24.0))]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["sifm", "mist"]
    drawn = svg(figure)
    assert "SD3, original prompts" in drawn
    assert "band: strict to any" in drawn


def test_isr_without_band_and_by_two_columns() -> None:
    lazy = RATES.assign(band_high=[None, None], editor="sd3")
    figure = plot_isr(lazy, ["editor", "method"])
    assert not figure.axes[0].patches
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["sd3 · sifm", "sd3 · mist"]
    assert not plot_isr(RATES.drop(columns=["band_low", "band_high"])).axes[0].patches


def test_names_are_plain_text() -> None:
    hostile = RATES.assign(method=[r"$\frac{1}{0$", r"\input{/etc/passwd} <b>&"])
    drawn = svg(plot_isr(hostile, title="$x"))
    assert r"$\frac{1}{0$" in drawn
    assert "<b>" not in drawn
    assert "&lt;b&gt;&amp;" in drawn


def test_a_users_settings_are_neither_used_nor_changed() -> None:
    with matplotlib.rc_context({"text.usetex": True}):
        before = dict(matplotlib.rcParams)
        figure = plot_isr(RATES)
        assert dict(matplotlib.rcParams) == before
    assert "sifm" in svg(figure)


def test_pyplot_is_never_imported() -> None:
    code = (
        "import sys, pandas as pd; from isr.reporting.plots import plot_isr; assert 'matplotlib' not in sys.modules; "
        "plot_isr(pd.DataFrame({'method': ['a'], 'isr': [.5], 'low': [.4], 'high': [.6]})); "
        "assert 'matplotlib.pyplot' not in sys.modules; print('ok')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "ok\n"


def test_differences() -> None:
    figure = plot_differences(PAIRS)
    assert points(figure) == [(20.0, 1.0), (1.0, 0.0)]
    faces = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert faces == ["#0072B2", "white"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["x − y", "x − z"]
    two = pd.concat([PAIRS.assign(editor="e1"), PAIRS.assign(editor="e2")])
    assert plot_differences(two).axes[0].get_yticklabels()[3].get_text() == "x − z   (e2)"


def ratings(name: str, answers: list[bool]) -> pd.DataFrame:
    cases = [f"c{i}" for i in range(len(answers))]
    return pd.DataFrame(
        {"rater": name, "case_id": cases, "semantic_mismatch": answers, "degradation": False, "overall": answers}
    )


def test_agreement_matrix() -> None:
    table = agreement([ratings("a", [True, True, False, False]), ratings("b", [True, False, False, False])],
                      [ratings("m", [True, True, True, True])], n_boot=20)  # fmt: skip
    figure = plot_agreement(table, "semantic_mismatch")
    image = figure.axes[0].images[0].get_array()
    assert image is not None
    assert np.ma.getdata(image)[0, 1] == 75
    assert np.ma.getdata(image)[2, 0] == 50
    assert image.mask.diagonal().all()
    assert sorted(t.get_text() for t in figure.axes[0].texts) == ["25", "25", "50", "50", "75", "75"]
    assert "human:a" in svg(figure)
    # Nobody calls anything degraded: κ is undefined and hatched, never a number.
    hatched = plot_agreement(table, "degradation", statistic="cohen").axes[0]
    assert not hatched.texts
    assert len(hatched.patches) == 6


def judgements() -> pd.DataFrame:
    # Portraits c0–c3: the judges differ on mismatch in c0 and c1, never otherwise; c3 has one verdict. Art: c4 alike.
    rows = []
    for case, category, one, two in (
        ("c0", "portrait", (True, False), (False, False)), ("c1", "portrait", (True, True), (False, True)),
        ("c2", "portrait", (False, False), (False, False)), ("c3", "portrait", (True, False), None),
        ("c4", "art", (False, True), (False, True)),
    ):  # fmt: skip
        for judge, answer in (("j1", one), ("j2", two)):
            m, d = answer if answer else (None, None)
            rows.append({"case_id": case, "judge": judge, "category": category, "image_id": case, "semantic_mismatch": m,
                         "degradation": d, "defeated": None if answer is None else m or d})  # fmt: skip
    table = pd.DataFrame(rows)
    for column in ("semantic_mismatch", "degradation", "defeated"):
        table[column] = table[column].astype("boolean")
    return table


def test_disagreement_by_hand() -> None:
    table = disagreement_table(judgements()).set_index(["category", "criterion"])
    portrait = table.loc["portrait"]
    assert portrait["n"].tolist() == [3, 3, 3]
    # Mismatch: c0, c1 of three; degradation: none; the verdict: c0 only (c1 is defeated by degradation for both).
    assert portrait["share"].tolist() == [pytest.approx(2 / 3), 0.0, pytest.approx(1 / 3)]
    assert portrait.loc["semantic_mismatch", "low"] == pytest.approx(wilson(2, 3).low)
    assert table.loc[("art", "defeated"), "n"] == 1
    figure = plot_disagreement(judgements())
    assert (pytest.approx(200 / 3), 1.24) in points(figure)
    assert figure.axes[0].get_yticklabels()[0].get_text() == "portrait  (n = 3)"


def test_disagreement_is_clustered_by_image() -> None:
    table = judgements()
    merged = table.assign(image_id=table["category"])
    assert disagreement_table(merged).loc[0, ["low", "high"]].tolist() == [0.0, 1.0]  # one image
    assert disagreement_table(table.assign(image_id=None))["n_images"].isna().all()


def test_errors() -> None:
    with pytest.raises(UsageError, match=r"rates: column\(s\) \['low'\] missing"):
        plot_isr(RATES.drop(columns="low"))
    with pytest.raises(UsageError, match="pairs: expected at least one row, got none; there is nothing to draw"):
        plot_differences(PAIRS.iloc[:0])
    table = agreement([ratings("a", [True, False]), ratings("b", [True, True])], n_boot=20)
    with pytest.raises(UsageError, match="statistic: expected 'percent' or 'cohen', got 'alpha'"):
        plot_agreement(table, statistic="alpha")
    with pytest.raises(UsageError, match="column: expected one of"):
        plot_agreement(table, "final")
    one = judgements()
    with pytest.raises(UsageError, match="no case with a value in 'category' has two verdicts"):
        plot_disagreement(one[one["judge"] == "j1"])


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'matplotlib'.*pip install '.*\[plots\]'"):
        plot_isr(RATES)
