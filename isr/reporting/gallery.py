"""The cases of a report as data for its page: the ones worth a look first, and as many pictures as fit.

Pictures stay lossless PNG (JPEG would add the very artefacts that the degradation question asks about); what does not fit
into the budget is listed without pictures, or written beside the page as files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..schema import CRITERIA, Answer, CaseRecord, Judgement, NotAsked, NoVerdict, Verdict
from ..store import write_atomic

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["Gallery", "answer_words", "gallery"]

#: Cases that one page lists; beyond that the browser suffers, and the tables hold all of them anyway.
MAX_CASES = 20_000
#: Longest prose of one field; the whole text stays in judgements.jsonl.
MAX_PROSE = 2_000
#: Cases in the plain list that a browser without scripts shows.
PLAIN = 100
FACETS = ("method", "editor", "prompt_kind", "category", "purifier")


@dataclass
class Gallery:
    """Attributes:
    data: what the page's script reads. pictures: PNG bytes by number, embedded. plain: the first cases for a page without scripts.
    left_out: cases whose pictures did not fit. not_kept: cases of which the run holds no pictures. unlisted: cases beyond MAX_CASES.
    """

    data: dict[str, Any]
    pictures: list[bytes] = field(default_factory=list)
    plain: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0
    not_kept: int = 0
    unlisted: int = 0


def gallery(report: Report, *, budget: int, assets: Path | None = None) -> Gallery:
    """Cases of the immunized arm, disagreements first, then missing verdicts, then the rest in case order.

    Args:
        budget: bytes of PNG to embed. assets: write the pictures into this folder instead (the page then refers to them
            as `<folder name>/<digest>.png`).
    """
    said: dict[str, list[Judgement]] = {}
    for judgement in report.judgement_records:
        said.setdefault(judgement.case_id, []).append(judgement)
    outcome = {o.case_id: o.value for o in report.outcomes}
    records = {c.case_id: c for c in report.case_records}
    in_consensus = frozenset(report.judges)

    def rank(case: CaseRecord) -> int:
        answers = [j.answer for j in said.get(case.case_id, ()) if j.judge in in_consensus]
        if len({(a.semantic_mismatch, a.degradation) for a in answers if isinstance(a, Verdict)}) > 1:
            return 0
        return 1 if any(isinstance(a, NoVerdict) for a in answers) else 2

    everything = sorted((c for c in report.case_records if c.arm == "immunized"), key=rank)
    cases = everything[:MAX_CASES]
    pictures = _Pictures(report.picture, budget, assets)
    rows: list[dict[str, Any]] = []
    controls: dict[str, dict[str, Any]] = {}
    made = Gallery(data={}, unlisted=len(everything) - len(cases))
    for case in cases:
        control = records.get(case.control) if case.control else None
        digests = [case.original, control.edited if control else None, case.edited]
        state, numbers = pictures.take(digests)
        made.left_out += state == "left out"
        made.not_kept += state == "not kept"
        if control is not None and control.case_id not in controls:
            controls[control.case_id] = {
                "outcome": outcome[control.case_id],
                "answers": [_answer(j) for j in said.get(control.case_id, ())],
            }
        row = {
            "key": case.case_id,
            "prompt": case.prompt,
            "outcome": outcome[case.case_id],
            "rank": rank(case),
            "pictures": numbers,
            "has": [case.original is not None, control is not None, True],
            "state": state,
            "names": [n for n in (case.id, case.edited_name) if n],
            "answers": [_answer(j) for j in said.get(case.case_id, ())],
        }
        row |= {name: getattr(case, name) for name in (*FACETS, "image_id", "seed") if getattr(case, name) is not None}
        if case.tags:
            row["tags"] = {str(k): str(v) for k, v in case.tags.items() if v is not None}
        if control is not None:
            row["control"] = control.case_id
        rows.append(row)
    made.pictures = pictures.embedded
    made.data = {
        "cases": rows,
        "controls": controls,
        "facets": {name: _values(getattr(c, name) for c in cases) for name in FACETS},
        "judges": list(report.judges),
        "reviewers": sorted({j.judge for j in report.judgement_records} - in_consensus),
        "assets": None if assets is None else assets.name,
    }
    made.plain = [
        {
            "prompt": case.prompt,
            "about": ", ".join(str(v) for n in FACETS if (v := getattr(case, n)) is not None),
            "outcome": outcome[case.case_id],
            "answers": [(j.judge, answer_words(j.answer)) for j in said.get(case.case_id, ())],
        }
        for case in cases[:PLAIN]
    ]
    return made


class _Pictures:
    """Numbers the pictures of a page: embedded up to a budget, or written as files."""

    def __init__(self, picture: Callable[[str], bytes | None], budget: int, assets: Path | None) -> None:
        self._picture = picture
        self._left = budget
        self._assets = assets
        self._full = False
        self._known: dict[str, int | str | None] = {}
        self.embedded: list[bytes] = []

    def take(self, digests: list[str | None]) -> tuple[str, list[int | str | None]]:
        """("shown" | "left out" | "not kept", one place per digest). A case is shown with all of its pictures or none."""
        wanted = [d for d in dict.fromkeys(digests) if d is not None and d not in self._known]
        if wanted and self._full:
            return "left out", [None] * len(digests)
        found = {d: self._picture(d) for d in wanted}
        if self._assets is None:
            size = sum(len(png) for png in found.values() if png is not None)
            if size > self._left:
                self._full = True
                return "left out", [None] * len(digests)
            self._left -= size
        for digest, png in found.items():
            self._known[digest] = None if png is None else self._keep(digest, png)
        places = [None if d is None else self._known[d] for d in digests]
        kept = any(p is not None for p in places)
        return "shown" if kept else "not kept", places

    def _keep(self, digest: str, png: bytes) -> int | str:
        if self._assets is None:
            self.embedded.append(png)
            return len(self.embedded) - 1
        self._assets.mkdir(parents=True, exist_ok=True)
        path = self._assets / f"{digest}.png"
        if not path.exists():
            write_atomic(path, png)
        return digest


def answer_words(answer: Answer) -> str:
    """One answer in a few words."""
    if isinstance(answer, NoVerdict):
        return f"no verdict ({answer.reason})"
    if isinstance(answer, NotAsked):
        return f"not asked ({answer.reason})"
    said = [word for word, yes in (("mismatch", answer.semantic_mismatch), ("degraded", answer.degradation)) if yes]
    return " + ".join(said) or "not defeated"


def _answer(judgement: Judgement) -> dict[str, Any]:
    answer = judgement.answer
    row: dict[str, Any] = {"judge": judgement.judge, "kind": answer.kind, "words": answer_words(answer)}
    if isinstance(answer, NoVerdict):
        row["why"] = [["", _short(answer.detail)]] if answer.detail else []
        return row
    if isinstance(answer, NotAsked):
        return row
    row |= {key: getattr(answer, key) for key in CRITERIA}
    row |= {"overall": answer.overall} if answer.overall is not None else {}
    why = [["", answer.observations], *([key.replace("_", " "), text] for key, text in answer.reasons.items())]
    row["why"] = [[head, _short(text)] for head, text in why if text.strip()]
    if answer.other:
        row["other"] = dict(answer.other)
    return row


def _short(text: str) -> str:
    return text if len(text) <= MAX_PROSE else text[:MAX_PROSE] + " … (shortened; the whole text is in the run)"


def _values(values: Iterable[Any]) -> list[str]:
    """Distinct values, the commonest first; none where there is nothing to choose from."""
    counts = Counter(str(v) for v in values if v is not None)
    return [v for v, _ in counts.most_common()] if len(counts) > 1 else []
