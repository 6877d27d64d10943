"""Metrics of a pair of embedding sets.

`image` and `text` are arrays of shape (n, d) with samples as rows; row i of one belongs to row i of the
other (metrics called *unpaired* also take n and m rows). Rows are scaled to unit length first, so that
cosines are inner products. Below, x_i and y_i are the unit rows, Z_ij = ⟨x_i, y_j⟩, and Z_ii are the true
pairs.

Each function works in two ways, with the same definition:

- called with ordinary arrays (NumPy, JAX, torch, lists), it checks them, computes in float64 whatever the JAX
  settings of the session, and returns Python floats;
- called inside `jax.jit`, `jax.vmap` or `jax.grad`, it is plain JAX in the precision of its (traced)
  arguments, and checks only shapes.

All functions raise `FlowsimError` for an argument that is not a real 2-d array, has fewer than two rows, a
row of zeros, NaN or infinity, or does not fit the other argument.

`report` computes all metrics at once. `REGISTRY` is the table of all observables, including those of the state of a
flow, and `register` adds your own.
"""

from flowsim.observables.files import Embeddings, find_embeddings, load_embeddings, open_array, open_embeddings
from flowsim.observables.gap import (
    centre_norms,
    gap_angle,
    image_centre_norm,
    mean_pair_cosine,
    modality_gap,
    pair_distance,
    relative_modality_gap,
    text_centre_norm,
)
from flowsim.observables.matching import doubly_stochastic_defect, margin, matched_fraction, pair_margins
from flowsim.observables.metric import PerModality
from flowsim.observables.observable import Observable
from flowsim.observables.pairwise import Pairwise, pairwise
from flowsim.observables.registration import register
from flowsim.observables.reports import Report, report
from flowsim.observables.retrieval import Retrieval, retrieval_at_k, retrieval_ranks
from flowsim.observables.separability import linear_separability
from flowsim.observables.similarity import report_similarity
from flowsim.observables.spread import (
    Uniformity,
    alignment,
    cross_uniformity,
    effective_rank,
    image_effective_rank,
    image_uniformity,
    text_effective_rank,
    text_uniformity,
    uniformity,
    wasserstein_uniformity,
)
from flowsim.observables.table import REGISTRY, names

__all__ = [
    "REGISTRY",
    "Embeddings",
    "Observable",
    "Pairwise",
    "PerModality",
    "Report",
    "Retrieval",
    "Uniformity",
    "alignment",
    "centre_norms",
    "cross_uniformity",
    "doubly_stochastic_defect",
    "effective_rank",
    "find_embeddings",
    "gap_angle",
    "image_centre_norm",
    "image_effective_rank",
    "image_uniformity",
    "linear_separability",
    "load_embeddings",
    "margin",
    "matched_fraction",
    "mean_pair_cosine",
    "modality_gap",
    "names",
    "open_array",
    "open_embeddings",
    "pair_distance",
    "pair_margins",
    "pairwise",
    "register",
    "relative_modality_gap",
    "report",
    "report_similarity",
    "retrieval_at_k",
    "retrieval_ranks",
    "text_centre_norm",
    "text_effective_rank",
    "text_uniformity",
    "uniformity",
    "wasserstein_uniformity",
]
