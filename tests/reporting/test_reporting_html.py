"""The report page without a browser: what stands together, what is escaped, what the policy admits, what is embedded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup
from report_help import EVIL, picture, report, verdict

import isr
from isr.errors import UsageError
from isr.reporting.charts import Row, excess_strip, rows_of, strip
from isr.reporting.gallery import MAX_PROSE, gallery
from isr.reporting.html import render, write
from isr.reporting.page import json_island
from isr.reporting.reliability import doubts, probe_state
from isr.schema import Judgement, NotAsked, NoVerdict


class Page(HTMLParser):
    """Elements with attributes, texts of scripts and styles, and the visible text."""

    RAW = ("script", "style")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.seen: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.seen))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag in self.RAW:
            self.raw.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            continue

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.RAW:
            tag, attributes, text = self.raw[-1]
            self.raw[-1] = (tag, attributes, text + data)
        else:
            self.seen.append(data)

    def island(self) -> Any:
        return json.loads(next(text for _, attributes, text in self.raw if attributes.get("id") == "data"))


@pytest.fixture(scope="module")
def made() -> isr.Report:
    return report(72)


@pytest.fixture(scope="module")
def page(made: isr.Report) -> Page:
    return Page(render(made))


def test_headline_and_control_arm_stand_together(made: isr.Report, page: Page) -> None:
    # 72 cases: judge 0 says mismatch on the 36 even ones; judge 1 differs on i % 6 == 0 (12 cases) → 24 defeated by both.
    # i % 6 == 1 has no verdict of judge 1, but judge 0 says not defeated there: failure, nothing undetermined.
    assert made.isr == 24 / 72
    for told in (
        "33.3 %", "24 of 72 edits defeated", made.interval.describe(), "Band", "Bounds", "0 undetermined cases",
        "12 judgements", "12 × blocked", "points of excess over the control, on 72 pairs", "Broken share", "no noise arm",
        "Abbott", "Pairs: control → immunized", "broken", "mended", "on 12 of 72 edits",
    ):  # fmt: skip
        assert told in page.text, told
    assert "Independent implementation" in page.text
    assert made.lock["rubric_hash"] in page.text  # the judge lock is printed whole


def test_absent_figures_say_why() -> None:
    few = Page(render(report(12))).text  # 12 controls are ok, fewer than 30
    assert few.count("only 12 controls are ok, fewer than 30") >= 2
    none = Page(render(report(12, controls=False))).text
    assert "it is not known how many of these edits would have failed" in none
    assert "Control arm by" not in none


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"judges": ("a",), "say": lambda i, j: verdict(True, False)}, ["single judge"]),
        ({"control_fails": lambda i: i % 3 != 0}, ["control rate 67 %"]),
        ({"judge_entry": {"identity": {"provider": "gemini"}}}, ["probe missing"]),
        ({"judge_entry": {"probe": {"passed": False}}}, ["probe failed"]),
        ({"judge_entry": {"probe": {"passed": True}}}, []),
        ({"judge_entry": {"served": {"m-1": 3, "m-2": 4}}}, ["several model snapshots"]),
        ({"say": lambda i, j: NoVerdict(reason="refused") if j else verdict(True, False)}, ["100 % undetermined"]),
    ],
)
def test_what_makes_it_unreliable(options: dict[str, Any], expected: list[str]) -> None:
    made = report(12, **options)
    assert doubts(made) == expected
    text = Page(render(made)).text
    assert ("Unreliable as it stands" in text) == bool(expected)
    for reason in expected:
        assert reason in text


def test_a_probe_card_that_says_nothing_has_not_passed() -> None:
    assert probe_state({"probe": {}}) == "failed"
    assert probe_state({"probe": "yes"}) == "failed"
    assert probe_state({"identity": {"provider": "function"}}) == ""


def test_foreign_words_stay_words() -> None:
    made = report(6, words=EVIL, prompt=lambda i: EVIL, methods=(EVIL, "m"))
    text = render(made)
    page = Page(text)
    assert not [a for tag, a in page.elements if tag == "img" or "onerror" in a]
    assert sum(tag == "script" for tag, _ in page.elements) == 2 + len(gallery(made, budget=10**9).pictures)
    assert "alert(1)</script>" not in text
    assert "45801" not in text
    case = page.island()["cases"][0]
    assert case["prompt"] == EVIL
    assert case["answers"][0]["why"][0] == ["", EVIL]
    assert case["tags"] == {"note": EVIL}


def test_json_island_survives_everything() -> None:
    island = json_island({"x": EVIL})
    assert not set("<>&\u2028\u2029") & set(island)
    assert json.loads(island) == {"x": EVIL}
    with pytest.raises(ValueError, match="Out of range float"):
        json_island(float("nan"))


def test_the_policy_admits_our_own_script_and_nothing_else(page: Page) -> None:
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "unsafe" not in policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["connect-src"] == "'none'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        mine = [text for kind, a, text in page.raw if kind == tag and "type" not in a]
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in mine]
        assert [f"'sha256-{d}'" for d in digests] == [rules[rule]]
    for _, attributes in page.elements:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action", "srcset"):
            assert not re.match(r"(?i)\s*(https?:|//)", attributes.get(name) or "")


def test_tables_can_be_read_aloud_and_sorted(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table")
    heads = [a for tag, a in page.elements if tag == "th"]
    assert heads
    assert all(a.get("scope") in {"col", "row"} for a in heads)
    svgs = [a for tag, a in page.elements if tag == "svg" and a.get("role") == "img"]
    assert len(svgs) == tags.count("title") - 1  # every drawing has its words; the other title is the page's
    assert {"main", "nav", "header", "footer"} <= set(tags)
    assert page.text.count("ISR by method") >= 1
    for caption in (
        "Control arm by method",
        "ISR by category",
        "ISR by prompt",
        "Each judge alone, over its own verdicts",
    ):
        assert caption in page.text


def test_cases_worth_a_look_come_first(made: isr.Report) -> None:
    found = gallery(made, budget=10**9)
    ranks = [row["rank"] for row in found.data["cases"]]
    # i % 6 == 0: 12 disagreements; i % 6 == 1: 12 missing verdicts; 48 others
    assert ranks == [0] * 12 + [1] * 12 + [2] * 48
    assert len(found.data["cases"]) == made.n
    assert found.data["facets"]["method"] == ["sifm", "mist"]
    assert found.data["facets"]["editor"] == []
    assert len(found.data["controls"]) == 72
    assert (found.left_out, found.not_kept, found.unlisted) == (0, 0, 0)


def test_pictures_are_lossless_embedded_once_and_up_to_a_budget(made: isr.Report) -> None:
    everything = gallery(made, budget=10**9)
    assert len(everything.pictures) == len({d for c in made.case_records for d in (c.edited, c.original)})
    first = everything.data["cases"][0]
    record = next(c for c in made.case_records if c.case_id == first["key"])
    assert record.original is not None
    assert everything.pictures[first["pictures"][0]] == made.picture(record.original)

    budget = sum(map(len, everything.pictures)) // 2
    half = gallery(made, budget=budget)
    assert sum(map(len, half.pictures)) <= budget
    shown = [row for row in half.data["cases"] if row["state"] == "shown"]
    assert 0 < len(shown) < made.n
    assert half.left_out == made.n - len(shown)
    assert all(None not in row["pictures"] for row in shown)  # all pictures of a case, or none
    assert f"{half.left_out} cases are listed without pictures" in Page(render(made, budget=budget)).text


def test_pictures_beside_the_page(made: isr.Report, tmp_path: Path) -> None:
    path = write(made, tmp_path / "r.html", assets=True)
    page = Page(path.read_text("utf-8"))
    folder = tmp_path / "r_pictures"
    digests = {d for row in page.island()["cases"] for d in row["pictures"]}
    assert {p.stem for p in folder.iterdir()} == digests
    digest, png = picture(0)
    assert (folder / f"{digest}.png").read_bytes() == png
    assert not [a for _, a, _ in page.raw if a.get("type") == "image/png"]
    assert made.to_html(tmp_path / "q.html") == render(made)
    with pytest.raises(UsageError, match="needs a path"):
        made.to_html(assets=True)


def test_a_run_without_pictures_and_long_prose() -> None:
    bare = report(6, kept=False, words="x" * (MAX_PROSE + 5))
    found = gallery(bare, budget=10**9)
    assert found.not_kept == 6
    assert "shortened" in found.data["cases"][0]["answers"][0]["why"][0][1]
    assert "6 cases: picture not kept in this run" in Page(render(bare)).text


def test_a_lazy_run_says_what_is_absent() -> None:
    def say(i: int, j: int) -> Any:
        return NotAsked(reason="lazy") if j and i % 2 else verdict(i % 2 == 0, False)

    made = report(12, lazy=True, say=say)
    page = Page(render(made))
    assert "the upper end is absent: lazy" in page.text
    assert "absent: lazy" in page.text
    assert "nan" not in page.text.lower().replace("nance", "")
    assert {a["words"] for row in page.island()["cases"] for a in row["answers"]} == {
        "mismatch",
        "not defeated",
        "not asked (lazy)",
    }


def test_a_run_without_originals() -> None:
    page = Page(render(report(6, originals=False)))
    assert "Judged without the originals" in page.text
    assert all(row["has"] == [False, True, True] and row["pictures"][0] is None for row in page.island()["cases"])
    assert {row["state"] for row in page.island()["cases"]} == {"shown"}


def test_reviewers_stand_beside_the_consensus(made: isr.Report) -> None:
    cases = [c for c in made.case_records if c.arm == "immunized"][:3]
    # cases 0, 1, 2: consensus says not defeated (judges differ), not defeated, defeated
    answers: list[Any] = [verdict(True, False), NoVerdict(reason="abstained"), verdict(True, False)]
    rows = [Judgement(case_id=c.case_id, judge="human:ada", answer=a) for c, a in zip(cases, answers, strict=True)]
    joined = isr.Report(made.lock, made.case_records, [*made.judgement_records, *rows], picture=made.picture)
    assert (joined.isr, joined.band, joined.n_no_verdict) == (made.isr, made.band, made.n_no_verdict)
    assert joined.no_verdicts == made.no_verdicts
    text = Page(render(joined)).text
    assert "they never enter the consensus" in text
    assert re.search(r"human:ada 3 2 1 2 of 2 1 of 2", text)


def test_marks_are_placed_by_percent_and_say_their_numbers() -> None:
    row = Row("m<1>", 8, 0.5, 0.25, 0.75, (0.5, 0.625), (0.25, None), control=0.125)
    marks = strip(row)
    assert 'cx="50.00%"' in marks
    assert '<line class="interval" x1="25.00%" x2="75.00%"' in marks
    assert '<rect class="bounds" x="50.00%" width="12.50%"' in marks
    assert '<rect class="band open" x="25.00%" width="75.00%"' in marks
    assert 'class="mark" x="12.50%"' in marks
    assert "m&lt;1&gt;: 50.0 % of 8" in marks
    assert isinstance(marks, Markup)
    # −0.5 … +1.5 points of excess on a scale from −100 to +100: 0.25 → 62.5 %; beyond the end is cut at the end
    assert 'cx="62.50%"' in excess_strip(0.25, -0.5, 0.5, (-1.5, 1.5))
    assert '<rect class="bounds" x="0.00%" width="100.00%"' in excess_strip(0.25, -0.5, 0.5, (-1.5, 1.5))


def test_chart_rows_from_a_table(made: isr.Report) -> None:
    rows = rows_of(made.by("method").to_dict("records"), "method", band=True, controls={"sifm": 0.5})
    assert [r.label for r in rows] == ["sifm", "mist"]
    assert [r.control for r in rows] == [0.5, None]
    assert sum(r.n for r in rows) == made.n
