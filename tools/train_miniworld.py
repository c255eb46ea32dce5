"""Train MiniWorld's miniature models. Every stage is resumable: run the same line again and it goes on.

    python tools/train_miniworld.py pairs --work FOLDER
    torchrun --nproc-per-node 2 tools/train_miniworld.py autoencoder --work FOLDER
    python tools/train_miniworld.py decoder --work FOLDER       # optional: more decoder steps, latents stay valid
    torchrun --nproc-per-node 2 tools/train_miniworld.py editor --work FOLDER
    python tools/train_miniworld.py attributes --work FOLDER    # the referees' first half
    python tools/train_miniworld.py disturbed --work FOLDER
    python tools/train_miniworld.py degradation --work FOLDER   # and their second
    (--model mini-hq, mini-sd3 or mini-sd3-instruct: the other editors; --device cuda: on a graphics processor)
    python tools/train_miniworld.py export --work FOLDER --package packages/miniworld/isr_miniworld/weights

`--tiny` makes every stage small enough for a test.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # so that it runs as a script from anywhere
if __name__ == "__main__":
    # Not used here, and a torchvision that does not fit its torch makes every diffusers import fail.
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]

from miniworld_training import stages

STAGES = {
    "pairs": stages.pairs,
    "autoencoder": stages.autoencoder,
    "decoder": stages.decoder,
    "editor": stages.editor,
    "attributes": stages.attributes,
    "disturbed": stages.disturbed,
    "degradation": stages.degradation,
    "export": stages.export,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for pairs, checkpoints and curves (outside the repository)"
    )
    parser.add_argument(
        "--steps", type=int, default=None, help="optimiser steps of the whole schedule (default: the stage's own)"
    )
    parser.add_argument("--seconds", type=float, default=None, help="limit on training time over all runs of the stage")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw pictures")
    parser.add_argument(
        "--model",
        default="mini-ip2p",
        help="pairs, autoencoder, decoder, editor: which miniature (mini-ip2p, mini-hq, …)",
    )
    parser.add_argument("--device", default="cpu", help="where to train: cpu, cuda")
    parser.add_argument("--batch", type=int, default=None, help="examples per step and rank (default: the stage's own)")
    parser.add_argument("--rate", type=float, default=None, help="peak learning rate (referees have their own)")
    parser.add_argument("--average", type=float, default=None, help="decay of the weights' moving average")
    parser.add_argument("--check", type=int, default=None, help="steps between checks and checkpoints")
    parser.add_argument(
        "--pairs", type=int, default=24_000, help="pairs, editor: how many training pairs to draw, to use"
    )
    parser.add_argument("--count", type=int, default=None, help="disturbed: edits per referee and editor, of each sort")
    parser.add_argument(
        "--start",
        type=Path,
        default=None,
        help="autoencoder, editor: begin from this saved autoencoder or pipeline (saves time only); of mini-ip2p's pipeline an SD3 "
        "editor takes the text encoder",
    )
    parser.add_argument("--edit-steps", type=int, default=20, help="disturbed: denoising steps of an edit")
    parser.add_argument(
        "--only", default=None, help="attributes, disturbed, degradation: for this referee alone (a, b or c)"
    )
    parser.add_argument("--package", type=Path, default=None, help="export: the folder that gets the weights")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of a few seconds")
    options = parser.parse_args(arguments)
    STAGES[options.stage](options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
