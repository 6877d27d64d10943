"""Additions to diffrax and JAX: a stabilised explicit method for large stiff problems, detection of crossings inside
steps, Arnoldi's method, InfoNCE in tiles, and a store of compiled programs."""

from flowsim.numerics.chebyshev import RungeKuttaChebyshev
from flowsim.numerics.compilation import make_room, store_programs, without_host_checks
from flowsim.numerics.crossings import StopAtCrossings
from flowsim.numerics.krylov import arnoldi

__all__ = ["RungeKuttaChebyshev", "StopAtCrossings", "arnoldi", "make_room", "store_programs", "without_host_checks"]
