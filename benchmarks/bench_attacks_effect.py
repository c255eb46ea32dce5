"""Effect of every attack on MiniWorld: excess over the control arm with intervals, ε curves, and SIFM's reductions decided.

    python benchmarks/bench_attacks_effect.py                        all three parts on mini-ip2p, 50 pictures
    python benchmarks/bench_attacks_effect.py --part curve           only the ε curves and the working ε
    python benchmarks/bench_attacks_effect.py --editor mini-sd3-instruct --n 25
    python benchmarks/bench_attacks_effect.py --only 0/2 &           the even pictures; start 1/2 beside it, then run without

Design split, original prompt, both referees, strict consensus; every edit with the same seed on the unprotected picture
(control) and with random signs of the same ε (noise). Each protected picture and each edit is a file of its own, so a run
that was stopped goes on where it was; judging happens at the end, from the files. Working ε: the smallest of the curve at
which `end-to-end` (an upper bound, not SIFM) reaches an excess of 60 points, else 0.12; 0.03 is always shown beside it.
Figures are of 64×64 procedural scenes and trained referees: orderings need not carry over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

import isr
from isr.data import miniworld
from isr.immunization import make_editor
from isr.perturbation import measure
from isr.registry import ATTACKS

LONG = True
EPS = (0.03, 0.045, 0.06, 0.09, 0.12)
TARGET_EXCESS = 0.60
LAMBDAS = (0.0, 1e-3, 0.1, 1e3)
REDUCTIONS = ("paper", "mean_sum", "mean_mean")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Arm:
    """One way to protect: a registered attack with settings. `control` has none."""

    attack: str
    eps: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        base = self.label or self.attack
        return base if self.attack == "control" else f"{base}@{self.eps:g}"


def all_settings(arm: Arm) -> dict[str, Any]:
    """α grows with ε (ε 0.03 ↔ 1/255), so that every ε is crossed in as many steps."""
    if arm.attack == "noise":
        return {"kind": "sign", "eps": arm.eps, **arm.settings}
    own = {"eps": arm.eps, "alpha": arm.eps / 0.03 / 255}
    if arm.attack in ("editshield", "end-to-end") or arm.settings.get("terms") == "dist":
        own["start_radius"] = arm.eps / 0.03 / 255
    return {**own, **arm.settings}


class Bench:
    """Files of one editor's runs: protected/<arm>/<image>.png and edits/<arm>/<image>.png."""

    def __init__(self, editor: Any, out: Path, n: int, *, only: tuple[int, int] = (0, 1), batch: int = 10) -> None:
        self.editor = make_editor(editor)
        self.out, self.batch = out, batch
        self.world = miniworld(n=n, split="design")
        self.members = [i for i in range(n) if i % only[1] == only[0]]
        # Shards that run side by side must not clean up after one another.
        self.unfinished = out / f"unfinished-{only[0]}-{only[1]}"
        recorded = json.dumps({"name": self.editor.name, **self.editor.settings()}, sort_keys=True, default=str)
        self.mark = hashlib.sha256(recorded.encode()).hexdigest()[:12]
        mark = out / "editor.json"
        if mark.is_file() and json.loads(mark.read_text("utf-8"))["mark"] != self.mark:
            raise SystemExit(f"{out} holds runs of another editor or other settings; give another --out")
        out.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps({"mark": self.mark, "editor": json.loads(recorded)}, indent=1), "utf-8")

    def path(self, kind: str, arm: Arm, i: int) -> Path:
        return self.out / kind / arm.name / f"{self.world[i].image_id}.png"

    def chunks(self, missing: Sequence[int]) -> Iterator[list[int]]:
        for start in range(0, len(missing), self.batch):
            yield list(missing[start : start + self.batch])

    def seed(self, i: int) -> int:
        return 1000 + i

    def protect(self, arm: Arm) -> None:
        """Every picture of this shard, batch by batch; seconds are kept beside the pictures."""
        missing = [i for i in self.members if not self.path("protected", arm, i).is_file()]
        for chunk in self.chunks(missing):
            images = [self.world[i].image for i in chunk]
            started = time.perf_counter()
            if arm.attack == "control":
                done: Sequence[PIL.Image.Image] = images
            else:
                more = {} if arm.attack == "noise" else {"batch_size": self.batch, "rows": 64}
                done = isr.immunize(
                    images, [self.world[i].prompt for i in chunk], attack=arm.attack, editor=self.editor,
                    seeds=[self.seed(i) for i in chunk], checkpoint=self.unfinished, **more, **all_settings(arm),
                )  # fmt: skip
            seconds = (time.perf_counter() - started) / len(chunk)
            for i, image in zip(chunk, done, strict=True):
                save(image, self.path("protected", arm, i))
            note(self.out / "seconds.jsonl", {"arm": arm.name, "n": len(chunk), "seconds_per_image": seconds})
            for left in (self.unfinished).glob("*"):
                left.unlink()
            say(f"{arm.name}: {chunk[-1] + 1}/{len(self.world)} protected, {seconds:.1f} s per picture")

    def edit(self, arm: Arm) -> None:
        missing = [i for i in self.members if not self.path("edits", arm, i).is_file()]
        for chunk in self.chunks(missing):
            images = [PIL.Image.open(self.path("protected", arm, i)).convert("RGB") for i in chunk]
            edits = self.editor.edit(images, [self.world[i].prompt for i in chunk], seeds=[self.seed(i) for i in chunk])
            for i, image in zip(chunk, edits, strict=True):
                save(image, self.path("edits", arm, i))

    def make(self, arms: Sequence[Arm]) -> None:
        for arm in arms:
            self.protect(arm)
            self.edit(arm)

    def judge(self, arms: Sequence[Arm], judges: Any) -> list[dict[str, Any]]:
        """One row per arm: excess with interval beside ISR, control, cells, and what was measured on the pictures."""
        control = Arm("control")
        every, rows = range(len(self.world)), []
        for arm in arms:
            pairs = [(i, self.path("edits", arm, i)) for i in every]
            noise = Arm("noise", arm.eps)
            extra = [] if arm.attack == "noise" else [(i, self.path("edits", noise, i)) for i in every]
            both = pairs + extra
            report = isr.evaluate(
                [p for _, p in both],
                [self.world[i].prompt for i, _ in both],
                originals=[self.world[i].image for i, _ in both],
                controls=[self.path("edits", control, i) for i, _ in both],
                columns={
                    "image_id": [self.world[i].image_id for i, _ in both],
                    "method": [arm.name] * len(pairs) + [noise.name] * len(extra),
                    "editor": [self.editor.name] * len(both),
                    "prompt_kind": ["original"] * len(both),
                    "category": [self.world[i].category for i, _ in both],
                    "seed": [self.seed(i) for i, _ in both],
                    "arm": ["immunized"] * len(pairs) + ["noise"] * len(extra),
                },
                judges=judges, cache=self.out / "replies", progress=False,
            )  # fmt: skip
            (cells,) = report.control_by("method").to_dict("records")
            rates = report.by("method").to_dict("records")[0]
            found = [
                measure(self.world[i].image, PIL.Image.open(self.path("protected", arm, i)).convert("RGB"))
                for i in every
            ]
            rows.append(
                {
                    **{k: plain(v) for k, v in cells.items()},
                    "method": arm.name,
                    "mismatch_rate": plain(rates.get("mismatch_rate")),
                    "degradation_rate": plain(rates.get("degradation_rate")),
                    "levels_max": max(f.levels for f in found),
                    "psnr_protected_dB": float(np.mean([f.psnr for f in found if math.isfinite(f.psnr)] or [math.nan])),
                    "psnr_edit_dB": float(np.mean([self.edit_psnr(arm, i) for i in every])),
                    "seconds_per_image": self.seconds(arm),
                }
            )  # fmt: skip
            say(f"{arm.name}: excess {rows[-1]['excess']}, ISR {rows[-1]['isr']}")
        return rows

    def edit_psnr(self, arm: Arm, i: int) -> float:
        """PSNR between the edit of the protected picture and that of the original, capped at 60 dB (identical edits)."""
        a, b = (PIL.Image.open(self.path("edits", x, i)).convert("RGB") for x in (arm, Arm("control")))
        return min(60.0, measure(a, b).psnr)

    def seconds(self, arm: Arm) -> float | None:
        file = self.out / "seconds.jsonl"
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []
        own = [r for r in rows if r["arm"] == arm.name]
        return sum(r["n"] * r["seconds_per_image"] for r in own) / sum(r["n"] for r in own) if own else None


def reductions(bench: Bench, n: int, short: Mapping[str, Any]) -> list[dict[str, Any]]:
    """attacks.md 13.4: which reduction of SIFM behaves like the paper's Tables VI and VII. Per setting, over n pictures:
    sign agreement with λ = 0, mean |φ| and rms Δφ (relative to clean), and the PSNR of the edit."""
    from isr.attacks.pgd import one_step, to_tensor
    from isr.attacks.sifm import SIFM

    arms = {
        (red, lam): Arm("sifm", 0.03, {**short, "reduction": red, "lam": lam}, f"sifm-{red}-{lam:g}") for red in REDUCTIONS for lam in LAMBDAS
    }  # fmt: skip
    arms[("paper", "norm")] = Arm("sifm", 0.03, {**short, "terms": "norm"}, "sifm-norm-only")
    arms[("paper", "dist")] = Arm("sifm", 0.03, {**short, "terms": "dist"}, "sifm-dist-only")
    bench.members = [i for i in bench.members if i < n]
    bench.make([Arm("control"), *arms.values()])
    if any(not bench.path("edits", arm, i).is_file() for arm in arms.values() for i in range(n)):
        return []
    rows: list[dict[str, Any]] = []
    clean = to_tensor([bench.world[i].image for i in range(n)])
    prompts, seeds = [bench.world[i].prompt for i in range(n)], [bench.seed(i) for i in range(n)]

    def terms(delta: Any, which: str) -> float:
        objective = SIFM(terms="norm" if which == "norm" else "dist", reduction="relative")
        total = 0.0
        for i in range(n):
            at = one_step(
                objective,
                bench.editor,
                clean[i : i + 1],
                prompts[i : i + 1],
                delta=delta[i : i + 1],
                seeds=seeds[i : i + 1],
            )
            total += float(at.losses)
        return total / n

    def delta_of(arm: Arm) -> Any:
        return to_tensor([PIL.Image.open(bench.path("protected", arm, i)).convert("RGB") for i in range(n)]) - clean

    base = {red: delta_of(arms[(red, 0.0)]) for red in REDUCTIONS}
    for (red, lam), arm in arms.items():
        delta = delta_of(arm)
        rows.append(
            {
                "reduction": red, "lambda": lam, "n": n,
                "same_sign_as_lambda_0": float((delta.sign() == base[red].sign()).float().mean()),
                "mean_abs_phi_over_clean": terms(delta, "norm"),
                "rms_change_over_clean": math.sqrt(max(0.0, -terms(delta, "dist"))),
                "psnr_edit_dB": float(np.mean([bench.edit_psnr(arm, i) for i in range(n)])),
            }
        )  # fmt: skip
    return rows


def save(image: PIL.Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    image.save(beside, format="PNG")
    beside.replace(path)


def note(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def plain(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    number = float(value)
    return None if math.isnan(number) else int(number) if number.is_integer() and abs(number) > 1 else number


def working_eps(rows: Sequence[Mapping[str, Any]]) -> tuple[float, bool]:
    """The smallest ε at which end-to-end reaches the target, and whether any does."""
    for eps in EPS:
        for row in rows:
            if row["method"] == f"end-to-end@{eps:g}" and row["excess"] is not None and row["excess"] >= TARGET_EXCESS:
                return eps, True
    return EPS[-1], False


def main(argv: Sequence[str] | None = None, *, editor: Any = None, judges: Any = None) -> int:
    """`editor` and `judges` replace the named ones (for trying the script out)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--editor", default="mini-ip2p")
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--part", choices=("all", "curve", "methods", "reductions"), default="all")
    parser.add_argument("--out", type=Path, help="default: out/attacks_effect/<editor>")
    parser.add_argument(
        "--only", default="0/1", metavar="I/K", help="make only every K-th picture from the I-th on; no judging"
    )
    parser.add_argument("--iterations", type=int, help="another number of iterations than the presets' 100")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--judge", action="append", help="default: referee:a and referee:b")
    options = parser.parse_args(argv)
    index, count = (int(k) for k in options.only.split("/"))
    name = Path(options.editor).name
    bench = Bench(
        editor or options.editor,
        options.out or ROOT / "out" / "attacks_effect" / name,
        options.n,
        only=(index, count),
        batch=options.batch,
    )
    panel = judges or options.judge or ["referee:a", "referee:b"]
    short = {} if options.iterations is None else {"iterations": options.iterations}
    result: dict[str, Any] = {
        "editor": bench.editor.name, "n_images": options.n, "split": "design", "prompt_kind": "original", "iterations": options.iterations or 100,
        "judges": [str(j) for j in panel] if isinstance(panel, list) else str(panel), "consensus": "strict",
    }  # fmt: skip

    def arm(attack: str, eps: float, **settings: Any) -> Arm:
        return Arm(attack, eps, {} if attack == "noise" else {**short, **settings})

    partial = count > 1
    if options.part in ("all", "curve", "methods"):
        curve = [arm(a, e) for a in ("noise", "sifm", "end-to-end") for e in EPS]
        bench.make([Arm("control"), *curve])
        if not partial:
            result["curve"] = bench.judge(curve, panel)
            result["working_eps"], result["working_eps_reached_target"] = working_eps(result["curve"])
            say(f"working ε {result['working_eps']}, target reached: {result['working_eps_reached_target']}")
    if options.part in ("all", "methods"):
        # A partial run cannot judge yet, so it makes 0.03 only; the working ε is made in the run that judges.
        chosen = [EPS[0]] if partial else sorted({EPS[0], result["working_eps"]})
        names = [p.name for p in ATTACKS.list() if p.name not in ("noise", "end-to-end", "sifm")]
        arms = [arm(a, e) for e in chosen for a in names]
        bench.make(arms)
        if not partial:
            result["methods"] = bench.judge(arms, panel)
    if options.part in ("all", "reductions"):
        result["reductions"] = reductions(bench, min(10, options.n), short)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
