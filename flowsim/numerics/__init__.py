"""What diffrax lacks: a stabilised explicit method for large stiff problems."""

from flowsim.numerics.chebyshev import RungeKuttaChebyshev

__all__ = ["RungeKuttaChebyshev"]
