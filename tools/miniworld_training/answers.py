"""Which edits have more than one right picture: the target of a training pair is then only one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from isr.data.miniworld import EDITS

__all__ = ["many_answers", "placed_anywhere"]

#: What appears stands at a place of its own choice, which the picture before does not tell.
_PLACED = frozenset(
    {f"landscape/{name}/add" for name in ("house", "trees", "balloon", "mountain")}
    | {"landscape/time/night"}  # its stars
)
#: A form's successor uncovers what the form hid. (Removals uncover something too, but mostly sky and ground.)
_UNCOVERED = frozenset(name for name, edit in EDITS.items() if edit.family == "reshape")


def many_answers(edits: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Where no distance to the target says anything, for it is one of many right pictures. (N,) bool."""
    return np.array([name in _PLACED or name in _UNCOVERED for name in edits])


def placed_anywhere(edits: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Where things appear at random places. (N,) bool.

    A sampler decides on one of the places by its noise. Learning from its own predictions, whose noise says nothing of the
    target's place, or from absolute errors would teach it the blur over all of them.
    """
    return np.array([name in _PLACED for name in edits])
