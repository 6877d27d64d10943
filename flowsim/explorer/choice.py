"""The controls, their values, and the flow, start and code that a choice of values stands for."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from flowsim.base.checks import check
from flowsim.base.paths import to_config
from flowsim.errors import unknown_name
from flowsim.model import initial, schedules, swaps, temperature
from flowsim.model.flow import GradientFlow
from flowsim.model.geometry import Parallel, Sphere
from flowsim.model.kernels import Shared
from flowsim.model.pairing import LabelNoise, Matched
from flowsim.model.schedules import Schedule

#: Number of output times of a run, the same for every choice so that nothing is compiled again.
POINTS = 121
_FIRST = 1e-2

_POLICIES = ("learnable exp", "learnable exp(ν/10)", "learnable softplus", "learnable β", "fixed", "linear", "cosine")
_SWAPS = ("none", "hard, entries", "hard, rows", "soft")


@dataclasses.dataclass(frozen=True)
class Control:
    """One control of the explorer.

    Args:
        name: Name of the field of `Choice`.
        kind: "number", "log" (positive, over decades), "whole" or "choice".
        label: Text next to the control.
        low: Smallest value.
        high: Largest value.
        step: Step between values of the slider; for "log", the step of the mantissa, 1 to 10.
        options: Values of a "choice".
    """

    name: str
    kind: Literal["number", "log", "whole", "choice"]
    label: str
    low: float = 0.0
    high: float = 1.0
    step: float = 0.01
    options: tuple[str, ...] = ()

    def values(self, value: float) -> list[float]:
        """The values of its slider in increasing order.

        Args:
            value: The current value, which is one of them even if it is not a round number.

        Returns:
            Round numbers between `low` and `high`, and `value`.
        """
        if self.kind == "log":
            mantissas = np.arange(round(9 / self.step)) * self.step + 1
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = {float(f"{mantissa:.4g}e{decade}") for decade in decades for mantissa in mantissas}
        else:
            found = set(map(_decimal, np.arange(self.low, self.high + self.step / 2, self.step)))
        return sorted({x for x in found if self.low <= x <= self.high} | {value})


def _decimal(value: float) -> float:
    """The value without binary rounding errors: 0.31 for 0.31000000000000005."""
    return float(f"{value:.12g}")


CONTROLS = (
    Control("geometry", "choice", "geometry", options=("Sphere", "Parallel")),
    Control("pairs", "whole", "pairs n", 2, 32),
    Control("dim", "whole", "dimension d", 3, 16),
    Control("height", "number", "cone height γ₀", 0.0, 0.95, 0.001),
    Control("twist", "number", "twist (degrees)", -180.0, 180.0, 1.0),
    Control("mismatch", "number", "mismatched fraction", 0.0, 1.0),
    Control("noise", "number", "label noise p", 0.0, 0.5, 0.005),
    Control("policy", "choice", "temperature policy", options=_POLICIES),
    Control("temperature", "log", "temperature τ₀", 0.01, 1.0, 0.1),
    Control("end", "log", "other τ (linear, cosine)", 0.01, 1.0, 0.1),
    Control("lr_ratio", "log", "learning-rate ratio r", 0.1, 10.0, 0.1),
    Control("shared", "number", "kernel: shared/own", 0.0, 10.0, 0.01),
    Control("swap", "choice", "swap", options=_SWAPS),
    Control("fraction", "number", "swapped fraction p", 0.0, 1.0),
    Control("horizon", "log", "last time t₁", 1.0, 1e12, 1.0),
    Control("seed", "whole", "seed", 0, 31),
)
_BY_NAME = {control.name: control for control in CONTROLS}


@dataclasses.dataclass(frozen=True)
class Choice:
    """The values of the controls. The defaults are Figure 2 of Yaras et al. 2025; `CONTROLS` gives labels and ranges.

    Args:
        geometry: "Sphere" or "Parallel".
        pairs: Number of pairs.
        dim: Dimension of the embeddings.
        height: Initial height γ0 of the cones.
        twist: Twist between the rings in degrees; used only if `rings`.
        mismatch: Fraction of texts that are permuted at the start.
        noise: Label noise p.
        policy: Temperature policy.
        temperature: Initial temperature.
        end: Final temperature ("linear") or the other extreme ("cosine").
        lr_ratio: Learning rate of ν relative to that of the embeddings.
        shared: shared/own of the kernel I + shared·11ᵀ of both modalities; 0 for rows that move freely.
        swap: Kind of swap.
        fraction: Swapped fraction p.
        horizon: Last flow time.
        seed: Seed of the start and the swap masks.
    """

    geometry: str = "Sphere"
    pairs: int = 5
    dim: int = 3
    height: float = 0.309
    twist: float = -144.0
    mismatch: float = 0.0
    noise: float = 0.0
    policy: str = "learnable exp"
    temperature: float = 0.07
    end: float = 0.05
    lr_ratio: float = 1.0
    shared: float = 0.0
    swap: str = "none"
    fraction: float = 0.1
    horizon: float = 1e5
    seed: int = 0

    def replace(self, **changes: Any) -> "Choice":
        """A copy with some controls changed.

        Args:
            **changes: Control -> value.

        Returns:
            The changed choice.

        Raises:
            FlowsimError: If a control is unknown or a value is out of range.
        """
        for name, value in changes.items():
            check(
                name not in ("loss", "pairing", "rule", "schedule"),
                f"The explorer has no control for `{name}`: it shows flowsim's own parts. For others use fs.simulate "
                "and fs.plot.overview.",
            )
            if name not in _BY_NAME:
                raise unknown_name("control", name, _BY_NAME)
            control = _BY_NAME[name]
            if control.kind == "choice":
                if value not in control.options:
                    raise unknown_name(control.label, value, control.options)
                continue
            check(
                isinstance(value, (int, float, np.number)) and control.low <= value <= control.high,
                f"Control `{name}` must be from {control.low:g} to {control.high:g}, but is {value!r}.",
            )
            changes[name] = int(value) if control.kind == "whole" else _decimal(float(value))
        return dataclasses.replace(self, **changes)

    @property
    def rings(self) -> bool:
        """Whether the start is two regular rings (three dimensions, no mismatch); otherwise it is random cones."""
        return self.dim == 3 and self.mismatch == 0

    @property
    def unused(self) -> frozenset[str]:
        """Names of the controls that have no effect on this choice."""
        idle = {
            "twist": not self.rings,
            "end": self.policy not in ("linear", "cosine"),
            "lr_ratio": not self.policy.startswith("learnable"),
            "fraction": self.swap == "none",
            "seed": self.rings and self.swap == "none",
        }
        return frozenset(name for name, is_idle in idle.items() if is_idle)

    @property
    def structure(self) -> tuple[Any, ...]:
        """A key; choices with equal keys share a compiled program."""
        return self.geometry, self.pairs, self.dim, self.noise > 0, self.shared > 0, self.policy, self.swap

    def flow(self) -> GradientFlow:
        """The flow of this choice."""
        return GradientFlow(
            self._geometry(),
            Schedule(self._policy(), self._swap()),
            pairing=LabelNoise(self.noise) if self.noise > 0 else Matched(),
        )

    def start(self) -> Any:
        """The recipe of the start: rings, or random cones with a fraction of the texts permuted."""
        if self.rings:
            return initial.rings(self.pairs, self.height, self.twist)
        # A height adds a dimension.
        return initial.mismatched(self.pairs, self.dim - 1, self.height, self.mismatch)

    def times(self) -> np.ndarray:
        """Output times, (POINTS,)."""
        first = min(_FIRST, self.horizon / 10)
        return np.concatenate([[0.0], np.geomspace(first, self.horizon, POINTS - 1)])

    def _geometry(self) -> Any:
        kernel = Shared(1.0, self.shared) if self.shared > 0 else None
        return Sphere(image_kernel=kernel, text_kernel=kernel) if self.geometry == "Sphere" else Parallel(kernel)

    def _policy(self) -> Any:
        init, ratio = self.temperature, self.lr_ratio
        return {
            "learnable exp": lambda: temperature.Learnable(init, temperature.Exp(), ratio),
            "learnable exp(ν/10)": lambda: temperature.Learnable(init, temperature.ScaledExp(10.0), ratio),
            "learnable softplus": lambda: temperature.Learnable(init, temperature.Softplus(), ratio),
            "learnable β": lambda: temperature.Learnable(init, temperature.Identity(), ratio),
            "fixed": lambda: temperature.Fixed(init),
            "linear": lambda: temperature.Linear(init, self.end),
            "cosine": lambda: temperature.Cosine(min(init, self.end), max(init, self.end)),
        }[self.policy]()

    def _swap(self) -> Any:
        return {
            "none": lambda: swaps.NoSwap(),
            "hard, entries": lambda: swaps.HardSwap(self.fraction, masks=16),
            "hard, rows": lambda: swaps.HardSwap(self.fraction, by="row", masks=16),
            "soft": lambda: swaps.SoftSwap(self.fraction, masks=16),
        }[self.swap]()

    def code(self) -> str:
        """Python code that computes the same run."""
        parametrization = {
            "learnable exp": "Exp()",
            "learnable exp(ν/10)": "ScaledExp(10.0)",
            "learnable softplus": "Softplus()",
            "learnable β": "Identity()",
        }.get(self.policy)
        low, high = sorted((self.temperature, self.end))
        policy = {
            "fixed": f"Fixed({self.temperature!r})",
            "linear": f"Linear({self.temperature!r}, {self.end!r})",
            "cosine": f"Cosine({low!r}, {high!r})",
        }.get(self.policy, f"Learnable({self.temperature!r}, fs.temperature.{parametrization}, {self.lr_ratio!r})")
        swap = {
            "none": "",
            "hard, entries": f", fs.HardSwap({self.fraction!r}, masks=16)",
            "hard, rows": f', fs.HardSwap({self.fraction!r}, by="row", masks=16)',
            "soft": f", fs.SoftSwap({self.fraction!r}, masks=16)",
        }[self.swap]
        pairing = f", pairing=fs.LabelNoise({self.noise!r})" if self.noise > 0 else ""
        start = (
            f"rings({self.pairs}, {self.height!r}, {self.twist!r})"
            if self.rings
            else f"mismatched({self.pairs}, {self.dim - 1}, {self.height!r}, {self.mismatch!r})"
        )
        geometry = f"{self.geometry}()"
        if self.shared > 0:
            kernel = f"fs.kernels.Shared(1.0, {self.shared!r})"
            both = f"image_kernel={kernel}, text_kernel={kernel}"
            geometry = f"Sphere({both})" if self.geometry == "Sphere" else f"Parallel({kernel})"
        first = min(_FIRST, self.horizon / 10)
        seed = "" if "seed" in self.unused else f", seed={self.seed}"
        return "\n".join(
            [
                "import numpy as np",
                "import flowsim as fs",
                f"flow = fs.GradientFlow(fs.{geometry}, fs.Schedule(fs.temperature.{policy}{swap}){pairing})",
                f"start = fs.initial.{start}",
                f"ts = np.concatenate([[0.0], np.geomspace({first!r}, {self.horizon!r}, {POINTS - 1})])",
                f"result = fs.simulate(flow, start, ts=ts{seed})",
            ]
        )


#: Policy or swap -> control -> the field that it sets; used to find the controls of a preset.
_POLICY_FIELDS: dict[str, dict[str, str]] = {
    "fixed": {"temperature": "tau"},
    "linear": {"temperature": "start", "end": "end"},
    "cosine": {"temperature": "low", "end": "high"},
    **{key: {"temperature": "init", "lr_ratio": "lr_ratio"} for key in _POLICIES[:4]},
}
_SWAP_FIELDS: dict[str, dict[str, str]] = {"none": {}, **{key: {"fraction": "fraction"} for key in _SWAPS[1:]}}


def presets() -> dict[str, dict[str, Any]]:
    """Name -> values of controls, for Figure 2 and all presets that the controls can represent."""
    found: dict[str, dict[str, Any]] = {"Figure 2": dataclasses.asdict(Choice())}
    for name in schedules.names():
        schedule = schedules.get(name)
        policy = _controls_of(schedule.temperature, "policy", _POLICY_FIELDS)
        swap = _controls_of(schedule.swap, "swap", _SWAP_FIELDS)
        if policy is not None and swap is not None:
            found[name] = policy | swap
    return found


def _controls_of(part: Any, control: str, fields: dict[str, dict[str, str]]) -> dict[str, Any] | None:
    """The values of controls that give a policy or swap, apart from its number of masks; None if there are none."""
    wanted = {k: v for k, v in to_config(part).items() if k != "masks"}
    for option, names in fields.items():
        if not all(hasattr(part, field) for field in names.values()):
            continue
        changes = {control: option} | {name: float(getattr(part, field)) for name, field in names.items()}
        choice = dataclasses.replace(Choice(), **changes)
        made = to_config(choice._policy() if control == "policy" else choice._swap())
        if {k: v for k, v in made.items() if k != "masks"} == wanted:
            return changes
    return None
