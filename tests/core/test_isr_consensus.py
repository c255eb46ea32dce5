"""Consensus policies: the table of DEFINITIONS 3 by brute force over what the missing answers could have been."""

from __future__ import annotations

from itertools import product

import pytest

from isr.consensus import POLICIES, any_judge, decide, majority, per_criterion, resolve_consensus, strict
from isr.errors import RegistryError, UsageError
from isr.schema import Answer, NotAsked, NoVerdict, Verdict

VERDICTS = [Verdict(semantic_mismatch=m, degradation=d) for m, d in product([True, False], repeat=2)]
MISSING = NoVerdict(reason="blocked")
SKIPPED = NotAsked(reason="lazy")
BOTH, MISMATCH, DEGRADED, OK = VERDICTS


def completions(answers: tuple[Answer, ...]) -> list[tuple[Verdict, ...]]:
    """Every way the missing answers could have come out."""
    return list(product(*([a] if isinstance(a, Verdict) else VERDICTS for a in answers)))


def truth(name: str, verdicts: tuple[Verdict, ...]) -> str:
    """The policy on complete answers, straight from its sentence."""
    defeated = [v.semantic_mismatch or v.degradation for v in verdicts]
    if name == "strict":
        return "success" if all(defeated) else "failure"
    if name == "any":
        return "success" if any(defeated) else "failure"
    if name == "majority":
        half = len(defeated) / 2
        return (
            "success" if sum(defeated) > half else "failure" if len(defeated) - sum(defeated) > half else "undetermined"
        )
    same = all(v.semantic_mismatch for v in verdicts) or all(v.degradation for v in verdicts)
    return "success" if same else "failure"


@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.parametrize("judges", [1, 2, 3])
def test_an_outcome_is_told_exactly_when_no_missing_answer_could_change_it(name: str, judges: int) -> None:
    for answers in product([*VERDICTS, MISSING], repeat=judges):
        possible = {truth(name, full) for full in completions(answers)}
        wanted = possible.pop() if len(possible) == 1 else "undetermined"
        assert POLICIES[name](answers) == wanted, (name, answers)


@pytest.mark.parametrize("name", ["strict", "any", "per_criterion"])
def test_a_judge_that_was_not_asked_is_as_open_as_one_without_a_verdict(name: str) -> None:
    for answers in product([*VERDICTS, MISSING, SKIPPED], repeat=2):
        plain = tuple(MISSING if a is SKIPPED else a for a in answers)
        assert POLICIES[name](answers) == POLICIES[name](plain)


def test_majority_counts_the_judges_asked() -> None:
    assert majority([BOTH, BOTH, MISSING]) == "success"
    assert majority([BOTH, MISSING, MISSING]) == "undetermined"
    assert majority([BOTH, SKIPPED, SKIPPED]) == "success"
    assert majority([BOTH, OK]) == "undetermined"
    assert majority([SKIPPED, SKIPPED]) == "undetermined"


def test_different_reasons_are_a_strict_success_but_not_per_criterion() -> None:
    assert strict([MISMATCH, DEGRADED]) == "success"
    assert per_criterion([MISMATCH, DEGRADED]) == "failure"
    assert per_criterion([MISMATCH, BOTH]) == "success"


def test_strict_is_never_more_lenient_than_any() -> None:
    order = {"failure": 0, "undetermined": 1, "success": 2}
    for answers in product([*VERDICTS, MISSING], repeat=3):
        assert order[strict(answers)] <= order[any_judge(answers)]


@pytest.mark.parametrize("name", list(POLICIES))
def test_no_answers_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match="at least one judge"):
        POLICIES[name]([])


def test_names_and_functions() -> None:
    assert resolve_consensus("strict") == ("strict", strict)
    with pytest.raises(RegistryError, match="Did you mean 'majority'"):
        resolve_consensus("majorty")
    with pytest.raises(UsageError, match="policy name"):
        resolve_consensus(3)  # type: ignore[arg-type]


def test_a_users_policy_is_checked() -> None:
    def first(answers: object) -> str:
        return "success"

    name, policy = resolve_consensus(first)  # type: ignore[arg-type]
    assert name.startswith("function:")
    assert ".first#" in name
    assert decide(policy, [OK]) == "success"
    with pytest.raises(UsageError, match="must return"):
        decide(lambda answers: True, [OK])  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("answer", [MISSING, SKIPPED])
def test_a_missing_answer_refuses_to_become_a_number(answer: object) -> None:
    for convert in (bool, int, float, lambda a: sum([a]), lambda a: a + 1, lambda a: not a):
        with pytest.raises(TypeError):
            convert(answer)
