"""Geometries: the coordinates that flow, the rows that they give, and how forces move them."""

from flowsim.model.geometry.base import (
    AbstractGeometry,
    AbstractRowGeometry,
    Rows,
    normalise,
    tangent,
    tangent_rows,
)
from flowsim.model.geometry.cones import ConeConstants, ConePosition, Parallel, Reduced
from flowsim.model.geometry.encoders import AbstractEncoders, Inputs, LinearEncoders, MLPEncoders, Weights
from flowsim.model.geometry.rows import Hyperplanes, Sphere, Subspaces, Unnormalized

__all__ = [
    "AbstractEncoders",
    "AbstractGeometry",
    "AbstractRowGeometry",
    "ConeConstants",
    "ConePosition",
    "Hyperplanes",
    "Inputs",
    "LinearEncoders",
    "MLPEncoders",
    "Parallel",
    "Reduced",
    "Rows",
    "Sphere",
    "Subspaces",
    "Unnormalized",
    "Weights",
    "normalise",
    "tangent",
    "tangent_rows",
]
