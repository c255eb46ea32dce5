"""What can be asked of a MiniWorld picture: one attribute set to one value, in several wordings.

Every edit can be seen at 64 pixels. Edits come in families (the colours of hair are one family); families of a category
are drawn with equal chances, so that no kind of edit (black-and-white, say) outweighs the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import cast

import numpy as np

from .scenes import ATTRIBUTES, CATEGORIES, CATEGORY_OF, Category, Scene, Value

__all__ = ["EDITS", "Edit", "applicable", "edits_for_prompt", "families", "normalise", "sample_edits"]


@dataclass(frozen=True)
class Edit:
    """One change that can be asked for.

    Attributes:
        name: unique, e.g. "portrait/hair/red".
        family: what is reported and balanced, e.g. "hair"; unique within a category.
        category: of the scenes it applies to.
        attribute, value: what the change sets.
        wordings: instructions that ask for it; several edits of different categories may share a wording.
        requires: attribute values the source must have ("turn the circle red" wants a circle).
    """

    name: str
    family: str
    category: Category
    attribute: str
    value: Value
    wordings: tuple[str, ...]
    requires: Mapping[str, Value]

    def applies(self, scene: Scene) -> bool:
        """Whether the scene can be asked for this and would change."""
        if scene.category != self.category or scene["tone"] != "color" or scene[self.attribute] == self.value:
            return False
        if any(scene[name] != value for name, value in self.requires.items()):
            return False
        # a shape on a ground of its own colour cannot be seen
        clash = {"color": "ground", "ground": "color"}.get(self.attribute)
        return clash is None or scene[clash] != self.value

    def target(self, scene: Scene) -> Scene:
        """The scene that a perfect edit shows."""
        return scene.changed(self.attribute, self.value)


def _background(colour: Value) -> tuple[str, ...]:
    return (
        f"make the background {colour}", f"change the background to {colour}", f"turn the background {colour}",
        f"use a {colour} background", f"the background should be {colour}",
    )  # fmt: skip


def _thing(article: str, noun: str, place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Wordings for adding and for removing something."""
    named = f"{article} {noun}".strip()
    add = (f"add {named}", f"put {named} {place}", f"draw {named} {place}", f"there should be {named}")
    remove = (f"remove the {noun}", f"take away the {noun}", f"delete the {noun}", f"there should be no {noun}")
    return add, remove


def _portraits() -> Iterator[tuple[str, str, Value, tuple[str, ...], dict[str, Value]]]:
    for c in ("red", "blond", "blue", "black"):
        yield "hair", "hair", c, (
            f"make the hair {c}", f"dye the hair {c}", f"give the person {c} hair", f"turn the hair {c}",
            f"change the hair color to {c}", f"the person should have {c} hair",
        ), {}  # fmt: skip
    for thing in ("crown", "hat"):
        yield "headwear", "headwear", thing, (
            f"add a {thing}", f"give the person a {thing}", f"put a {thing} on the head",
            f"make the person wear a {thing}", f"the person should wear a {thing}",
        ), {}  # fmt: skip
    yield "glasses", "glasses", True, (
        "add glasses", "put glasses on the face", "give the person glasses", "make the person wear glasses",
        "the person should wear glasses",
    ), {}  # fmt: skip
    yield "glasses", "glasses", False, (
        "remove the glasses", "take off the glasses", "the person should wear no glasses", "show the face without glasses",
    ), {}  # fmt: skip
    yield "beard", "beard", True, (
        "add a beard", "give the person a beard", "let the person grow a beard", "the person should have a beard",
    ), {}  # fmt: skip
    yield "beard", "beard", False, (
        "remove the beard", "shave the beard", "shave the person", "the person should have no beard",
    ), {}  # fmt: skip
    for c in ("blue", "green", "pink", "yellow"):
        yield "backdrop", "backdrop", c, _background(c), {}
    for c in ("white", "black", "red", "yellow"):
        yield "shirt", "shirt", c, (
            f"make the shirt {c}", f"change the shirt to {c}", f"turn the shirt {c}", f"give the person a {c} shirt",
            f"the shirt should be {c}",
        ), {}  # fmt: skip


def _landscapes() -> Iterator[tuple[str, str, Value, tuple[str, ...], dict[str, Value]]]:
    for t in ("night", "sunset", "day"):
        yield "time", "time", t, (
            f"make it {t}", f"turn it into {t}", f"show the scene at {t}", f"change the time to {t}", f"it should be {t}",
        ), {}  # fmt: skip
    extra = {
        "winter": ("cover the scene with snow", "add snow"),
        "autumn": ("make the leaves fall",),
        "summer": ("make the grass green",),
    }
    for s in ("winter", "autumn", "summer"):
        yield "season", "season", s, (
            f"make it {s}", f"turn it into {s}", f"show the scene in {s}", f"it should be {s}", *extra[s],
        ), {}  # fmt: skip
    for name, words in (
        ("house", _thing("a", "house", "on the hill")), ("trees", _thing("", "trees", "on the hill")),
        ("balloon", _thing("a", "balloon", "in the sky")), ("mountain", _thing("a", "mountain", "behind the hill")),
    ):  # fmt: skip
        yield name, name, True, words[0], {}
        yield name, name, False, words[1], {}


def _artworks() -> Iterator[tuple[str, str, Value, tuple[str, ...], dict[str, Value]]]:
    for shape in ATTRIBUTES["shape"]:
        for c in ATTRIBUTES["color"]:
            yield "recolour", "color", c, (
                f"make the {shape} {c}", f"turn the {shape} {c}", f"paint the {shape} {c}",
                f"change the {shape} color to {c}", f"the {shape} should be {c}",
            ), {"shape": shape}  # fmt: skip
        for other in ATTRIBUTES["shape"]:
            if other != shape:
                yield "reshape", "shape", other, (
                    f"turn the {shape} into a {other}", f"replace the {shape} with a {other}",
                    f"change the {shape} to a {other}", f"make the {shape} a {other}", f"the {shape} should be a {other}",
                ), {"shape": shape}  # fmt: skip
    for c in ("blue", "green", "yellow", "purple"):
        yield "ground", "ground", c, _background(c), {}
    for p in ("stripes", "dots"):
        yield "pattern", "pattern", p, (
            f"add {p}", f"put {p} on the background", f"draw {p} on the background", f"cover the background with {p}",
            f"there should be {p}",
        ), {}  # fmt: skip
    for name, words in (
        ("frame", ("add a frame", "put it in a frame", "frame the picture", "there should be a frame")),
        (
            "outline",
            ("add an outline", "draw an outline around the shape", "outline the shape", "there should be an outline"),
        ),
    ):
        yield name, name, True, words, {}
        yield name, name, False, (
            f"remove the {name}", f"take away the {name}", f"delete the {name}", f"there should be no {name}",
        ), {}  # fmt: skip


_TONES = {
    "bw": (
        "make it black and white", "turn it into black and white", "remove the color",
        "make the picture black and white", "it should be black and white",
    ),
    "sepia": ("make it sepia", "turn it into sepia", "make it an old photo", "make the picture sepia", "it should be sepia"),
}  # fmt: skip


def _all_edits() -> Mapping[str, Edit]:
    table: dict[str, Edit] = {}
    for category, rows in (("portrait", _portraits()), ("landscape", _landscapes()), ("artwork", _artworks())):
        own = [*rows, *(("tone", "tone", tone, words, {}) for tone, words in _TONES.items())]
        for family, attribute, value, wordings, requires in own:
            said = {True: "add", False: "remove"}.get(value, value) if isinstance(value, bool) else value
            parts = [category, family, *map(str, requires.values()), str(said)]
            name = "/".join(parts)
            table[name] = Edit(
                name, family, cast(Category, category), attribute, value, wordings, MappingProxyType(dict(requires))
            )
    return MappingProxyType(table)


#: Every edit by name.
EDITS: Mapping[str, Edit] = _all_edits()
if {e.attribute for e in EDITS.values()} - {"tone"} - set(CATEGORY_OF):
    raise ImportError("an edit names an attribute that no scene has")


def families(category: Category) -> tuple[str, ...]:
    """The edit families of a category."""
    if category not in CATEGORIES:
        raise ValueError(f"category must be one of {', '.join(CATEGORIES)}; got {category!r}")
    return tuple(dict.fromkeys(e.family for e in EDITS.values() if e.category == category))


def applicable(scene: Scene) -> dict[str, list[Edit]]:
    """family -> the edits that would change this scene; families without one are absent."""
    found: dict[str, list[Edit]] = {}
    for edit in EDITS.values():
        if edit.applies(scene):
            found.setdefault(edit.family, []).append(edit)
    return found


def sample_edits(scene: Scene, rng: np.random.Generator, count: int = 1) -> list[Edit]:
    """`count` edits of as many different families: families with equal chances, then an edit of the family."""
    found = applicable(scene)
    if count > len(found):
        raise ValueError(
            f"this {scene.category} has {len(found)} edit families; {count} distinct edits cannot be drawn"
        )
    order = rng.permutation(len(found))[:count]
    kinds = list(found.values())
    return [kinds[i][int(rng.integers(len(kinds[i])))] for i in order]


def normalise(prompt: str) -> str:
    """Lower case, single spaces, no closing punctuation: how wordings are compared."""
    return re.sub(r"\s+", " ", prompt).strip().rstrip(".!").rstrip().lower()


@cache
def _by_wording() -> Mapping[str, tuple[Edit, ...]]:
    table: dict[str, list[Edit]] = {}
    for edit in EDITS.values():
        for words in edit.wordings:
            table.setdefault(normalise(words), []).append(edit)
    return MappingProxyType({words: tuple(edits) for words, edits in table.items()})


def edits_for_prompt(prompt: str) -> tuple[Edit, ...]:
    """The edits a prompt can mean (one per category at most), or () where it is not MiniWorld's grammar."""
    return _by_wording().get(normalise(prompt), ())
