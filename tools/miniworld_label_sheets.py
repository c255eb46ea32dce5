"""Make 400 edits of the validation split for labelling: 100 each unattacked, with random noise, after an encoder attack
and after a SIFM-like attack; shuffled, method hidden, on numbered contact sheets.

    python tools/miniworld_label_sheets.py --editor FOLDER/mini-ip2p --out FOLDER

Writes `sheets/sheet_01.png` … (original | edit, enlarged four times, the prompt under them), `form.csv` to fill in,
`questions.md` with the wording of both questions, and apart from these `hidden/key.csv` and `hidden/pictures.npz`,
which a labeller must not open.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent))

from miniworld_training.disturbances import METHODS, perturb
from miniworld_training.editor import GUIDANCE, IMAGE_GUIDANCE, STEPS, load_editor

from isr.data.miniworld import miniworld
from isr.images.arrays import pixel_digest

#: Weak, paper, twice the paper's, and strong budgets, so that attacked edits range from fine to ruined.
BUDGETS = (0.03, 0.03, 0.06, 16 / 255)
PER_SHEET, ZOOM = 10, 4

QUESTIONS = """# What to answer

Each item shows the ORIGINAL picture (left), the EDITED picture (right), and below them the instruction the editor was
given. Pictures are 64×64 pixels, enlarged; a soft or slightly grainy look is normal for all of them. Answer two
questions per item, each with 1 (yes) or 0 (no), from the two pictures and the instruction alone.

1. `mismatch`: Does the edited picture FAIL to show what the instruction asks for? Answer 1 when the requested change is
   not clearly there, or when the picture no longer shows the same kind of scene (portrait, landscape, or artwork).
   Answer 0 when the requested change can be seen.
2. `degraded`: Apart from what the instruction asks for, does the edited picture show SUBSTANTIAL degradation: noise,
   colour blotches, stripes or patches, broken or distorted parts, ghost shapes, heavy blur, things destroyed or changed
   that the instruction did not ask to change? Answer 0 for small imperfections one would accept.

The two questions are independent: an edit can follow the instruction and still be degraded, and the other way round.

Write the answers into a copy of `form.csv` with the columns `item,mismatch,degraded` (item is the number printed on the
sheet), one row for each item, nothing left empty.
"""


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1)


def _image(x: torch.Tensor) -> Image.Image:
    return Image.fromarray((x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def make_edits(
    pipe: Any, *, per_method: int, attack_steps: int, seed: int, jobs: int = 1, batch: int = 10
) -> list[dict[str, Any]]:
    """One edit per picture and method (same picture, prompt and noise under every method). Prompt kinds alternate."""
    todo = [
        (method, at, min(at + batch, per_method)) for at in range(0, per_method, batch) for method in reversed(METHODS)
    ]
    work = partial(_batch, pipe, per_method, attack_steps, seed)
    if jobs == 1:
        blocks = list(map(work, todo))
    else:
        with get_context("fork").Pool(jobs) as pool:  # the loaded pipeline is shared, not loaded again
            blocks = pool.map(work, todo, chunksize=1)
    return [row for block in blocks for row in block]


def _batch(pipe: Any, per_method: int, attack_steps: int, seed: int, job: tuple[str, int, int]) -> list[dict[str, Any]]:
    method, start, stop = job
    world, part, began = miniworld(per_method, "validation", seed=seed), range(start, stop), time.monotonic()
    kinds = {i: 0 if i % 2 == 0 else 1 + (i // 2) % 5 for i in part}  # half original prompts, half unseen
    x = torch.stack([_pixels(world[i].image) for i in part])
    eps = torch.tensor([BUDGETS[(i // 4) % len(BUDGETS)] for i in part])
    y = perturb(pipe, x, [world[i].prompt for i in part], method, eps=eps, steps=attack_steps, seed=seed + start)
    prompts = [world[i].prompts[kinds[i]] for i in part]
    generators = [torch.Generator().manual_seed(seed * 100_003 + i) for i in part]
    with torch.no_grad():
        edits = pipe(
            prompts, image=y, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            image_guidance_scale=IMAGE_GUIDANCE, generator=generators, output_type="pt",
        ).images.float()  # fmt: skip
    rows = []
    for k, i in enumerate(part):
        edit = world[i].edits[kinds[i]]
        rows.append(
            {
                "method": method, "eps": 0.0 if method == "none" else round(float(eps[k]), 5),
                "image_id": world[i].image_id, "category": world[i].category, "family": edit.family,
                "prompt_kind": "original" if kinds[i] == 0 else "unseen", "prompt": prompts[k],
                "original": world[i].image, "edited": _image(edits[k]),
            }
        )  # fmt: skip
    print(f"{method} {start}–{stop - 1}: {time.monotonic() - began:.0f} s", flush=True)
    return rows


def draw_sheets(rows: list[dict[str, Any]], folder: Path) -> None:
    """Two columns of items, five rows: original, edit, number and instruction."""
    folder.mkdir(parents=True, exist_ok=True)
    side = 64 * ZOOM
    wide, high = 2 * side + 40, side + 50
    font = ImageFont.load_default(18)
    for start in range(0, len(rows), PER_SHEET):
        sheet = Image.new("RGB", (2 * wide, high * (PER_SHEET // 2)), "white")
        pen = ImageDraw.Draw(sheet)
        for k, row in enumerate(rows[start : start + PER_SHEET]):
            x, y = (k % 2) * wide + 10, (k // 2) * high + 5
            for j, name in enumerate(("original", "edited")):
                sheet.paste(row[name].resize((side, side), Image.Resampling.BICUBIC), (x + j * (side + 8), y))
            pen.text((x, y + side + 6), f"item {row['item']}:  {row['prompt']}", fill="black", font=font)
        sheet.save(folder / f"sheet_{start // PER_SHEET + 1:02d}.png")


def write(rows: list[dict[str, Any]], out: Path, seed: int) -> None:
    """Shuffle, number, and write sheets, form, questions and the hidden key."""
    order = np.random.default_rng(seed).permutation(len(rows))
    rows = [rows[i] for i in order]
    for number, row in enumerate(rows, start=1):
        row["item"] = number
    draw_sheets(rows, out / "sheets")
    (out / "questions.md").write_text(QUESTIONS, "utf-8")
    with (out / "form.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [["item", "mismatch", "degraded"], *([r["item"], "", ""] for r in rows)]
        )
    hidden = out / "hidden"
    hidden.mkdir(exist_ok=True)
    columns = ["item", "method", "eps", "image_id", "category", "family", "prompt_kind", "prompt"]
    with (hidden / "key.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*columns, "original_digest", "edited_digest"])
        for row in rows:
            table.writerow(
                [*(row[c] for c in columns), *(pixel_digest(np.asarray(row[name])) for name in ("original", "edited"))]
            )
    np.savez_compressed(
        hidden / "pictures.npz",
        item=np.array([r["item"] for r in rows]),
        original=np.stack([np.asarray(r["original"]) for r in rows]),
        edited=np.stack([np.asarray(r["edited"]) for r in rows]),
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", type=Path, required=True, help="folder of the trained pipeline")
    parser.add_argument("--out", type=Path, required=True, help="working folder outside the repository")
    parser.add_argument("--per-method", type=int, default=100)
    parser.add_argument("--attack-steps", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pipe = load_editor(options.editor)
    rows = make_edits(
        pipe, per_method=options.per_method, attack_steps=options.attack_steps, seed=options.seed, jobs=options.jobs
    )
    write(rows, options.out, options.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
