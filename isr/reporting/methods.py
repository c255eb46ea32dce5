"""The sentence for a methods section, made from the judge lock, and what to cite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .text import percent_range, points

if TYPE_CHECKING:
    from ..report import Report

__all__ = ["BIBTEX", "methods_text"]

BIBTEX = """\
@article{dong2025semantic,
  title   = {Semantic Mismatch and Perceptual Degradation: A New Perspective on Image Editing Immunity},
  author  = {Dong, Shuai and Zhang, Jie and Zhao, Guoying and Shan, Shiguang and Chen, Xilin},
  journal = {arXiv preprint arXiv:2512.14320},
  year    = {2025}
}
@software{isr,
  title   = {isr: Immunization Success Rate of immunized images},
  version = {%s},
  note    = {Independent implementation, not by the authors of arXiv:2512.14320}
}
"""


def methods_text(report: Report) -> str:
    """Plain text: how the number was made, with everything a reader needs to repeat it; then BibTeX."""
    if not report.n:
        return f"No immunized rows were judged.\n\n{BIBTEX % report.lock['versions']['isr']}"
    lock = report.lock
    judges = []
    for judge in lock["judges"]:
        served = ", ".join(sorted(judge.get("served", {})))
        judges.append(f"{judge['name']}" + (f" (served as {served})" if served and served not in judge["name"] else ""))
    settings = lock["settings"]
    votes = f", {settings['votes']} votes each" if settings.get("votes", 1) > 1 else ""
    shown = "original and edited image" if lock["with_originals"] else "the edited image only"
    what = (
        "The Immunization Success Rate (ISR; Dong et al., 2025, Eq. 8)"
        if len(judges) > 1
        else "The share of defeated edits according to a single judge (not the Immunization Success Rate of Dong et al., 2025, which "
        "is a strict consensus of two)"
    )
    text = (
        f"{what} was computed with isr {lock['versions']['isr']} on "
        f"{report.n} edits. {'Each of the judges' if len(judges) > 1 else 'The judge'} {', '.join(judges)}{votes} saw "
        f"{shown} ({settings.get('codec', 'png')}) and answered the rubric {lock['rubric']['name']} "
        f"{lock['rubric']['version']} (hash {lock['rubric_hash'][:8]}) on semantic mismatch and perceptual degradation. "
        f"An edit counts as defeated under the {lock['consensus']} consensus; cases left undetermined by missing verdicts "
        f"({report.n_undetermined}) count as not defeated, and the bounds with any other verdicts are "
        f"{percent_range(*report.bounds)}. The interval is {report.interval.describe()}. Judged on {lock['created'][:10]}."
        + _controls(report)
    )
    version: str = lock["versions"]["isr"]
    return text + "\n\n" + BIBTEX % version


def _controls(report: Report) -> str:
    arm = report.control_arm
    if arm is None:
        return " No control arm was judged."
    if arm.excess is None:
        return f" A control arm was judged; excess: {arm.reason}."
    return (
        f" On the {arm.n_pairs} complete pairs with edits of the unprotected originals, {100 * (arm.paired_control or 0):.1f} % of the "
        f"controls are defeated too; the excess is {points(arm.excess.difference)} points "
        f"[{points(arm.excess.interval.low)}, {points(arm.excess.interval.high)}] ({arm.excess.interval.method})."
    )
