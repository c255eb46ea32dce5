"""Errors that users meet. Every message names the argument, what was expected, what came, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BudgetError",
    "IntegrityError",
    "IsrError",
    "JudgeStoppedError",
    "MissingExtraError",
    "Problem",
    "ProblemsError",
    "RegistryError",
    "TransientError",
    "UsageError",
    "missing_extra",
]

DISTRIBUTION = "immunization-success-rate"


class IsrError(Exception):
    """Base of every error this package raises on purpose."""


class UsageError(IsrError, ValueError):
    """An argument is wrong; nothing was sent and nothing was lost."""


class MissingExtraError(IsrError, ImportError):
    """A feature needs an optional package; the message holds the exact install line."""


class RegistryError(IsrError, LookupError):
    """No plugin, or a broken one, under a name."""


class IntegrityError(IsrError):
    """Stored data is not what it claims to be (digest, size, layout)."""


class BudgetError(IsrError):
    """A perturbation left its budget on the saved 8-bit file."""


class TransientError(IsrError):
    """One attempt failed in a way that may pass (429, 5xx, timeouts, broken envelopes).

    Args:
        message: what happened, free of secrets.
        retry_after: seconds the service asked to wait, or None.
        status: HTTP status, or None where there was no answer.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


class JudgeStoppedError(IsrError):
    """Authentication or a malformed request (400, 401, 403, 404): not a verdict; this judge stops and the run can be resumed."""

    def __init__(self, message: str, *, judge: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.judge = judge
        self.status = status


class Problem:
    """One thing wrong with one item of the input.

    Args:
        item: how the user would find it again (file name, or argument and index).
        what: what is wrong and what to do.
    """

    __slots__ = ("item", "what")

    def __init__(self, item: str, what: str) -> None:
        self.item = item
        self.what = what

    def __repr__(self) -> str:
        return f"{self.item}: {self.what}"

    __str__ = __repr__


class ProblemsError(UsageError):
    """Everything that is wrong with the input, listed before the first call.

    Attributes:
        problems: all of them; the message shows the first 50.
    """

    SHOWN = 50

    def __init__(self, problems: Sequence[Problem], *, hint: str = "") -> None:
        self.problems = tuple(problems)
        head = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''} in the input; nothing was sent:"
        lines = [f"  - {p}" for p in self.problems[: self.SHOWN]]
        if len(self.problems) > self.SHOWN:
            lines.append(f"  … and {len(self.problems) - self.SHOWN} more (all in .problems)")
        if hint:
            lines.append(hint)
        super().__init__("\n".join([head, *lines]))


def missing_extra(feature: str, extra: str, package: str) -> MissingExtraError:
    """The one error for a missing optional package, with the line that mends it."""
    return MissingExtraError(
        f"{feature} needs the package {package!r}, which is not installed. Install it with:  pip install '{DISTRIBUTION}[{extra}]'"
    )
