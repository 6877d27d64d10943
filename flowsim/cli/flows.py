"""Options of every command that integrates a flow, and the flow and start that they describe."""

import dataclasses
import inspect
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any

from tyro import conf

from flowsim.cli.options import choice, flag, hint, number, text, whole
from flowsim.cli.values import parse_change
from flowsim.errors import FlowsimError

if TYPE_CHECKING:
    from flowsim.model.flow import GradientFlow
    from flowsim.model.initial import AbstractRecipe, Start
    from flowsim.model.schedules import Schedule
    from flowsim.records.result import Result

# Names only: the classes would have to load JAX, which help does not need. A test compares them with the core.
#: geometry -> its class
GEOMETRIES = {
    "sphere": "Sphere",
    "parallel": "Parallel",
    "reduced": "Reduced",
    "unnormalized": "Unnormalized",
    "subspaces": "Subspaces",
    "linear-encoders": "LinearEncoders",
    "mlp-encoders": "MLPEncoders",
}
METHODS = ("explicit", "implicit", "krylov", "stabilised")
STARTS = ("rings", "cones", "uniform", "matched", "orthonormal", "simplex", "mismatched", "latents")
#: Fields of `FlowOptions` that are parameters of starts; some starts call `height` gamma.
START_OPTIONS = ("pairs", "dim", "height", "twist", "fraction", "factors", "text_factors", "hidden", "noise")

#: Default last flow time.
T1 = 1e5


@dataclasses.dataclass(frozen=True)
class FlowOptions:
    """Options of every command that integrates: the flow, its start, and the solver."""

    preset: Annotated[str | None, text("--preset", "NAME"), hint("(default: Baseline)")] = None
    """Schedule of the paper by name."""
    schedule: Annotated[str | None, text("--schedule", "FILE.json"), hint()] = None
    """Schedule from a JSON file instead."""
    geometry: Annotated[str, choice("--geometry", tuple(GEOMETRIES))] = "sphere"
    """How the rows move."""
    start: Annotated[str | None, choice("--start", STARTS), hint("(default: rings; latents for encoders)")] = None
    """Recipe for the starting state."""
    pairs: Annotated[int | None, whole("--pairs", "5"), hint()] = None
    """Number of pairs, at least 2."""
    dim: Annotated[int | None, whole("--dim", "8"), hint()] = None
    """Dimension of the rows."""
    height: Annotated[
        float | None, number("--height", "0.3"), conf.arg(aliases=("--gamma",), help_behavior_hint="")
    ] = None
    """Cone height γ0, between -1 and 1."""
    twist: Annotated[float | None, number("--twist", "-144"), hint()] = None
    """Rotation of the text ring in degrees (rings)."""
    fraction: Annotated[float | None, number("--fraction", "0.5"), hint()] = None
    """Fraction of texts that start at a wrong place (mismatched)."""
    factors: Annotated[int | None, whole("--factors", "8"), hint()] = None
    """Number of latent factors (latents)."""
    text_factors: Annotated[int | None, whole("--text-factors", "4"), hint()] = None
    """Number of factors that the text sees (latents)."""
    hidden: Annotated[int | None, whole("--hidden", "32"), hint()] = None
    """Units of the hidden layer, for mlp-encoders (latents)."""
    noise: Annotated[float | None, number("--noise", "0.1"), hint()] = None
    """Noise on the inputs of the text (latents)."""
    embeddings: Annotated[str | None, text("--embeddings", "FILE"), hint()] = None
    """Start from your own rows: npy of shape (2, n, d), or npz with `image` and `text`."""
    t1: Annotated[float | None, number("--t1", "1e5"), hint("(default: 1e5)")] = None
    """Last flow time."""
    seed: Annotated[int, whole("--seed", "0")] = 0
    """Seed of the start, of swaps and of pairings."""
    changes: Annotated[
        conf.UseAppendAction[tuple[Annotated[str, text("--set", "PATH=VALUE")], ...]],
        conf.arg(name="set", help_behavior_hint="(repeatable)"),
    ] = ()
    """Change one value of the flow, e.g. schedule.temperature.init=0.1."""
    method: Annotated[str | None, choice("--method", METHODS), hint("(default: automatic)")] = None
    """Integrator."""
    rtol: Annotated[float, number("--rtol", "1e-9")] = 1e-9
    """Relative tolerance."""

    def flow_and_start(self, resume: str | None = None) -> "tuple[GradientFlow, Start | AbstractRecipe | Result]":
        """A flow and its start, or, with `resume`, a flow and the saved run to continue."""
        from flowsim.base.modules import PARTS
        from flowsim.model import schedules
        from flowsim.model.flow import GradientFlow

        schedule = self._schedule()
        if resume is not None:
            return self._resumed(resume, schedule)
        flow = GradientFlow(PARTS[GEOMETRIES[self.geometry]](), schedule or schedules.get("Baseline"))
        start = self._start()
        return self._changed(flow)[0], start

    def _schedule(self) -> "Schedule | None":
        """The schedule given by an option, if any."""
        from flowsim.model import schedules

        if self.preset is not None and self.schedule is not None:
            raise FlowsimError("Options `--preset` and `--schedule` exclude each other. Give one.")
        if self.schedule is None:
            return None if self.preset is None else schedules.get(self.preset)
        if not self.schedule.endswith(".json"):
            raise FlowsimError(
                f"A schedule file ends in .json, but got {self.schedule!r}. Use --preset for a schedule of the paper."
            )
        return schedules.load(self.schedule)

    def _resumed(self, resume: str, schedule: "Schedule | None") -> "tuple[GradientFlow, Result]":
        """The flow of a saved run with the changes, and the run; raises `FlowsimError` for options of a start."""
        from flowsim.integrate.simulate import load

        given = [o for o in ("start", "embeddings", *START_OPTIONS) if getattr(self, o) is not None]
        if given or self.geometry != "sphere":
            raise FlowsimError(
                f"Option `{flag((given or ['geometry'])[0])}` does not go with `--resume`, "
                "because the run has its own start and geometry. Leave it out."
            )
        run = load(resume)
        flow = run.flow
        if self.seed not in (0, run.config["options"]["seed"]):
            raise FlowsimError(
                "Option `--seed` does not go with `--resume`, which continues with the seed of the run. Leave it out."
            )
        flow, changed = self._changed(flow if schedule is None else flow.replace(schedule=schedule))
        _refuse_what_the_run_brings(run, flow, changed)
        return flow, run

    def _changed(self, flow: "GradientFlow") -> "tuple[GradientFlow, Collection[str]]":
        """The flow with the changes of every `--set`, and their paths."""
        changes: dict[str, Any] = {}
        seen = flow  # with the objects set by earlier changes, because later paths may lead into them
        for change in self.changes:
            path, value = parse_change(seen, change)
            changes[path] = value
            if dataclasses.is_dataclass(value):
                seen = seen.replace(**{path: value})
        return flow.replace(**changes) if changes else flow, changes.keys()

    def _start(self) -> "Start | AbstractRecipe":
        """The start given by the options: your own rows, or a recipe with its options."""
        from flowsim import observables
        from flowsim.model import initial

        given = {o: getattr(self, o) for o in START_OPTIONS if getattr(self, o) is not None}
        if self.embeddings is not None:
            if self.start is not None:
                raise FlowsimError("Options `--start` and `--embeddings` exclude each other. Give one of them.")
            for option in given.keys() - {"height"}:
                raise FlowsimError(f"Option `{flag(option)}` does not go with `--embeddings`. Leave it out.")
            image, text = observables.load_embeddings(self.embeddings)
            return initial.from_arrays(image, text, self.height)
        name = self.start or ("latents" if self.geometry.endswith("encoders") else "rings")
        takes = start_options(getattr(initial, name))
        for option in given:
            if option not in takes:
                raise FlowsimError(
                    f"Start {name!r} has no option `{flag(option)}`. It takes {', '.join(map(flag, takes))}."
                )
        return getattr(initial, name)(**{takes[o]: v for o, v in given.items()})


def start_options(recipe: Any) -> dict[str, str]:
    """Option -> parameter, for the parameters of a recipe that the command line can set."""
    parameters = inspect.signature(recipe).parameters
    named = {o: "gamma" if o == "height" and "gamma" in parameters else o for o in START_OPTIONS}
    return {option: name for option, name in named.items() if name in parameters}


def _refuse_what_the_run_brings(run: "Result", flow: "GradientFlow", changes: Collection[str]) -> None:
    """Refuse starting values of trained numbers, which have no effect when a run is continued."""
    trained = {
        "schedule.temperature.init": flow.schedule.temperature.learnable,
        "loss.bias": "bias" in run.snapshots and getattr(flow.loss, "bias_rate", None) is not None,
    }
    for path in (p for p, is_trained in trained.items() if is_trained and p in changes):
        raise FlowsimError(
            f"`--set {path}` changes nothing with `--resume`, because a learned value continues from the file. "
            "Leave it out, or start a new run from the rows: fs.simulate(flow, run.final.start, t1=...) in Python."
        )
