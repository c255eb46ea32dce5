"""All pictures of a run that its data allow, written to a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError, UsageError
from . import plots

if TYPE_CHECKING:
    import pandas as pd

    from ..report import Report

__all__ = ["save_figures"]


def save_figures(report: Report, folder: str | Path, *, suffix: str = "pdf") -> dict[str, str]:
    """Draw what this run has data for: ISR with intervals and bands by method, paired differences, agreement of the judges,
    disagreement by category.

    Args:
        folder: created when missing. suffix: a format that matplotlib writes ("pdf", "png", "svg").

    Returns:
        Name → the written path, or the reason why the picture is absent.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from ..agreeing import agreement
    from ..comparing import compare

    made: dict[str, Callable[[], Any]] = {
        "isr": lambda: plots.plot_isr(report.by("method"), "method", title=report.title),
        "differences": lambda: plots.plot_differences(compare(report).pairs),
        "agreement": lambda: plots.plot_agreement(agreement(mllm=report, n_boot=1000)),
        "disagreement": lambda: plots.plot_disagreement(_immunized(report.judgements), _group(report)),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    told: dict[str, str] = {}
    for name, draw in made.items():
        try:
            figure = draw()
        except MissingExtraError:
            raise
        except UsageError as error:
            told[name] = f"absent: {error}"
            continue
        path = Path(folder) / f"{name}.{suffix}"
        figure.savefig(path, dpi=200)
        told[name] = str(path)
    return told


def _immunized(judgements: pd.DataFrame) -> pd.DataFrame:
    """Judgements of the immunized arm, which the other pictures are about."""
    return judgements[judgements["arm"] == "immunized"] if "arm" in judgements else judgements


def _group(report: Report) -> str:
    return "category" if any(c.category is not None for c in report.case_records) else "method"
