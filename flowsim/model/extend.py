"""Tools for your own classes: fields that hold numbers, code for NumPy and JAX arrays, and checks with clear messages.

    class Square(fs.losses.AbstractLoss):
        strength: Any = eqx.field(converter=fs.extend.number, default=1.0)

Once defined, a class is known by its name in files, in paths and on the command line, without registration. The
how-to pages have an example for every kind of part.
"""

from flowsim.base.arrays import namespace, number
from flowsim.base.checks import check, check_number
from flowsim.base.modules import bundle

__all__ = ["bundle", "check", "check_number", "namespace", "number"]
