"""Loss and entropy of the softmaxes of pairs: the gradient of the logarithm of β."""

import numpy as np
from scipy.special import logsumexp


def calibration(image: np.ndarray, text: np.ndarray, temperature: float) -> tuple[float, float, float]:
    """Loss and mean entropy of the softmaxes in both directions: ∂ℓ/∂ ln β = loss − entropy.

    From ℓ_i = lse(s_i) − s_ii and lse(s_i) = Σ_j p_ij s_ij + H(p_i) with s = βZ.

    Args:
        image: Unit rows (n, d).
        text: Unit rows (n, d).
        temperature: τ.

    Returns:
        (loss, entropy, standard error of their difference over pairs), in nats.
    """
    logits = image @ text.T / temperature
    losses, entropies = [], []
    for s in (logits, logits.T):
        log_p = s - np.asarray(logsumexp(s, axis=1, keepdims=True))
        losses.append(-np.diagonal(log_p))
        entropies.append(-np.sum(np.exp(log_p) * log_p, axis=1))
    pull = np.mean(losses, axis=0) - np.mean(entropies, axis=0)
    return float(np.mean(losses)), float(np.mean(entropies)), float(np.std(pull) / np.sqrt(len(pull)))
