"""Rows of any pairs under the weights of a start: held-out pairs at any time of a flow, or after steps."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from flowsim.base.arrays import full_precision
from flowsim.base.checks import check, check_choice, shown
from flowsim.data.features import Features
from flowsim.model.geometry.encoders import LinearEncoders, MLPEncoders
from flowsim.model.start import Start


def embed(
    start: Start, features: Features, captions: str = "first"
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    """Unit rows of pairs under the heads of a start.

    Every snapshot of a result holds the weights of its time, so `embed(result.at(t).start, features)` gives the rows of
    held-out pairs at time t.

    Args:
        start: A start with weights: a draw of `fs.initial.from_features`, or `result.at(t).start`.
        features: The pairs. Scale them like those that the heads were trained on.
        captions: "first", or "all" for every caption, those of one image together.

    Returns:
        Images (n, d) and texts (n, d), or (m, d) with all captions; float64, also where heads are not normalised in
        training. The pair of each of the m texts is the second result of `features.every_text()`.

    Raises:
        FlowsimError: If the start has no weights of a single time, the features have other numbers of columns, or an
            output is 0 and has no direction.

    Examples:
        >>> import flowsim as fs
        >>> data = fs.data.emoji().scaled("length")
        >>> start = fs.initial.from_features(data.part("train"), dim=16).draw()
        >>> image, text = fs.heads.embed(start, data.part("test"), captions="all")
        >>> image.shape, text.shape
        ((171, 16), (342, 16))
        >>> recall = fs.observables.retrieval_at_k(image, text, k=10, captions_per_image=2)
    """
    check_choice("captions", captions, ("first", "all"))
    check(
        isinstance(start, Start),
        f"Argument `start` cannot be {shown(start)}. Use a start, e.g. `result.final.start`.",
    )
    check(
        isinstance(features, Features),
        f"Argument `features` cannot be {shown(features)}. Use features, e.g. fs.data.emoji().part('test').",
    )
    check(
        start.image_weights is not None,
        "The start has no weights of heads. Use one of fs.initial.from_features(data), or of a flow of encoders.",
    )
    check(
        start.image_weights.ndim == 2,
        "The start has the weights of several times. Use that of one time, `result.at(t).start`.",
    )
    image = features.image_rows(dtype=np.float64)
    text = features.text_rows(dtype=np.float64) if captions == "first" else features.every_text(np.float64)[0]
    return (
        _unit("image", image, start.image_hidden, start.image_weights),
        _unit("text", text, start.text_hidden, start.text_weights),
    )


def _unit(name: str, inputs: np.ndarray, hidden: Any, last: Any) -> np.ndarray:
    """Rows (n, d) of unit length of one head; `name` is for error messages."""
    wanted = np.shape(last if hidden is None else hidden)[0]
    check(
        inputs.shape[1] == wanted,
        f"The {name} features have {inputs.shape[1]} columns, but the {name} head takes {wanted}. Use the features "
        "that it was trained on.",
    )
    geometry = LinearEncoders() if hidden is None else MLPEncoders()
    with jax.enable_x64(True), full_precision():
        hidden, last = (None if x is None else np.asarray(x, np.float64) for x in (hidden, last))
        rows = np.asarray(geometry.encode(inputs, hidden, last), np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    zero = np.flatnonzero(lengths == 0)
    check(
        len(zero) == 0,
        f"The {name} head gives 0 for row {zero[0] if len(zero) else 0}, which has no direction. Remove its pair.",
    )
    return rows / lengths
