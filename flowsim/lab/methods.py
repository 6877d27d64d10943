"""Methods that close the gap of given embeddings: each is fitted on some pairs and transforms rows of any others.

Rows come as unit rows in float64 and are scaled to unit length again after a method. So the order matters: subtracting
the means makes the centres coincide before that scaling, and only approximately after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

from flowsim.base.checks import check, check_number, shown
from flowsim.base.registry import Registry
from flowsim.errors import unknown_name
from flowsim.lab.landscape import SHIFTS, losses, moved

#: `transform(image, text)` returns both with the same numbers of rows; the rows need not be pairs, nor equally many.
Transform: TypeAlias = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@runtime_checkable
class Method(Protocol):
    """What `run` and `register` take: any object with `fit`.

    A dataclass with a field `temperature` that is None gets the temperature of the run.
    """

    def fit(self, image: np.ndarray, text: np.ndarray) -> Transform:
        """Fit the method to pairs.

        Args:
            image: Unit rows (n, d), float64.
            text: Unit rows (n, d); row i is the pair of row i of `image`.

        Returns:
            `transform(image, text)`, for rows (m, d) and (k, d) of other pairs, or of images and class texts.
        """
        ...


#: Methods by name, in the order of the table.
REGISTRY: Registry[Method] = Registry("method")
_Made = TypeVar("_Made")


def names() -> list[str]:
    """Names of all methods, in the order of the table."""
    return list(REGISTRY)


def register(name: str) -> Callable[[_Made], _Made]:
    """Decorator that adds a method: a class that is made without arguments, or an object with `fit`.

    Registering a name again, e.g. by running a cell twice, replaces the method.

    Args:
        name: Its name in tables and in `methods=[...]`, without commas and blanks.

    Returns:
        The decorator.

    Raises:
        FlowsimError: For the name of one of flowsim's own methods, an invalid name, or something without `fit`.

    Examples:
        >>> import flowsim as fs
        >>> @fs.lab.register("half_way")
        ... class HalfWay:
        ...     def fit(self, image, text):
        ...         step = (image.mean(axis=0) - text.mean(axis=0)) / 4
        ...         return lambda image, text: (image - step, text + step)
        >>> "half_way" in fs.lab.names()
        True
        >>> fs.lab.REGISTRY.remove("half_way")
    """
    check(
        isinstance(name, str) and name and not set(name) & set(", \t\n"),
        f"The name of a method must be text without commas and blanks, but is {shown(name)}. Use e.g. 'half_way'.",
    )

    def add(made: _Made) -> _Made:
        method: Any = made() if isinstance(made, type) else made
        check(
            isinstance(method, Method),
            f"The method {name!r} has no `fit`. Give it fit(image, text), which returns transform(image, text).",
        )
        REGISTRY.add(name, method, getattr(made, "__module__", type(method).__module__))
        return made

    return add


def chosen(methods: Any) -> dict[str, Method]:
    """The methods of a run by name, `none` first; raises `FlowsimError` for unknown names and for other things."""
    if isinstance(methods, str) or not (methods is None or isinstance(methods, Sequence)):
        methods = [methods]  # one name or one object
    found: dict[str, Method] = {"none": REGISTRY["none"]}
    for one in REGISTRY if methods is None else methods:
        if isinstance(one, str):
            if one not in REGISTRY:
                raise unknown_name("method", one, REGISTRY)
            found[one] = REGISTRY[one]
            continue
        check(
            isinstance(one, Method) and not isinstance(one, type),
            f"A method must be a name or an object with `fit`, but is {shown(one)}. Use e.g. 'centre'.",
        )
        # The registered setting keeps its short name; another setting shows its parameters.
        found[next((name for name, known in REGISTRY.items() if repr(known) == repr(one)), shown(one))] = one
    return found


@register("none")
@dataclass(frozen=True)
class Identity:
    """Rows as they are."""

    #: Whether anything depends on the pairs that a method was fitted on; true for methods that do not say.
    depends_on_pairs: ClassVar[bool] = False

    def fit(self, image: np.ndarray, text: np.ndarray) -> Transform:
        return lambda image, text: (image, text)


@register("centre")
@dataclass(frozen=True)
class Centre:
    """Subtract the mean of each modality: x − m_x, y − m_y. Source: cf. GR-CLIP, arXiv 2507.19054."""

    def fit(self, image: np.ndarray, text: np.ndarray) -> Transform:
        of_image, of_text = image.mean(axis=0), text.mean(axis=0)
        return lambda image, text: (image - of_image, text - of_text)


@register("common_mean")
@dataclass(frozen=True)
class CommonMean:
    """Move each mean to the common mean m = (m_x + m_y)/2: x − m_x + m, y − m_y + m."""

    def fit(self, image: np.ndarray, text: np.ndarray) -> Transform:
        half = (image.mean(axis=0) - text.mean(axis=0)) / 2
        return lambda image, text: (image - half, text + half)


@register("standardise")
@dataclass(frozen=True)
class Standardise:
    """Scale each column of each modality to mean 0 and standard deviation 1; constant columns are only centred."""

    def fit(self, image: np.ndarray, text: np.ndarray) -> Transform:
        (mean_x, scale_x), (mean_y, scale_y) = _columns(image), _columns(text)
        return lambda image, text: ((image - mean_x) / scale_x, (text - mean_y) / scale_y)


def _columns(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    return mean, np.where(scale > 1e-12, scale, 1.0)


@register("project")
@dataclass(frozen=True)
class Project:
    """Remove the direction of the gap: x − ⟨x, g⟩ g, y − ⟨y, g⟩ g, with g = (m_x − m_y)/‖m_x − m_y‖."""

    def fit(self, image: np.ndarray, text: np.ndarray) -> Transform:
        gap = image.mean(axis=0) - text.mean(axis=0)
        length = np.linalg.norm(gap)
        g = gap / length if length > 1e-12 else np.zeros_like(gap)
        return lambda image, text: (image - np.outer(image @ g, g), text - np.outer(text @ g, g))


@register("rotate")
@dataclass(frozen=True)
class Rotate:
    """Rotate texts onto images: the orthogonal R with the smallest Σ_i ‖x_i − R y_i‖² (Procrustes).

    With fewer pairs than dimensions R is not determined outside their span; there it is as close to the identity as
    possible. R may contain a reflection.

    Args:
        centred: Whether the mean of each modality is subtracted first; then only the directions around the means are
            rotated.
    """

    centred: bool = False

    def fit(self, image: np.ndarray, text: np.ndarray) -> Transform:
        zero = np.zeros(image.shape[1])
        mean_x, mean_y = (image.mean(axis=0), text.mean(axis=0)) if self.centred else (zero, zero)
        turn = _procrustes(image - mean_x, text - mean_y)
        return lambda image, text: (image - mean_x, (text - mean_y) @ turn)


register("centre_rotate")(Rotate(centred=True))


def _procrustes(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """The orthogonal T (d, d) with the smallest ‖X − Y T‖, of those the one with the smallest ‖T − I‖."""
    u, s, vt = np.linalg.svd(text.T @ image)
    rank = int(np.sum(s > s[0] * 1e-10)) if s[0] > 0 else 0
    turn = u[:, :rank] @ vt[:rank]
    if rank < len(s):
        free_u, free_v = u[:, rank:], vt[rank:].T
        a, _, bt = np.linalg.svd(free_u.T @ free_v)
        turn = turn + free_u @ a @ bt @ free_v.T
    return turn


@register("whiten")
@dataclass(frozen=True)
class Whiten:
    """Whiten each modality: (x − m) Σ^{−1/2}, the symmetric root, so that axes stay as close as possible to theirs.

    Σ = (1 − ρ) S + ρ (tr S/d) I is the shrunk covariance of the fitted rows, S with divisor n. Source: Ledoit and
    Wolf, J. Multivariate Analysis 2004.

    Args:
        shrinkage: ρ in [0, 1]. Default: the estimate of Ledoit and Wolf. With 0 and fewer rows than dimensions,
            directions without variance are removed.

    Raises:
        FlowsimError: For a shrinkage outside [0, 1].
    """

    shrinkage: float | None = None

    def __post_init__(self) -> None:
        if self.shrinkage is not None:
            check_number("shrinkage", self.shrinkage, minimum=0.0, cure="Use a number from 0 to 1, e.g. 0.1.")
            check(
                self.shrinkage <= 1,
                f"Argument `shrinkage` must be at most 1, but is {self.shrinkage:g}. Use a number from 0 to 1.",
            )

    def fit(self, image: np.ndarray, text: np.ndarray) -> Transform:
        mean_x, root_x = self._root(image)
        mean_y, root_y = self._root(text)
        return lambda image, text: ((image - mean_x) @ root_x, (text - mean_y) @ root_y)

    def _root(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and Σ^{−1/2} (d, d)."""
        mean = rows.mean(axis=0)
        centred = rows - mean
        covariance = centred.T @ centred / len(rows)
        size = np.trace(covariance) / len(mean)
        rho = _ledoit_wolf(centred, covariance, size) if self.shrinkage is None else self.shrinkage
        values, vectors = np.linalg.eigh((1 - rho) * covariance + rho * size * np.eye(len(mean)))
        real = values > values[-1] * 1e-10
        return mean, (vectors[:, real] / np.sqrt(values[real])) @ vectors[:, real].T


def _ledoit_wolf(centred: np.ndarray, covariance: np.ndarray, size: float) -> float:
    """ρ = min(b², d²)/d²: d² = ‖S − size I‖², b² = (mean_i ‖c_i c_iᵀ − S‖²)/n, Frobenius norms."""
    n = len(centred)
    distance = np.sum(covariance**2) - len(covariance) * size**2
    noise = (np.mean(np.sum(centred**2, axis=1) ** 2) - np.sum(covariance**2)) / n
    return float(min(noise, distance) / distance) if distance > 0 else 1.0


@register("shift")
@dataclass(frozen=True)
class Shift:
    """Move both modalities along the gap, by the fraction with the lowest contrastive loss on the fitted pairs.

    x − λ(m_x − m_y)/2 and y + λ(m_x − m_y)/2, λ from `SHIFTS`: 0 changes nothing, 1 makes the means coincide before
    rows are scaled to unit length. Source: Liang et al., NeurIPS 2022, figure 3.

    Args:
        temperature: τ of the loss. Default: that of the run.
    """

    temperature: float | None = None

    def fit(self, image: np.ndarray, text: np.ndarray) -> Transform:
        gap = image.mean(axis=0) - text.mean(axis=0)
        tau = 0.01 if self.temperature is None else self.temperature
        found = losses(image, text, gap, SHIFTS, (tau,))[0]
        best = SHIFTS[int(np.argmin(found))]
        return lambda image, text: moved(image, text, best * gap)
