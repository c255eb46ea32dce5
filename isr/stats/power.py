"""How many images a comparison of two methods needs.

Source of the normal approximation for paired proportions: Connor (1987), Biometrics 43, p. 207–211, Eq. 2.3;
design effect 1 + (m − 1)ρ for m cases per image: Kish (1965), Survey Sampling, section 5.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

from scipy import special

from ..errors import UsageError

__all__ = ["SampleSize", "paired_power", "sample_size"]


@dataclass(frozen=True)
class SampleSize:
    """What to collect.

    Attributes:
        images, cases: to collect (cases = images × cases_per_image). independent_cases: n before the design effect.
        power: of the planned n by the same approximation. discordance: share of cases on which the two methods differ.
    """

    images: int
    cases: int
    independent_cases: int
    cases_per_image: int
    design_effect: float
    discordance: float
    baseline: float
    difference: float
    power: float
    alpha: float
    note: str


def paired_power(n: float, difference: float, discordance: float, *, alpha: float = 0.05) -> float:
    """Power of the two-sided paired test on n independent pairs: Φ((|δ|√n − z_{α/2}√ψ) / √(ψ − δ²)).

    Args:
        difference: δ = p_a − p_b. discordance: ψ = P(the two differ), at least |δ|.
    """
    z = float(special.ndtri(1 - alpha / 2))
    spread = discordance - difference**2
    shift = abs(difference) * sqrt(n) - z * sqrt(discordance)
    if spread <= 0:  # every case differs in the same direction
        return 1.0 if shift > 0 else 0.0
    return float(special.ndtr(shift / sqrt(spread)))


def sample_size(
    baseline: float,
    difference: float,
    *,
    discordance: float | None = None,
    cases_per_image: int = 1,
    icc: float | None = None,
    design_effect: float | None = None,
    power: float = 0.8,
    alpha: float = 0.05,
    comparisons: int = 1,
) -> SampleSize:
    """Images needed to see a difference of two ISRs on the same cases.

    Args:
        baseline: ISR of the weaker (or known) method, fraction in (0, 1).
        difference: ISR of the other minus baseline, fraction, not 0; 0.05 is five points.
        discordance: expected share of cases on which the two outcomes differ, from a pilot (`only_a + only_b` over n). None:
            what independence would give, p_a(1 − p_b) + p_b(1 − p_a); methods that fail on the same hard images differ on
            fewer cases and need fewer images.
        cases_per_image: edits (prompts × seeds) per image.
        icc: correlation of the *differences* within an image, in [0, 1]; required (or `design_effect`) when cases_per_image > 1.
        design_effect: given directly instead, e.g. n / n_eff of a pilot.
        power: wanted, in (0, 1). alpha: two-sided level. comparisons: size of the Holm family; the level is divided by it
            (Bonferroni), so that the first step of Holm has the power asked for.
    """
    _check(baseline, difference, power=power, alpha=alpha, comparisons=comparisons, cases_per_image=cases_per_image)
    other = baseline + difference
    if discordance is None:
        psi = baseline * (1 - other) + other * (1 - baseline)
        note = "discordance as if the two methods were independent; a pilot usually gives less"
    else:
        psi, note = discordance, "discordance as given"
    largest = min(baseline + other, 2 - baseline - other)
    if not abs(difference) - 1e-12 <= psi <= largest + 1e-12:
        raise UsageError(
            f"discordance: with rates {baseline:g} and {other:g} it lies between {abs(difference):g} and {largest:g}, got {psi:g}"
        )
    if design_effect is None:
        if cases_per_image > 1 and icc is None:
            raise UsageError(
                f"icc: needed with cases_per_image = {cases_per_image}; give the within-image correlation of the differences "
                "(0: none, 1: one image counts once), or design_effect"
            )
        rho = 0.0 if icc is None else icc
        if not 0 <= rho <= 1:
            raise UsageError(f"icc: expected a correlation in [0, 1], got {icc!r}")
        deff = 1 + (cases_per_image - 1) * rho
    elif icc is not None:
        raise UsageError("design_effect: give either icc or design_effect, not both")
    elif design_effect <= 0:
        raise UsageError(f"design_effect: expected a positive number, got {design_effect!r}")
    else:
        deff = design_effect
    per_test = alpha / comparisons
    z_alpha, z_beta = float(special.ndtri(1 - per_test / 2)), float(special.ndtri(power))
    root = z_alpha * sqrt(psi) + z_beta * sqrt(max(psi - difference**2, 0.0))
    independent = ceil(root**2 / difference**2 - 1e-9)
    images = ceil(independent * deff / cases_per_image - 1e-9)
    return SampleSize(
        images=images,
        cases=images * cases_per_image,
        independent_cases=independent,
        cases_per_image=cases_per_image,
        design_effect=deff,
        discordance=psi,
        baseline=baseline,
        difference=difference,
        power=paired_power(images * cases_per_image / deff, difference, psi, alpha=per_test),
        alpha=per_test,
        note=note,
    )


def _check(
    baseline: float, difference: float, *, power: float, alpha: float, comparisons: int, cases_per_image: int
) -> None:
    if not 0 < baseline < 1:
        raise UsageError(f"baseline: expected a fraction between 0 and 1 such as 0.7, got {baseline!r}")
    if difference == 0 or not 0 <= baseline + difference <= 1:
        raise UsageError(
            f"difference: expected a fraction other than 0 with baseline + difference within [0, 1], got {difference!r} "
            f"on baseline {baseline!r}; five points are 0.05"
        )
    for name, value in (("power", power), ("alpha", alpha)):
        if not 0 < value < 1:
            raise UsageError(f"{name}: expected a fraction between 0 and 1, got {value!r}")
    for name, count in (("comparisons", comparisons), ("cases_per_image", cases_per_image)):
        if count < 1 or int(count) != count:
            raise UsageError(f"{name}: expected a whole number of at least 1, got {count!r}")
