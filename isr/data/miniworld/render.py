"""Draws a scene: 64×64 8-bit RGB, drawn four times larger and box-reduced, then lit and grained by the scene's own seed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .scenes import Scene

__all__ = ["SIZE", "STYLES", "Style", "render", "render_array"]

#: plain: lit from a side, fine grain. canvas: the same scenes with a vignette, warmer and stronger colours and a coarse
#: weave instead of grain; mini-hq learnt from it.
Style = Literal["plain", "canvas"]
STYLES: tuple[Style, ...] = get_args(Style)

#: Side of every MiniWorld picture, pixels.
SIZE = 64
_ZOOM = 4
_CANVAS = SIZE * _ZOOM

RGB = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

_HAIR: dict[str, RGB] = {
    "black": (30, 26, 26), "brown": (104, 64, 34), "blond": (228, 194, 100),
    "red": (190, 48, 28), "blue": (48, 78, 200), "white": (230, 230, 232),
}  # fmt: skip
_BACKDROP: dict[str, RGB] = {
    "grey": (150, 152, 156), "blue": (92, 138, 206), "green": (100, 162, 100),
    "pink": (234, 160, 184), "yellow": (234, 210, 112), "brown": (126, 98, 74),
}  # fmt: skip
_SHIRT: dict[str, RGB] = {
    "white": (228, 228, 232), "black": (40, 40, 46), "red": (180, 44, 44),
    "blue": (44, 66, 160), "green": (44, 124, 66), "yellow": (226, 186, 50),
}  # fmt: skip
_SKIN: tuple[RGB, ...] = ((246, 214, 186), (228, 186, 150), (196, 148, 110), (150, 104, 72), (110, 74, 52))
_PAINT: dict[str, RGB] = {
    "red": (205, 40, 40), "blue": (45, 80, 205), "green": (50, 150, 65),
    "yellow": (235, 205, 50), "purple": (135, 60, 165), "orange": (240, 135, 40),
}  # fmt: skip
_GRASS: tuple[RGB, ...] = ((92, 148, 66), (116, 158, 70), (76, 128, 70))
_STRAW: tuple[RGB, ...] = ((196, 138, 62), (206, 150, 74), (184, 122, 58))
_BALLOON: tuple[RGB, ...] = ((206, 44, 52), (236, 150, 40), (150, 60, 170))
_DARK: RGB = (20, 18, 24)


def _shade(colour: RGB, factor: float) -> RGB:
    r, g, b = (int(min(255.0, max(0.0, v * factor))) for v in colour)
    return r, g, b


class _Pen:
    """Draws in picture widths (0 to 1) on the large canvas."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB) -> None:
        n = _CANVAS
        self.draw.ellipse([(x - rx) * n, (y - ry) * n, (x + rx) * n, (y + ry) * n], fill=fill)

    def ring(self, x: float, y: float, rx: float, ry: float, *, colour: RGB, width: float) -> None:
        n = _CANVAS
        self.draw.ellipse(
            [(x - rx) * n, (y - ry) * n, (x + rx) * n, (y + ry) * n], outline=colour, width=round(width * n)
        )

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: RGB) -> None:
        n = _CANVAS
        self.draw.rectangle([x0 * n, y0 * n, x1 * n, y1 * n], fill=fill)

    def shape(self, points: Points, fill: RGB) -> None:
        self.draw.polygon([(x * _CANVAS, y * _CANVAS) for x, y in points], fill=fill)

    def line(self, points: Points, colour: RGB, width: float, *, closed: bool = False) -> None:
        scaled = [(x * _CANVAS, y * _CANVAS) for x, y in points]
        if closed:
            scaled += scaled[:2]  # overlaps the first side, so that the corner is joined
        self.draw.line(scaled, fill=colour, width=round(width * _CANVAS), joint="curve")


def _draw_portrait(pen: _Pen, scene: Scene, _noise: np.random.RandomState) -> None:
    a, g = scene.attributes, scene.layout
    x, y, r = g["x"], g["y"], g["radius"]
    ry = r * g["aspect"]
    hair, skin = _HAIR[str(a["hair"])], _SKIN[g["skin"]]
    backdrop = _BACKDROP[str(a["backdrop"])]
    pen.box(0, 0, 1, 1, backdrop)
    pen.ellipse(0.2, 0.25, 0.35, 0.35, _shade(backdrop, 1.06))
    pen.ellipse(0.85, 0.8, 0.3, 0.4, _shade(backdrop, 0.94))
    if g["style"] == "long":
        n = _CANVAS
        pen.draw.rounded_rectangle(
            [(x - r * 1.28) * n, (y - ry * 1.1) * n, (x + r * 1.28) * n, (y + ry * 1.25) * n],
            radius=int(r * n * 0.9),
            fill=hair,
        )
    if g["style"] == "bun" and a["headwear"] == "none":
        pen.ellipse(x, y - ry * 1.24, r * 0.42, r * 0.42, hair)
    pen.ellipse(x, 1.06, r * 1.95, 0.27, _SHIRT[str(a["shirt"])])
    pen.box(x - r * 0.34, y + ry * 0.6, x + r * 0.34, y + ry * 1.2, _shade(skin, 0.86))
    pen.ellipse(x, y - ry * 0.12, r * 1.2, ry * 1.1, hair)
    pen.ellipse(x, y + ry * 0.1, r, ry * 0.95, skin)
    mouth_y = y + ry * 0.6
    if a["beard"]:
        pen.shape(
            [
                (x - r * 0.97, y + ry * 0.2), (x - r * 0.62, y + ry * 0.38), (x - r * 0.3, y + ry * 0.42),
                (x, y + ry * 0.46), (x + r * 0.3, y + ry * 0.42), (x + r * 0.62, y + ry * 0.38),
                (x + r * 0.97, y + ry * 0.2), (x + r * 0.82, y + ry * 0.76), (x + r * 0.42, y + ry * 1.12),
                (x - r * 0.42, y + ry * 1.12), (x - r * 0.82, y + ry * 0.76),
            ],
            _shade(hair, 0.8),
        )  # fmt: skip
        pen.ellipse(x, mouth_y, r * 0.4, ry * 0.12, skin)
    pen.shape(
        [
            (x - r * 1.02, y - ry * 0.1), (x - r * 0.9, y - ry * 0.85), (x, y - ry * 1.08), (x + r * 0.9, y - ry * 0.85),
            (x + r * 1.02, y - ry * 0.1), (x + r * 0.55, y - ry * 0.42), (x - r * 0.35, y - ry * 0.38),
        ],
        hair,
    )  # fmt: skip
    eye_y = y + ry * 0.02
    for side in (-1, 1):
        pen.ellipse(x + side * r * 0.42, eye_y, r * 0.18, r * 0.13, (245, 245, 245))
        pen.ellipse(x + side * r * 0.42, eye_y, r * 0.1, r * 0.12, (40, 34, 34))
    pen.shape(
        [(x, eye_y + ry * 0.1), (x - r * 0.1, eye_y + ry * 0.34), (x + r * 0.08, eye_y + ry * 0.34)], _shade(skin, 0.78)
    )
    lips = (168, 62, 62)
    if g["smiling"]:
        n = _CANVAS
        pen.draw.chord(
            [(x - r * 0.38) * n, (mouth_y - ry * 0.2) * n, (x + r * 0.38) * n, (mouth_y + ry * 0.14) * n],
            0, 180, fill=(250, 246, 240), outline=lips, width=int(r * n * 0.08) + 1,
        )  # fmt: skip
    else:
        pen.line([(x - r * 0.3, mouth_y), (x + r * 0.3, mouth_y)], lips, r * 0.13)
    if a["glasses"]:
        for side in (-1, 1):
            pen.ring(x + side * r * 0.45, eye_y, r * 0.37, r * 0.33, colour=_DARK, width=r * 0.14)
        pen.line([(x - r * 0.12, eye_y), (x + r * 0.12, eye_y)], _DARK, r * 0.14)
    _draw_headwear(pen, str(a["headwear"]), x=x, top=y - ry * 0.66, r=r, ry=ry)


def _draw_headwear(pen: _Pen, kind: str, *, x: float, top: float, r: float, ry: float) -> None:
    if kind == "crown":
        pen.shape(
            [
                (x - r, top), (x - r * 1.12, top - ry * 0.66), (x - r * 0.52, top - ry * 0.3), (x, top - ry * 0.78),
                (x + r * 0.52, top - ry * 0.3), (x + r * 1.12, top - ry * 0.66), (x + r, top),
            ],
            (246, 202, 40),
        )  # fmt: skip
        for k in (-0.6, 0.0, 0.6):
            pen.ellipse(x + k * r, top - ry * 0.12, r * 0.1, r * 0.1, (190, 30, 60))
    elif kind == "hat":
        felt = (56, 46, 66)
        pen.box(x - r * 0.85, top - ry * 0.74, x + r * 0.85, top, felt)
        pen.ellipse(x, top, r * 1.6, ry * 0.17, felt)
        pen.box(x - r * 0.85, top - ry * 0.28, x + r * 0.85, top - ry * 0.12, (176, 48, 48))


@cache
def _sky(time: str) -> npt.NDArray[np.uint8]:
    top, bottom = {
        "day": ((96, 160, 232), (190, 220, 245)),
        "sunset": ((112, 66, 132), (252, 150, 76)),
        "night": ((10, 14, 40), (36, 44, 88)),
    }[time]
    down = np.linspace(0, 1, _CANVAS)[:, None, None]
    gradient = np.array(top) * (1 - down) + np.array(bottom) * down
    return np.broadcast_to(gradient, (_CANVAS, _CANVAS, 3)).astype(np.uint8)


def _draw_landscape(pen: _Pen, scene: Scene, noise: np.random.RandomState) -> None:
    a, g = scene.attributes, scene.layout
    time, season = str(a["time"]), str(a["season"])
    dim = {"day": 1.0, "sunset": 0.8, "night": 0.5}[time]
    pen.image.paste(Image.fromarray(_sky(time)))
    stars = noise.rand(14, 2)
    sx, sy = g["sun"]
    if time == "night":
        for u, v in stars:
            pen.ellipse(u, v * 0.5, 0.009, 0.009, (235, 235, 220))
        pen.ellipse(sx, sy, 0.085, 0.085, (240, 238, 214))
        pen.ellipse(sx + 0.035, sy - 0.02, 0.068, 0.068, (17, 21, 51))
    elif time == "sunset":
        pen.ellipse(sx, sy + 0.22, 0.1, 0.1, (255, 104, 46))
    else:
        pen.ellipse(sx, sy, 0.085, 0.085, (255, 226, 90))
    if g["cloud"] is not None:
        cx, cy = g["cloud"]
        for dx, dy, rr in ((0, 0, 0.07), (0.08, 0.01, 0.055), (-0.08, 0.015, 0.05)):
            pen.ellipse(cx + dx, cy + dy, rr * 1.3, rr * 0.7, _shade((246, 246, 250), dim))
    hz = g["horizon"]
    if a["mountain"]:
        mx, mh = g["peak"]
        pen.shape([(mx - 0.42, hz + 0.08), (mx, hz - mh), (mx + 0.42, hz + 0.08)], _shade((116, 112, 126), dim))
        cap = [
            (mx - 0.14, hz - mh * 0.6),
            (mx, hz - mh),
            (mx + 0.14, hz - mh * 0.6),
            (mx + 0.05, hz - mh * 0.68),
            (mx - 0.05, hz - mh * 0.56),
        ]
        pen.shape(cap, _shade((240, 244, 250), dim))
    ground = {"summer": _GRASS[g["grass"]], "autumn": _STRAW[g["grass"]], "winter": (234, 239, 247)}[season]
    xs = np.linspace(0, 1, 40)
    for lift, part, shift, colour in ((0.0, 1.0, 0.0, _shade(ground, 0.85)), (0.14, 0.8, 2.0, ground)):
        ridge = hz + lift + g["swell"] * part * np.sin(g["waves"] * part * xs + g["phase"] + shift)
        pen.shape([*zip(xs.tolist(), ridge.tolist(), strict=True), (1, 1), (0, 1)], _shade(colour, dim))
    if a["trees"]:
        leaves = {"summer": (36, 98, 52), "autumn": (190, 74, 26), "winter": (176, 196, 206)}[season]
        for tx, ts in g["trees"]:
            foot = hz + 0.14 + (ts - 0.2) * 1.4
            pen.box(tx - 0.013, foot - 0.04, tx + 0.013, foot + 0.03, _shade((92, 64, 40), dim))
            pen.shape(
                [(tx - ts * 0.36, foot - 0.02), (tx, foot - ts * 1.15), (tx + ts * 0.36, foot - 0.02)],
                _shade(leaves, dim),
            )
            pen.shape(
                [(tx - ts * 0.27, foot - ts * 0.5), (tx, foot - ts * 1.15), (tx + ts * 0.27, foot - ts * 0.5)],
                _shade(leaves, dim * 1.2),
            )
    if a["house"]:
        _draw_house(pen, scene, hz + 0.28, dim)
    if a["balloon"]:
        bx, by, kind = g["balloon"]
        lit = max(dim, 0.6)
        pen.ellipse(bx, by, 0.1, 0.115, _shade(_BALLOON[kind], lit))
        pen.ellipse(bx, by, 0.045, 0.115, _shade((246, 226, 170), lit))
        for side in (-1, 1):
            pen.line([(bx + side * 0.06, by + 0.09), (bx + side * 0.028, by + 0.17)], _shade((90, 66, 44), lit), 0.008)
        pen.box(bx - 0.032, by + 0.165, bx + 0.032, by + 0.215, _shade((110, 74, 42), lit))


def _draw_house(pen: _Pen, scene: Scene, foot: float, dim: float) -> None:
    x, h = scene.layout["house"]
    time, season = scene["time"], scene["season"]
    lit = max(dim, 0.5)
    roof = (236, 240, 246) if season == "winter" else (172, 52, 44)
    pen.box(x - h * 0.55, foot - h * 0.8, x + h * 0.55, foot, _shade((228, 206, 176), lit))
    pen.shape([(x - h * 0.7, foot - h * 0.78), (x, foot - h * 1.42), (x + h * 0.7, foot - h * 0.78)], _shade(roof, lit))
    pen.box(x - h * 0.13, foot - h * 0.46, x + h * 0.13, foot, _shade((92, 58, 40), dim))
    window = (255, 226, 110) if time == "night" else _shade((92, 136, 186), lit)
    for side in (-1, 1):
        pen.box(
            x + side * h * 0.33 - h * 0.13, foot - h * 0.62, x + side * h * 0.33 + h * 0.13, foot - h * 0.34, window
        )


def _draw_artwork(pen: _Pen, scene: Scene, _noise: np.random.RandomState) -> None:
    a, g = scene.attributes, scene.layout
    r0, g0, b0 = (int(0.55 * v + 0.45 * 238) for v in _PAINT[str(a["ground"])])
    ground: RGB = (r0, g0, b0)
    pen.box(0, 0, 1, 1, ground)
    if a["pattern"] == "stripes":
        for i in range(0, 8, 2):
            pen.box(i / 8, 0, (i + 1) / 8, 1, _shade(ground, 0.76))
    elif a["pattern"] == "dots":
        for i in range(5):
            for j in range(5):
                pen.ellipse(0.1 + 0.2 * i, 0.1 + 0.2 * j, 0.05, 0.05, _shade(ground, 0.7))
    for kind, name, mx, my, mr, angle in g["marks"]:
        colour = _shade(_PAINT[name], 0.9)
        if kind == "ring":
            pen.ring(mx, my, mr * 1.3, mr * 1.3, colour=colour, width=mr * 0.45)
        else:
            dx, dy = float(np.cos(angle)) * mr * 2, float(np.sin(angle)) * mr * 2
            pen.line([(mx - dx, my - dy), (mx + dx, my + dy)], colour, mr * 0.5)
    x, y, r, colour = g["x"], g["y"], g["radius"], _PAINT[str(a["color"])]
    edge = 0.035
    if a["shape"] == "circle":
        pen.ellipse(x, y, r, r, colour)
        if a["outline"]:
            pen.ring(x, y, r, r, colour=_DARK, width=edge)
    else:
        points = (
            [
                (x - r * 0.9, y - r * 0.9),
                (x + r * 0.9, y - r * 0.9),
                (x + r * 0.9, y + r * 0.9),
                (x - r * 0.9, y + r * 0.9),
            ]
            if a["shape"] == "square"
            else [(x - r * 1.1, y + r * 0.85), (x, y - r * 1.1), (x + r * 1.1, y + r * 0.85)]
        )
        pen.shape(points, colour)
        if a["outline"]:
            pen.line(points, _DARK, edge, closed=True)
    if a["frame"]:
        n = _CANVAS - 1
        pen.draw.rectangle([0, 0, n, n], outline=(74, 50, 30), width=round(0.07 * _CANVAS))
        pen.draw.rectangle([0, 0, n, n], outline=(128, 92, 52), width=round(0.03 * _CANVAS))


def _smooth_noise(noise: np.random.RandomState, cells: int) -> npt.NDArray[np.float32]:
    field = noise.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(field).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_WARM = np.array([0.025, 0.005, -0.02], np.float32)
_DOWN, _ACROSS = (v.astype(np.float32) for v in np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j])


def _lit_plain(pixels: npt.NDArray[np.float32], scene: Scene, grain: np.random.RandomState) -> npt.NDArray[np.float32]:
    across, down = scene.layout["light"]
    pixels = pixels * (scene.layout["gain"] * (1 + across * _ACROSS + down * _DOWN))[..., None]
    pixels = pixels * (1 + 0.03 * _smooth_noise(grain, 8))[..., None] + 0.01 * _smooth_noise(grain, 24)[..., None]
    return pixels + 0.01 * grain.standard_normal((SIZE, SIZE, 3)).astype(np.float32)


def _lit_canvas(pixels: npt.NDArray[np.float32], scene: Scene, grain: np.random.RandomState) -> npt.NDArray[np.float32]:
    across, down = scene.layout["light"]
    vignette = 1.04 - 0.16 * ((_ACROSS - 2 * across) ** 2 + (_DOWN - 2 * down) ** 2)
    pixels = (pixels - 0.5) * 1.12 + 0.5 + _WARM
    pixels = pixels * (scene.layout["gain"] * vignette)[..., None]
    weave = np.float32(0.018) * (_smooth_noise(grain, 32)[:1] + _smooth_noise(grain, 32)[:, :1])
    return np.asarray(pixels + weave[..., None] + 0.006 * grain.standard_normal((SIZE, SIZE, 1)), np.float32)


def render_array(scene: Scene, style: Style = "plain") -> npt.NDArray[np.uint8]:
    """The scene's pixels, (64, 64, 3) uint8, values 0–255."""
    noise = np.random.RandomState(scene.noise_seed)  # legacy generator: its stream is frozen across numpy versions
    pen = _Pen(Image.new("RGB", (_CANVAS, _CANVAS)))
    draw: Any = {"portrait": _draw_portrait, "landscape": _draw_landscape, "artwork": _draw_artwork}[scene.category]
    draw(pen, scene, noise)
    pixels = np.asarray(pen.image.reduce(_ZOOM), np.float32) / 255.0
    grain = np.random.RandomState(
        (scene.noise_seed + 1) % (1 << 31)
    )  # its own stream: drawing may use any amount of `noise`
    pixels = {"plain": _lit_plain, "canvas": _lit_canvas}[style](pixels, scene, grain)
    if scene["tone"] != "color":
        luma = (pixels @ _LUMA)[..., None]
        pixels = np.repeat(luma, 3, axis=-1)
        if scene["tone"] == "sepia":
            pixels = luma * np.array([1.08, 0.86, 0.6], np.float32) + np.array([0.06, 0.03, 0.0], np.float32)
    return (pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def render(scene: Scene, style: Style = "plain") -> Image.Image:
    """The scene as a 64×64 RGB picture."""
    return Image.fromarray(render_array(scene, style))
