"""What an evaluation of a trained model records: every observable of its embeddings, and the loss of all pairs.

The metrics are the same functions as in the simulator, in double precision on the CPU, also if JAX has a GPU: so they
are the same on every machine.
"""

import jax
import numpy as np

from flowsim import observables
from flowsim.base.arrays import on_cpu
from flowsim.model.losses import InfoNCE
from flowsim.model.pairing import Targets


def observe(image: np.ndarray, text: np.ndarray, inverse_temperature: float, which: str = "all") -> dict[str, float]:
    """Observables by name of unit rows (n, d), and `loss`, the contrastive loss of all n pairs at β.

    Args:
        image: Image rows (n, d).
        text: Text rows (n, d).
        inverse_temperature: β.
        which: "all", or "gap" for modality gap and loss only, which need no factorisation and little compilation.

    Returns:
        Values by name.
    """
    loss = {"loss": contrastive_loss(image, text, inverse_temperature)}
    with on_cpu():
        if which == "gap":
            return {"modality_gap": float(observables.modality_gap(image, text)), **loss}
        return {**observables.report(image, text, temperature=1.0 / inverse_temperature).values, **loss}


def contrastive_loss(image: np.ndarray, text: np.ndarray, inverse_temperature: float) -> float:
    """InfoNCE of all pairs at β, in double precision; its chance level is ln n.

    Args:
        image: Image rows (n, d).
        text: Text rows (n, d).
        inverse_temperature: β.
    """
    with on_cpu(), jax.enable_x64(True):
        return float(InfoNCE().value(jax.numpy.asarray(inverse_temperature * (image @ text.T)), Targets(None, None)))
