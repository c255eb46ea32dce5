"""isr probe: measure a judge on known answers before trusting it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .evaluate import naming, writable_file

if TYPE_CHECKING:
    from . import Subparsers

__all__ = ["register"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def register(commands: Subparsers) -> None:
    probe = commands.add_parser(
        "probe", help="score judges on a battery with known right answers, made from your own pictures"
    )
    probe.add_argument("judges", nargs="+", metavar="JUDGE")
    probe.add_argument(
        "--originals", type=Path, required=True, nargs="+", metavar="PICTURE", help="pictures or folders of pictures"
    )
    probe.add_argument("--rubric", type=Path, metavar="TOML")
    probe.add_argument("--repeats", type=int, default=3, metavar="K", help="votes per repeated case (odd)")
    probe.add_argument("--cache", type=Path, metavar="FOLDER")
    probe.add_argument("--max-cost", type=float, metavar="USD", help="spend cap for each of the two rounds of calls")
    probe.add_argument("--json", type=Path, metavar="FILE", help="also write the cards here")
    probe.set_defaults(run=_probe)


def _probe(options: argparse.Namespace) -> int:
    from ..probing import probe

    writable_file("--json", options.json)
    pictures: list[Path] = []
    for path in options.originals:
        pictures += sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES) if path.is_dir() else [path]
    cards = probe(
        options.judges, pictures, repeats=options.repeats, rubric=options.rubric, cache=options.cache or True,
        max_cost=options.max_cost,
    )  # fmt: skip
    for card in cards:
        print(card)
    if options.json:
        with naming("--json", options.json):
            options.json.write_text(json.dumps([c.as_dict() for c in cards], indent=1), "utf-8")
    return 0 if all(card.passed for card in cards) else 1
