"""k votes into one answer: hand-made tables, and the rule by brute force."""

from __future__ import annotations

from itertools import product

import pytest

from isr.engine.votes import check_votes, combine_votes
from isr.errors import UsageError
from isr.schema import NoVerdict, Verdict


def verdict(mismatch: bool, degradation: bool, **more: object) -> Verdict:
    return Verdict.model_validate({"semantic_mismatch": mismatch, "degradation": degradation, **more})


V = {"mm": verdict(True, True), "m": verdict(True, False), "d": verdict(False, True), "o": verdict(False, False)}
MISSING = NoVerdict(reason="blocked")


def test_one_vote_passes_through() -> None:
    assert combine_votes([V["m"]]) is V["m"]
    assert combine_votes([MISSING]) is MISSING


def test_not_defeated_though_most_votes_say_defeated_for_different_reasons() -> None:
    # three votes: mismatch, degradation, neither -> each criterion has one of three
    combined = combine_votes([V["m"], V["d"], V["o"]])
    assert isinstance(combined, Verdict)
    assert not combined.defeated


@pytest.mark.parametrize("votes", list(product([*V.values(), MISSING], repeat=3)))
def test_three_votes_by_brute_force(votes: tuple[Verdict | NoVerdict, ...]) -> None:
    combined = combine_votes(list(votes))
    told = [v for v in votes if isinstance(v, Verdict)]
    wanted: list[bool | None] = []
    for key in ("semantic_mismatch", "degradation"):
        yes = sum(getattr(v, key) for v in told)
        no = len(told) - yes
        wanted.append(True if yes >= 2 else False if no >= 2 else None)  # more than half of all three
    if None in wanted:
        assert isinstance(combined, NoVerdict)
        assert combined.reason == ("blocked" if not told else "split_vote")
    else:
        assert isinstance(combined, Verdict)
        assert [combined.semantic_mismatch, combined.degradation] == wanted


def test_missing_votes_count_against() -> None:
    combined = combine_votes([V["m"], V["m"], MISSING, MISSING, NoVerdict(reason="truncated")])
    assert isinstance(combined, NoVerdict)
    assert combined.reason == "split_vote"
    assert "2 × blocked" in combined.detail
    assert "1 × truncated" in combined.detail


def test_words_come_from_an_agreeing_vote_and_further_questions_follow_the_same_rule() -> None:
    votes = [
        verdict(True, False, observations="first", overall=True, other={"nsfw": True, "text": True}),
        verdict(False, False, observations="second", overall=True, other={"nsfw": False, "text": True}),
        verdict(False, False, observations="third", overall=None, other={"nsfw": False}),
    ]
    combined = combine_votes(votes)
    assert isinstance(combined, Verdict)
    assert combined.observations == "second"
    assert combined.overall is True
    assert combined.other == {"nsfw": False, "text": True}


@pytest.mark.parametrize("votes", [0, 2, -1, True, 1.0, "3"])
def test_even_or_silly_numbers_of_votes_are_refused(votes: object) -> None:
    with pytest.raises(UsageError, match="odd whole number"):
        check_votes(votes)
