"""Effect of every attack on mini-sd3-instruct at ε 0.03 and 0.045, and ε curves: excess over the control arm with intervals.

bench_attacks_effect.py with this editor, 50 pictures, one repetition of PhotoGuard's diffusion attack, no reductions, and the
working ε that mini-ip2p's end-to-end attack chose (0.045). Its options are taken too: --make, --judge, --plan, --methods, --limit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import bench_attacks_effect

LONG = True


def main(argv: Sequence[str] | None = None) -> int:
    own = ["--editor", "mini-sd3-instruct", "--no-reductions", "--working", "0.045"]
    return bench_attacks_effect.main([*own, *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
