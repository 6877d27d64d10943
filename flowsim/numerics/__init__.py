"""What diffrax and JAX lack: a stabilised explicit method for large stiff problems, InfoNCE in tiles, programs
that are kept."""

from flowsim.numerics.chebyshev import RungeKuttaChebyshev
from flowsim.numerics.compilation import make_room, store_programs, without_host_checks

__all__ = ["RungeKuttaChebyshev", "make_room", "store_programs", "without_host_checks"]
