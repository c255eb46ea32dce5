"""Consensus: pure functions from the judges' answers on one case to success, failure or undetermined.

Success means that the edit was defeated (paper, section VI; Eq. 8 counts successes). `NoVerdict` and `NotAsked` reach a
policy as they are: a policy returns "success" or "failure" only where the missing answers could not change it, and
"undetermined" otherwise. The table of policies stands in docs/definitions.md, section 3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

from .errors import UsageError
from .protocols import Consensus
from .registry import CONSENSUS
from .schema import CRITERIA, Answer, NotAsked, OutcomeValue, Verdict

__all__ = ["POLICIES", "any_judge", "decide", "majority", "per_criterion", "resolve_consensus", "strict"]


def _verdicts(answers: Sequence[Answer]) -> tuple[list[Verdict], int]:
    """The verdicts, and how many answers are missing. Refuses an empty list: nobody was asked is not an outcome."""
    if not answers:
        raise UsageError("answers: a consensus needs the answer of at least one judge, got none")
    verdicts = [a for a in answers if isinstance(a, Verdict)]
    return verdicts, len(answers) - len(verdicts)


def strict(answers: Sequence[Answer], /) -> OutcomeValue:
    """The paper's policy: success when every judge says defeated, failure when any judge says not defeated."""
    verdicts, missing = _verdicts(answers)
    if any(not v.defeated for v in verdicts):
        return "failure"
    return "undetermined" if missing else "success"


def any_judge(answers: Sequence[Answer], /) -> OutcomeValue:
    """The lenient mirror of `strict`: success when any judge says defeated, failure when every judge says not."""
    verdicts, missing = _verdicts(answers)
    if any(v.defeated for v in verdicts):
        return "success"
    return "undetermined" if missing else "failure"


def majority(answers: Sequence[Answer], /) -> OutcomeValue:
    """Success (failure) when more than half of the judges asked say defeated (not defeated). A judge without a verdict
    was asked and counts in the denominator; one that was `NotAsked` does not. Ties are undetermined."""
    asked = [a for a in answers if not isinstance(a, NotAsked)]
    if not answers:
        _verdicts(answers)
    verdicts = [a for a in asked if isinstance(a, Verdict)]
    yes = sum(v.defeated for v in verdicts)
    no = len(verdicts) - yes
    if 2 * yes > len(asked):
        return "success"
    if 2 * no > len(asked):
        return "failure"
    return "undetermined"


def per_criterion(answers: Sequence[Answer], /) -> OutcomeValue:
    """Success when all judges call the *same* criterion true; failure when no criterion can become so any more."""
    verdicts, missing = _verdicts(answers)
    alive = [key for key in CRITERIA if all(getattr(v, key) for v in verdicts)]
    if not alive:
        return "failure"
    return "undetermined" if missing else "success"


POLICIES: dict[str, Consensus] = {
    "strict": strict,
    "any": any_judge,
    "majority": majority,
    "per_criterion": per_criterion,
}


def resolve_consensus(policy: str | Consensus) -> tuple[str, Consensus]:
    """(name, function) of a policy given by registered name or as a function of the answers.

    Raises:
        RegistryError: no policy of that name. UsageError: neither a name nor callable.
    """
    if isinstance(policy, str):
        return CONSENSUS.resolve(policy), CONSENSUS.load(policy)
    if callable(policy):
        known = next((name for name, function in POLICIES.items() if function is policy), None)
        return known or _function_name(policy), policy
    raise UsageError(
        f"consensus: expected a policy name ({', '.join(POLICIES)}) or a function, got {type(policy).__name__}"
    )


def _function_name(policy: Any) -> str:
    """A name that no registered policy has, and that changes with the code: two functions are never taken for one."""
    code = getattr(policy, "__code__", None)
    said = repr(policy) if code is None else f"{code.co_code!r}{code.co_consts!r}{code.co_names!r}"
    where = f"{getattr(policy, '__module__', '?')}.{getattr(policy, '__qualname__', type(policy).__qualname__)}"
    return f"function:{where}#{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def decide(policy: Consensus, answers: Sequence[Answer]) -> OutcomeValue:
    """Apply a policy and verify what it returns (a user's own function is not trusted to return a valid outcome)."""
    outcome: Any = policy(answers)
    if not isinstance(outcome, str) or outcome not in {"success", "failure", "undetermined"}:
        raise UsageError(
            f"consensus: the policy {getattr(policy, '__qualname__', policy)!r} must return 'success', 'failure' or "
            f"'undetermined', got {outcome!r}"
        )
    return cast(OutcomeValue, outcome)
