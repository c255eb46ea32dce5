"""Cases: what a user hands in, in any of its forms, becomes ordered, validated records with their pictures.

The columns, `case_id`, `image_id` and the control arm are those of docs/definitions.md, sections 1 and 4.
"""

from __future__ import annotations

from .prepare import iter_prepared, prepare
from .types import EditCase, OnBadImage, Prepared, PreparedCase

__all__ = ["EditCase", "OnBadImage", "Prepared", "PreparedCase", "iter_prepared", "prepare"]
