"""Schedules: a temperature policy and a swap of features, with the presets of Yaras et al. 2025 by name.

    fs.schedules.get("TS S3"), fs.schedules.names()

A `Schedule` is a pure function of training progress that can be saved as JSON, so simulation and real training share
one object. Presets: Yaras et al. 2025, tables 2-5.
"""

import json
from pathlib import Path
from typing import Any

from flowsim.base.checks import check, check_choice, shown
from flowsim.base.modules import Described
from flowsim.base.paths import from_config, to_config
from flowsim.errors import FlowsimError
from flowsim.model.optax_loop import OptaxSchedule
from flowsim.model.swaps import AbstractSwap, HardSwap, NoSwap, SoftSwap
from flowsim.model.temperature import (
    AbstractTemperature,
    Cosine,
    Fixed,
    Learnable,
    Linear,
    ScaledExp,
    Softplus,
)


class Schedule(Described):
    """A temperature policy and a swap.

    Args:
        temperature: The policy, e.g. `fs.temperature.Fixed(0.1)`.
        swap: The swap, e.g. `fs.HardSwap(0.01)`.

    Raises:
        FlowsimError: If a part is not of its kind.
    """

    temperature: AbstractTemperature = Learnable()
    swap: AbstractSwap = NoSwap()

    def __check_init__(self) -> None:
        for name, kind, example in (
            ("temperature", AbstractTemperature, "fs.temperature.Fixed(0.1)"),
            ("swap", AbstractSwap, "fs.HardSwap(0.01)"),
        ):
            part = getattr(self, name)
            cure = f"Write {part.__name__}(), with parentheses" if isinstance(part, type) else f"Use e.g. {example}"
            check(isinstance(part, kind), f"Argument `{name}` cannot be {shown(part)}. {cure}.")

    def to_json(self) -> str:
        """JSON text that `from_json` reads back to an equal schedule."""
        return json.dumps(to_config(self), indent=2)

    def as_optax(
        self, total_steps: int, *, clamp: tuple[float, float] | None = (0.01, 1.0), name: str = "raw_temperature"
    ) -> OptaxSchedule:
        """The schedule for your own training loop in JAX with optax.

        Args:
            total_steps: Optimizer steps of the whole run, at which schedules end.
            clamp: (τ_min, τ_max) for learnable temperatures whose policy has no clamp; None for none.
            name: Name of the raw parameter ν of a learnable temperature in your tree of parameters.

        Returns:
            Its inverse temperature in each step, an optimizer that treats ν as the schedule says, and its swap.

        Raises:
            FlowsimError: For arguments that are not allowed.

        Examples:
            >>> import flowsim as fs
            >>> import optax
            >>> here = fs.schedules.get("SLRT 0.1").as_optax(total_steps=1_000)
            >>> params = {"weights": ..., "raw_temperature": here.initial_raw()}
            >>> optimizer = here.optimizer(optax.adamw(1e-3, mask=here.decays))
            >>> round(float(here.inverse_temperature(0, params["raw_temperature"])), 2)
            14.29
        """
        return OptaxSchedule(self, total_steps, clamp, name)

    @classmethod
    def from_json(cls, text: str) -> "Schedule":
        """The schedule from the text of `to_json`.

        Raises:
            FlowsimError: If the text is not a schedule in JSON.
        """
        try:
            config = json.loads(text)
        except (TypeError, UnicodeDecodeError):
            raise FlowsimError(f"Expected JSON text, but got {shown(text)}. Use that of `Schedule.to_json`.") from None
        except RecursionError:
            raise FlowsimError("The schedule is nested too deeply. Write one with `Schedule.to_json`.") from None
        except json.JSONDecodeError as error:
            raise FlowsimError(f"The schedule is not valid JSON: {error}. Write one with `Schedule.to_json`.") from None
        schedule = from_config(config, "Schedule")
        if not isinstance(schedule, Schedule):
            raise FlowsimError(
                f"Expected a Schedule, but got kind {type(schedule).__name__!r}. "
                'Start the file with {"kind": "Schedule", ...}.'
            )
        return schedule


def _presets() -> dict[str, Schedule]:
    presets = {"Baseline": Schedule()}
    for tau in ("1e-2", "2e-2", "4e-2", "7e-2", "1e-1", "2e-1", "3e-1", "4e-1"):
        presets[f"FLT {tau}"] = Schedule(Fixed(float(tau)))
    for k, end in enumerate((0.02, 0.03, 0.04, 0.05)):
        presets[f"TS S{k}"] = Schedule(Linear(0.01, end))
    presets["TS A0"] = Schedule(Cosine(0.01, 0.02))
    presets["TS A1"] = Schedule(Cosine(0.01, 0.04))
    presets["TR softplus"] = Schedule(Learnable(parametrization=Softplus()))
    presets["TR scale 2"] = Schedule(Learnable(parametrization=ScaledExp(2.0)))
    presets["TR scale 10"] = Schedule(Learnable(parametrization=ScaledExp(10.0)))
    presets["SLRT 0.1"] = Schedule(Learnable(lr_ratio=0.1))
    for p in ("1e-3", "1e-2", "1e-1", "1"):
        presets[f"HS {p}"] = Schedule(swap=HardSwap(float(p)))
    # The table does not state the fraction of the row swap, but lists it among settings with p = 1e-2.
    presets["HS rows"] = Schedule(swap=HardSwap(0.01, by="row"))
    presets["SS 5e-2"] = Schedule(swap=SoftSwap(0.05))
    return presets


_PRESETS = _presets()


def names() -> list[str]:
    """The names of the presets of Yaras et al. 2025, in the order of their tables."""
    return list(_PRESETS)


def get(name: str) -> Schedule:
    """The preset with this name.

    Args:
        name: One of `names()`, e.g. "Baseline" or "TS S3".

    Returns:
        The schedule.

    Raises:
        FlowsimError: For an unknown name; the message suggests the nearest ones.

    Examples:
        >>> import flowsim as fs
        >>> policy = fs.schedules.get("TS S3").temperature
        >>> policy.start.item(), policy.end.item()
        (0.01, 0.05)
        >>> fs.schedules.get("TS S33")
        Traceback (most recent call last):
        ...
        flowsim.errors.FlowsimError: Unknown schedule 'TS S33'. Did you mean 'TS S3' or ...
    """
    check_choice("schedule", name, _PRESETS)
    return _PRESETS[name]


def load(name_or_path: str | Path) -> Schedule:
    """A preset by name, or a schedule from a `.json` file.

    Args:
        name_or_path: A preset's name, or a path that ends in ".json".

    Returns:
        The schedule.

    Raises:
        FlowsimError: For an unknown name, or a file that cannot be read or holds no schedule.
    """
    if isinstance(name_or_path, Path):
        name_or_path = str(name_or_path)
    if not isinstance(name_or_path, str) or not name_or_path.endswith(".json"):
        return get(name_or_path)
    try:
        text = Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise FlowsimError(
            f"The schedule file {name_or_path!r} cannot be read: {reason}. Write one with `Schedule.to_json`."
        ) from None
    try:
        return Schedule.from_json(text)
    except FlowsimError as error:
        raise FlowsimError(f"{name_or_path}: {error}") from None


def as_schedule(value: Any) -> Schedule:
    """A schedule from a schedule, a preset's name, a `.json` file, or a temperature policy.

    Raises:
        FlowsimError: For anything else.
    """
    if isinstance(value, str):
        return load(value)
    if isinstance(value, AbstractTemperature):
        return Schedule(value)
    if isinstance(value, Schedule):
        return value
    raise FlowsimError(
        f"Expected a schedule or a preset's name, but got {shown(value)}. Use e.g. fs.schedules.get('Baseline') or "
        "fs.temperature.Fixed(0.1); for your own curve derive from fs.temperature.AbstractTemperature."
    )
