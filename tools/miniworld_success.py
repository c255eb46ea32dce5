"""How many held-out edits without any attack are ok to the referees, by family: the figures of the editor's card.

    python tools/miniworld_success.py --weights packages/miniworld/isr_miniworld/weights --split test --images 60

Writes `success_<split>.json` beside the editor's card (each referee's shares, `ok_by_a_and_b`, which the aims are about, and
`ok_by_all_named_referees`) and, with `--grid FILE`, a picture of the first edits (original | exact target | edit).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from isr.editors import load_editor
from isr.judges.referee import RefereeJudge
from PIL import Image

from isr.data.miniworld import miniworld
from isr.stats.intervals import clustered_wilson


def _share(hits: list[bool], clusters: list[str]) -> dict[str, Any]:
    interval = clustered_wilson(hits, clusters)
    return {
        "n": len(hits),
        "ok": int(sum(hits)),
        "share": round(float(np.mean(hits)), 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
    }


def _edits(path: Path | None, editor: Any, images: list[Image.Image], told: list[str]) -> list[Image.Image]:
    """Of edit i with seed i; from `path`, where the same editor made the same edits before, else kept there."""
    if path is None:
        return _made(editor, images, told)
    if path.suffix != ".npz":
        raise SystemExit(f"--keep: expected a file name that ends in .npz, got {path}")
    pictures = hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()
    mark = json.dumps([editor.settings(), pictures, told], sort_keys=True, default=str)
    if path.is_file():
        try:
            with np.load(path) as file:
                held, edits = str(file["mark"]), file["edits"]
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise SystemExit(f"--keep: {path} holds no edits that this tool kept ({error}); remove it") from error
        if held != mark:
            raise SystemExit(f"--keep: {path} holds edits of another editor, other pictures or other settings")
        return [Image.fromarray(edit) for edit in edits]
    path.parent.mkdir(parents=True, exist_ok=True)
    made = _made(editor, images, told)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, edits=np.stack([np.asarray(edit) for edit in made]), mark=mark)
    part.replace(path)
    return made


def _made(editor: Any, images: list[Image.Image], told: list[str]) -> list[Image.Image]:
    edits: list[Image.Image] = editor.edit(images, told, seeds=list(range(len(images))))
    return edits


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--editor", default="mini-ip2p")
    parser.add_argument("--style", default="plain")
    parser.add_argument("--captions", action="store_true", help="tell the editor the caption of the target (mini-sd3)")
    parser.add_argument("--suffix", default="", help="of the result's file name")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the pictures: another one gives pictures that nobody has looked at"
    )
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=2, help="prompts per picture, the original one first")
    parser.add_argument("--referees", default="ab")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="NPZ",
        help="keep the edits there, or judge those that are there (referees changed)",
    )
    parser.add_argument("--grid", type=Path, default=None)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    editor: Any = load_editor(options.editor, source=str(options.weights / options.editor), device="cpu", batch_size=16)
    world = miniworld(options.images, options.split, options.seed, style=options.style)
    todo = [(item, k) for item in world for k in range(options.prompts)]
    captions = options.captions
    told = [item.target_caption(k) if captions else item.prompts[k] for item, k in todo]
    edits = _edits(options.keep, editor, [item.image for item, _ in todo], told)
    cases = [(edit, item.image, item.prompts[k]) for edit, (item, k) in zip(edits, todo, strict=True)]
    verdicts = {r: RefereeJudge(r, folder=options.weights / f"referee-{r}").judge(cases) for r in options.referees}
    clusters = [item.image_id for item, _ in todo]
    families = [f"{item.category}/{item.edits[k].family}" for item, k in todo]

    def row(hits: list[bool]) -> dict[str, Any]:
        return {
            "all": _share(hits, clusters),
            "families": {
                f: f"{sum(h for h, g in zip(hits, families, strict=True) if g == f)}/{families.count(f)}"
                for f in sorted(set(families))
            },
        }

    result: dict[str, Any] = {
        "split": options.split,
        "picture_seed": options.seed,
        "images": options.images,
        "edits": len(todo),
        "style": options.style,
        "told": "the caption of the target" if captions else "the instruction",
        "settings": {
            k: v for k, v in editor.settings().items() if k in {"steps", "guidance", "image_guidance", "strength"}
        },
    }
    for r, given in verdicts.items():
        result[f"referee_{r}"] = {
            "no_mismatch": row([not v.semantic_mismatch for v in given]),
            "no_degradation": row([not v.degradation for v in given]),
            "ok": row([not v.defeated for v in given]),
        }
    if {"a", "b"} <= set(verdicts):  # c has no say in what is decided
        result["ok_by_a_and_b"] = row(
            [not (a.defeated or b.defeated) for a, b in zip(verdicts["a"], verdicts["b"], strict=True)]
        )
    result["ok_by_all_named_referees"] = row(
        [not any(given[i].defeated for given in verdicts.values()) for i in range(len(todo))]
    )
    (options.weights / options.editor / f"success_{options.split}{options.suffix}.json").write_text(
        json.dumps(result, indent=1) + "\n", "utf-8"
    )
    print(json.dumps(result, indent=1))
    if options.grid is not None:
        cells = [
            np.concatenate([np.asarray(p) for p in (item.image, item.target_image(k), edit)], 1)
            for edit, (item, k) in zip(edits, todo, strict=True)
        ]
        rows = [np.concatenate(cells[i : i + 4], 1) for i in range(0, len(cells) - len(cells) % 4, 4)]
        grid = Image.fromarray(np.concatenate(rows[:10], 0))
        grid.resize((2 * grid.width, 2 * grid.height), Image.Resampling.BICUBIC).save(options.grid)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
