"""Claims: every statement of the theory with a measurement and a verdict.

    fs.claims.table()                       # all of them, as a readable table
    fs.claims.run("lemma-3.1")              # one
    fs.claims.run("lemma-3.1", system=fs.claims.System(corrupt=...))   # measured on another model
    fs.claims.register(fs.claims.Claim(...))                           # a claim that you add

A claim names its source and assumptions, measures the simulator (never the closed forms alone) and is judged
by limits that are listed among its numbers. Some are expected to fail: statements that do not hold as printed.
"""

# A file registers its claims when it is imported; this is the order of the table.
# isort: off
from flowsim.claims import loss_gradient as loss_gradient
from flowsim.claims import conserved as conserved
from flowsim.claims import exponents as exponents
from flowsim.claims import kernel as kernel
from flowsim.claims import kernel_limits as kernel_limits
from flowsim.claims import theorem_3_2 as theorem_3_2
from flowsim.claims import theorem_3_3 as theorem_3_3
from flowsim.claims import figure_2 as figure_2
from flowsim.claims import temperature_rates as temperature_rates
from flowsim.claims import dynamics as dynamics
from flowsim.claims import noise as noise
from flowsim.claims import optimizers as optimizers
from flowsim.claims import retrieval as retrieval
from flowsim.claims import swaps as swaps
from flowsim.claims import mismatch as mismatch
from flowsim.claims import subspaces as subspaces
from flowsim.claims import sigmoid as sigmoid
from flowsim.claims import ambient as ambient
from flowsim.claims import real_pairs as real_pairs
from flowsim.claims import three_ways as three_ways

# isort: on
from flowsim.claims.base import Claim, System, Table, Verdict
from flowsim.claims.measuring import get, names, run, run_all, table
from flowsim.claims.registry import REGISTRY, register

__all__ = ["REGISTRY", "Claim", "System", "Table", "Verdict", "get", "names", "register", "run", "run_all", "table"]
