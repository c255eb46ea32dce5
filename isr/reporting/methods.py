"""The sentence for a methods section, made from the judge lock, and what to cite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .text import percent_range

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
    lock = report.lock
    judges = []
    for judge in lock["judges"]:
        served = ", ".join(sorted(judge.get("served", {})))
        judges.append(f"{judge['name']}" + (f" (served as {served})" if served and served not in judge["name"] else ""))
    settings = lock["settings"]
    votes = f", {settings['votes']} votes each" if settings.get("votes", 1) > 1 else ""
    shown = "original and edited image" if lock["with_originals"] else "the edited image only"
    text = (
        f"The Immunization Success Rate (ISR; Dong et al., 2025, Eq. 8) was computed with isr {lock['versions']['isr']} on "
        f"{report.n} edits. {'Each of the judges' if len(judges) > 1 else 'The judge'} {', '.join(judges)}{votes} saw "
        f"{shown} ({settings.get('codec', 'png')}) and answered the rubric {lock['rubric']['name']} "
        f"{lock['rubric']['version']} (hash {lock['rubric_hash'][:8]}) on semantic mismatch and perceptual degradation. "
        f"An edit counts as defeated under the {lock['consensus']} consensus; cases left undetermined by missing verdicts "
        f"({report.n_undetermined}) count as not defeated, and the bounds with any other verdicts are "
        f"{percent_range(*report.bounds)}. The interval is {report.interval.describe()}. Judged on {lock['created'][:10]}."
    )
    version: str = lock["versions"]["isr"]
    return text + "\n\n" + BIBTEX % version
