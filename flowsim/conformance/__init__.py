"""Checks of parts that you write: `fs.check(part)` tests everything that flowsim expects of a part of its kind."""

from flowsim.conformance.report import Conformance, Finding
from flowsim.conformance.run import check

__all__ = ["Conformance", "Finding", "check"]
