"""Rendered shapes with captions: an image-text task generated from a seed, without a download.

    shapes = fs.clip.data.Shapes(count=2000, mispaired=0.2)
    shapes.render(0), shapes.captions(0)

An image shows one or two coloured shapes on a background. The captions describe it in several wordings. Details that
they never mention (exact place, size, angle, colour, texture and grain) are nuisance. The causes of a modality gap that
the simulator has can be switched on separately: wrong pairs, duplicates, and captions that describe less than is shown.
"""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from flowsim.clip.data.pairs import Pairs
from flowsim.clip.data.scenes import COLOURS, KINDS, PLACES, SHADES, SIZES, TEXTURES, Scene, Shape, draw
from flowsim.clip.data.sources import register
from flowsim.errors import FlowsimError, unknown_name

#: Attributes of a scene, in the order in which `imbalance` removes them from captions.
ATTRIBUTES = ("background", "place", "size", "colour", "kind")
#: Name -> number of the random stream.
SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2}
CLASSES = tuple(f"{colour} {kind}" for colour in COLOURS for kind in KINDS)

_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big"),
    "upper left": ("in the upper left", "in the top left corner"),
    "top": ("at the top", "in the top middle"),
    "upper right": ("in the upper right", "in the top right corner"),
    "left": ("on the left", "at the left edge"),
    "center": ("in the center", "in the middle"),
    "right": ("on the right", "at the right edge"),
    "lower left": ("in the lower left", "in the bottom left corner"),
    "bottom": ("at the bottom", "in the bottom middle"),
    "lower right": ("in the lower right", "in the bottom right corner"),
}
#: Sentences: the shapes, and the part that describes the background.
_TEMPLATES: tuple[tuple[str, str], ...] = (
    ("{shapes}", " on a {shade} {texture} background"),
    ("a picture of {shapes}", " on a {shade} background that is {texture}"),
    ("there is {shapes}", ", and the background is {shade} and {texture}"),
    ("this image shows {shapes}", " against a {texture} {shade} background"),
    ("{shapes} can be seen", " in front of a {shade} {texture} background"),
    ("we see {shapes}", "; all else is {shade} and {texture}"),
    ("look at {shapes}", ", drawn on {texture} {shade} paper"),
    ("simple drawing: {shapes}", ", {shade} {texture} background"),
)

# Random streams.
_CODES = 1  # the order of scenes
_CONTENT = 2  # the rest of a scene and its nuisance
_WORDING = 3  # the words of captions
_MISPAIRING = 4  # the exchange of captions

#: The facts that captions of a scene mention; equal exactly if the captions are true of each other's image.
Told: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Shapes:
    """A recipe for images with captions. Sample i of a split depends only on the seed and on i, not on `count`.

    `mispaired` and `duplicates` act in the split "train" only, so evaluations on the others are comparable. Without
    both and without `imbalance`, no two of the first 20,736 images of a split have the same description.

    Args:
        count: Images in each split, at least 2.
        size: Pixels along each side, 16 to 1024.
        seed: Seed of the images and captions.
        captions_per_image: Number of different wordings, 1 to 8.
        mispaired: Fraction of images that permanently have the captions of another image, which are not true of them
            (as `FrozenMispairing`). Which images these are also depends on `count`.
        duplicates: Fraction of the pairs of consecutive images that are identical, pixel for pixel, with different
            wordings (as `Clusters` of size 2).
        imbalance: Number of attributes that captions never mention, in the order background, place, size, colour; 0 to
            4. The text sees a subset of the factors (as `text_factors` of `Latents`).
        objects: Shapes in an image, 1 or 2.

    Raises:
        FlowsimError: For values that are not allowed.
    """

    count: int = 10_000
    size: int = 64
    seed: int = 0
    captions_per_image: int = 5
    mispaired: float = 0.0
    duplicates: float = 0.0
    imbalance: int = 0
    objects: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("count", 2, None),
            ("size", 16, 1024),
            ("seed", 0, None),
            ("captions_per_image", 1, len(_TEMPLATES)),
            ("imbalance", 0, len(ATTRIBUTES) - 1),
            ("objects", 1, 2),
        ):
            value = getattr(self, name)
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not whole or value < low or (high is not None and value > high):
                wanted = f"of at least {low}" if high is None else f"from {low} to {high}"
                raise FlowsimError(f"Setting `{name}` of shapes must be a whole number {wanted}, but is {value!r}.")
        for name in ("mispaired", "duplicates"):
            value = getattr(self, name)
            if not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
                raise FlowsimError(f"Setting `{name}` of shapes must be a fraction from 0 to 1, but is {value!r}.")

    @classmethod
    def parse(cls, text: str) -> "Shapes":
        """The recipe of a text such as "count=2000,mispaired=0.2".

        Args:
            text: Settings separated by commas; the empty text gives the defaults.

        Returns:
            The recipe.

        Raises:
            FlowsimError: For unknown settings and wrong values.
        """
        types = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, equals, value = (p.strip() for p in part.partition("="))
            if name not in types:
                raise unknown_name("setting of shapes", name, types)
            if not equals:
                raise FlowsimError(f"Setting `{name}` of shapes has no value. Write e.g. shapes:{name}=1.")
            if name in given:
                raise FlowsimError(f"Setting `{name}` of shapes is given twice. Keep one of them.")
            try:
                given[name] = types[name](value)
            except ValueError:
                kind = "a whole number" if types[name] is int else "a number"
                raise FlowsimError(f"Setting `{name}` of shapes must be {kind}, but is {value!r}.") from None
        return cls(**given)

    def scene(self, index: int, split: str = "train") -> Scene:
        """The scene that image `index` of the split shows."""
        return self._compose(index, split)[0]

    def render(self, index: int, split: str = "train") -> Image.Image:
        """Image `index` of the split, RGB, `size` pixels along each side."""
        scene, rng = self._compose(index, split)
        return draw(scene, self.size, rng)

    def captions(self, index: int, split: str = "train") -> tuple[str, ...]:
        """True captions of image `index`, in different wordings, without the attributes that `imbalance` removes."""
        scene = self.scene(index, split)
        rng = self._rng(_WORDING, split, index)
        chosen = rng.permutation(len(_TEMPLATES))[: self.captions_per_image]
        return tuple(self._sentence(scene, *_TEMPLATES[int(k)], rng) for k in chosen)

    def label(self, index: int, split: str = "train") -> int:
        """The class of the first shape of image `index`, as index into CLASSES."""
        first = self.scene(index, split).shapes[0]
        return CLASSES.index(f"{first.colour} {first.kind}")

    def text_of(self, split: str = "train") -> Int[np.ndarray, "n"]:
        """For each image, the index of the image whose captions it has: its own, except for a fraction `mispaired`.

        These images exchange their captions such that, if possible, no image gets captions that are true of it.
        """
        source = np.arange(self.count)
        moved = round(self.mispaired * self.count) if split == "train" else 0
        if moved < 2:
            return source
        rng = self._rng(_MISPAIRING, split, self.count)
        chosen = rng.permutation(self.count)[:moved]
        # Images are grouped by description, in random order; a shift by the largest group leaves every group.
        told = [self.told(int(i), split) for i in chosen]
        rank = dict(zip(dict.fromkeys(told), rng.permutation(len(set(told))), strict=True))
        group = np.array([rank[t] for t in told])
        order = chosen[np.argsort(group, kind="stable")]
        source[order] = np.roll(order, -int(np.bincount(group).max()))
        return source

    def mispaired_mask(self, split: str = "train") -> Bool[np.ndarray, "n"]:
        """(count,) which images have captions that are not true of them."""
        pairs = enumerate(self.text_of(split).tolist())
        return np.array([i != j and self.told(i, split) != self.told(j, split) for i, j in pairs])

    def told(self, index: int, split: str = "train") -> Told:
        """The facts that captions of image `index` mention; they are true of all images with the same facts."""
        scene = self.scene(index, split)
        kept = ATTRIBUTES[self.imbalance :]
        words = [getattr(shape, a) for shape in scene.shapes for a in kept if a != "background"]
        return (*words, scene.shade, scene.texture) if "background" in kept else tuple(words)

    def _rng(self, purpose: int, split: str, index: int) -> np.random.Generator:
        if split not in SPLITS:
            raise unknown_name("split of shapes", split, SPLITS)
        return np.random.default_rng((purpose, self.seed, SPLITS[split], index))

    def _compose(self, index: int, split: str) -> tuple[Scene, np.random.Generator]:
        """The scene, and the generator for its nuisance."""
        source = self._twin(index) if split == "train" else index
        rng = self._rng(_CONTENT, split, source)
        codes = _codes(self.seed, split)
        code = int(codes[source % len(codes)])
        code, ground = divmod(code, len(SHADES) * len(TEXTURES))
        code, place = divmod(code, len(PLACES))
        first = _shape(code, place)
        others = ()
        if self.objects == 2:
            code = int(rng.integers(len(KINDS) * len(COLOURS) * len(SIZES)))
            elsewhere = (place + 1 + int(rng.integers(len(PLACES) - 1))) % len(PLACES)
            others = (_shape(code, elsewhere),)
        shade, texture = divmod(ground, len(TEXTURES))
        return Scene((first, *others), list(SHADES)[shade], TEXTURES[texture]), rng

    def _twin(self, index: int) -> int:
        """The image that image `index` is a copy of: the one before it, or itself."""
        couple = index // 2
        copies = [int(np.floor(k * self.duplicates + 0.5)) for k in (couple, couple + 1)]
        return index - index % 2 if copies[1] > copies[0] else index

    def _sentence(self, scene: Scene, start: str, end: str, rng: np.random.Generator) -> str:
        kept = ATTRIBUTES[self.imbalance :]
        phrases = []
        for shape in scene.shapes:
            words = [_say(getattr(shape, a), rng) for a in ("size", "colour", "kind") if a in kept]
            words.insert(0, "an" if words[0][0] in "aeiou" else "a")
            phrases.append(" ".join([*words, *([_say(shape.place, rng)] if "place" in kept else [])]))
        template = start + (end if "background" in kept else "")
        return template.format(shapes=" and ".join(phrases), shade=scene.shade, texture=scene.texture)


def _say(word: str, rng: np.random.Generator) -> str:
    choices = _WORDS.get(word, (word,))
    return choices[int(rng.integers(len(choices)))]


@lru_cache(maxsize=16)
def _codes(seed: int, split: str) -> Int[np.ndarray, "codes"]:
    """All combinations of one shape and a background, in random order."""
    total = len(KINDS) * len(COLOURS) * len(SIZES) * len(PLACES) * len(SHADES) * len(TEXTURES)
    return np.random.default_rng((_CODES, seed, SPLITS[split], 0)).permutation(total)


def _shape(code: int, place: int) -> Shape:
    code, size = divmod(code, len(SIZES))
    colour, kind = divmod(code, len(KINDS))
    return Shape(KINDS[kind], list(COLOURS)[colour], list(SIZES)[size], list(PLACES)[place])


def _is_shapes(source: str) -> bool:
    return source == "shapes" or source.startswith("shapes:")


def _labelled(source: str, split: str) -> Pairs:
    return read(source, split)


@register("shapes", _is_shapes, describes="'shapes'", labelled=_labelled, splits=tuple(SPLITS), generated=True)
def read(source: str, split: str | None) -> Pairs:
    """The pairs of "shapes", or of e.g. "shapes:count=2000,mispaired=0.2"; `split` None is train."""
    shapes, split = Shapes.parse(source.removeprefix("shapes").removeprefix(":")), split or "train"
    if split not in SPLITS:
        raise unknown_name("split of shapes", split, SPLITS)
    true = [shapes.captions(i, split) for i in range(shapes.count)]
    return Pairs.of(
        [f"{split}-{i:06d}" for i in range(shapes.count)],
        [true[i] for i in shapes.text_of(split)],
        lambda i: shapes.render(i, split),
        source=source,
        split=split,
        labels=[shapes.label(i, split) for i in range(shapes.count)],
        classes=CLASSES,
        mispaired=shapes.mispaired_mask(split),
        true_captions=true,
    )
