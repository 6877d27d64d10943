"""What closes the modality gap after training, and what that costs.

    lab = fs.lab.run(image, text, temperature=0.01)
    lab                      # a table of methods and metrics
    lab.plot()

Each method is fitted on one random half of the pairs and judged on the other half. `REGISTRY` holds the methods by
name, and `register` adds one of your own.
"""

from flowsim.lab.lab import Difference, Lab
from flowsim.lab.landscape import SHIFTS, TEMPERATURES, Landscape
from flowsim.lab.methods import (
    REGISTRY,
    Centre,
    CommonMean,
    Identity,
    Method,
    Project,
    Rotate,
    Shift,
    Standardise,
    Transform,
    Whiten,
    names,
    register,
)
from flowsim.lab.metrics import distribution_gap, mixed_retrieval
from flowsim.lab.running import run

__all__ = [
    "REGISTRY",
    "SHIFTS",
    "TEMPERATURES",
    "Centre",
    "CommonMean",
    "Difference",
    "Identity",
    "Lab",
    "Landscape",
    "Method",
    "Project",
    "Rotate",
    "Shift",
    "Standardise",
    "Transform",
    "Whiten",
    "distribution_gap",
    "mixed_retrieval",
    "names",
    "register",
    "run",
]
