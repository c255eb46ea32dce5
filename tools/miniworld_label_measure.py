"""Two labellings of the contact sheets → thresholds from one half, honest figures on the other half, and the data file.

    python tools/miniworld_label_measure.py --sheets FOLDER --labels first.csv second.csv \\
        --labeller "who or what labelled" --referees FOLDER --out tests/data

`--sheets` is what tools/miniworld_label_sheets.py wrote, `--referees` a folder with referee-a, referee-b and referee-c.
Halves are by picture (two image numbers in turn, so that both have both kinds of prompt), so no picture is in both.
`--earlier` adds the threshold half of sheets that were labelled before, of an earlier editor say, since the best threshold
on 200 edits is uncertain. Writes `miniworld_labels.csv` (digests and both labels; set 0 is `--sheets`),
`miniworld_labels.json` (thresholds and figures, with the thresholds from labels and with those in the referees'
config.json) and `miniworld_labels.npz` (the labelled pictures of the measuring half); with `--set` it also writes the
thresholds for degradation into the referees' config.json.

`--held NAME` shows whether the referees, as they are, hold on the edits of other editors: nothing is set, every item is
measured, by editor too, and the files are called `miniworld_labels_NAME`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from isr.judges.referee import REFEREES, RefereeJudge
from PIL import Image

from isr.bench.misleading import auc
from isr.stats.agreement import cohen_kappa, gwet_ac1, percent_agreement
from isr.stats.intervals import clustered_wilson

Bools = npt.NDArray[np.bool_]
CRITERIA = ("mismatch", "degraded")


def read_labels(path: Path, items: Sequence[int]) -> dict[str, Bools]:
    """One labelling, in the order of `items`.

    Raises:
        SystemExit: a column, an item or an answer is missing, doubled or neither 0 nor 1.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or {"item", *CRITERIA} - set(rows[0]):
        raise SystemExit(
            f"{path}: expected the columns item,mismatch,degraded; got {list(rows[0]) if rows else 'an empty file'}"
        )
    answers: dict[int, tuple[bool, bool]] = {}
    for row in rows:
        given = [str(row[c]).strip() for c in CRITERIA]
        number = str(row["item"]).strip()
        if not number.isdigit() or int(number) in answers or set(given) - {"0", "1"}:
            raise SystemExit(f"{path}: item {number!r} is doubled or not answered with 0 or 1 twice: {given}")
        answers[int(number)] = (given[0] == "1", given[1] == "1")
    missing = sorted(set(items) - set(answers))
    if missing or set(answers) - set(items):
        raise SystemExit(f"{path}: items missing {missing[:10]}, unknown {sorted(set(answers) - set(items))[:10]}")
    table = np.array([answers[i] for i in items])
    return {c: table[:, k] for k, c in enumerate(CRITERIA)}


def best_threshold(scores: npt.NDArray[np.float64], labels: Sequence[Bools]) -> float:
    """The threshold t at which "score ≥ t" agrees with most labels, both labellings counted; the middle of the best gap.

    Of several equally good ones the middle one is taken.
    """
    order = np.unique(scores)
    cuts = np.concatenate([[order[0] - 1], (order[1:] + order[:-1]) / 2, [order[-1] + 1]])
    right = np.array([sum(float(((scores >= t) == truth).sum()) for truth in labels) for t in cuts])
    top = np.flatnonzero(right == right.max())
    return float(cuts[top[len(top) // 2]])


def share(hits: Bools, clusters: Sequence[str]) -> dict[str, Any]:
    """A share with its 95 % interval, clustered by picture."""
    if not len(hits):
        return {"n": 0}
    interval = clustered_wilson(hits, list(clusters))
    return {
        "n": len(hits),
        "share": round(float(hits.mean()), 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
    }


def measure(
    key: list[dict[str, str]],
    labels: Sequence[Mapping[str, Bools]],
    verdicts: Mapping[str, Mapping[str, Bools]],
    rows: Bools,
) -> dict[str, Any]:
    """Figures on the rows given: agreement of the labellings, accuracy of each referee, shares judged ok; by method."""
    out: dict[str, Any] = {}
    groups: dict[str, Callable[[dict[str, str]], bool]] = {"all": lambda _row: True}
    for method in ("none", "noise", "encoder", "sifm"):
        groups[method] = lambda row, method=method: row["method"] == method  # type: ignore[misc]
    for name, belongs in groups.items():
        at = np.array([i for i, row in enumerate(key) if rows[i] and belongs(row)], dtype=int)
        clusters = [key[i]["image_id"] for i in at]
        group: dict[str, Any] = {"n": len(at)}
        for c in CRITERIA:
            first, second = labels[0][c][at], labels[1][c][at]
            pair = np.stack([first, second], 1).astype(float)
            group[c] = {
                "labelled": [round(float(first.mean()), 4), round(float(second.mean()), 4)],
                "labellings_agree": share(first == second, clusters),
                "cohen_kappa": cohen_kappa(pair[:, 0], pair[:, 1]).value,
                "gwet_ac1": gwet_ac1(pair, categories=[0.0, 1.0]).value,
                "percent_agreement": percent_agreement(pair).value,
            }
            for referee, answers in verdicts.items():
                given = answers[c][at]
                group[c][f"referee_{referee}"] = {
                    "says": round(float(given.mean()), 4),
                    "against_first": share(given == first, clusters),
                    "against_second": share(given == second, clusters),
                    "where_labellings_agree": share(
                        (given == first)[first == second],
                        [k for k, s in zip(clusters, first == second, strict=True) if s],
                    ),
                }
        ok = [~(lab["mismatch"][at] | lab["degraded"][at]) for lab in labels]
        group["ok_by_labels"] = [share(o, clusters) for o in ok]
        both = np.ones(len(at), bool)
        for referee in ("a", "b"):
            if referee in verdicts:
                both &= ~(verdicts[referee]["mismatch"][at] | verdicts[referee]["degraded"][at])
        group["ok_by_both_referees"] = share(both, clusters)
        out[name] = group
    return out


@dataclass(frozen=True)
class Labelled:
    """One set of labelled sheets: the key's rows, both labellings and the pictures to judge, in one order.

    setting: which rows belong to the half that sets thresholds; two image numbers in turn, so that both halves have both
    kinds of prompt. places: of the rows among the stored pictures.
    """

    key: list[dict[str, str]]
    labels: list[dict[str, Bools]]
    cases: list[tuple[Image.Image, Image.Image, str]]
    setting: Bools
    stored: Mapping[str, npt.NDArray[Any]]
    places: list[int]

    @classmethod
    def read(cls, sheets: Path, labels: Sequence[Path]) -> Labelled:
        with (sheets / "hidden" / "key.csv").open(encoding="utf-8", newline="") as file:
            key = list(csv.DictReader(file))
        items = [int(row["item"]) for row in key]
        with np.load(sheets / "hidden" / "pictures.npz") as file:
            stored = {name: file[name] for name in ("item", "edited", "original")}
        place = {int(number): i for i, number in enumerate(stored["item"])}
        at = [place[i] for i in items]
        cases = [
            (Image.fromarray(stored["edited"][k]), Image.fromarray(stored["original"][k]), row["prompt"])
            for k, row in zip(at, key, strict=True)
        ]
        setting = np.array([int(row["image_id"].rsplit("-", 1)[1]) % 4 < 2 for row in key])
        return cls(key, [read_labels(path, items) for path in labels], cases, setting, stored, at)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheets", type=Path, required=True)
    parser.add_argument("--labels", type=Path, nargs=2, required=True)
    parser.add_argument(
        "--earlier", type=Path, nargs=3, action="append", default=[], metavar=("SHEETS", "FIRST", "SECOND"),
        help="earlier labelled sheets: their threshold half helps to set the thresholds; no figure is of them",
    )  # fmt: skip
    parser.add_argument("--labeller", required=True, help="who or what labelled; stands in the card")
    parser.add_argument("--referees", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--set", action="store_true", help="write the degradation thresholds into the referees' config.json"
    )
    parser.add_argument("--held", metavar="NAME", help="set nothing; measure every item, and name the files after NAME")
    options = parser.parse_args(arguments)
    if options.held is not None:
        if options.earlier or options.set:
            raise SystemExit("--held sets no thresholds: leave out --earlier and --set")
        if not re.fullmatch(r"[\w.-]+", options.held):
            raise SystemExit(f"--held: expected a name for the files, got {options.held!r}")
        return _measure_held(options)
    main_set = Labelled.read(options.sheets, options.labels)
    sets = [main_set, *(Labelled.read(sheets, labels) for sheets, *labels in options.earlier)]
    thresholds: dict[str, dict[str, float]] = {}
    verdicts: dict[str, dict[str, Bools]] = {}
    shipped: dict[str, dict[str, Bools]] = {}
    scored: dict[str, npt.NDArray[np.float64]] = {}
    for name in REFEREES:
        folder = options.referees / f"referee-{name}"
        if not folder.is_dir():
            continue
        judge = RefereeJudge(name, folder=folder)
        asked, degraded, kept = (np.concatenate(x) for x in zip(*(_scores(judge, s.cases) for s in sets), strict=True))
        setting = np.concatenate([s.setting for s in sets])
        labels = [{c: np.concatenate([s.labels[k][c] for s in sets]) for c in CRITERIA} for k in (0, 1)]
        thresholds[name] = {
            # where the category was lost, no threshold on the attribute could matter
            "asked": best_threshold(asked[setting & kept], [~lab["mismatch"][setting & kept] for lab in labels]),
            "degradation": best_threshold(degraded[setting], [lab["degraded"][setting] for lab in labels]),
        }
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if options.set:  # the threshold for mismatch stays as trained
            config["thresholds"]["degradation"] = round(thresholds[name]["degradation"], 4)
            (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
        count = len(main_set.key)
        own = (asked[:count], degraded[:count], kept[:count])
        verdicts[name], shipped[name] = _answers(own, thresholds[name]), _answers(own, config["thresholds"])
        scored[name] = own[1]
    key, setting = main_set.key, main_set.setting
    card = {
        "labeller": options.labeller,
        "items": len(key),
        "thresholds": thresholds,
        "threshold_half": {"n": int(sum(s.setting.sum() for s in sets)), "of_this_set": int(setting.sum())},
        "unattacked_ok_by_labels": _unattacked(main_set),
        "measuring_half": measure(key, main_set.labels, verdicts, ~setting),
        "measuring_half_at_the_referees_own_thresholds": measure(key, main_set.labels, shipped, ~setting),
        "measuring_half_by_editor": _by_editor(main_set, shipped, scored, ~setting),
    }
    _write(options.out / "miniworld_labels", card, sets, stored=~setting)
    print(json.dumps(card["measuring_half"]["all"], indent=1))
    return 0


def _measure_held(options: argparse.Namespace) -> int:
    held, verdicts = Labelled.read(options.sheets, options.labels), dict[str, dict[str, Bools]]()
    scored: dict[str, npt.NDArray[np.float64]] = {}
    for name in REFEREES:
        folder = options.referees / f"referee-{name}"
        if not folder.is_dir():
            continue
        scores = _scores(RefereeJudge(name, folder=folder), held.cases)
        verdicts[name] = _answers(scores, json.loads((folder / "config.json").read_text("utf-8"))["thresholds"])
        scored[name] = scores[1]
    everything = np.ones(len(held.key), bool)
    found = measure(held.key, held.labels, verdicts, everything)
    card = {
        "labeller": options.labeller,
        "items": len(held.key),
        "unattacked_ok_by_labels": _unattacked(held),
        "at_the_referees_own_thresholds": found,
        "degradation_roc_area_where_labellings_agree": _areas(held, scored, everything),
        "by_editor": _by_editor(held, verdicts, scored, everything),
    }
    path = options.out / f"miniworld_labels_{options.held}"
    _write(path, card, [dataclasses.replace(held, setting=~everything)], stored=everything)
    print(json.dumps(found["all"], indent=1))
    return 0


def _areas(labelled: Labelled, scores: Mapping[str, npt.NDArray[np.float64]], rows: Bools) -> dict[str, float | None]:
    """Of each referee, the area under the ROC curve for degradation, on those `rows` where the labellings agree."""
    first, second = (lab["degraded"] for lab in labelled.labels)
    agreed = rows & (first == second)
    return {name: auc(found[agreed], first[agreed]) for name, found in scores.items()}


def _by_editor(
    labelled: Labelled,
    verdicts: Mapping[str, Mapping[str, Bools]],
    scores: Mapping[str, npt.NDArray[np.float64]],
    rows: Bools,
) -> dict[str, Any]:
    """The same figures, with the ROC areas, for the edits of each editor among `rows`."""
    editors = np.array([row["editor"] for row in labelled.key])
    out: dict[str, Any] = {}
    for name in sorted(set(editors[rows])):
        own = rows & (editors == name)
        out[str(name)] = {
            "degradation_roc_area_where_labellings_agree": _areas(labelled, scores, own),
            **measure(labelled.key, labelled.labels, verdicts, own),
        }
    return out


def _answers(scores: tuple[npt.NDArray[Any], ...], thresholds: Mapping[str, float]) -> dict[str, Bools]:
    """What a referee answers by these thresholds; scores: of `_scores`."""
    asked, degraded, kept = scores
    return {
        "mismatch": ~((asked >= thresholds["asked"]) & kept),
        "degraded": degraded >= thresholds["degradation"],
    }


def _write(path: Path, card: Mapping[str, Any], sets: Sequence[Labelled], *, stored: Bools) -> None:
    """`path`.json: the card; .csv: both labels of each item (of sets after the first: of their threshold half); .npz: the
    edited pictures of the first set's items where `stored`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", "utf-8")
    with path.with_name(path.name + ".csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["set", *sets[0].key[0], "half", "mismatch_1", "degraded_1", "mismatch_2", "degraded_2"])
        for number, part in enumerate(sets):
            for i, row in enumerate(part.key):
                if number and not part.setting[i]:
                    continue
                given = [int(lab[c][i]) for lab in part.labels for c in CRITERIA]
                table.writerow([number, *row.values(), "threshold" if part.setting[i] else "measure", *given])
    chosen = np.array(sets[0].places)[stored]
    pictures = {name: sets[0].stored[name][chosen] for name in ("item", "edited")}
    np.savez_compressed(path.with_name(path.name + ".npz"), **pictures)


def _scores(judge: RefereeJudge, cases: Sequence[Any]) -> tuple[npt.NDArray[Any], ...]:
    """asked, degradation, and whether the category was kept."""
    scores = judge.scores(cases)
    return tuple(np.array([row[k] for row in scores]) for k in ("asked", "degradation", "category_kept"))


def _unattacked(labelled: Labelled) -> dict[str, Any]:
    """Both labellings' shares of the unattacked edits that are ok, both halves together, whole and by family."""
    rows = [i for i, row in enumerate(labelled.key) if row["method"] == "none"]
    ok = [~(lab["mismatch"] | lab["degraded"]) for lab in labelled.labels]
    families = sorted({labelled.key[i]["family"] for i in rows})
    return {
        "all": [share(o[rows], [labelled.key[i]["image_id"] for i in rows]) for o in ok],
        "families": {
            f: [f"{sum(bool(o[i]) for i in of)}/{len(of)}" for o in ok]
            for f in families
            for of in [[i for i in rows if labelled.key[i]["family"] == f]]
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
