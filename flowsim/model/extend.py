"""What a class of your own needs: numbers as fields, NumPy or JAX arrays as they come, and checks with a sentence.

    class Square(fs.losses.AbstractLoss):
        strength: Any = eqx.field(converter=fs.extend.number, default=1.0)

A class is known by its name from its definition on, in files, paths and on the command line; nothing has to be
registered. The how-to pages add a temperature policy, a loss and a geometry.
"""

from flowsim.base.arrays import namespace, number
from flowsim.base.checks import check, check_number
from flowsim.base.modules import bundle

__all__ = ["bundle", "check", "check_number", "namespace", "number"]
