"""isr judges, isr doctor"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Subparsers

__all__ = ["register"]


def register(commands: Subparsers) -> None:
    judges = commands.add_parser("judges", help="judges that are installed, keys that are set, what is missing")
    judges.set_defaults(run=_judges)
    doctor = commands.add_parser("doctor", help="check the installation and say how to mend it")
    doctor.set_defaults(run=_doctor)


def _judges(_: argparse.Namespace) -> int:
    from ..registry import RESOLVERS

    for judge in RESOLVERS.load("describe-judges")():
        state = "ready" if not judge.missing else judge.missing
        print(f"{judge.name:12} {judge.usage:55} {state}" + (f"  [{judge.distribution}]" if judge.distribution else ""))
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from ..doctor import examine, render, worst

    findings = examine()
    print(render(findings))
    return 1 if worst(findings) == "error" else 0
