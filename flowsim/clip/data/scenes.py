"""Scenes of shapes: kinds, colours, sizes, places, backgrounds; and their drawing."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

#: Red, green and blue.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (250, 130, 20),
    "yellow": (250, 220, 40),
    "green": (40, 165, 55),
    "cyan": (45, 205, 220),
    "blue": (40, 85, 225),
    "purple": (130, 50, 185),
    "pink": (250, 135, 195),
}
KINDS = ("circle", "ring", "square", "diamond", "triangle", "star", "cross", "heart")
#: Diameter as a fraction of the image's side.
SIZES: dict[str, float] = {"small": 0.16, "medium": 0.22, "large": 0.3}
#: Centre (column, row) as fractions of the image's side.
PLACES: dict[str, tuple[float, float]] = {
    "upper left": (0.2, 0.2),
    "top": (0.5, 0.2),
    "upper right": (0.8, 0.2),
    "left": (0.2, 0.5),
    "center": (0.5, 0.5),
    "right": (0.8, 0.5),
    "lower left": (0.2, 0.8),
    "bottom": (0.5, 0.8),
    "lower right": (0.8, 0.8),
}
#: Brightness, 0 to 255.
SHADES: dict[str, int] = {"dark": 40, "gray": 125, "light": 215}
TEXTURES = ("plain", "striped", "dotted", "checked")

_SCALE = 4  # pixels drawn per pixel kept, along each side


@dataclass(frozen=True)
class Shape:
    """One shape: words from KINDS, COLOURS, SIZES and PLACES."""

    kind: str
    colour: str
    size: str
    place: str


@dataclass(frozen=True)
class Scene:
    """Content of an image: one or two shapes, and a background with a shade and a texture."""

    shapes: tuple[Shape, ...]
    shade: str
    texture: str


def draw(scene: Scene, size: int, rng: np.random.Generator) -> Image.Image:
    """The scene in RGB, `size` pixels along each side; `rng` draws the nuisance that captions never mention."""
    canvas = _background(scene, size, rng)
    for shape in scene.shapes:
        colour = np.asarray(COLOURS[shape.colour]) + rng.uniform(-14, 14, 3)
        mask = _mask(shape, size, rng)[:, :, None]
        canvas = canvas + mask * (colour.astype(np.float32) - canvas)
    grain = rng.integers(-4, 5, canvas.shape, dtype=np.int8)
    return Image.fromarray(np.clip(canvas + grain, 0, 255).astype(np.uint8))


def _background(scene: Scene, size: int, rng: np.random.Generator) -> Float[np.ndarray, "size size 3"]:
    """Shade and texture; contrast, period, angle, phase and tint are nuisance."""
    contrast, period, turn = rng.uniform(11, 17), rng.uniform(0.13, 0.19), rng.uniform(-0.35, 0.35)
    angle = turn + (np.pi / 4 if rng.random() < 0.5 else 0.0)
    phases = rng.uniform(0, 2 * np.pi, 2)
    tint = SHADES[scene.shade] + rng.uniform(-16, 16) + rng.uniform(-4, 4, 3)
    axis = (np.arange(size) + 0.5) * (2 * np.pi / (size * period))
    x, y = axis[None, :], axis[:, None]
    one = np.cos(np.cos(angle) * x + np.sin(angle) * y + phases[0])
    if scene.texture == "plain":
        wave = np.zeros((size, size))
    elif scene.texture == "striped":
        wave = one
    else:
        two = np.cos(np.cos(angle) * y - np.sin(angle) * x + phases[1])
        wave = one + two - 0.8 if scene.texture == "dotted" else 3 * one * two
    level = contrast * np.clip(3 * wave, -1, 1)
    return (tint + level[:, :, None]).astype(np.float32)


def _mask(shape: Shape, size: int, rng: np.random.Generator) -> Float[np.ndarray, "size size"]:
    """How much of each pixel the shape covers, 0 to 1; place, size and angle vary a little."""
    centre = np.asarray(PLACES[shape.place]) + rng.uniform(-0.03, 0.03, 2)
    radius = SIZES[shape.size] / 2 * rng.uniform(0.93, 1.07)
    angle = rng.uniform(-0.2, 0.2)
    turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    canvas = Image.new("L", (size * _SCALE, size * _SCALE))
    draw = ImageDraw.Draw(canvas)
    for outline, fill in _OUTLINES[shape.kind]:
        draw.polygon(((centre + radius * outline @ turned) * (size * _SCALE)).ravel().tolist(), fill=fill)
    return np.asarray(canvas.reduce(_SCALE), np.float32) / 255


def _regular(corners: int, radius: float = 1.0, start: float = -90.0) -> Float[np.ndarray, "corners 2"]:
    """A regular polygon, from `start` degrees (−90 is up)."""
    angle = np.deg2rad(start) + 2 * np.pi * np.arange(corners) / corners
    return radius * np.column_stack([np.cos(angle), np.sin(angle)])


def _star() -> Float[np.ndarray, "corners 2"]:
    points = _regular(10, 1.2)
    points[1::2] *= 0.42
    return points


def _heart() -> Float[np.ndarray, "corners 2"]:
    t = 2 * np.pi * np.arange(40) / 40
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.column_stack([x, y - 2.5]) / 15.5


def _cross(arm: float = 0.34, reach: float = 1.05) -> Float[np.ndarray, "corners 2"]:
    corner = [(arm, reach), (arm, arm), (reach, arm)]
    turns = [np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), k) for k in range(4)]
    return np.concatenate([np.asarray(corner) @ turn for turn in turns])


#: Outlines within the unit circle or a little beyond (equal radii look unequal), each filled (255) or cut out (0).
_OUTLINES: dict[str, tuple[tuple[np.ndarray, int], ...]] = {
    "circle": ((_regular(40), 255),),
    "ring": ((_regular(40, 1.06), 255), (_regular(40, 0.55), 0)),
    "square": ((_regular(4, 1.25, 45.0), 255),),
    "diamond": ((_regular(4, 1.25) * np.array([0.72, 1.0]), 255),),
    "triangle": ((_regular(3, 1.25) + np.array([0.0, 0.2]), 255),),
    "star": ((_star(), 255),),
    "cross": ((_cross(), 255),),
    "heart": ((_heart(), 255),),
}
