"""Effect of every attack on MiniWorld: excess over the control arm with intervals, ε curves, and SIFM's reductions decided.

    python benchmarks/bench_attacks_effect.py --plan                        how long it will take here; makes nothing
    python benchmarks/bench_attacks_effect.py                               make and judge: mini-ip2p, 50 pictures, every method
    python benchmarks/bench_attacks_effect.py --make --device cuda          only the pictures and their edits, all 50 at once
    python benchmarks/bench_attacks_effect.py --judge                       only the judging, of what there is; as often as wanted
    python benchmarks/bench_attacks_effect.py --make --methods noise,sifm --epsilons 0.03,0.06 --images 10
    python benchmarks/bench_attacks_effect.py --editor mini-sd3-instruct --images 25

Every method is made at ε 0.03 and at the working ε; noise, end-to-end and SIFM along the whole curve (--epsilons: these ε for
all methods instead). Judging finds the working ε, so the whole run makes, judges, makes what is left, and judges again; --make by
itself takes the working ε from the last --judge, and leaves that part out before there was one.

Making needs an editor, torch and diffusers, and no client package; each arm (a method at an ε) becomes one small file in
out/attacks_effect/<editor>/, and a run that was stopped goes on with the next picture (--limit ends it in time). Judging
needs those files and the referees, runs on the CPU, and may be repeated whenever the referees change.

On the CPU several processes may work in one folder once control is made: OMP_NUM_THREADS=1 each, --make --no-reductions, and --methods
that no other has; then one process without --methods makes the reductions and judges.

Design split, original prompt, both referees, strict consensus; every edit with the same seed on the unprotected picture
(control) and with random signs of the same ε (noise); guidance, steps and the like are the editor's own defaults. Working ε: the
smallest of 0.03, 0.045, 0.06, 0.09, 0.12 at which `end-to-end` (which goes for the edit itself; not SIFM) reaches an excess of 60 points; where
none does, 0.12. It stays open while a smaller one is not judged. 0.03 is always shown beside it. Figures are of 64×64
procedural scenes and trained referees: orderings need not carry over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from attacks_effect_store import Arm, Made, Store

from isr.data import miniworld
from isr.registry import ATTACKS

LONG = True
EPS = (0.03, 0.045, 0.06, 0.09, 0.12)
TARGET_EXCESS = 0.60
LAMBDAS = (0.0, 1e-3, 0.1, 1e3)
REDUCTIONS = ("paper", "mean_sum", "mean_mean")
REDUCTION_IMAGES = 10
#: What decides, first; what costs most, last.
FIRST, LAST = ("noise", "end-to-end", "sifm"), ("semantic", "editshield", "photoguard-diffusion")
CURVE = FIRST  # at every ε
PROBE, PROBED = 3, 4  # iterations of a timing (beside one of one iteration), and pictures of it
CONTROL = Arm("control")
COUNTS = ("n", "n_pairs", "ok_ok", "broken", "mended", "defeated_defeated", "pairs_undetermined", "control_missing")
ROOT = Path(__file__).resolve().parent.parent


def arm_of(attack: str, eps: float, label: str = "", **settings: Any) -> Arm:
    """α grows with ε (ε 0.03 ↔ 1/255), so that every ε is crossed in as many steps."""
    if attack == "noise":
        return Arm(attack, eps, {"kind": "sign", "eps": eps})
    own: dict[str, Any] = {"eps": eps, "alpha": eps / 0.03 / 255}
    if attack in ("editshield", "end-to-end") or settings.get("terms") == "dist":
        own["start_radius"] = eps / 0.03 / 255
    if attack in ("photoguard-diffusion", "end-to-end"):
        own["recompute"] = False  # the same gradients, sooner
    return Arm(attack, eps, {**own, **settings}, label)


def method_names() -> list[str]:
    names = [p.name for p in ATTACKS.list() if p.name not in (*FIRST, *LAST)]
    return [*FIRST, *names, *LAST]


def arms_of(options: argparse.Namespace, working: float | None) -> list[Arm]:
    """Every method at the ε asked for; where none are, the curve of some, then the rest at 0.03, then at the working ε."""

    def at(name: str, eps: float) -> Arm:
        return arm_of(name, eps, **({} if name == "noise" else {"iterations": options.iterations}))

    if options.epsilons:
        return [at(name, eps) for name in options.methods for eps in options.epsilons]
    rest = [name for name in options.methods if name not in CURVE]
    arms = [at(name, eps) for name in CURVE if name in options.methods for eps in EPS]
    arms += [at(name, EPS[0]) for name in rest]
    if working is not None and working != EPS[0]:
        arms += [at(name, working) for name in rest]
    return arms


def judged_working_eps(folder: Path, images: int) -> float | None:
    """The working ε that the last judging of as many pictures found."""
    path = folder / "results.json"
    if not path.is_file() or (found := read(path))["n_images"] != images:
        return None
    eps: float | None = found["working_eps"]
    return eps


def reduction_arms(iterations: int) -> dict[tuple[str, float | str], Arm]:
    """Docs of SIFM, "reduction": the settings whose pattern over λ is compared with the paper's Tables VI and VII."""
    arms: dict[tuple[str, float | str], Arm] = {
        (red, lam): arm_of("sifm", 0.03, f"sifm-{red}-{lam:g}", iterations=iterations, reduction=red, lam=lam)
        for red in REDUCTIONS for lam in LAMBDAS
    }  # fmt: skip
    arms["paper", "norm"] = arm_of("sifm", 0.03, "sifm-norm-only", iterations=iterations, terms="norm")
    arms["paper", "dist"] = arm_of("sifm", 0.03, "sifm-dist-only", iterations=iterations, terms="dist")
    return arms


# ------------------------------------------------------------------------------------------------------------ making


class Maker:
    """Protects and edits, arm by arm. Deadline: the monotonic second after which no further arm or batch is begun."""

    def __init__(self, editor: Any, world: Any, store: Store, *, batch: int, rows: int, deadline: float) -> None:
        self.editor, self.store, self.batch, self.rows, self.deadline = editor, store, batch, rows, deadline
        self.items = {item.image_id: (k, item) for k, item in enumerate(world)}

    def make(self, arm: Arm, first: int | None = None) -> bool:
        """The missing pictures of an arm (of the first `first` ones only); False where time ran out."""
        from isr.immunization import immunize

        missing = [i for i in self.store.missing(arm) if first is None or self.items[i][0] < first]
        for start in range(0, len(missing), self.batch):
            if time.monotonic() > self.deadline:
                return False
            ids = missing[start : start + self.batch]
            items = [self.items[i][1] for i in ids]
            prompts, seeds = [item.prompt for item in items], [1000 + self.items[i][0] for i in ids]
            begun = time.perf_counter()
            protected: Sequence[Any] = [item.image for item in items]
            if arm.attack != "control":
                more = {} if arm.attack == "noise" else {"batch_size": self.batch, "rows": self.rows}
                protected = immunize(
                    protected, prompts, attack=arm.attack, editor=self.editor, seeds=seeds, **more, **arm.settings
                )
            between = time.perf_counter()
            edits = self.editor.edit(list(protected), prompts, seeds=seeds)
            ended = time.perf_counter()
            self.store.add(
                arm, ids, list(protected), edits, seconds_protect=between - begun, seconds_edit=ended - between,
                about={"seeds": "1000 + position", "batch": self.batch},
            )  # fmt: skip
            say(
                f"{arm.name}: {len(ids)} of {len(missing)}, {between - begun:.1f} s protecting, {ended - between:.1f} s editing"
            )
        return True

    def reductions(self, arms: Mapping[tuple[str, float | str], Arm], first: int) -> list[dict[str, Any]]:
        """Sign agreement with λ = 0, mean |φ| and rms Δφ (relative to clean), and the PSNR of the edit, over `first` pictures."""
        from isr.attacks.pgd import one_step, to_tensor
        from isr.attacks.sifm import SIFM

        ids = [i for i, (k, _) in self.items.items() if k < first]
        made = {key: self.store.load(arm) for key, arm in arms.items()}
        control = self.store.load(CONTROL)
        clean = to_tensor([self.items[i][1].image for i in ids], self.editor.device)
        prompts, seeds = [self.items[i][1].prompt for i in ids], [1000 + self.items[i][0] for i in ids]

        def delta_of(found: Made) -> Any:
            return to_tensor([found.picture("protected", i) for i in ids], self.editor.device) - clean

        def size(delta: Any, terms: Any) -> float:
            at = one_step(
                SIFM(terms=terms, reduction="relative"), self.editor, clean, prompts, delta=delta, seeds=seeds
            )
            return float(at.losses.mean())

        base = {red: delta_of(needed(made[red, 0.0])).sign() for red in REDUCTIONS}
        rows = []
        for (red, lam), arm in arms.items():
            found, delta = needed(made[red, lam]), delta_of(needed(made[red, lam]))
            rows.append(
                {
                    "setting": arm.name, "reduction": red, "lambda": lam, "n": len(ids),
                    "same_sign_as_lambda_0": float((delta.sign() == base[red]).float().mean()),
                    "mean_abs_phi_over_clean": size(delta, "norm"),
                    "rms_change_over_clean": math.sqrt(max(0.0, -size(delta, "dist"))),
                    "psnr_edit_dB": mean(edit_psnr(found, needed(control), i) for i in ids),
                }
            )  # fmt: skip
        return rows


def make(options: argparse.Namespace, editor: Any = None) -> bool:
    """Everything asked for that is not there yet; False where time ran out."""
    from isr.making import make_editor

    begun = time.monotonic()
    world = miniworld(n=options.images, split="design")
    store = store_of(options, world)
    made = editor or make_editor(options.editor, device=options.device, batch_size=options.batch or options.images)
    on_cpu = made.device.type == "cpu"
    batch = options.batch or (min(10, options.images) if on_cpu else options.images)
    mark_editor(store.folder, made)
    maker = Maker(
        made, world, store, batch=batch, rows=options.rows or (64 if on_cpu else 1024),
        deadline=begun + options.limit if options.limit else math.inf,
    )  # fmt: skip
    working = options.working or judged_working_eps(store.folder, options.images)
    done = maker.make(CONTROL)
    if options.reductions and done:
        several = reduction_arms(options.iterations)
        first = min(REDUCTION_IMAGES, options.images)
        done = all(maker.make(arm, first) for arm in several.values())
        if done:
            write(store.folder / "reductions.json", maker.reductions(several, first))
    done = done and all(maker.make(arm) for arm in arms_of(options, working))
    if done and working is None and not options.epsilons and set(options.methods) - set(CURVE):
        say("the working ε is not known yet; after --judge, --make makes the other methods at it")
    say(f"{'all made' if done else 'time is up; run again to go on'}, {time.monotonic() - begun:.0f} s")
    return done


def mark_editor(folder: Path, editor: Any) -> None:
    """editor.json: what made the edits. Another editor or other settings in the same folder stop the run."""
    recorded = json.loads(json.dumps({"name": editor.name, **editor.settings()}, sort_keys=True, default=str))
    loose = ("versions", "batch_size", "source")  # decide nothing, or differ between machines
    deciding = json.dumps({k: v for k, v in recorded.items() if k not in loose}, sort_keys=True)
    mark = hashlib.sha256(deciding.encode()).hexdigest()[:12]
    path = folder / "editor.json"
    if path.is_file() and json.loads(path.read_text("utf-8"))["mark"] != mark:
        raise SystemExit(f"{folder} holds runs of another editor, other weights or other settings; give another --out")
    write(path, {"mark": mark, "device": str(editor.device), "editor": recorded})


# ----------------------------------------------------------------------------------------------------------- planning


def plan(options: argparse.Namespace, editor: Any = None) -> dict[str, Any]:
    """What is missing, and the seconds that making it takes here: of earlier arms of the method, else timed now on a few pictures.

    On the CPU timed on one thread, as a run with OMP_NUM_THREADS=1 would take: threads that wait for each other spin, which a busy
    machine would count as work. `seconds` are of the clock, with whatever else runs; `seconds_alone` are CPU seconds, which is what the
    clock would show if the thread had a core to itself. What was `measured` "earlier" is the clock of that run, in both.
    """
    from isr.making import make_editor

    world = miniworld(n=options.images, split="design")
    store = store_of(options, world)
    made = editor or make_editor(options.editor, device=options.device, batch_size=options.batch or options.images)
    on_cpu = made.device.type == "cpu"
    count = min(PROBED, options.images) if on_cpu else options.batch or options.images
    timing = Timing(made, world, store, count=count, rows=options.rows or (64 if on_cpu else 1024))
    working = options.working or judged_working_eps(store.folder, options.images)
    wanted = [(CONTROL, options.images, CONTROL.name)]
    wanted += [(arm, options.images, arm.name) for arm in arms_of(options, working)]
    if working is None and not options.epsilons:
        others = [name for name in options.methods if name not in CURVE]
        wanted += [(arm_of(n, EPS[-1], iterations=options.iterations), options.images, f"{n}@working") for n in others]
    if options.reductions:
        first = min(REDUCTION_IMAGES, options.images)
        wanted += [(arm, first, arm.name) for arm in reduction_arms(options.iterations).values()]
    rows: list[dict[str, Any]] = []
    for arm, count, name in wanted:
        lacking = set(store.originals if name.endswith("@working") else store.missing(arm))
        missing = sum(i in lacking for i in list(store.originals)[:count])
        each = timing.of(arm) if missing else Cost()
        busy, alone = missing * each.clock, missing * each.alone
        rows.append(
            {"arm": name, "missing": missing, "seconds": busy, "seconds_alone": alone, "measured": each.measured}
        )
        say(f"{name}: {missing} pictures, {busy:.0f} s ({alone:.0f} s alone)")
    busy, alone = (sum(row[key] for row in rows) for key in ("seconds", "seconds_alone"))
    where = f"{made.device.type}, 1 thread" if on_cpu else made.device.type
    say(
        f"{sum(row['missing'] for row in rows)} protections and edits on {where}: {alone / 3600:.1f} hours undisturbed, "
        f"{busy / 3600:.1f} as busy as this machine is now; judging comes on top"
        + ("; to use more cores, see the top of this file" if on_cpu else "")
    )
    return {"editor": made.name, "where": where, "seconds": busy, "seconds_alone": alone, "arms": rows}


class Cost(NamedTuple):
    """Seconds per picture: by the clock, and of CPU time on one thread (on a GPU and of earlier runs: the clock). `measured`:
    "earlier" or "now"."""

    clock: float = 0.0
    alone: float = 0.0
    measured: str = ""

    def plus(self, other: Cost, times: float = 1.0) -> Cost:
        return Cost(
            max(0.0, self.clock + times * other.clock), max(0.0, self.alone + times * other.alone), self.measured
        )


class Timing:
    """What a picture of an arm costs, protected and edited."""

    def __init__(self, editor: Any, world: Any, store: Store, *, count: int, rows: int) -> None:
        self.editor, self.items, self.store, self.rows = editor, list(world)[:count], store, rows
        self.probed: dict[str, Cost] = {}
        self.earlier: dict[tuple[str, Any], Cost] = {}
        self.edit: Cost | None = None
        for arm in store.arms():
            found = needed(store.load(arm))
            if found.seconds_edit is not None:
                self.edit = Cost(found.seconds_edit, found.seconds_edit, "earlier")
            if found.seconds_protect is not None:
                cost = Cost(found.seconds_protect, found.seconds_protect, "earlier")
                self.earlier[arm.attack, arm.settings.get("iterations")] = cost

    def of(self, arm: Arm) -> Cost:
        if self.edit is None:
            self._edit()  # whatever is loaded or compiled at the first use
            self.edit = self._clocked(self._edit)
        if arm.attack == "control":
            return self.edit
        held = self.earlier.get((arm.attack, arm.settings.get("iterations")))
        if held is None:
            held = self.probed[arm.attack] = self.probed.get(arm.attack) or self._protect(arm)
        return held.plus(self.edit)

    def _clocked(self, action: Callable[[], object]) -> Cost:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            clock, cpu = time.perf_counter(), time.process_time()
            action()
            clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        finally:
            torch.set_num_threads(threads)
        alone = cpu if self.editor.device.type == "cpu" else clock
        return Cost(clock / len(self.items), min(clock, alone) / len(self.items), "now")

    def _edit(self) -> None:
        prompts = [i.prompt for i in self.items]
        self.editor.edit([i.image for i in self.items], prompts, seeds=range(len(self.items)))

    def _protect(self, arm: Arm) -> Cost:
        """At 1 and at PROBE iterations: what each further one takes, and what comes before the first."""
        if arm.attack == "noise":
            return self._clocked(partial(self._run, arm, {}))
        one, several = (self._clocked(partial(self._run, arm, {"iterations": n})) for n in (1, PROBE))
        further = several.plus(one, -1)
        return one.plus(further, (int(arm.settings["iterations"]) - 1) / (PROBE - 1))

    def _run(self, arm: Arm, changes: Mapping[str, Any]) -> None:
        from isr.immunization import immunize

        more = {} if arm.attack == "noise" else {"batch_size": len(self.items), "rows": self.rows}
        immunize(
            [i.image for i in self.items], [i.prompt for i in self.items], attack=arm.attack, editor=self.editor,
            seeds=list(range(len(self.items))), **more, **{**arm.settings, **changes},
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ judging


def judge(options: argparse.Namespace, judges: Any = None) -> dict[str, Any]:
    """A table of every arm that is complete, the working ε, and the reductions where they were made."""
    import isr

    world = miniworld(n=options.images, split="design")
    store = store_of(options, world)
    panel = judges or options.judges
    editor = json.loads((store.folder / "editor.json").read_text("utf-8"))
    arms = [a for a in store.arms() if a.attack != "control" and not a.label]
    made = {a.name: needed(store.load(a)) for a in [CONTROL, *arms]}
    control = made[CONTROL.name]
    complete = [a for a in arms if not store.missing(a)]
    rows = []
    for arm in complete:
        noise = Arm("noise", arm.eps)
        sides = [(arm, "immunized")]
        if arm.attack != "noise" and any(a.name == noise.name for a in complete):
            sides.append((noise, "noise"))
        both = [(item, k, side, which) for side, which in sides for k, item in enumerate(world)]
        report = isr.evaluate(
            [made[side.name].picture("edits", item.image_id) for item, _, side, _ in both],
            [item.prompt for item, *_ in both],
            originals=[item.image for item, *_ in both],
            controls=[control.picture("edits", item.image_id) for item, *_ in both],
            columns={
                "image_id": [item.image_id for item, *_ in both],
                "method": [side.name for *_, side, _ in both],
                "editor": [editor["editor"]["name"]] * len(both),
                "prompt_kind": ["original"] * len(both),
                "category": [item.category for item, *_ in both],
                "seed": [1000 + k for _, k, *_ in both],
                "arm": [which for *_, which in both],
            },
            judges=panel, cache=store.folder / "replies", progress=False,
        )  # fmt: skip
        (cells,) = report.control_by("method").to_dict("records")
        cells.pop("method")
        rows.append({**row_of(arm, made[arm.name], control, store), **{k: plain(k, v) for k, v in cells.items()}})
        say(f"{arm.name}: excess {rows[-1]['excess']}, ISR {rows[-1]['isr']}")
    working, reached = working_eps(rows)
    folder = store.folder
    result: dict[str, Any] = {
        "editor": editor["editor"]["name"], "device": editor["device"], "n_images": options.images, "split": "design",
        "prompt_kind": "original", "judges": [str(j) for j in panel] if isinstance(panel, list) else str(panel),
        "consensus": "strict", "working_eps": working, "working_eps_reached_target": reached, "working_eps_given": options.working,
        "incomplete": [a.name for a in arms if a not in complete], "arms": rows,
        "reductions": read(folder / "reductions.json") if (folder / "reductions.json").is_file() else [],
    }  # fmt: skip
    write(folder / "results.json", result)
    return result


#: Of a row: what RESULTS.md shows of it. Excess and broken share are paired with the control arm; all intervals are 95 %.
SHOWN = (
    "arm", "n", "isr", "excess", "excess_low", "excess_high", "bound_low", "bound_high", "broken", "mended", "noise_broken_share",
    "levels_max", "psnr_protected_dB", "psnr_edit_dB", "seconds_per_image",
)  # fmt: skip


def shown(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result as one page has it: fewer columns, and how long making took in all (by the clock, all processes together)."""
    seconds = sum(row["n"] * (row["seconds_per_image"] + row["seconds_per_edit"]) for row in result["arms"])
    paired = sorted({row["n_pairs"] for row in result["arms"]})
    return {
        **{k: v for k, v in result.items() if k not in ("arms", "reductions")},
        "control_isr": result["arms"][0]["paired_control"] if result["arms"] else None,
        "n_pairs": paired[0] if len(paired) == 1 else paired,
        "seconds_of_making": round(seconds),
        "arms": [{k: row[k] for k in SHOWN} for row in result["arms"]],
        "reductions": result["reductions"],
    }


def row_of(arm: Arm, made: Made, control: Made, store: Store) -> dict[str, Any]:
    """What was measured on an arm's pictures, before any judge."""
    changes = [made.protected[i].astype(np.int64) - store.originals[i] for i in store.originals]
    squares = [float(np.square(c).mean()) / 255**2 for c in changes]
    return {
        "arm": arm.name, "attack": arm.attack, "eps": arm.eps, "iterations": arm.settings.get("iterations"),
        "levels_max": max(int(np.abs(c).max()) for c in changes),
        "psnr_protected_dB": mean(10 * math.log10(1 / s) for s in squares if s),
        "psnr_edit_dB": mean(edit_psnr(made, control, i) for i in store.originals),
        "seconds_per_image": made.seconds_protect, "seconds_per_edit": made.seconds_edit,
    }  # fmt: skip


def working_eps(rows: Sequence[Mapping[str, Any]]) -> tuple[float | None, bool]:
    """The smallest of EPS at which end-to-end reaches the target, else the largest; and whether any does.

    None while it is open: nothing is the smallest as long as a smaller one has no figure.
    """
    curve = {row["eps"]: row["excess"] for row in rows if row["attack"] == "end-to-end"}
    for eps in EPS:
        excess = curve.get(eps)
        if excess is None:
            return None, False
        if excess >= TARGET_EXCESS - 1e-9:  # shares of 50 pictures: 0.94 − 0.34 is a little less than 0.6
            return eps, True
    return EPS[-1], False


# ------------------------------------------------------------------------------------------------------------- shared


def store_of(options: argparse.Namespace, world: Any) -> Store:
    name = Path(options.editor).name
    folder = options.out or ROOT / "out" / "attacks_effect" / name
    return Store(folder, {item.image_id: np.asarray(item.image) for item in world})


def edit_psnr(a: Made, b: Made, image_id: str) -> float:
    """Between two edits of one picture, in dB, capped at 60 (identical edits)."""
    change = a.edits[image_id].astype(np.int64) - b.edits[image_id]
    square = float(np.square(change).mean()) / 255**2
    return 60.0 if square == 0 else min(60.0, 10 * math.log10(1 / square))


def mean(values: Any) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def needed(made: Made | None) -> Made:
    if made is None:
        raise SystemExit("an arm is missing; run --make first")
    return made


def plain(name: str, value: Any) -> Any:
    """A table's cell as JSON has it: counts whole, NaN as null."""
    if value is None or isinstance(value, str | bool):
        return value
    number = float(value)
    return None if math.isnan(number) else int(number) if name in COUNTS else number


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value, indent=1), "utf-8")
    beside.replace(path)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--make", action="store_true", help="make pictures and edits (default: make, then judge)")
    parser.add_argument("--judge", action="store_true", help="judge what was made, and print the results as JSON")
    parser.add_argument("--plan", action="store_true", help="only print how long making takes here, as JSON at the end")
    parser.add_argument("--editor", default="mini-ip2p", help="a registered name or a folder")
    parser.add_argument("--device", help="cpu, cuda, …; default: CUDA where there is one")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--methods", help="comma-separated; default: every registered attack")
    parser.add_argument(
        "--epsilons",
        help="comma-separated, on [0, 1] pixels, for every method; default: 0.03 and the working ε, and "
        f"{', '.join(map(str, EPS))} for {', '.join(CURVE)}",
    )
    parser.add_argument(
        "--working", type=float, help="the working ε, where another editor's run chose it; default: what --judge finds"
    )
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--no-reductions", dest="reductions", action="store_false", help="leave SIFM's reductions out")
    parser.add_argument("--batch", type=int, help="pictures at once; default: 10 on the CPU, else all")
    parser.add_argument("--rows", type=int, help="denoiser rows at once; default: 64 on the CPU, else 1024")
    parser.add_argument("--limit", type=float, help="seconds after which no further batch is begun; run again to go on")
    parser.add_argument("--judges", default="referee:a,referee:b", help="comma-separated")
    parser.add_argument("--out", type=Path, help="default: out/attacks_effect/<editor>")
    options = parser.parse_args(argv)
    options.methods = method_names() if options.methods is None else options.methods.split(",")
    if options.methods == [""]:
        options.methods = []
    options.epsilons = [float(e) for e in options.epsilons.split(",")] if options.epsilons else []
    options.judges = options.judges.split(",")
    for name in options.methods:
        ATTACKS.resolve(name)
    if options.images < 1:
        parser.error("--images must be at least 1")
    return options


def main(argv: Sequence[str] | None = None, *, editor: Any = None, judges: Any = None) -> int:
    """`editor` and `judges` replace the named ones (for trying the script out)."""
    options = parse(argv)
    if options.plan:
        print(json.dumps(plan(options, editor)))
        return 0
    both = options.make == options.judge
    if (options.make or both) and not make(options, editor):
        return 3
    if both and not options.epsilons and options.working is None:
        judge(options, judges)  # finds the working ε, at which the rest is made
        if not make(options, editor):
            return 3
    if options.judge or both:
        print(json.dumps(shown(judge(options, judges))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
