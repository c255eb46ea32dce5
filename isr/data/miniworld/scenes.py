"""What a MiniWorld picture shows: a category, a few named attributes, a layout and a noise seed.

A scene is a full description: the same scene always renders to the same bytes, and an edit changes one attribute and
nothing else, so the exact target of every edit is known. Geometry lives in `layout`, which no edit touches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, cast

import numpy as np

__all__ = [
    "ATTRIBUTES",
    "CATEGORIES",
    "CATEGORY_OF",
    "CATEGORY_SHARES",
    "Category",
    "Scene",
    "Value",
    "caption",
    "sample_scene",
]

Category = Literal["portrait", "landscape", "artwork"]
Value = str | bool

CATEGORIES: tuple[Category, ...] = ("portrait", "landscape", "artwork")
#: Shares of the three categories in every split.
CATEGORY_SHARES: Mapping[Category, float] = MappingProxyType({"portrait": 0.35, "landscape": 0.35, "artwork": 0.30})

_COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")

#: Every attribute that words can name, with its values; `tone` belongs to all categories.
ATTRIBUTES: Mapping[str, tuple[Value, ...]] = MappingProxyType(
    {
        "tone": ("color", "bw", "sepia"),
        # portraits
        "hair": ("black", "brown", "blond", "red", "blue", "white"),
        "headwear": ("none", "hat", "crown"),
        "glasses": (False, True),
        "beard": (False, True),
        "backdrop": ("grey", "blue", "green", "pink", "yellow", "brown"),
        "shirt": ("white", "black", "red", "blue", "green", "yellow"),
        # landscapes
        "time": ("day", "sunset", "night"),
        "season": ("summer", "autumn", "winter"),
        "house": (False, True),
        "trees": (False, True),
        "balloon": (False, True),
        "mountain": (False, True),
        # artworks
        "shape": ("circle", "square", "triangle"),
        "color": _COLOURS,
        "ground": _COLOURS,
        "pattern": ("plain", "stripes", "dots"),
        "frame": (False, True),
        "outline": (False, True),
    }
)

_OF: dict[Category, tuple[str, ...]] = {
    "portrait": ("hair", "headwear", "glasses", "beard", "backdrop", "shirt"),
    "landscape": ("time", "season", "house", "trees", "balloon", "mountain"),
    "artwork": ("shape", "color", "ground", "pattern", "frame", "outline"),
}
#: attribute -> category (`tone` is absent: it belongs to all).
CATEGORY_OF: Mapping[str, Category] = MappingProxyType({a: c for c, names in _OF.items() for a in names})


@dataclass(frozen=True)
class Scene:
    """One picture, fully described.

    Attributes:
        category: portrait, landscape or artwork.
        attributes: attribute -> value, for `tone` and the category's own attributes (see `ATTRIBUTES`).
        layout: geometry and light (floats in picture widths, indices, lists); untouched by edits.
        noise_seed: of grain and light texture; shared by a scene and its edits.
    """

    category: Category
    attributes: Mapping[str, Value]
    layout: Mapping[str, Any] = field(repr=False)
    noise_seed: int = field(repr=False)

    def __getitem__(self, attribute: str) -> Value:
        return self.attributes[attribute]

    def changed(self, attribute: str, value: Value) -> Scene:
        """The same scene with one attribute set."""
        return replace(self, attributes=MappingProxyType({**self.attributes, attribute: value}))


def sample_scene(rng: np.random.Generator, category: Category | None = None) -> Scene:
    """A random scene in colour; the same generator state gives the same scene."""
    if category is None:
        category = cast(Category, str(rng.choice(CATEGORIES, p=[CATEGORY_SHARES[c] for c in CATEGORIES])))
    draw = {"portrait": _portrait, "landscape": _landscape, "artwork": _artwork}[category]
    light = {"light": (_u(rng, -0.12, 0.12), _u(rng, -0.12, 0.12)), "gain": _u(rng, 0.88, 1.06)}
    attributes, layout = draw(rng)
    return Scene(
        category,
        MappingProxyType({"tone": "color", **attributes}),
        MappingProxyType({**light, **layout}),
        int(rng.integers(1 << 31)),
    )


def _u(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _pick(rng: np.random.Generator, values: tuple[Any, ...]) -> Any:
    return values[int(rng.integers(len(values)))]


def _portrait(rng: np.random.Generator) -> tuple[dict[str, Value], dict[str, Any]]:
    attributes: dict[str, Value] = {
        "hair": _pick(rng, ATTRIBUTES["hair"]),
        "headwear": _pick(rng, ("none", "none", "none", "hat", "crown")),
        "glasses": bool(rng.random() < 0.3),
        "beard": bool(rng.random() < 0.3),
        "backdrop": _pick(rng, ATTRIBUTES["backdrop"]),
        "shirt": _pick(rng, ATTRIBUTES["shirt"]),
    }
    layout = {
        "skin": int(rng.integers(5)),
        "style": _pick(rng, ("short", "long", "bun")),
        "smiling": bool(rng.random() < 0.4),
        "x": _u(rng, 0.45, 0.55),
        "y": _u(rng, 0.51, 0.55),
        "radius": _u(rng, 0.20, 0.24),
        "aspect": _u(rng, 1.14, 1.26),
    }
    return attributes, layout


def _landscape(rng: np.random.Generator) -> tuple[dict[str, Value], dict[str, Any]]:
    attributes: dict[str, Value] = {
        "time": _pick(rng, ("day", "day", "sunset", "night")),
        "season": _pick(rng, ("summer", "summer", "autumn", "winter")),
        "house": bool(rng.random() < 0.35),
        "trees": bool(rng.random() < 0.4),
        "balloon": bool(rng.random() < 0.3),
        "mountain": bool(rng.random() < 0.45),
    }
    left = bool(rng.random() < 0.5)  # house on one side, balloon on the other: never one behind the other
    layout = {
        "horizon": _u(rng, 0.55, 0.64),
        "phase": _u(rng, 0.0, 6.28),
        "swell": _u(rng, 0.02, 0.05),
        "waves": _u(rng, 3.0, 7.0),
        "sun": (_u(rng, 0.18, 0.82), _u(rng, 0.12, 0.2)),
        "peak": (_u(rng, 0.3, 0.7), _u(rng, 0.24, 0.32)),
        "house": (_u(rng, 0.22, 0.34) if left else _u(rng, 0.66, 0.78), _u(rng, 0.2, 0.25)),
        "balloon": (_u(rng, 0.68, 0.82) if left else _u(rng, 0.18, 0.32), _u(rng, 0.22, 0.3), int(rng.integers(3))),
        "trees": tuple((_u(rng, 0.06 + 0.25 * i, 0.19 + 0.25 * i), _u(rng, 0.2, 0.27)) for i in range(4)),
        "cloud": (_u(rng, 0.15, 0.8), _u(rng, 0.12, 0.3)) if rng.random() < 0.5 else None,
        "grass": int(rng.integers(3)),
    }
    return attributes, layout


def _artwork(rng: np.random.Generator) -> tuple[dict[str, Value], dict[str, Any]]:
    color = _pick(rng, _COLOURS)
    attributes: dict[str, Value] = {
        "shape": _pick(rng, ATTRIBUTES["shape"]),
        "color": color,
        "ground": _pick(rng, tuple(c for c in _COLOURS if c != color)),
        "pattern": _pick(rng, ("plain", "plain", "stripes", "dots")),
        "frame": bool(rng.random() < 0.3),
        "outline": bool(rng.random() < 0.3),
    }
    layout = {
        "x": _u(rng, 0.42, 0.58),
        "y": _u(rng, 0.42, 0.58),
        "radius": _u(rng, 0.21, 0.27),
        "marks": tuple(
            (
                _pick(rng, ("bar", "ring")),
                _pick(rng, _COLOURS),
                _u(rng, 0.1, 0.9),
                _u(rng, 0.1, 0.9),
                _u(rng, 0.04, 0.07),
                _u(rng, 0.0, 3.14),
            )
            for _ in range(int(rng.integers(1, 4)))
        ),
    }
    return attributes, layout


def caption(scene: Scene) -> str:
    """The scene in words: everything an edit can change, in a fixed order."""
    a = scene.attributes
    tone = {"color": "", "bw": "black and white ", "sepia": "sepia "}[str(a["tone"])]
    if scene.category == "portrait":
        words = f"portrait of a person with {a['hair']} hair"
        extras = [
            f"wearing a {a['headwear']}" if a["headwear"] != "none" else "",
            "with glasses" if a["glasses"] else "",
            "with a beard" if a["beard"] else "",
            f"in a {a['shirt']} shirt on a {a['backdrop']} background",
        ]
    elif scene.category == "landscape":
        words = f"{a['season']} landscape at {a['time']}"
        extras = [
            "with a house" if a["house"] else "",
            "with trees" if a["trees"] else "",
            "with a balloon" if a["balloon"] else "",
            "with a mountain" if a["mountain"] else "",
        ]
    else:
        words = f"picture of {_with_article(str(a['color']))} {a['shape']}"
        extras = [
            "with an outline" if a["outline"] else "",
            f"on {_with_article(str(a['ground']))} background",
            f"with {a['pattern']}" if a["pattern"] != "plain" else "",
            "in a frame" if a["frame"] else "",
        ]
    return " ".join([_with_article(tone + words), *filter(None, extras)])


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
