"""How a run ended."""

import dataclasses
import enum


class Status(enum.Enum):
    """How a run ended; the value is a sentence for users."""

    COMPLETED = "Completed: reached the last output time."
    STEADY = "Steady state: nothing changes any more; later values are the steady ones."
    GAMMA_ONE = (
        "Stopped: the cone height γ reached 1, where parallel cones collapse to two points and the ansatz "
        "ends; later values are NaN. Use a smaller γ0, a larger temperature, a matched start, or `Sphere`."
    )
    TEMPERATURE_INFINITE = (
        "Stopped: the inverse temperature β reached 0, where τ is infinite; later values are NaN. "
        "Use a parametrization that keeps β positive, such as Exp()."
    )
    OUTPUT_ZERO = (
        "Stopped: an output of an encoder shrank to 0, where its row has no direction; later values are NaN. Use "
        "embeddings of more dimensions, a shorter `t1`, or an optimizer, whose steps pass such points."
    )
    LEFT_DOMAIN = (
        "Stopped: the run left the domain of its geometry or temperature policy; later values are NaN. Use a shorter "
        "`t1`."
    )
    MAX_STEPS = (
        "Failed: the step limit was reached; later values are NaN. Raise `max_steps`, loosen `rtol`, or shorten `t1`."
    )
    PRECISION = (
        "Stopped: the forces cancel to rounding, and double precision cannot follow the flow any further; "
        "later values are NaN. Use a shorter `t1`."
    )
    NON_FINITE = (
        "Failed: the vector field is not finite; later values are NaN. Check the start, the temperature, and parts "
        "that you wrote (`fs.check`)."
    )
    PREDICTED = "Predicted: closed form, not integrated."
    UNFINISHED = "Unfinished: training has not reached its last step; run the same command again to continue."
    SADDLE = (
        "Rest on a saddle: nothing changes any more, but a small perturbation would grow; later values repeat the last "
        "one. Perturb the start to see where the flow leads."
    )
    INCOMPLETE = (
        "Failed: output times were passed without a value, which is a bug in flowsim; they hold NaN. Please "
        "report it with the settings of the run."
    )
    DIVERGED = "Failed: the training loss is not finite. Use a smaller learning rate, a longer warm-up, or fp32."

    @property
    def covered(self) -> bool:
        """Whether every output time has a value."""
        return self in (Status.COMPLETED, Status.STEADY, Status.SADDLE, Status.PREDICTED)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The status of one run.

    Attributes:
        code: How the run ended.
        stopped_at: Time at which it ended, on the clock of the result.
        method: Names of the methods used.
    """

    code: Status
    stopped_at: float
    method: str

    @property
    def sentence(self) -> str:
        """How the run ended, in words."""
        return self.code.value

    @property
    def ok(self) -> bool:
        """Whether every output time has a value."""
        return self.code.covered

    def __repr__(self) -> str:
        return f"{self.code.name} at t = {self.stopped_at:.6g} ({self.method}). {self.sentence}"
