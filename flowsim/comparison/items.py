"""All items of a comparison, registered on import; their order here is that of reports and figures."""

# ruff: noqa: F401
# isort: off
from flowsim.comparison import simulation
from flowsim.comparison import exponent
from flowsim.comparison import slow_closing
from flowsim.comparison import enlargement
from flowsim.comparison import matching
from flowsim.comparison import calibration
from flowsim.comparison import kernel_simulation
from flowsim.comparison import forecast

# isort: on
from flowsim.comparison.item import REGISTRY, names

__all__ = ["REGISTRY", "names"]
