"""MiniWorld: a small procedural world in which everything can really be trained, attacked and judged (docs/miniworld.md)."""

from .dataset import SPLITS, UNSEEN, MiniWorld, MiniWorldItem, Split, miniworld
from .edits import EDITS, Edit, applicable, edits_for_prompt, families
from .render import SIZE, STYLES, Style, render, render_array
from .scenes import ATTRIBUTES, CATEGORIES, CATEGORY_OF, CATEGORY_SHARES, Category, Scene, Value, caption, sample_scene

#: Stands under every table made with MiniWorld.
CAVEAT = "64×64 procedural scenes, trained referees: orderings need not carry over."

__all__ = [
    "ATTRIBUTES",
    "CATEGORIES",
    "CATEGORY_OF",
    "CATEGORY_SHARES",
    "CAVEAT",
    "EDITS",
    "SIZE",
    "SPLITS",
    "STYLES",
    "UNSEEN",
    "Category",
    "Edit",
    "MiniWorld",
    "MiniWorldItem",
    "Scene",
    "Split",
    "Style",
    "Value",
    "applicable",
    "caption",
    "edits_for_prompt",
    "families",
    "miniworld",
    "render",
    "render_array",
    "sample_scene",
]
