"""Qualitative grids: original, control edit and every method's edit (the paper's Figs. 1 and 4), and the edits on which a
metric and the judges disagree most (Figs. 2 and 3)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import PIL.Image
import PIL.ImageDraw

from ..errors import UsageError
from .misleading import misleading
from .plan import NONE
from .results import Results

__all__ = ["Rule", "choose", "grid", "misleading_grid", "write_grid", "write_misleading"]

Rule = Literal["first", "differ", "all-defeated", "none-defeated"]
_KEY = ["image_id", "prompt", "redraw"]
_TEXT = 34
_LINE = 16
#: The rules in words.
_RULES: dict[Rule, str] = {
    "first": "as they come",
    "differ": "where the methods' outcomes differ",
    "all-defeated": "where every method's edit is defeated",
    "none-defeated": "where no method's edit is defeated",
}
#: digest of the picture (None: an empty cell), and the outcome under it.
_Cell = tuple[str | None, str]


def _places(results: Results, target: str | None) -> pd.DataFrame:
    frame = results.frame
    if frame.empty:
        raise UsageError("figure: no edits are there yet, so there is nothing to choose from")
    chosen = frame[(frame["purifier"] == NONE) & (frame["source"] == frame["target"]) & (frame["table"] == "main")]
    targets = list(dict.fromkeys(chosen["target"]))
    wanted = target or (targets[0] if targets else "")
    if wanted not in targets:
        raise UsageError(f"target: no white-box edits by {wanted!r}; there are {', '.join(targets) or 'none'}")
    return chosen[chosen["target"] == wanted]


def choose(
    results: Results, *, rule: Rule = "first", ids: Sequence[str] = (), n: int = 4, target: str | None = None
) -> list[tuple[str, str, int]]:
    """(image_id, prompt, redraw) of the rows of a grid, in the run's order.

    Args:
        rule: "first"; "differ": the methods' outcomes differ; "all-defeated", "none-defeated": by every method of the
            immunized arm. A rule is stated under the figure, so that nobody has to trust a hand-picked row.
        ids: these images instead. n: at most so many rows. target: label of the editor (default: the first).
    """
    if rule not in get_args(Rule):
        raise UsageError(f"rule must be one of {', '.join(get_args(Rule))}, not {rule!r}")
    if rule != "first" and results.report is None:
        raise UsageError(f"rule: {rule!r} needs outcomes, and this run is not judged; use 'first' or ids")
    frame = _places(results, target)
    missing = sorted(set(ids) - set(frame["image_id"]))
    if missing:
        raise UsageError(f"ids: no image {missing[0]!r} in this run")
    found: list[tuple[str, str, int]] = []
    key: Any
    for key, cases in frame.groupby(_KEY, sort=False):
        outcomes = set(cases.loc[cases["arm"] == "immunized", "outcome"])
        fits = (
            (rule == "first" or bool(ids))
            or (rule == "differ" and {"success", "failure"} <= outcomes)
            or (rule == "all-defeated" and outcomes == {"success"})
            or (rule == "none-defeated" and outcomes == {"failure"})
        )
        if fits and (not ids or key[0] in ids):
            found.append((str(key[0]), str(key[1]), int(key[2])))
    return found[:n]


def grid(
    results: Results,
    rows: Sequence[tuple[str, str, int]],
    *,
    target: str | None = None,
    side: int = 192,
    chosen: str = "",
) -> PIL.Image.Image:
    """A picture: one row per choice, columns original, control edit and each method, with the outcome under each.

    Args:
        rows: from `choose`. side: longest side of a cell in pixels (nearest neighbour up, Lanczos down). chosen: how, in
            words, for the lines under the figure.
    """
    if not rows:
        raise UsageError("rows: nothing fits the rule; choose another one or give ids")
    frame = _places(results, target)
    methods = list(dict.fromkeys(frame["method"]))
    drawn: list[tuple[str, list[_Cell]]] = []
    for image_id, prompt, redraw in rows:
        cases = frame[(frame["image_id"] == image_id) & (frame["prompt"] == prompt) & (frame["redraw"] == redraw)]
        cells = _before(results, cases.iloc[0])
        for method in methods:
            mine = cases[cases["method"] == method]
            cells.append((None, "") if mine.empty else _edit(results, mine.iloc[0]))
        drawn.append((prompt, cells))
    return _sheet(results, ["original", "control edit", *methods], drawn, side, [chosen, _where(results, frame)])


def _where(results: Results, frame: pd.DataFrame) -> str:
    """What every figure says of where it is from."""
    judges = "not judged" if results.report is None else f"judges: {', '.join(results.report.judges)}"
    return f"white box on {frame['target'].iloc[0]}, no purifier; {judges}"


def misleading_grid(
    results: Results, metric: str, *, n: int = 4, target: str | None = None, side: int = 192
) -> PIL.Image.Image:
    """The edits on which the metric's ranking and the judges disagree most (isr/bench/misleading.py): one row per case,
    columns original, control edit, immunized image, its edit; metric value and rank in words beneath."""
    cases = misleading(results, metric, n=n, target=target)
    drawn: list[tuple[str, list[_Cell]]] = []
    for _, case in cases.iterrows():
        step = results.steps.get(str(case["step"]))
        made = "" if step is None else step.inputs[0].removeprefix("step:")
        immunized = results.steps[made].digest if made in results.steps else None
        words = (
            f"{case['method']}: {metric} {case['value']:.3f}, rank {case['far']:.2f} (1: farthest).  {case['prompt']}"
        )
        drawn.append((words, [*_before(results, case), (immunized, ""), _edit(results, case)]))
    told = f"rows: where the ranking by {metric} and the judges disagree most, at most one per picture"
    heads = ["original", "control edit", "immunized", "its edit"]
    return _sheet(results, heads, drawn, side, [told, _where(results, cases)])


def _before(results: Results, case: pd.Series[Any]) -> list[_Cell]:
    record = results.records[str(case["case_id"])]
    control = results.records.get(record.control or "")
    return [(record.original, ""), (None if control is None else control.edited, _word(case["control"]))]


def _edit(results: Results, case: pd.Series[Any]) -> _Cell:
    return results.records[str(case["case_id"])].edited, _word(case["outcome"])


def _word(outcome: Any) -> str:
    return outcome if isinstance(outcome, str) else ""


def _sheet(
    results: Results,
    heads: Sequence[str],
    rows: Sequence[tuple[str, Sequence[_Cell]]],
    side: int,
    captions: Sequence[str],
) -> PIL.Image.Image:
    captions = [line for line in captions if line]
    width = len(heads) * (side + 6) + 6
    below = _TEXT + len(rows) * (side + 2 * _TEXT)
    sheet = PIL.Image.new("RGB", (width, below + _LINE * len(captions) + 6), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for line, words in enumerate(captions):
        draw.text((6, below + _LINE * line), _plain(words)[: width // 6], fill="#555")
    for column, head in enumerate(heads):
        draw.text((6 + column * (side + 6), 10), _plain(head)[:28], fill="black")
    for line, (words, cells) in enumerate(rows):
        top = _TEXT + line * (side + 2 * _TEXT)
        draw.text((6, top + side + 16), _plain(words)[:120], fill="black")
        for column, (digest, outcome) in enumerate(cells):
            left = 6 + column * (side + 6)
            png = None if digest is None else results.picture(digest)
            if png is not None:
                sheet.paste(_cell(png, side), (left, top))
            word = {"success": "defeated", "failure": "not defeated"}.get(outcome, outcome)
            draw.text((left, top + side + 2), word, fill={"success": "#0a6", "failure": "#b20"}.get(outcome, "gray"))
    return sheet


def _plain(text: str) -> str:
    """One line that the built-in font can draw."""
    return " ".join(str(text).split()).encode("latin-1", "replace").decode("latin-1")


def _cell(png: bytes, side: int) -> PIL.Image.Image:
    image = PIL.Image.open(io.BytesIO(png)).convert("RGB")
    scale = side / max(image.size)
    how = PIL.Image.Resampling.NEAREST if scale > 1 else PIL.Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)


def write_grid(
    results: Results,
    path: str | Path,
    *,
    rule: Rule = "first",
    ids: Sequence[str] = (),
    n: int = 4,
    target: str | None = None,
) -> int:
    """Choose and write a grid as PNG; returns how many rows it has."""
    rows = choose(results, rule=rule, ids=ids, n=n, target=target)
    told = f"pictures {', '.join(ids)}" if ids else _RULES[rule]
    told = f"rows: {told}; the first {len(rows)} in the run's order"
    grid(results, rows, target=target, chosen=told).save(path, "PNG")
    return len(rows)


def write_misleading(
    results: Results, path: str | Path, metric: str, *, n: int = 4, target: str | None = None
) -> pd.DataFrame:
    """Write the grid of the edits on which a metric misleads most as PNG; returns the cases."""
    misleading_grid(results, metric, n=n, target=target).save(path, "PNG")
    return misleading(results, metric, n=n, target=target)
