"""Make edits of the validation split for labelling, a quarter each unattacked, with random noise, after an encoder attack
and after SIFM; shuffled, method hidden, on numbered contact sheets.

    python tools/miniworld_label_sheets.py --editor mini-ip2p --per-method 100 --out FOLDER
    python tools/miniworld_label_sheets.py --editor mini-ip2p mini-hq --style plain canvas --per-method 25 --out FOLDER

Edits of several editors are mixed on the sheets, so that whoever labels is as strict with one as with the other.

Writes `sheets/sheet_01.png` … (original | edit, enlarged four times, the prompt under them), `form.csv` to fill in,
`questions.md` with the wording of both questions, and apart from these `hidden/key.csv` and `hidden/pictures.npz`,
which a labeller must not open.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any, cast

import numpy as np
from isr.editors import load_editor
from PIL import Image, ImageDraw, ImageFont

from isr.data.miniworld import Style, miniworld
from isr.images.arrays import pixel_digest
from isr.immunization import immunize

METHODS = {"none": None, "noise": "noise", "encoder": "photoguard-encoder", "sifm": "sifm"}
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


def make_edits(editor: Any, *, per_method: int, attack_steps: int, seed: int, style: Style) -> list[dict[str, Any]]:
    """One edit per picture and method (same picture, prompt and seed under every method). Prompt kinds alternate."""
    world = miniworld(per_method, "validation", seed=seed, style=style)
    kinds = [0 if i % 2 == 0 else 1 + (i // 2) % 5 for i in range(per_method)]  # half original prompts, half unseen
    budgets = [BUDGETS[(i // 4) % len(BUDGETS)] for i in range(per_method)]
    prompts = [world[i].prompts[k] for i, k in enumerate(kinds)]
    rows = []
    for method, attack in METHODS.items():
        pictures = list(world.images)
        for eps in sorted(set(budgets)) if attack else ():
            own = [i for i, e in enumerate(budgets) if e == eps]
            given = {"eps": eps} if attack == "noise" else {
                "eps": eps, "alpha": eps / 10, "iterations": attack_steps, "batch_size": 50, "rows": 150
            }  # fmt: skip
            protected = immunize(
                [world[i].image for i in own], [world[i].prompt for i in own], attack=cast(str, attack), editor=editor,
                seeds=[seed * 100_003 + i for i in own], **given,
            )  # fmt: skip
            for i, picture in zip(own, protected, strict=True):
                pictures[i] = picture
        edits = editor.edit(pictures, prompts, seeds=[seed * 100_003 + i for i in range(per_method)])
        for i, item in enumerate(world):
            rows.append(
                {
                    "method": method, "eps": round(budgets[i], 5) if attack else 0.0, "image_id": item.image_id,
                    "category": item.category, "family": item.edits[kinds[i]].family,
                    "prompt_kind": "original" if kinds[i] == 0 else "unseen", "prompt": prompts[i],
                    "editor": editor.name, "original": item.image, "edited": edits[i],
                }
            )  # fmt: skip
        print(f"{editor.name}, {method}: {per_method} edits", flush=True)
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
    columns = ["item", "editor", "method", "eps", "image_id", "category", "family", "prompt_kind", "prompt"]
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
    parser.add_argument(
        "--editor", nargs="+", default=["mini-ip2p"], help="NAME, or NAME=FOLDER for weights from elsewhere"
    )
    parser.add_argument("--out", type=Path, required=True, help="working folder outside the repository")
    parser.add_argument("--per-method", type=int, nargs="+", default=[100], help="one number, or one per editor")
    parser.add_argument("--style", nargs="+", default=["plain"], help="one style of pictures, or one per editor")
    parser.add_argument("--attack-steps", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    counts, styles = (
        given * len(options.editor) if len(given) == 1 else given for given in (options.per_method, options.style)
    )
    if not len(counts) == len(styles) == len(options.editor):
        raise SystemExit(
            f"--per-method, --style: expected one value, or one for each of the {len(options.editor)} editors"
        )
    rows: list[dict[str, Any]] = []
    for place, count, style in zip(options.editor, counts, styles, strict=True):
        name, _, folder = place.partition("=")
        source = {"source": folder} if folder else {}
        editor: Any = load_editor(name, device=options.device, batch_size=50, **source)
        rows += make_edits(editor, per_method=count, attack_steps=options.attack_steps, seed=options.seed, style=style)
    write(rows, options.out, options.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
