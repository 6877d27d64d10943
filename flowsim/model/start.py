"""A start: rows, directions within cones, similarities only, or inputs and weights of encoders."""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from flowsim.base.arrays import moderate, number, optional_number
from flowsim.base.checks import check, check_number, host_array, is_concrete, is_real
from flowsim.base.modules import bundle
from flowsim.errors import FlowsimError


@bundle
class Start:
    """A starting state. Recipes, `from_arrays` and `from_similarity` make checked ones.

    Args:
        image: Unit rows (n, d) of the images; None if only `similarity` or inputs of encoders are given.
        text: Unit rows (n, d) of the texts.
        gamma: Signed height γ in (−1, 1) of the image cone; None if the rows are not directions within cones.
        log_gamma: ln|γ|, for a γ that may underflow; None otherwise.
        basis: Orthogonal matrix (d+1, d+1) whose columns are the axes of the lifted cones, the cones' axis last;
            None for the standard basis.
        similarity: Z (n, n), only for `Reduced`.
        image_inputs: Inputs (n, p) of the image encoder.
        text_inputs: Inputs (n, q) of the text encoder, or (n, c, q) for c texts of each image.
        text_counts: Number of texts of each image, (n,); None if all have c.
        image_hidden: Weights (p, h) of its first layer, if it has two.
        text_hidden: Weights (q, h) of its first layer, if it has two.
        image_weights: Weights (p or h, d) of the last layer of the image encoder.
        text_weights: Weights (q or h, d) of the last layer of the text encoder.
    """

    image: Any = None
    text: Any = None
    gamma: Any = None
    log_gamma: Any = None
    basis: Any = None
    similarity: Any = None
    image_inputs: Any = None
    text_inputs: Any = None
    text_counts: Any = None
    image_hidden: Any = None
    text_hidden: Any = None
    image_weights: Any = None
    text_weights: Any = None

    @property
    def pairs(self) -> int:
        """n, the number of pairs."""
        known = (self.image, self.similarity, self.image_inputs)
        return next(array for array in known if array is not None).shape[0]

    @property
    def dim(self) -> int | None:
        """d, the number of columns of `image`; None without rows."""
        return None if self.image is None else self.image.shape[1]

    def rows(self) -> tuple[Any, Any]:
        """Unit rows (image, text) in the full space: (n, d), or (n, d+1) if the start has γ.

        Raises:
            FlowsimError: If the start has no rows.
        """
        if self.image is None and self.image_inputs is not None:
            raise FlowsimError("This start holds inputs of encoders, not rows. Use the geometry `LinearEncoders`.")
        if self.image is None:
            raise FlowsimError(
                "This start holds only similarities, not rows. Use the geometry `Reduced`, or give rows."
            )
        if self.gamma is None:
            return self.image, self.text
        gamma = float(self.gamma)
        radius, height = np.sqrt(1 - gamma**2), np.full((self.pairs, 1), gamma)
        image = np.concatenate([radius * self.image, height], axis=1)
        text = np.concatenate([radius * self.text, -height], axis=1)
        return (image, text) if self.basis is None else (image @ self.basis.T, text @ self.basis.T)

    def as_cones(self, geometry: str) -> "Start":
        """This start as two exact parallel cones, with γ.

        Rows without γ need an axis u with image·u = γ and text·u = −γ to within rounding.

        Args:
            geometry: Name of the geometry for error messages.

        Returns:
            The start itself if it has γ, else its directions (n, d−1) with γ and the basis.

        Raises:
            FlowsimError: If these rows are not two parallel cones.
        """
        if self.gamma is not None:
            return self
        cure = f"Give `gamma` with rows H, use `fs.initial.cones`, or use the geometry `Sphere`, not `{geometry}`."
        if self.image is None:
            raise FlowsimError(f"The start has no `gamma`. {cure}")
        stacked = np.concatenate([self.image, -self.text])
        if np.linalg.matrix_rank(stacked) < stacked.shape[1]:
            raise FlowsimError(f"The axis of the cones is not determined by these rows. {cure}")
        axis = np.linalg.lstsq(stacked, np.ones(len(stacked)), rcond=None)[0]
        length = np.linalg.norm(axis)
        if np.max(np.abs(stacked @ axis - 1)) > 1e-9 or length <= 1:
            raise FlowsimError(f"These rows are not two exact parallel cones. {cure}")
        gamma, axis = 1 / length, axis / length
        # Any orthogonal basis whose last column is the axis.
        basis = np.linalg.qr(np.column_stack([axis, np.eye(len(axis))]))[0]
        basis = np.column_stack([basis[:, 1:], axis])
        scale = np.sqrt(1 - gamma**2)
        h = [(rows @ basis)[:, :-1] / scale for rows in (self.image, self.text)]
        return Start(h[0], h[1], gamma=np.asarray(gamma), basis=basis)


def from_arrays(image: "ArrayLike", text: "ArrayLike", gamma: float | None = None) -> Start:
    """A start from your own rows, which are scaled to unit length.

    Args:
        image: Image rows (n, d), at least 2: NumPy, JAX, nested lists or torch tensors.
        text: Text rows (n, d).
        gamma: γ in (−1, 1), if the rows are directions H within parallel cones at heights ±γ; None otherwise.

    Returns:
        The start, in float64.

    Raises:
        FlowsimError: If the arrays are not two finite matrices of the same shape with n ≥ 2, or contain a zero row.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.from_arrays([[3.0, 4.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]])
        >>> start.image.tolist()
        [[0.6, 0.8], [1.0, 0.0]]
    """
    arrays = {"image": _matrix("image", image), "text": _matrix("text", text)}
    (n, d), (m, e) = (array.shape for array in arrays.values())
    check(n == m, f"`image` has {n} row(s) and `text` has {m}. Give one text row per image row.")
    check(d == e, f"`image` has {d} column(s) and `text` has {e}. Use embeddings from one shared space.")
    check(n >= 2, f"A start needs at least 2 pairs, but `image` and `text` have {n} row(s). Add pairs.")
    check(d >= 1, "`image` and `text` have no columns. Give rows of at least one entry.")
    rows = []
    for name, array in arrays.items():
        array = moderate(array)
        norms = np.linalg.norm(array, axis=1, keepdims=True)
        check(norms.min() > 0, f"Array `{name}` has a zero row, which has no direction. Remove it with its pair.")
        rows.append(array / norms)
    if gamma is not None:
        check_gamma("gamma", number(gamma))
    return Start(rows[0], rows[1], gamma=optional_number(gamma))


def from_similarity(similarity: "ArrayLike", gamma: float) -> Start:
    """A start for `Reduced` from the similarities of the directions alone.

    Args:
        similarity: Z = H_X H_Yᵀ (n, n), entries in [−1, 1].
        gamma: γ, in (−1, 1).

    Returns:
        The start, without rows.

    Raises:
        FlowsimError: If Z is not a square matrix of cosines, or γ is out of range.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.from_similarity([[1.0, 0.2], [0.2, 1.0]], gamma=0.3)
        >>> start.pairs, start.image is None
        (2, True)
    """
    z = _matrix("similarity", similarity)
    check(len(z) >= 2, f"A start needs at least 2 pairs, but `similarity` has {len(z)} row(s). Add pairs.")
    check(z.shape[0] == z.shape[1], f"`similarity` must be square, but has shape {z.shape}. Use H_X @ H_Y.T.")
    check(
        np.abs(z).max() <= 1 + 1e-9,
        f"`similarity` has an entry of {np.abs(z).max():.4g}. Use cosines, between -1 and 1.",
    )
    check_gamma("gamma", number(gamma))
    return Start(similarity=z, gamma=number(gamma))


def _matrix(name: str, value: ArrayLike) -> Float[np.ndarray, "n d"]:
    array = host_array(value)
    if array is None or not is_real(array):
        raise FlowsimError(f"Array `{name}` is not numeric. Give a matrix of real numbers.")
    check(array.ndim == 2, f"Array `{name}` must have shape (n, d), but has {array.shape}. Reshape it.")
    array = array.astype(np.float64)
    check(np.isfinite(array).all(), f"Array `{name}` contains NaN or infinity. Remove those rows.")
    return array


def check_gamma(name: str, gamma: Any) -> None:
    """Raise `FlowsimError` if a cone height is not in (−1, 1)."""
    check_number(name, gamma, cure="Use e.g. 0.3.")
    if is_concrete(gamma):
        value = float(gamma)
        check(
            abs(value) < 1,
            f"Argument `{name}` must lie between -1 and 1 (heights ±γ on the unit sphere), but is {value:g}. "
            "Use e.g. 0.3.",
        )
