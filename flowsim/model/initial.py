"""Starts: recipes that draw a `Start` from a seed, and starts from your own arrays.

    fs.initial.rings(pairs=5, height=0.309, twist=-144)
    fs.initial.uniform(pairs=16, dim=8).draw(seed=3)
    fs.initial.from_arrays(image, text)

A recipe holds numbers (which a sweep may vary) and sizes; `draw(seed)` returns the arrays. With `gamma`, the
arrays of a start are the directions H within two parallel cones at heights ±γ: `Sphere` lifts them to one
more dimension, `Parallel` and `Reduced` use them directly. Without `gamma`, they are the rows themselves.
"""

import math
import os
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from flowsim.base.arrays import number, optional_number, plain
from flowsim.base.checks import check_flag, check_fraction, check_number
from flowsim.errors import FlowsimError
from flowsim.model.inputs import FromFeatures, Latents
from flowsim.model.recipe import AbstractRecipe, check_dim, check_pairs, generator, rotation
from flowsim.model.start import Start, check_gamma, from_arrays, from_similarity

FIGURE_2_HEIGHT = (math.sqrt(5) - 1) / 4
"""γ0 of Figure 2 of Yaras et al. 2025, 0.3090."""


class Rings(AbstractRecipe):
    """Two regular n-gons in three dimensions at heights +γ (image) and −γ (text), one of them rotated.

    The defaults are the start of Figure 2 of Yaras et al. 2025: five pairs, γ0 = (√5 − 1)/4, twist −144°.

    Args:
        pairs: n, at least 2.
        height: γ, in (−1, 1).
        twist: Rotation of the text ring relative to the image ring, in degrees.

    Raises:
        FlowsimError: If an argument is out of range.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144).draw()
        >>> start.image.shape, round(float(start.gamma), 3)
        ((5, 2), 0.309)
    """

    pairs: int = eqx.field(static=True, converter=plain, default=5)
    height: Any = eqx.field(converter=number, default=FIGURE_2_HEIGHT)
    twist: Any = eqx.field(converter=number, default=-144.0)

    def __check_init__(self) -> None:
        check_pairs(self.pairs)
        check_gamma("height", self.height)
        check_number("twist", self.twist, cure="Use degrees, e.g. -144.")

    def draw(self, seed: int = 0) -> Start:
        angle = 2 * np.pi * np.arange(self.pairs) / self.pairs
        turned = angle + np.deg2rad(self.twist)
        return Start(
            np.column_stack([np.cos(angle), np.sin(angle)]),
            np.column_stack([np.cos(turned), np.sin(turned)]),
            gamma=self.height,
        )


class Cones(AbstractRecipe):
    """Two parallel cones with independent, uniform random directions.

    Args:
        pairs: n, at least 2.
        dim: Dimension of the rows, including the axis of the cones, at least 3.
        height: γ, in (−1, 1).
        random_basis: Whether the axis points in a random direction, which matters only to swaps of entries.

    Raises:
        FlowsimError: If an argument is out of range.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.cones(pairs=16, dim=8, height=0.3).draw(seed=1)
        >>> [rows.shape for rows in start.rows()]
        [(16, 8), (16, 8)]
    """

    pairs: int = eqx.field(static=True, converter=plain, default=16)
    dim: int = eqx.field(static=True, converter=plain, default=8)
    height: Any = eqx.field(converter=number, default=0.3)
    random_basis: bool = eqx.field(static=True, converter=plain, default=False)

    def __check_init__(self) -> None:
        check_pairs(self.pairs)
        check_dim(self.dim, minimum=3)
        check_gamma("height", self.height)
        check_flag("random_basis", self.random_basis)

    def draw(self, seed: int = 0) -> Start:
        rng = generator(seed)
        image, text = (_uniform_rows(rng, self.pairs, self.dim - 1) for _ in range(2))
        basis = None
        if self.random_basis:
            basis = rotation(rng, self.dim)
        return Start(image, text, gamma=self.height, basis=basis)


class Uniform(AbstractRecipe):
    """Independent rows of both modalities, uniform on the unit sphere.

    Args:
        pairs: n, at least 2.
        dim: Dimension of the rows, at least 2.
        gamma: γ in (−1, 1), if the rows are directions within parallel cones at heights ±γ; None otherwise.

    Raises:
        FlowsimError: If an argument is out of range.

    Examples:
        >>> import flowsim as fs
        >>> fs.initial.uniform(pairs=16, dim=8).draw(seed=1).image.shape
        (16, 8)
    """

    pairs: int = eqx.field(static=True, converter=plain, default=16)
    dim: int = eqx.field(static=True, converter=plain, default=8)
    gamma: Any = eqx.field(converter=optional_number, default=None)

    def __check_init__(self) -> None:
        check_pairs(self.pairs)
        check_dim(self.dim)
        if self.gamma is not None:
            check_gamma("gamma", self.gamma)

    def draw(self, seed: int = 0) -> Start:
        rng = generator(seed)
        image, text = (_uniform_rows(rng, self.pairs, self.dim) for _ in range(2))
        return Start(image, text, gamma=self.gamma)


class MatchedPairs(AbstractRecipe):
    """Perfectly matched cones: the same random directions H_X = H_Y at heights ±γ.

    Args:
        pairs: n, at least 2.
        dim: Dimension of the directions, at least 2.
        gamma: γ, in (−1, 1).

    Raises:
        FlowsimError: If an argument is out of range.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.matched(pairs=16, dim=8, gamma=0.3).draw()
        >>> bool((start.image == start.text).all())
        True
    """

    pairs: int = eqx.field(static=True, converter=plain, default=16)
    dim: int = eqx.field(static=True, converter=plain, default=8)
    gamma: Any = eqx.field(converter=number, default=0.3)

    def __check_init__(self) -> None:
        check_pairs(self.pairs)
        check_dim(self.dim)
        check_gamma("gamma", self.gamma)

    def draw(self, seed: int = 0) -> Start:
        rows = _uniform_rows(generator(seed), self.pairs, self.dim)
        return Start(rows, rows.copy(), gamma=self.gamma)


class Orthonormal(AbstractRecipe):
    """Matched cones with orthonormal directions in n dimensions: Z = I, direction margin 1.

    Args:
        pairs: n, at least 2.
        gamma: γ, in (−1, 1).

    Raises:
        FlowsimError: If an argument is out of range.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.orthonormal(pairs=3).draw()
        >>> (start.image @ start.text.T).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    pairs: int = eqx.field(static=True, converter=plain, default=16)
    gamma: Any = eqx.field(converter=number, default=0.3)

    def __check_init__(self) -> None:
        check_pairs(self.pairs)
        check_gamma("gamma", self.gamma)

    def draw(self, seed: int = 0) -> Start:
        return Start(np.eye(self.pairs), np.eye(self.pairs), gamma=self.gamma)


class Simplex(AbstractRecipe):
    """Matched cones of regular-simplex directions: Z = (nI − J)/(n − 1), direction margin n/(n − 1), the largest.

    Args:
        pairs: n, at least 2.
        gamma: γ, in (−1, 1).

    Raises:
        FlowsimError: If an argument is out of range.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.simplex(pairs=3).draw()
        >>> (start.image @ start.text.T).round(2).tolist()
        [[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]
    """

    pairs: int = eqx.field(static=True, converter=plain, default=16)
    gamma: Any = eqx.field(converter=number, default=0.3)

    def __check_init__(self) -> None:
        check_pairs(self.pairs)
        check_gamma("gamma", self.gamma)

    def draw(self, seed: int = 0) -> Start:
        n = self.pairs
        rows = np.sqrt(n / (n - 1)) * (np.eye(n) - 1 / n)
        return Start(rows, rows.copy(), gamma=self.gamma)


class Mismatched(AbstractRecipe):
    """Matched cones in which some texts have exchanged places (cyclically): right targets, but mismatched positions.

    Args:
        pairs: n, at least 2.
        dim: Dimension of the directions, at least 2.
        gamma: γ, in (−1, 1).
        fraction: The fraction of moved texts, rounded to whole pairs. A single pair cannot be moved.

    Raises:
        FlowsimError: If an argument is out of range.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.mismatched(pairs=8, dim=4, fraction=0.5).draw()
        >>> int((start.image != start.text).any(axis=1).sum())
        4
    """

    pairs: int = eqx.field(static=True, converter=plain, default=16)
    dim: int = eqx.field(static=True, converter=plain, default=8)
    gamma: Any = eqx.field(converter=number, default=0.3)
    fraction: Any = eqx.field(converter=number, default=0.5)

    def __check_init__(self) -> None:
        check_pairs(self.pairs)
        check_dim(self.dim)
        check_gamma("gamma", self.gamma)
        check_fraction("fraction", self.fraction)

    def draw(self, seed: int = 0) -> Start:
        rng = generator(seed)
        image = _uniform_rows(rng, self.pairs, self.dim)
        moved = rng.permutation(self.pairs)[: round(float(self.fraction) * self.pairs)]
        text = image.copy()
        text[moved] = image[np.roll(moved, 1)]
        return Start(image, text, gamma=self.gamma)


def from_file(
    path: str | os.PathLike[str],
    text_path: str | os.PathLike[str] | None = None,
    *,
    image: str | None = None,
    text: str | None = None,
    gamma: float | None = None,
) -> Start:
    """A start from the embeddings in a file, as `from_arrays`.

    Args:
        path: A file that `fs.observables.load_embeddings` reads, such as `.npy`, `.npz`, `.safetensors` or `.pt`.
        text_path: The file of the texts, if they are in a file of their own.
        image: The name of the images in their file. Default: the usual names.
        text: The name of the texts in their file.
        gamma: γ in (−1, 1), if the rows are directions H within parallel cones at heights ±γ; None otherwise.

    Returns:
        The start, in float64.

    Raises:
        FlowsimError: If the file cannot be read or its rows are no start, see `from_arrays`.

    Examples:
        >>> import numpy as np
        >>> import flowsim as fs
        >>> np.savez("clip.npz", image_embeds=[[3.0, 4.0], [1.0, 0.0]], text_embeds=[[1.0, 0.0], [0.0, 2.0]])
        >>> fs.initial.from_file("clip.npz").image.tolist()
        [[0.6, 0.8], [1.0, 0.0]]
    """
    from flowsim.data.arrays import read_pair

    try:
        return from_arrays(*read_pair(path, text_path, image=image, text=text), gamma)
    except FlowsimError as error:
        raise FlowsimError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


# Annotated one by one, so that static tools know the types.
rings: type[Rings] = Rings
cones: type[Cones] = Cones
uniform: type[Uniform] = Uniform
matched: type[MatchedPairs] = MatchedPairs
orthonormal: type[Orthonormal] = Orthonormal
simplex: type[Simplex] = Simplex
mismatched: type[Mismatched] = Mismatched
latents: type[Latents] = Latents
from_features: type[FromFeatures] = FromFeatures


def _uniform_rows(rng: np.random.Generator, pairs: int, dim: int) -> Float[np.ndarray, "n d"]:
    rows = rng.standard_normal((pairs, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


__all__ = [
    "FIGURE_2_HEIGHT",
    "AbstractRecipe",
    "Cones",
    "FromFeatures",
    "Latents",
    "MatchedPairs",
    "Mismatched",
    "Orthonormal",
    "Rings",
    "Simplex",
    "Start",
    "Uniform",
    "cones",
    "from_arrays",
    "from_features",
    "from_file",
    "from_similarity",
    "latents",
    "matched",
    "mismatched",
    "orthonormal",
    "rings",
    "simplex",
    "uniform",
]
