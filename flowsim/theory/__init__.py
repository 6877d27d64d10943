"""Closed forms, bounds and rates of the modality gap under gradient flow.

Notation: γ is half the modality gap of two parallel cones, β = 1/τ the inverse temperature, ν its raw parameter, r the
learning rate of ν relative to that of the embeddings, n the number of pairs and α the margin. For "frozen" directions,
Z = H_X H_Yᵀ has a constant diagonal and a constant off-diagonal that is smaller by α. Time is flow time; γ, β and τ are
dimensionless. Everything is float64; arguments broadcast unless a shape is given. NaN in a series is passed on, because
a run that ended early records NaN.

`parametrization` is one of "exp" (β = exp(ν/s), with `scale` s), "softplus" (β = ln(1 + e^ν)) and "identity" (β = ν).

Source: C. Yaras, S. Chen, P. Wang, Q. Qu, "Explaining and Mitigating the Modality Gap in Contrastive Multimodal
Learning", CPAL 2025. Formulas marked "derived here" are not in that paper.
"""

from flowsim.theory.cones import fixed_temperature_trajectory, gap_force, log_gap_force, reduced_trajectory
from flowsim.theory.conserved import (
    conserved_quantity,
    conserved_residual,
    inverse_temperature_of_gamma,
    lemma_3_1,
    log_gamma_of_inverse_temperature,
    sphere_conserved_quantity,
)
from flowsim.theory.exponents import closing_exponent, identity_law_coefficient, local_slope, sphere_exponent
from flowsim.theory.figure_2 import FIGURE_2, ring_height
from flowsim.theory.kernel import (
    effective_lr_ratio,
    kernel_conserved_quantity,
    kernel_conserved_residual,
    sphere_kernel_conserved_quantity,
)
from flowsim.theory.noise import critical_temperature, effective_noise, equilibrium_gap_bound, noise_logit_gap
from flowsim.theory.potential import inverse_potential, potential, raw_derivative
from flowsim.theory.predict import predict
from flowsim.theory.temperature_rates import (
    exponential_loss_log_gamma,
    fixed_temperature_rate,
    linear_inverse_temperature_rate,
)
from flowsim.theory.theorem_3_2 import (
    Theorem32Assumption,
    log_theorem_3_2_bound,
    theorem_3_2_assumption,
    theorem_3_2_bound,
)
from flowsim.theory.theorem_3_3 import (
    Theorem33Bound,
    bessel_ratio,
    log_mean_exponential,
    theorem_3_3_bound,
    theorem_3_3_limit,
    theorem_3_3_pairs_needed,
)

__all__ = [
    "FIGURE_2",
    "Theorem32Assumption",
    "Theorem33Bound",
    "bessel_ratio",
    "closing_exponent",
    "conserved_quantity",
    "conserved_residual",
    "critical_temperature",
    "effective_lr_ratio",
    "effective_noise",
    "equilibrium_gap_bound",
    "exponential_loss_log_gamma",
    "fixed_temperature_rate",
    "fixed_temperature_trajectory",
    "gap_force",
    "identity_law_coefficient",
    "inverse_potential",
    "inverse_temperature_of_gamma",
    "kernel_conserved_quantity",
    "kernel_conserved_residual",
    "lemma_3_1",
    "linear_inverse_temperature_rate",
    "local_slope",
    "log_gamma_of_inverse_temperature",
    "log_gap_force",
    "log_mean_exponential",
    "log_theorem_3_2_bound",
    "noise_logit_gap",
    "potential",
    "predict",
    "raw_derivative",
    "reduced_trajectory",
    "ring_height",
    "sphere_conserved_quantity",
    "sphere_exponent",
    "sphere_kernel_conserved_quantity",
    "theorem_3_2_assumption",
    "theorem_3_2_bound",
    "theorem_3_3_bound",
    "theorem_3_3_limit",
    "theorem_3_3_pairs_needed",
]
