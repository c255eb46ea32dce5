"""isr review: one person labels the disputed cases of a run in a browser on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Subparsers

__all__ = ["register"]


def register(commands: Subparsers) -> None:
    review = commands.add_parser("review", help="label the disputed cases of a run yourself, in a local page")
    review.add_argument("run_folder", type=Path, metavar="RUN")
    review.add_argument("--who", required=True, metavar="NAME", help="saved as the judge human:NAME")
    review.add_argument("--all", action="store_true", dest="everything", help="every case, not only the disputed ones")
    review.add_argument(
        "--arm",
        action="append",
        choices=("immunized", "control", "noise"),
        help="arms to label (may be repeated; default: immunized)",
    )
    review.add_argument("--port", type=int, default=0, help="default: any free one")
    review.add_argument("--open", action="store_true", help="open the page in the default browser")
    review.set_defaults(run=_review)


def _review(options: argparse.Namespace) -> int:
    from ..reviewing import Review
    from ..reviewing_server import ReviewServer

    review = Review(
        options.run_folder, options.who, everything=options.everything, arms=tuple(options.arm or ("immunized",))
    )
    with ReviewServer(review, options.port) as server:
        print(f"{len(review.items)} cases for {review.judge}, {review.answered} of them answered already.")
        if review.without_pictures:
            print(f"{review.without_pictures} more have no pictures in this run and are left out.")
        print(
            f"\n  {server.url}\n\nThe address works on this machine only. Every answer is saved at once; Ctrl-C ends.",
            flush=True,
        )
        if options.open:
            import webbrowser

            webbrowser.open(server.url)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print()
    print(f"{review.answered} of {len(review.items)} answered; they stand as {review.judge} in {options.run_folder}.")
    return 0
