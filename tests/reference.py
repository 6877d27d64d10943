"""Independent NumPy references: plain softmaxes and hand-written fields, sharing no code with the package."""

import numpy as np
from scipy.special import logsumexp, softmax


def plain_loss(logits):
    """(1/2n) Σ_i [lse(M_i,:) − M_ii + lse(M_:,i) − M_ii]."""
    n = len(logits)
    return (logsumexp(logits, axis=1).sum() + logsumexp(logits, axis=0).sum() - 2 * np.trace(logits)) / (2 * n)


def plain_gradient(logits, rows=None, columns=None):
    """(1/2n)(rowsoftmax + colsoftmax − targets)."""
    n = len(logits)
    rows = np.eye(n) if rows is None else rows
    columns = np.eye(n) if columns is None else columns
    return (softmax(logits, axis=1) - rows + softmax(logits, axis=0) - columns) / (2 * n)


def tangent(rows, vectors):
    return vectors - (rows * vectors).sum(1, keepdims=True) * rows


def sphere_field(image, text, beta, rows=None, columns=None):
    """(dX/dt, dY/dt, −∂L/∂β) on the sphere."""
    similarity = image @ text.T
    gradient = plain_gradient(beta * similarity, rows, columns)
    return (
        -tangent(image, beta * gradient @ text),
        -tangent(text, beta * gradient.T @ image),
        -(gradient * similarity).sum(),
    )


def parallel_field(image, text, gamma, beta):
    """(dH_X/dt, dH_Y/dt, d ln γ/dt, −∂L/∂β) of the parallel ansatz."""
    z = image @ text.T
    shrink = 1 - gamma**2
    gradient = plain_gradient(beta * shrink * z)
    g = -(z * gradient).sum()
    return (
        -tangent(image, beta * shrink * gradient @ text),
        -tangent(text, beta * shrink * gradient.T @ image),
        -2 * beta * g,
        shrink * g,
    )


def unit_rows(rng, n, d):
    rows = rng.standard_normal((n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
