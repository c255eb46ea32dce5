"""`Report`: the result of an evaluation, computed from stored records, saved and loaded without loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .consensus import resolve_consensus
from .errors import IntegrityError, UsageError
from .lock import lock_differences, with_served, with_shards
from .schema import CaseRecord, Judgement, NotAsked, NoVerdict, Outcome, OutcomeValue, Verdict
from .stats.intervals import Interval
from .stats.outcomes import Rate
from .store import RunFiles
from .tables import GroupRow, Matrix, case_table, judgement_table

if TYPE_CHECKING:
    import pandas as pd

    from .protocols import Consensus
    from .stats.control import ControlArm

__all__ = ["Report", "received"]

#: Providers whose judges are no models: there is nothing to probe.
NO_MODELS = frozenset({"function", "referee"})
#: Shares of a probe below which the report says so, whatever the accuracy, and what each means.
_PROBED = (
    ("integrity: hostile prompt", "a hostile prompt changed its answer"),
    ("integrity: text in the picture", "text drawn into the edit changed its answer"),
    ("consistency", "it contradicted itself on a repeated case"),
)
#: Columns that say what a case is about: by them, a group's noise arm is the same group's.
_ABOUT = ("image_id", "prompt", "category", "seed")
#: A share of undetermined cases above which the report warns.
MANY_UNDETERMINED = 0.05
#: Share of right (or unmoved, or consistent) answers of a probe below which the report warns.
PROBE_PASS = 0.8


class Report:
    """What `evaluate` returns. Every number is recomputed from `case_records` and `judgement_records` on demand.

    Args:
        lock: content of run.json (judge lock, settings, versions).
        cases, judgements: the records. judges: names in the order of the consensus.
        consensus: the policy function, where it is not a registered name (a function cannot be stored).
        picture: digest → PNG bytes of the canonical pixels, or None where pictures are not at hand.
    """

    def __init__(
        self,
        lock: Mapping[str, Any],
        cases: Sequence[CaseRecord],
        judgements: Sequence[Judgement],
        *,
        consensus: Consensus | None = None,
        picture: Callable[[str], bytes | None] | None = None,
    ) -> None:
        self.lock: dict[str, Any] = dict(lock)
        self.case_records = tuple(cases)
        self.judgement_records = tuple(judgements)
        self.judges = tuple(str(j["name"]) for j in self.lock["judges"])
        if consensus is not None:
            self.policy = consensus
        else:
            try:
                self.policy = resolve_consensus(str(self.lock["consensus"]))[1]
            except LookupError as error:
                raise UsageError(
                    f"consensus: this run used the policy {self.lock['consensus']!r}, which is not installed; pass it as "
                    "Report.load(folder, consensus=function)"
                ) from error
        self._picture = picture or (lambda _digest: None)

    # ------------------------------------------------------------------------------------------------- the headline

    @property
    def lazy(self) -> bool:
        return bool(self.lock["settings"].get("lazy", False)) or any(
            isinstance(j.answer, NotAsked) and j.answer.reason == "lazy" for j in self._consensus_judgements
        )

    @cached_property
    def matrix(self) -> Matrix:
        """Cases of every arm against the judges that decide, with outcomes under each policy."""
        return Matrix(self.case_records, self._consensus_judgements, self.judges, self.policy, lazy=self.lazy)

    @cached_property
    def _consensus_judgements(self) -> list[Judgement]:
        return [j for j in self.judgement_records if j.judge in set(self.judges)]

    @cached_property
    def _main(self) -> Matrix:
        """The immunized arm, or everything where no row carries that arm."""
        return self._arm("immunized")

    def _arm(self, arm: str) -> Matrix:
        rows = [c for c in self.case_records if c.arm == arm]
        return Matrix(rows, self._consensus_judgements, self.judges, self.policy, lazy=self.lazy)

    @cached_property
    def _headline(self) -> GroupRow:
        if not self._main.cases:
            raise UsageError("this run holds no case of the immunized arm, so it has no ISR; see report.by('arm')")
        return self._main.group(range(len(self._main.cases)))

    @property
    def n(self) -> int:
        """Cases of the immunized arm; undetermined ones count."""
        return len(self._main.cases)

    @property
    def isr(self) -> float:
        """Immunization Success Rate of the immunized arm (Eq. 8), as a fraction."""
        return self._headline.rate.value

    @property
    def interval(self) -> Interval:
        """95 % interval of `isr` (Wilson; on effective n, clustered by image, where images repeat)."""
        return self._headline.rate.interval

    @property
    def bounds(self) -> tuple[float, float]:
        """Where ISR lies whatever the missing verdicts would have been."""
        return self._headline.rate.bounds

    @property
    def band(self) -> tuple[float, float | None]:
        """From strict's lower bound to any's upper bound. The upper end is None after `lazy`."""
        return self._headline.band

    @property
    def rate(self) -> Rate:
        """ISR with counts, bounds and interval in one object."""
        return self._headline.rate

    @property
    def n_no_verdict(self) -> int:
        """Judgements (not cases) without a verdict, in the immunized arm."""
        return self._headline.n_no_verdict

    @property
    def n_undetermined(self) -> int:
        """Cases of the immunized arm whose outcome the missing verdicts leave open."""
        return self._headline.rate.n_undetermined

    @property
    def outcomes(self) -> list[Outcome]:
        """The consensus on every case of every arm, in case order."""
        pairs = zip(self.matrix.cases, self.matrix.outcomes, strict=True)
        return [Outcome(case_id=case.case_id, value=value) for case, value in pairs]

    @cached_property
    def control_arm(self) -> ControlArm | None:
        """ISR of the immunized arm beside its control arm: excess, the four cells, broken share, Abbott, bounds; None
        without controls. Over several methods at once it is their pool: see `control_by("method")`."""
        return self._controls_of(range(len(self._main.cases)))

    @property
    def excess(self) -> float | None:
        """Paired ISR − paired control rate on the complete pairs, as a fraction; None without a complete pair."""
        arm = self.control_arm
        return None if arm is None or arm.excess is None else arm.excess.difference

    def _controls_of(self, rows: Iterable[int], columns: Sequence[str] = ()) -> ControlArm | None:
        from .controls import pair_up

        chosen = [self._main.cases[i] for i in rows]
        return pair_up(chosen, self._outcome, self._noise_for(chosen, columns))

    @cached_property
    def _outcome(self) -> dict[str, OutcomeValue]:
        return {o.case_id: o.value for o in self.outcomes}

    def _noise_for(self, cases: Sequence[CaseRecord], columns: Sequence[str]) -> list[CaseRecord]:
        """Rows of the random-noise arm under the same editors, prompt kinds and purifiers as these cases, and of the same
        group where they are grouped by what a case is about (not by how it was immunized: noise is another method)."""
        alike = ("editor", "prompt_kind", "purifier", *(c for c in _ABOUT if c in columns))

        def key(case: CaseRecord) -> tuple[Any, ...]:
            return tuple(getattr(case, name) for name in alike)

        wanted = {key(c) for c in cases}
        return [c for c in self.case_records if c.arm == "noise" and key(c) in wanted]

    @property
    def title(self) -> str:
        if len(self.judges) == 1:
            return f"Defeated edits, single judge ({self.judges[0]}); not ISR as in the paper"
        policy = str(self.lock["consensus"]).partition("#")[0]
        return f"Immunization Success Rate ({policy} consensus of {len(self.judges)} judges)"

    # ------------------------------------------------------------------------------------------------- tables

    @cached_property
    def cases(self) -> pd.DataFrame:
        """One row per case, all arms, with its outcome."""
        table = case_table(self.case_records)
        table["outcome"] = self.matrix.outcomes
        return table

    @cached_property
    def judgements(self) -> pd.DataFrame:
        """Long form, one row per edit × judge."""
        return judgement_table(self.case_records, self.judgement_records)

    def by(self, *columns: str, level: float = 0.95) -> pd.DataFrame:
        """ISR by group: n, ISR, interval, bounds, band, mismatch and degradation rate with denominators, no-verdicts.

        Args:
            columns: one or more case columns or tags ("method", "prompt_kind", …). Only the immunized arm enters, unless
                "arm" is among them. `by("judge")` gives each judge alone.
        """
        import pandas as pd

        if columns == ("judge",):
            return self.by_judge(level=level)
        matrix = self.matrix if "arm" in columns else self._main
        if not columns:
            return pd.DataFrame([matrix.group(range(len(matrix.cases)), level=level).cells()])
        table = case_table(matrix.cases)
        self._known(columns, table)
        keys = [table[c].tolist() for c in columns]
        return _frame(columns, [(key, row.cells()) for key, row in matrix.groups(keys, level=level)])

    def control_by(self, *columns: str) -> pd.DataFrame:
        """The control arm by group: paired rates, excess with interval, bounds, the four cells, broken share beside the
        noise arm's (of the same editor, prompt kind, purifier, category, …), Abbott; with the reason in
        `…_absent` where a figure is absent (docs/definitions.md, section 4)."""

        from .controls import arm_cells

        table = case_table(self._main.cases)
        self._known(columns, table)
        found = []
        for key, rows in self._main.members([table[c].tolist() for c in columns]):
            arm = self._controls_of(rows, columns)
            if arm is not None:
                found.append((key, arm_cells(arm)))
        return _frame(columns, found)

    def _known(self, columns: Sequence[str], table: pd.DataFrame) -> None:
        unknown = [c for c in columns if c not in table.columns]
        if unknown:
            raise UsageError(
                f"by: no column {unknown[0]!r}; this run has {', '.join(map(str, table.columns))} and 'judge'"
            )

    def by_judge(self, *, level: float = 0.95) -> pd.DataFrame:
        """Each judge alone, over the immunized arm."""
        return self._main.by_judge(level=level)

    @property
    def disagreements(self) -> pd.DataFrame:
        """Cases of the immunized arm on which the judges differ, with every judge's answer side by side."""
        import pandas as pd

        rows = []
        for index in self._main.disagreements():
            case = self._main.cases[index]
            row: dict[str, Any] = {
                "case_id": case.case_id, "id": case.id, "method": case.method, "prompt": case.prompt,
                "outcome": self._main.outcomes[index],
            }  # fmt: skip
            for name, answer in zip(self.judges, self._main.answers[index], strict=True):
                if isinstance(answer, NoVerdict | NotAsked):
                    row[name] = f"no verdict ({answer.reason})" if isinstance(answer, NoVerdict) else "not asked"
                else:
                    said = [
                        w
                        for w, yes in (("mismatch", answer.semantic_mismatch), ("degraded", answer.degradation))
                        if yes
                    ]
                    row[name] = " + ".join(said) or "not defeated"
            rows.append(row)
        return pd.DataFrame(rows, columns=["case_id", "id", "method", "prompt", "outcome", *self.judges])

    def costs(self) -> pd.DataFrame:
        """US dollars per judge: new and cached calls, cost, cost per decided case, what was spent on cases that `lazy` would
        have skipped, and what the batch API would have saved. Missing where no price is known."""
        from .costing import cost_table

        return cost_table(self)

    @cached_property
    def no_verdicts(self) -> Counter[str]:
        """Reason → judgements without a verdict, all arms; of the judges of the consensus."""
        return Counter(j.answer.reason for j in self._consensus_judgements if isinstance(j.answer, NoVerdict))

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before quoting a number of this run."""
        found: list[str] = []
        if len(self.judges) == 1:
            found.append("Single judge: this is not the paper's ISR, which is a strict consensus of two.")
        functions = [j["name"] for j in self.lock["judges"] if j.get("identity", {}).get("provider") == "function"]
        if functions:
            found.append(f"{', '.join(functions)}: a Python function, not a multimodal model.")
        if any(j.get("identity", {}).get("provider") == "referee" for j in self.lock["judges"]):
            from .data.miniworld import CAVEAT

            found.append(f"MiniWorld: {CAVEAT}")
        for judge in self.lock["judges"]:
            card = judge.get("probe")
            if card is not None and not isinstance(card, dict):
                raise IntegrityError(
                    f"run.json: the probe of {judge['name']} must be an object, got {type(card).__name__}"
                )
            if card is None and judge.get("identity", {}).get("provider") not in NO_MODELS:
                found.append(
                    f"{judge['name']} was not probed: how often it is right on known answers is unknown (isr probe)."
                )
            elif card is not None and not card.get("passed", False):
                found.append(f"{judge['name']} did not pass its probe; see the judge lock.")
            found += _probe_warnings(judge)
            if len(judge.get("served", {})) > 1:
                found.append(
                    f"{judge['name']} was answered by several model snapshots: {', '.join(sorted(judge['served']))}."
                )
        if over := self.no_verdicts.get("over_budget"):
            found.append(
                f"{over} judgements did not fit under max_cost. The same call with a higher max_cost asks only what is left; a judge "
                "that sends a limit (NAME;max_output_tokens=8000) reserves less per call."
            )
        if not self.lock["with_originals"]:
            found.append("Judged without the originals: not comparable with runs that showed them.")
        if self._main.cases:
            if self._main.image_ids is None:
                found.append(
                    "No image_id and no originals: cases count as independent, which narrows the interval if images repeat."
                )
            share = self.n_undetermined / self.n
            if share > MANY_UNDETERMINED:
                found.append(
                    f"{self.n_undetermined} of {self.n} cases ({share:.0%}) are undetermined; read the bounds."
                )
        found += _pooled(self._main.cases)
        if not self._main.cases:
            found.append("This run holds no immunized rows, so it has no ISR.")
        elif all(c.control is None for c in self._main.cases):
            found.append("No control arm: some of these edits may fail without any protection. Pass controls=.")
        elif (arm := self.control_arm) is not None:
            if arm.paired_control is not None and arm.paired_control > 0.5:
                found.append(
                    f"The control rate is {arm.paired_control:.0%}: this editor mostly fails without any protection."
                )
            if not arm.paired_noise:
                found.append("No seeds are recorded: edit and control may differ by the editor's own noise as well.")
        return found + [str(n) for n in self.lock.get("notes", ())]

    # ------------------------------------------------------------------------------------------------- comparisons

    def comparable_with(self, other: Report) -> list[str]:
        """What makes the two ISRs different measurements; empty when they may be compared."""
        return lock_differences(self.lock, other.lock)

    def picture(self, digest: str) -> bytes | None:
        """PNG of the canonical pixels behind a digest, or None where the run holds no pictures."""
        return self._picture(digest)

    # ------------------------------------------------------------------------------------------------- keeping

    def save(self, folder: str | Path, *, images: bool = True) -> Path:
        """Write the run directory (docs/definitions.md, section 14). Into an existing run of the same judge lock only what
        is new is appended; no row is ever rewritten.

        Args:
            images: keep the pictures (PNG by digest). Without them the run is small, and its numbers are the same.

        Raises:
            UsageError: the folder holds something else, or a run under another judge lock (all differences are listed).
        """
        files = RunFiles.at(folder)
        known_cases: dict[str, CaseRecord] = {}
        known_judgements: dict[tuple[str, str], Judgement] = {}
        if files.folder.exists() and not files.folder.is_dir():
            raise UsageError(f"save: {str(folder)!r} is not a folder; give a run directory to write")
        lock = self.lock
        if files.exists():
            stored = files.read_lock()
            differences = lock_differences(stored, self.lock, served=False)
            if differences:
                raise UsageError(
                    f"save: {str(folder)!r} holds a run that was judged differently:\n  - "
                    + "\n  - ".join(differences)
                    + "\nSave into another folder."
                )
            known_cases = {c.case_id: c for c in files.cases()}
            known_judgements = {(j.case_id, j.judge): j for j in files.judgements()}
            lock = with_shards(lock, [stored, lock])
        elif files.folder.exists() and any(files.folder.iterdir()):
            raise UsageError(f"save: {str(folder)!r} is not empty and holds no run; give a new folder")
        for case in self.case_records:
            if known_cases.get(case.case_id, case) != case:
                raise UsageError(
                    f"save: {str(folder)!r} holds the case {case.case_id} with other columns; save into another folder"
                )
        new = [j for j in self.judgement_records if _news(known_judgements.get((j.case_id, j.judge)), j)]
        standing = {**known_judgements, **{(j.case_id, j.judge): j for j in new}}
        # The lock first: whatever breaks off from here on, the folder is a run that a second save completes.
        files.write_lock(with_served(lock, standing.values()))
        if images:
            for digest in dict.fromkeys(d for c in self.case_records for d in (c.edited, c.original) if d is not None):
                png = None if files.image_path(digest).is_file() else self.picture(digest)
                if png is not None:
                    files.put_image(digest, png)
        files.append("cases.jsonl", [c for c in self.case_records if c.case_id not in known_cases])
        files.append("judgements.jsonl", new)
        return files.folder

    @classmethod
    def load(cls, folder: str | Path, *, consensus: Consensus | None = None) -> Report:
        """Read a run directory, one's own or a stranger's.

        Args:
            consensus: the policy function of a run whose policy was a function of the user's.

        Raises:
            UsageError: no run there. IntegrityError: the content is not what a run holds.
        """
        files = RunFiles.at(folder)
        lock = files.read_lock()
        for key, kind in (("judges", list), ("settings", dict), ("consensus", str), ("rubric", dict)):
            if not isinstance(lock.get(key), kind):
                raise IntegrityError(f"{files.folder}/run.json: {key!r} must be a {kind.__name__}")
        cases = files.cases()
        judgements = files.judgements()
        known = {c.case_id for c in cases}
        stray = next((j.case_id for j in judgements if j.case_id not in known), None)
        if stray is not None:
            raise IntegrityError(
                f"{files.folder}/judgements.jsonl: case {stray} is not in cases.jsonl; if the run was interrupted, "
                "the command that made it, given again, mends it"
            )
        return cls(lock, cases, judgements, consensus=consensus, picture=_verified(files))

    # ------------------------------------------------------------------------------------------------- showing

    def summary(self) -> str:
        """The headline as text: ISR with interval, bounds, band and what is missing."""
        from .reporting.text import summary

        return summary(self)

    def to_latex(self, by: str = "method") -> str:
        """A table in the paper's shape (booktabs): one row per method, ISR on original and unseen prompts."""
        from .reporting.latex import isr_table

        return isr_table(self, by)

    def to_html(self, path: str | Path | None = None, *, assets: bool = False) -> str:
        """One self-contained HTML page (no network); also written to `path` when given.

        Args:
            assets: write the pictures as PNG files into the folder `<name>_pictures` beside the page instead of into it
                (a page embeds 40 MB of pictures at most and lists the other cases without).
        """
        from .reporting.html import render, write

        if path is None:
            if assets:
                raise UsageError("to_html: assets=True writes files beside the page, so it needs a path")
            return render(self)
        return write(self, path, assets=assets).read_text("utf-8")

    def figures(self, folder: str | Path, *, suffix: str = "pdf") -> dict[str, str]:
        """Draw what this run has data for (needs the extra `plots`); name → path, or why a picture is absent."""
        from .reporting.figures import save_figures

        return save_figures(self, folder, suffix=suffix)

    def methods_text(self) -> str:
        """The sentence for a paper's methods section and the BibTeX to cite, made from the judge lock."""
        from .reporting.methods import methods_text

        return methods_text(self)

    def __repr__(self) -> str:
        return f"<isr.Report: {self.summary().splitlines()[0]}>"

    def _repr_html_(self) -> str:
        from .reporting.html import notebook

        return notebook(self)


def _frame(columns: Sequence[str], rows: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> pd.DataFrame:
    """Groups and their figures. Group values stay the objects they are (whole numbers beside a missing one, too)."""
    import pandas as pd

    table = pd.DataFrame([{**dict(zip(columns, key, strict=True)), **cells} for key, cells in rows])
    for position, column in enumerate(columns):
        table[column] = pd.Series([key[position] for key, _ in rows], dtype=object)
    return table


#: Answers that stand for no received reply: they never replace one.
_NOT_RECEIVED = frozenset({"exhausted", "judge_error", "over_budget", "expired", "bad_image"})


def _probe_warnings(judge: Mapping[str, Any]) -> list[str]:
    """What a stored probe measured of a judge beside its accuracy, where it is bad."""
    card = judge.get("probe")
    rows = card.get("rows") if isinstance(card, Mapping) else None
    rows = rows if isinstance(rows, list | tuple) else ()
    shares = {
        r["measure"]: (float(r["value"]), r.get("n"))
        for r in rows
        if isinstance(r, Mapping) and isinstance(r.get("measure"), str) and isinstance(r.get("value"), int | float)
    }
    return [
        f"{judge['name']}: in its probe {what} in {1 - shares[name][0]:.0%} of {shares[name][1]} trials."
        for name, what in _PROBED
        if name in shares and shares[name][0] < PROBE_PASS
    ]


def received(judgement: Judgement) -> bool:
    """Whether the answer rests on a reply that came (a refusal is one)."""
    answer = judgement.answer
    return isinstance(answer, Verdict) or (isinstance(answer, NoVerdict) and answer.reason not in _NOT_RECEIVED)


def _news(stored: Judgement | None, new: Judgement) -> bool:
    """Whether a row is to be appended. Being answered from the cache this time is not news, and neither a skipped judge nor
    a failed call replaces an answer that was received."""
    if stored is None:
        return True
    if received(stored) and not received(new):
        return False
    plain = [
        j.model_copy(update={"calls": tuple(c.model_copy(update={"cached": False}) for c in j.calls)})
        for j in (stored, new)
    ]
    return plain[0] != plain[1]


def _pooled(cases: Sequence[CaseRecord]) -> list[str]:
    """What one figure over all rows mixes: other editors and other purifiers are other questions, not more data."""
    several: dict[str, set[str]] = {
        "editors": {c.editor or "" for c in cases},
        "purifiers": {c.purifier or "none" for c in cases},
        "editors that the perturbations were made on": {
            str(c.tags["source"]) for c in cases if {"source", "step"} <= c.tags.keys()
        },
    }
    told = [f"{len(values)} {what}" for what, values in several.items() if len(values) > 1]
    if not told:
        return []
    return [
        f"The figures above pool {' and '.join(told)}: see each by itself (--by method,editor,purifier; isr tables)."
    ]


def _verified(files: RunFiles) -> Callable[[str], bytes | None]:
    """Pictures of a run directory, each hashed again before it is shown or judged."""

    def picture(digest: str) -> bytes | None:
        from .images import as_image

        png = files.image_bytes(digest)
        if png is None:
            return None
        image = as_image(png, name=str(files.image_path(digest)))
        if image.digest != digest:
            raise IntegrityError(f"{image.name}: its pixels have the digest {image.digest}, not that of its name")
        return image.png()

    return picture
