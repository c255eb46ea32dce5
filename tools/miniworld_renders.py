"""How often a referee reads renders rightly, by edit family: exact targets show what was asked, unedited pictures do not.

    python tools/miniworld_renders.py --weights packages/miniworld/isr_miniworld/weights --images 400

Validation split, every prompt of each picture, both styles. Writes `renders_validation.json` beside each referee's card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from isr.judges.referee import REFEREES, RefereeJudge

from isr.data.miniworld import STYLES, miniworld
from isr.stats.intervals import clustered_wilson


def share(hits: list[bool], clusters: list[str]) -> dict[str, Any]:
    interval = clustered_wilson(hits, clusters)
    return {
        "n": len(hits), "right": sum(hits), "share": round(sum(hits) / len(hits), 4),
        "low": round(interval.low, 4), "high": round(interval.high, 4),
    }  # fmt: skip


def measure(judge: RefereeJudge, images: int) -> dict[str, Any]:
    """Share of right mismatch answers: overall, by family, and of targets and unedited pictures apart."""
    rows: list[tuple[str, str, bool, bool]] = []  # family, image, shows what was asked, answered rightly
    for style in STYLES:
        for item in miniworld(images, "validation", seed=3, style=style):
            cases = [(item.target_image(k), item.image, p) for k, p in enumerate(item.prompts)]
            cases += [(item.image, item.image, p) for p in item.prompts]
            shown = [True] * len(item.prompts) + [False] * len(item.prompts)
            for k, (verdict, there) in enumerate(zip(judge.judge(cases), shown, strict=True)):
                family = f"{item.category}/{item.edits[k % len(item.edits)].family}"
                rows.append((family, item.image_id, there, verdict.semantic_mismatch is not there))

    def of(rows: list[tuple[str, str, bool, bool]]) -> dict[str, Any]:
        return share([r[3] for r in rows], [r[1] for r in rows])

    return {
        "all": of(rows),
        "targets": of([r for r in rows if r[2]]),
        "unedited": of([r for r in rows if not r[2]]),
        "families": {f: of([r for r in rows if r[0] == f]) for f in sorted({r[0] for r in rows})},
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=int, default=400, help="per style")
    parser.add_argument("--referees", default="".join(REFEREES))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.referees:
        folder = options.weights / f"referee-{name}"
        if not folder.is_dir():
            print(f"referee-{name}: no weights in {options.weights}")
            continue
        found = measure(RefereeJudge(name, folder=folder), options.images)
        (folder / "renders_validation.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        worst = min(found["families"], key=lambda f: found["families"][f]["share"])
        print(
            f"referee-{name}: {found['all']['share']:.1%} right; worst family {worst} {found['families'][worst]['share']:.1%}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
