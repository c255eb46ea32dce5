"""What of an experiment file can never work, found before anything is made: settings of attacks and of purifiers.

Both are made here once and thrown away; neither loads a model before its first picture. Editors are not made: that loads them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..errors import IsrError, MissingExtraError, UsageError
from ..registry import RESOLVERS
from .experiment import Experiment, PurifierEntry

__all__ = ["check_settings"]


def check_settings(experiment: Experiment, *, source: str) -> None:
    """Make every attack and every purifier that the file names.

    Args:
        source: as errors call the file.

    Raises:
        UsageError: settings that an attack or a purifier does not take; all are named by their keys.
    """
    problems: list[str] = []

    def tried(key: str, make: Callable[[], object]) -> None:
        try:
            make()
        except MissingExtraError:
            return  # a laptop may plan, and a head node start, what it could not do itself
        except IsrError as error:
            problems.append(f"  {key}: {error}")
        except (TypeError, ValueError) as error:
            problems.append(f"  {key}: {_plainly(error)}")

    for i, attack in enumerate(experiment.attacks):
        tried(f"attacks.{i}.options", partial(_attack, attack.name, attack.options))
    if experiment.noise is not None:
        tried("noise.options", partial(_attack, "noise", experiment.noise.options))
    for i, purifier in enumerate(experiment.purifiers):
        tried(f"purifiers.{i}", partial(_purifier, purifier))
    if problems:
        raise UsageError(f"experiment {source}:\n" + "\n".join(problems))


def _attack(name: str, options: Mapping[str, Any]) -> None:
    from ..immunization import immunize
    from ..making import make_attack

    own = inspect.signature(immunize).parameters  # of the framework, not of the attack
    make_attack(name, **{k: v for k, v in options.items() if k not in own})


def _purifier(entry: PurifierEntry) -> None:
    if entry.editor is None:  # with one, its networks would have to be loaded
        RESOLVERS.load("purifiers")(entry.name, **entry.options)


def _plainly(error: Exception) -> str:
    """A call's complaint in the words of the file."""
    told = str(error)
    if isinstance(error, TypeError) and "unexpected keyword argument" in told:
        return f"there is no setting {told.rpartition('argument ')[2]}"
    if isinstance(error, TypeError) and "missing" in told and "'editor'" in told:
        return 'needs an editor\'s networks; name one of the file\'s editors: { name = "…", editor = "LABEL" }'
    return f"{type(error).__name__}: {told}"
