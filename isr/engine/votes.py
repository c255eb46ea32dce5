"""k votes of one judge into one answer (docs/definitions.md, section 2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..errors import UsageError
from ..schema import CRITERIA, NoVerdict, Verdict

__all__ = ["check_votes", "combine_votes"]


def check_votes(votes: object) -> int:
    """An odd number of votes, at least 1."""
    if not isinstance(votes, int) or isinstance(votes, bool) or votes < 1 or votes % 2 == 0:
        raise UsageError(f"votes: expected an odd whole number such as 1, 3 or 5 (an even one can tie), got {votes!r}")
    return votes


def combine_votes(votes: Sequence[Verdict | NoVerdict]) -> Verdict | NoVerdict:
    """A criterion is decided when more than half of *all* k votes say so; missing votes count against both sides.

    One undecided criterion of the two makes the whole answer NoVerdict("split_vote"). Where not a single vote is a
    verdict and all miss for the same reason, that reason is the more truthful one and stays.
    """
    if len(votes) == 1:
        return votes[0]
    verdicts = [v for v in votes if isinstance(v, Verdict)]
    missing = Counter(v.reason for v in votes if isinstance(v, NoVerdict))
    if not verdicts and len(missing) == 1:
        return NoVerdict(reason=next(iter(missing)), detail=f"all {len(votes)} votes")

    def decided(values: Sequence[bool | None]) -> bool | None:
        for side in (True, False):
            if 2 * sum(v is side for v in values) > len(votes):
                return side
        return None

    decision = {key: decided([getattr(v, key) for v in verdicts]) for key in CRITERIA}
    mismatch, degradation = decision["semantic_mismatch"], decision["degradation"]
    if mismatch is None or degradation is None:
        undecided = " and ".join(key for key in CRITERIA if decision[key] is None)
        lost = "".join(f"; {n} × {reason}" for reason, n in sorted(missing.items()))
        return NoVerdict(reason="split_vote", detail=f"{len(votes)} votes leave {undecided} undecided{lost}")
    # The words shown are those of a vote that agrees with the decision on both criteria, else of the first verdict.
    speaker = next(
        (v for v in verdicts if v.semantic_mismatch is mismatch and v.degradation is degradation), verdicts[0]
    )
    others = {key: decided([v.other.get(key) for v in verdicts]) for key in speaker.other}
    return Verdict(
        semantic_mismatch=mismatch,
        degradation=degradation,
        observations=speaker.observations,
        reasons=speaker.reasons,
        overall=decided([v.overall for v in verdicts]),
        other={key: value for key, value in others.items() if value is not None},
    )
