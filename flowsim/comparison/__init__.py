"""Theory, simulation and training on one plot: what a run did, beside what the flow and the closed forms say.

    fs.compare("run.nc")                        # a record of training, or a simulated result
    fs.compare(first, *others)["enlargement"]   # several initialisations

Every item has numbers, a verdict ("agrees", "disagrees", "cannot tell") by a stated criterion (`Item.criterion`), and
one sentence. What a run does not hold is no error: the item cannot tell, and says why. Series of
training pairs (`seen_...`) are preferred to those of held-out pairs, because the flow describes training.

Intervals are 95 %. Those of fits over time allow for deviations that are correlated from one evaluation to the next
(`_Deviations`): with correlations of 0 to 0.9 between neighbours and 30 evaluations or more they cover the truth in 92
to 99 % of simulated series.
"""

import dataclasses
import html
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flowsim import theory
from flowsim.base.arrays import check
from flowsim.base.files import write_atomically
from flowsim.errors import FlowsimError, unknown_name
from flowsim.integrate.simulate import simulate
from flowsim.model import schedules
from flowsim.model.flow import GradientFlow
from flowsim.model.initial import Start, from_arrays
from flowsim.model.pairing import LabelNoise, Matched
from flowsim.model.schedules import Schedule
from flowsim.model.temperature import Fixed, Learnable
from flowsim.records.load import load_result
from flowsim.records.result import FLOW_TIME, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["agrees", "disagrees", "cannot tell"]
Record = Result | str | os.PathLike[str]

#: Names of the items, in the order of a report.
PARTS = ("simulation", "exponent", "slow_closing", "enlargement", "matching", "calibration")

#: Pairs that a simulation starts from at most: twice as many rows.
MAX_PAIRS = 128
#: Part of a run that `calibration` sees.
SEEN = 0.2
#: Label noise that `calibration` tries where a time scale alone does not describe what it sees.
NOISE_LEVELS = (0.01, 0.03, 0.1, 0.3)
_NOISY_PAIRS = 32

#: What must happen before anything can be said: relative range of the gap, factor by which β changes, range of ln τ.
_GAP_MOVED, _BETA_FACTOR, _LOG_TAU_MOVED = 0.05, 1.5, 0.02
#: Evaluations that a line is fitted to, at least, and the part of all that a law of the whole run must hold for.
_LINE_POINTS, _WHOLE = 8, 0.9
#: Part of a law's exponent within which a fit agrees with it.
_SAME_POWER = 0.2
#: Bends that count: part of the range by which a parabola departs from the line, and its significance.
_BEND, _BEND_LEVEL = 0.05, 0.01
#: Evaluations that a trajectory is fitted to, at least.
_TRAJECTORY_POINTS = 5
#: Misfit over spread up to which a simulation agrees, and from which on it disagrees.
_FOLLOWS, _FOLLOWS_NOT = 0.25, 0.5
#: Steps that `enlargement` calls early, and initialisations that it needs: fewer, and not even growth in all of them
#: would have an interval (Clopper and Pearson) above 1/2.
_EARLY, _INITIALISATIONS = 10, 6
#: Parts of the closing of the gap that `matching` allows: before half of the pairs match, and undone after all do.
_CLOSED_BEFORE, _REGROWN = 0.5, 0.1
#: Error of a prediction over that of the better baseline, and over the spread, up to which `calibration` agrees; and
#: over the noise, up to which it never disagrees.
_BEATS, _PREDICTS, _NOISY = 0.8, 0.5, 1.5


@dataclasses.dataclass(frozen=True)
class Item:
    """One comparison: `verdict` by `criterion`, its `numbers`, one `sentence`, and the `curves` of its plot."""

    name: str
    title: str
    verdict: Verdict
    sentence: str
    criterion: str
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    curves: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves, as plain data."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "curves"}


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` found: `items` by name, and the `records` that they are about, in words."""

    records: tuple[str, ...]
    items: dict[str, Item]

    def __getitem__(self, name: str) -> Item:
        """An item by name; an unknown name raises `FlowsimError`."""
        if name not in self.items:
            raise unknown_name("item", name, self.items)
        return self.items[name]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.items)

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Verdict of every item."""
        return {name: item.verdict for name, item in self.items.items()}

    @property
    def _title(self) -> str:
        others = len(self.records) - 1
        more = f" and {others} other{'s' if others > 1 else ''}" if others else ""
        return f"Comparison of {self.records[0]}{more}"

    def to_dict(self) -> dict[str, Any]:
        """Records and items as plain data; what could not be had is NaN or None."""
        return {"records": list(self.records), "items": [item.to_dict() for item in self.items.values()]}

    def plot(self) -> "Figure":
        """Closed form, simulation and training, one panel for each item that has something to show."""
        from flowsim.comparison.drawing import draw

        return draw(self.items)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure (.png, .pdf or .svg), atomically. Raises `FlowsimError` if that is not possible."""
        path = Path(path)
        check(
            path.suffix in (".png", ".pdf", ".svg"),
            f"Figures end in .png, .pdf or .svg, but got {path.name!r}. Use e.g. compare.png.",
        )
        from flowsim import plot

        with plot.paper_style():
            figure = self.plot()
            return write_atomically(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:]))

    def __repr__(self) -> str:
        lines = [f"  {item.name:<13} {item.verdict:<12} {item.sentence}" for item in self.items.values()]
        return "\n".join([self._title, *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in ((item.name, item.verdict, item.sentence) for item in self.items.values())
        )
        head = "<tr><th>item</th><th>verdict</th><th>in words</th></tr>"
        return f"<table><caption>{html.escape(self._title)}</caption>{head}{rows}</table>"


def compare(record: Record, *more: Record, parts: Sequence[str] | None = None) -> Comparison:
    """Compare a run with the simulation and with the closed forms.

    - `record`: a record of training or a simulated `Result`, or the path of one (.nc). It needs `modality_gap`
      over time. `more`: other initialisations of the same run, which `enlargement` alone uses.
    - `parts`: names of the items wanted, of `PARTS`; default all.

    The items:

    - `simulation`: the flow on `Sphere` from the run's own rows (a batch, at most 128 pairs; after the first epoch if
      that snapshot is there, else the first) with the run's schedule. Clocks differ, so that one factor of time is
      fitted; it also draws the closed form of parallel cones, from the peak of the gap. The flow of a part of the
      pairs is shown without a verdict: that of minibatches, or of a run with more pairs.
    - `exponent`: d ln Δ/d ln β by least squares, beside −2s²/r (parallel cones; of the conserved quantity ln γ −
      γ²/2 with γ = Δ/2) and −s²/(r n) (free sphere, doubly stochastic; n pairs in each loss, hence not for
      minibatches).
    - `slow_closing`: Δ against −1/log(t)², t in steps and on the run's clock.
    - `enlargement`: the change of the gap over the first ten steps, over at least six records, beside Theorem 3.3.
    - `matching`: when pairs become matched, how far the softmaxes are from doubly stochastic, and whether the gap
      closes after that.
    - `calibration`: a factor of time (and label noise, if that alone does not do) from the first 20 % of the run,
      which predicts the rest; beside a constant and a straight line in log t.

    Raises `FlowsimError` for what is no result, a file that is none, or a run without a modality gap.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow.from_preset("Baseline")
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144)
        >>> found = fs.compare(fs.simulate(flow, start, t1=1e5), parts=["matching"])
        >>> found.verdicts
        {'matching': 'agrees'}
    """
    wanted = PARTS if parts is None else ((parts,) if isinstance(parts, str) else tuple(parts))
    for name in wanted:
        if name not in PARTS:
            raise unknown_name("part of a comparison", name, PARTS)
    runs = [_Run.of(r) for r in (record, *more)]
    makers: dict[str, Callable[[], Item]] = {
        "simulation": lambda: _simulation(runs[0]),
        "exponent": lambda: _exponent(runs[0]),
        "slow_closing": lambda: _slow_closing(runs[0]),
        "enlargement": lambda: _enlargement(runs),
        "matching": lambda: _matching(runs[0]),
        "calibration": lambda: _calibration(runs[0]),
    }
    return Comparison(tuple(run.name for run in runs), {name: makers[name]() for name in PARTS if name in wanted})


# --- reading a run ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Run:
    """A result, read as a run: what it measured, in which steps, under which schedule."""

    result: Result
    name: str
    gap: np.ndarray
    step: np.ndarray | None
    schedule: Schedule | None

    @staticmethod
    def of(record: Record) -> "_Run":
        path = None
        if isinstance(record, (str, os.PathLike)):
            path = Path(record)
            record = load_result(path)
        if not isinstance(record, Result):
            raise FlowsimError(
                f"Expected a result or the path of one, but got {type(record).__name__}. "
                "Use fs.simulate(...) or a saved run such as 'run.nc'."
            )
        gap = _series(record, "modality_gap")
        if gap is None:
            raise FlowsimError(
                f"{'This result' if path is None else repr(str(path))} holds no modality gap, which a comparison is "
                "about. Record `modality_gap`."
            )
        step, config = None, record.config
        options = config.get("options", {})
        if "step" in record.coordinates:
            step = np.asarray(record.coordinates["step"], np.float64)
        elif "optimizer" in options and isinstance(options.get("lr"), (int, float)):
            step = np.round((record.time - record.time[0]) / options["lr"])
        held = config.get("schedule") or config.get("flow", {}).get("schedule")
        schedule = None
        if held is not None:
            schedule = _clamped(schedules.Schedule.from_json(json.dumps(held)), config.get("training", {}).get("clamp"))
        return _Run(record, _describe(record, path), gap, step, schedule)

    @property
    def clock(self) -> np.ndarray:
        """The run's own clock, from 0 on."""
        return self.result.time - self.result.time[0]

    @property
    def axis(self) -> np.ndarray:
        """Steps where they are known, else the clock."""
        return self.clock if self.step is None else self.step

    @property
    def axis_label(self) -> str:
        return f"{self.result.clock} $t$" if self.step is None else "step"

    @property
    def axis_word(self) -> str:
        return "t =" if self.step is None else "step"

    def series(self, name: str) -> np.ndarray | None:
        """A series; one about pairs only if it is of the pairs whose gap `gap` is."""
        of_training = _key(self.result, "modality_gap") == "seen_modality_gap"
        if name in _OF_PAIRS and (_key(self.result, name) == f"seen_{name}") != of_training:
            return None
        return _series(self.result, name)

    @property
    def beta(self) -> np.ndarray | None:
        """Inverse temperature over time, from whatever was recorded."""
        beta, tau = self.series("inverse_temperature"), self.series("temperature")
        if beta is None and tau is not None:
            beta = 1 / tau
        return None if beta is None or not np.any(beta > 0) else beta

    @property
    def learnable(self) -> Learnable | None:
        policy = None if self.schedule is None else self.schedule.temperature
        return policy if isinstance(policy, Learnable) else None

    @property
    def pairs(self) -> int | None:
        """Candidates in the loss: the batch of a training, else all pairs."""
        batch = self.result.config.get("training", {}).get("batch_size")
        if batch is not None:
            return int(batch)
        held = {**self.result.constants, **self.result.snapshots}
        for name in ("image", "similarity"):
            if name in held:
                return int(held[name].shape[-2])
        return None

    @property
    def trained(self) -> int | None:
        """Pairs that the run was about: those of its training set, else those that it holds; at least a batch."""
        known = self.result.config.get("data", {}).get("training_pairs")
        if known is None:
            held = {**self.result.constants, **self.result.snapshots}
            known = held["image"].shape[-2] if "image" in held else None
        found = [int(count) for count in (known, self.pairs) if count is not None]
        return max(found) if found else None

    @property
    def minibatches(self) -> str:
        """In words, that each loss was of a part of the pairs; empty if it was of all."""
        if self.pairs is None or self.trained is None or self.pairs >= self.trained:
            return ""
        return f"the run was trained on minibatches of {self.pairs} of {self.trained} pairs"

    def not_simulated(self, pairs: int) -> str:
        """In words, what of the run a flow of `pairs` pairs leaves out; empty if it has all of them in one loss."""
        if self.minibatches:
            return f"{self.minibatches}, which is not the flow of {pairs} of them"
        if self.trained is not None and pairs < self.trained:
            return f"only {pairs} of the run's {self.trained} pairs were simulated"
        return ""

    @property
    def dim(self) -> int | None:
        """Dimension of the embeddings."""
        if (dim := self.result.config.get("embed_dim")) is not None:
            return int(dim)
        for index in range(len(self.result.snapshot_time)):
            rows = self.rows(index)
            return None if rows is None else rows[0].shape[1]
        return None

    def rows(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Unit rows (image, text) of a stored snapshot."""
        held = {**self.result.constants, **{k: v[index] for k, v in self.result.snapshots.items()}}
        fields = {f.name for f in dataclasses.fields(Start)}
        try:
            image, text = Start(**{k: np.asarray(v) for k, v in held.items() if k in fields}).rows()
        except FlowsimError:  # similarities, or inputs of encoders
            return None
        if image is None or text is None or not (np.isfinite(image).all() and np.isfinite(text).all()):
            return None
        return np.asarray(image, np.float64), np.asarray(text, np.float64)


def _clamped(schedule: Schedule, clamp: Any) -> Schedule:
    """The schedule as it was trained: with the training's clamp where its learnable temperature has none."""
    policy = schedule.temperature
    if clamp is None or not isinstance(policy, Learnable) or policy.clamp is not None:
        return schedule
    low, high = (float(tau) for tau in clamp)
    policy = dataclasses.replace(policy, init=min(max(float(policy.init), low), high), clamp=(low, high))
    return dataclasses.replace(schedule, temperature=policy)


def _describe(record: Result, path: Path | None) -> str:
    training, options = record.config.get("training", {}), record.config.get("options", {})
    head = "" if path is None else f"{path.name}: "
    if training:
        known = [str(training[k]) for k in ("model", "data", "optimizer") if training.get(k)]
        steps = [f"{training['steps']} steps"] if training.get("steps") else []
        return f"{head}training ({', '.join([*known, *steps])})" if known or steps else f"{head}training"
    geometry = record.config.get("flow", {}).get("geometry", {}).get("kind", "flow")
    how = f"steps of {options['optimizer']}" if "optimizer" in options else "the flow"
    return f"{head}{how} on {geometry}"


#: Series that depend on which pairs were observed.
_OF_PAIRS = ("matched_fraction", "margin", "doubly_stochastic_defect")


def _key(result: Result, name: str) -> str | None:
    """Under which name a series is held, that of training pairs first; None if it has no finite value."""
    for key in (f"seen_{name}", name):
        if key in result.series and np.isfinite(result.series[key]).any():
            return key
    return None


def _series(result: Result, name: str) -> np.ndarray | None:
    """A series over evaluations, of training pairs where there is one; None if it has no finite value."""
    key = _key(result, name)
    return None if key is None else np.asarray(result.series[key], np.float64)


# --- statistics ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Deviations:
    """Error of a linear estimate, Σ w u of deviations u, as a mixture of Student laws.

    The deviations are a random walk back to zero and white noise: their correlation at a distance of k evaluations is
    (1 - q) ρ^k, plus q at k = 0. Nobody knows ρ and q, and an estimate of them is too small in short series. So each
    pair on a grid has its error (`scales`) and its weight (`weights`): the restricted likelihood (of what a
    least-squares fit leaves; Harville 1974), with the prior 1/√(1 - ρ²), between that flat in ρ and that flat in
    artanh ρ.
    """

    weights: np.ndarray
    scales: np.ndarray
    freedom: int

    #: Series are averaged over neighbours to at most this many points.
    most = 128

    @classmethod
    def of(cls, design: np.ndarray, deviations: np.ndarray, estimator: np.ndarray) -> "_Deviations":
        """From the columns (T, p) that were fitted, what the fit left (T,), and the estimate's weights w (T,)."""
        if len(design) > cls.most:
            groups = np.array_split(np.arange(len(design)), cls.most)
            design, deviations = (np.stack([v[g].mean(0) for g in groups]) for v in (design, deviations))
            estimator = np.array([estimator[g].sum() for g in groups])
        count, lost = design.shape
        size = float(np.abs(deviations).max())
        deviations = deviations / size if size > 0 else deviations
        apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
        found = []
        for rho in np.tanh(np.linspace(0.0, 4.0, 14)):
            for noise in (0.0, 0.35, 0.7) if rho > 0 else (0.0,):
                correlation = (1 - noise) * rho**apart + noise * np.eye(count)
                root = np.linalg.cholesky(correlation)
                columns, rest = np.split(np.linalg.solve(root, np.column_stack([design, deviations])), [lost], 1)
                q, r = np.linalg.qr(columns)
                rest = rest[:, 0] - q @ (q.T @ rest[:, 0])
                square = max(float(rest @ rest), 1e-300)
                likelihood = -np.log(np.diag(root)).sum() - np.log(np.abs(np.diag(r))).sum()
                likelihood -= (count - lost) / 2 * math.log(square)
                prior = 0.5 * math.log1p(-(rho**2)) - (math.log(3) if rho > 0 else 0.0)
                variance = square / (count - lost) * float(estimator @ correlation @ estimator)
                found.append((likelihood + prior, math.sqrt(variance) * size))
        logs, scales = np.array(found).T
        weights = np.exp(logs - logs.max())
        return cls(weights / weights.sum(), scales, count - lost)

    def half_width(self) -> float:
        """Half the width of the 95 % interval."""
        from scipy.optimize import brentq
        from scipy.stats import t as student

        last = float(student.ppf(0.975, self.freedom) * self.scales.max())
        if last <= 0:
            return 0.0
        return float(brentq(lambda half: self.p(half) - 0.05, 0.0, last * (1 + 1e-9)))  # pyright: ignore

    def p(self, estimate: float) -> float:
        """Two-sided p-value of an estimate against zero."""
        from scipy.stats import t as student

        scales = np.maximum(self.scales, 1e-300)
        return float(2 * self.weights @ student.sf(abs(estimate) / scales, self.freedom))


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, list[float], float, float]:
    """Slope, its interval, intercept and R² of a least-squares line through (T,) points, T > 2."""
    dx = x - x.mean()
    estimator = dx / np.sum(dx * dx)
    slope = float(estimator @ y)
    intercept = float(y.mean() - slope * x.mean())
    deviations = y - intercept - slope * x
    half = _Deviations.of(np.column_stack([np.ones_like(dx), dx / np.std(dx)]), deviations, estimator).half_width()
    spread = float(np.sum((y - y.mean()) ** 2))
    r2 = 1 - float(np.sum(deviations**2)) / spread if spread > 0 else math.nan
    return slope, [slope - half, slope + half], intercept, r2


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _mean(values: Sequence[float]) -> float:
    """Mean of what is finite; NaN if nothing is."""
    good = [v for v in values if math.isfinite(v)]
    return sum(good) / len(good) if good else math.nan


def _text(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"


def _interval(ends: Sequence[float]) -> str:
    return f"{ends[0]:.3g} .. {ends[1]:.3g}"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _undecided(sentence: str, reason: str) -> str:
    return f"{sentence.removesuffix('.')}; no verdict, because {reason}."


def _moved(gap: np.ndarray) -> bool:
    return bool(np.ptp(gap) > _GAP_MOVED * np.max(gap))


# --- trajectories whose time is matched by one factor ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Curve:
    """Gap and ln τ of one trajectory over its own time s; NaN beyond the last time it reached."""

    s: np.ndarray
    gap: np.ndarray
    log_tau: np.ndarray

    def at(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from scipy.interpolate import PchipInterpolator

        good = np.isfinite(self.gap) & np.isfinite(self.log_tau)
        x = np.log1p(self.s[good] / self.s[1])
        at = np.log1p(np.asarray(s) / self.s[1])
        gap, log_tau = (PchipInterpolator(x, y[good], extrapolate=False)(at) for y in (self.gap, self.log_tau))
        return gap, log_tau


#: Last time of simulations that serve every factor: with an equilibrium the flow is stiff, and late times are dear.
_LAST_LEARNED, _LAST_FIXED, _LAST_NOISY = 1e8, 1e6, 1e4
_GRID = 257


class _Flow:
    """The flow on `Sphere` from given rows, as a function of the factor between its time and the run's clock."""

    def __init__(self, rows: tuple[np.ndarray, np.ndarray], schedule: Schedule, noise: float | None = None) -> None:
        self.start = from_arrays(*_compressed(*rows))
        pairing = Matched() if noise is None else LabelNoise(noise)
        # Explicit: where the flow rests it is stiff, and all that matters has happened. 2000 steps, as a simulation
        # takes by itself, share its compiled program; with many pairs they would take minutes.
        self._steps = 2000 if noise is None and self.start.pairs <= 32 else 400
        self.flow = GradientFlow(schedule=schedule, pairing=pairing)
        # A schedule that runs in progress makes every factor another flow.
        self.steady = schedule.temperature.constant
        learned = isinstance(schedule.temperature, Learnable)
        self.last = _LAST_NOISY if noise is not None else _LAST_LEARNED if learned else _LAST_FIXED
        self.curve: _Curve | None = None
        if self.steady:
            self.curve = self._run(np.concatenate([[0.0], np.geomspace(1e-3, self.last, _GRID - 1)]))

    def cut(self, last: float) -> bool:
        """Whether the simulation stopped about where the run ends, at time `last`, and the gap still moved there."""
        if self.curve is None:
            return False
        reached = np.flatnonzero(np.isfinite(self.curve.gap))
        gap, end = self.curve.gap[reached], float(self.curve.s[reached[-1]])
        late = gap[self.curve.s[reached] >= end / 2]
        return last >= 0.8 * end and bool(np.ptp(late) > 0.02 * np.max(gap))

    def _run(self, ts: np.ndarray) -> _Curve:
        ran = simulate(
            self.flow, self.start, ts=ts, rtol=1e-6, atol=1e-8, method="explicit", max_steps=self._steps, throw=False,
            snapshots=ts, observables=("modality_gap", "inverse_temperature"),
        )  # fmt: skip
        gap, log_tau = ran.series["modality_gap"], -np.log(ran.series["inverse_temperature"])
        return _Curve(ts, gap, log_tau)

    def at(self, factor: float, clock: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gap and ln τ at times factor × clock, (T,) each; `clock` starts at 0."""
        if self.curve is not None:
            return self.curve.at(factor * clock)
        ran = self._run(factor * clock)
        return ran.gap, ran.log_tau


def _held(values: np.ndarray) -> np.ndarray:
    """The last value, held to the end."""
    good = np.flatnonzero(np.isfinite(values))
    return np.where(np.arange(len(values)) > good[-1], values[good[-1]], values)


def _compressed(image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows in a basis of their span, which the flow never leaves; the same if that is no smaller."""
    stacked = np.concatenate([image, text])
    if stacked.shape[1] <= len(stacked):
        return image, text
    basis = np.linalg.qr(stacked.T)[0]
    return image @ basis, text @ basis


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A factor of time with its interval (None for schedules in progress), the curves, and the misfit."""

    factor: float
    interval: list[float] | None
    gap: np.ndarray
    log_tau: np.ndarray
    cost: float


def _fit_factor(
    at: Callable[[float, np.ndarray], tuple[np.ndarray, np.ndarray]],
    clock: np.ndarray,
    gap: np.ndarray,
    log_tau: np.ndarray | None,
    used: np.ndarray,
    cheap: bool,
    last: float = _LAST_LEARNED,
) -> _Fit:
    """The factor that brings a trajectory closest to the run at the evaluations `used`.

    Closest: mean square of the deviations in the gap (and in ln τ, where it is given), each relative to its own
    spread at these evaluations.
    """
    from scipy.optimize import minimize_scalar

    shown = [(gap[used], max(float(np.std(gap[used])), 1e-12))]
    if log_tau is not None:
        shown.append((log_tau[used], max(float(np.std(log_tau[used])), 1e-12)))

    def costs(log_factor: float) -> np.ndarray:
        found = at(math.exp(log_factor), clock if not cheap else clock[used])
        values = [v if cheap else v[used] for v in found]
        parts = [((v - run) / spread) ** 2 for v, (run, spread) in zip(values, shown, strict=False)]
        return np.where(np.isfinite(sum(parts)), sum(parts), 1e6) / len(shown)

    end = float(clock[used][-1])
    low, high, count = (1e-2, last, 241) if cheap else (1.0, 1e6, 13)
    grid = np.log(np.geomspace(low, high, count) / end)
    coarse = [float(costs(x).mean()) for x in grid]
    k = int(np.argmin(coarse))
    near = (grid[max(k - 1, 0)], grid[min(k + 1, count - 1)])
    options = {"xatol": 1e-5 if cheap else 0.02}
    found: Any = minimize_scalar(lambda x: costs(x).mean(), bounds=near, method="bounded", options=options)
    best = float(found.x)
    if costs(best).mean() > coarse[k]:
        best = float(grid[k])
    interval = None
    if cheap and used.sum() > 2:
        # Linear in ln(factor) near the best. Errors of gap and ln τ may go together, hence the sum of their widths.
        before, here, after = (at(math.exp(best + step), clock[used]) for step in (-1e-2, 0.0, 1e-2))
        series = []
        for a, v, b, (run, spread) in zip(before, here, after, shown, strict=False):
            change, left = (b - a) / 2e-2 / spread, (run - v) / spread
            there = np.isfinite(change) & np.isfinite(left)
            series.append((np.where(there, change, 0.0), np.where(there, left, 0.0)))
        total = sum(float(change @ change) for change, _ in series)
        parts = [_Deviations.of(g[:, None], u, g / total).half_width() for g, u in series if np.any(g)]
        half = min(sum(parts), 700.0)
        interval = [math.exp(best - half), math.exp(best + half)]
    return _Fit(math.exp(best), interval, *at(math.exp(best), clock), float(costs(best).mean()))


def _schedule_from(run: _Run, index: int) -> Schedule:
    """The run's schedule, its learnable temperature started where the run was at that evaluation."""
    assert run.schedule is not None
    policy, beta = run.learnable, run.beta
    if policy is None or beta is None or not beta[index] > 0:
        return run.schedule
    tau = 1 / beta[index]
    if policy.clamp is not None:  # a rounded clamp would refuse the value it led to
        tau = min(max(tau, float(policy.clamp[0])), float(policy.clamp[1]))
    return dataclasses.replace(run.schedule, temperature=dataclasses.replace(policy, init=tau))


def _chosen_rows(run: _Run, index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """As many rows of a snapshot as a batch has, at most `MAX_PAIRS` (fewer under swaps, which average over masks)."""
    rows = run.rows(index)
    if rows is None:
        return None
    most = 16 if run.schedule is not None and run.schedule.swap.active else MAX_PAIRS
    count = min(len(rows[0]), run.pairs or MAX_PAIRS, most)
    if count < 2:
        return None
    # Rows of a record may be sorted by source: take some at random, always the same.
    chosen = np.arange(count)
    if count < len(rows[0]):
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows[0]))[:count])
    return rows[0][chosen], rows[1][chosen]


def _time_axis(run: _Run) -> np.ndarray:
    """What a simulation's time is proportional to: the run's clock, or progress for schedules that run in it."""
    in_progress = run.schedule is not None and not run.schedule.temperature.constant
    return run.axis if in_progress else run.clock


# --- (a) the simulation from the run's own embeddings -----------------------------------------------------------

_SIMULATION = (
    f"agrees if the rms deviation of the gap (and of ln τ, where a learned one moved by more than {_LOG_TAU_MOVED:g}) "
    f"is at most {_FOLLOWS:g} of the run's own standard deviation, disagrees from {_FOLLOWS_NOT:g} of it on; one "
    f"factor of time is fitted; no verdict with fewer than {_TRAJECTORY_POINTS} evaluations, for a gap that moved by "
    f"less than {100 * _GAP_MOVED:.0f} %, unless all pairs of the run are simulated and each of its losses was of all "
    "of them, and where the simulation stopped while its gap moved"
)


def _simulation(run: _Run) -> Item:
    def cannot(reason: str, **numbers: Any) -> Item:
        return Item("simulation", "Simulation", "cannot tell", reason, _SIMULATION, numbers)

    if run.schedule is None:
        return cannot("The run does not say its schedule, so that nothing can be simulated from it.")
    if not len(run.result.snapshot_time):
        return cannot("The run holds no embeddings to start a simulation from.")
    index, where = _first_epoch(run)
    rows = _chosen_rows(run, index)
    if rows is None:
        return cannot("The run's snapshots hold no rows to start a simulation from.")
    first = int(np.argmin(np.abs(run.result.time - run.result.snapshot_time[index])))
    later = np.arange(len(run.gap)) >= first
    tau = None if run.beta is None else -np.log(np.where(run.beta > 0, run.beta, np.nan))
    good = later & np.isfinite(run.gap) & (True if tau is None else np.isfinite(tau))
    good &= np.concatenate([[True], np.diff(_time_axis(run)) > 0])
    if good.sum() < _TRAJECTORY_POINTS:
        return cannot(f"Only {int(good.sum())} evaluations follow the snapshot; {_TRAJECTORY_POINTS} are needed.")
    axis, gap = run.axis[good], run.gap[good]
    clock = _time_axis(run)[good] - _time_axis(run)[first]
    log_tau = None if tau is None else tau[good]
    if not _moved(gap):
        return cannot(
            f"The gap moved by only {_share(np.ptp(gap) / gap.max())} after the snapshot: any simulation would fit.",
            gap_range=[float(gap.min()), float(gap.max())],
        )
    compared = run.learnable is not None and log_tau is not None and np.ptp(log_tau) > _LOG_TAU_MOVED
    flow = _Flow(rows, _schedule_from(run, first))
    used = np.ones(len(clock), bool)
    fit = _fit_factor(flow.at, clock, gap, log_tau if compared else None, used, flow.steady, flow.last)
    if not np.isfinite(fit.gap).all():
        return cannot("The simulation ended before the run did, whatever the factor of time.")
    ratios = {"gap": _rms(fit.gap - gap) / float(np.std(gap))}
    if compared and log_tau is not None:
        ratios["log_tau"] = _rms(fit.log_tau - log_tau) / float(np.std(log_tau))
    worst = max(ratios.values())
    verdict: Verdict = "agrees" if worst <= _FOLLOWS else "disagrees" if worst >= _FOLLOWS_NOT else "cannot tell"
    unit = "per unit of the run's clock" if flow.steady else f"per {'step' if run.step is not None else 'unit of time'}"
    numbers = {
        "pairs": len(rows[0]), "start": where, "clock": run.result.clock,
        "time_factor": fit.factor, "time_factor_interval": fit.interval, "time_factor_unit": f"flow time {unit}",
        "rms_gap": _rms(fit.gap - gap), "spread_gap": float(np.std(gap)), "relative_gap": ratios["gap"],
        "rms_log_tau": None if log_tau is None else _rms(fit.log_tau - log_tau),
        "spread_log_tau": None if log_tau is None else float(np.std(log_tau)),
        "relative_log_tau": ratios.get("log_tau"),
        "gap_of_rows": float(np.linalg.norm(rows[0].mean(0) - rows[1].mean(0))), "gap_of_run": float(gap[0]),
    }  # fmt: skip
    curves: dict[str, Any] = {
        "x": axis, "label": run.axis_label, "gap": gap, "simulated_gap": fit.gap,
        "tau": None if log_tau is None else np.exp(log_tau), "simulated_tau": np.exp(fit.log_tau),
        "whole_x": run.axis, "whole_gap": run.gap, "whole_tau": None if tau is None else np.exp(tau),
    }  # fmt: skip
    closed = _closed_form(run, axis, gap, log_tau, clock)
    if closed is not None:
        numbers |= closed[0]
        curves |= closed[1]
    within = "" if fit.interval is None else f" ({_interval(fit.interval)})"
    deviation = f"the gap deviates by {_text(numbers['rms_gap'])}, {_share(ratios['gap'])} of its spread"
    if "log_tau" in ratios:
        deviation += f", and ln τ by {_text(numbers['rms_log_tau'])}, {_share(ratios['log_tau'])}"
    sentence = (
        f"From {len(rows[0])} pairs {where}, with {_text(fit.factor)}{within} units of flow time {unit}, {deviation}."
    )
    missing = run.not_simulated(len(rows[0]))
    if not missing and verdict == "disagrees" and flow.cut(fit.factor * float(clock[-1])):
        missing = "the simulation stopped there while its gap still moved"
    if missing:
        verdict, sentence = "cannot tell", _undecided(sentence, missing)
    return Item("simulation", "Simulation", verdict, sentence, _SIMULATION, numbers, curves)


def _first_epoch(run: _Run) -> tuple[int, str]:
    """The snapshot to start from: after the first epoch, if it is there and the schedule does not need the first."""
    times = run.result.snapshot_time
    epoch = run.result.coordinates.get("epoch")
    constant = run.schedule is None or run.schedule.temperature.constant
    if epoch is not None and constant:
        at = np.interp(times, run.result.time, epoch)
        near = int(np.argmin(np.abs(at - 1)))
        if 0 < near < len(times) - 1 and abs(at[near] - 1) < 0.5:
            return near, "after the first epoch"
    return 0, "at the start"


def _closed_form(
    run: _Run, axis: np.ndarray, gap: np.ndarray, log_tau: np.ndarray | None, clock: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Parallel cones from the peak of the gap on, with a factor of time of their own.

    Their directions are frozen, with the run's last margin if that is positive, else that of a simplex.
    """
    peak = int(np.argmax(gap))
    policy = None if run.schedule is None else run.schedule.temperature
    pairs, gamma = run.pairs, float(gap[peak]) / 2
    if log_tau is None or pairs is None or len(gap) - peak < 5 or not 0 < gamma < 1 or np.ptp(clock[peak:]) <= 0:
        return None
    beta, margin = math.exp(-float(log_tau[peak])), pairs / (pairs - 1)
    seen = run.series("margin")
    if seen is not None and seen[-1] > 0.05 and "log_gamma" not in run.result.series:
        # Of the directions within the cones. Parallel cones record it like that; else the height takes its part.
        margin = float(seen[-1]) / max(1 - float(gap[-1]) ** 2 / 4, 0.05)
    elif seen is not None and seen[-1] > 0.05:
        margin = float(seen[-1])
    s = np.concatenate([[0.0], np.geomspace(1e-3, 1e8, _GRID - 1)])
    if isinstance(policy, Learnable):
        scale = float(getattr(policy.parametrization, "scale", 1.0))
        name, ratio = policy.parametrization.name, float(policy.lr_ratio)
        if ratio <= 0:
            return None
        log_gamma, betas = theory.reduced_trajectory(s, math.log(gamma), beta, margin, pairs, name, scale, ratio)
    elif isinstance(policy, Fixed):
        log_gamma = theory.fixed_temperature_trajectory(s, math.log(gamma), beta, margin, pairs)
        betas = np.full_like(s, beta)
    else:
        return None
    curve = _Curve(s, 2 * np.exp(np.asarray(log_gamma)), -np.log(np.asarray(betas)))
    later = slice(peak, None)
    since = clock[later] - clock[peak]
    fit = _fit_factor(lambda f, t: curve.at(f * t), since, gap[later], None, np.ones(len(since), bool), cheap=True)
    if not np.isfinite(fit.gap).all():
        return None
    numbers = {
        "closed_form_margin": margin,
        "closed_form_time_factor": fit.factor,
        "closed_form_rms_gap": _rms(fit.gap - gap[later]),
        "closed_form_relative_gap": _rms(fit.gap - gap[later]) / max(float(np.std(gap[later])), 1e-12),
    }
    return numbers, {"closed_x": axis[later], "closed_gap": fit.gap, "closed_tau": np.exp(fit.log_tau)}


# --- (b) gap against temperature ----------------------------------------------------------------------------

_EXPONENT = (
    f"a law agrees if the whole interval of the fitted exponent is within {100 * _SAME_POWER:.0f} % of the law's and "
    f"the fit has no bend (a parabola departs by more than {100 * _BEND:.0f} % of the range, significant at "
    f"{100 * _BEND_LEVEL:.0f} %), and disagrees if the whole interval is further away than that; the sphere's law only "
    "where each loss was of all pairs; the item agrees if one law does, and disagrees if both do; no verdict unless β "
    f"changes by a factor of {_BETA_FACTOR:g}, at least {_LINE_POINTS} evaluations differ in it, at least "
    f"{100 * _WHOLE:.0f} % of all have a gap and a temperature, and none is at a bound of the clamp"
)


def _exponent(run: _Run) -> Item:
    def cannot(reason: str, **numbers: Any) -> Item:
        return Item("exponent", "Gap and temperature", "cannot tell", reason, _EXPONENT, numbers)

    policy, beta = run.learnable, run.beta
    if run.schedule is None:
        return cannot("The run does not say its schedule, so that no law can be chosen.")
    if policy is None:
        kind = type(run.schedule.temperature).__name__
        return cannot(f"The temperature was not learned ({kind}): no law ties it to the gap.")
    ratio = float(policy.lr_ratio)
    if beta is None:
        return cannot("The run does not hold its temperature.")
    if ratio <= 0:
        return cannot("The temperature had a learning rate of 0.")
    log_gamma = run.series("log_gamma")
    if log_gamma is None:
        with np.errstate(divide="ignore", invalid="ignore"):
            log_gamma = np.log(run.gap / 2)
    good = np.isfinite(log_gamma) & np.isfinite(beta) & (beta > 0)
    if good.mean() < _WHOLE:
        return cannot(
            f"Only {int(good.sum())} of {len(good)} evaluations have a gap and a temperature; {_share(_WHOLE)} are "
            "needed.",
        )
    if stopped := _at_a_bound(run, policy):
        return cannot(f"The clamp held the temperature in {stopped}: what a free temperature would do is not seen.")
    log_beta = np.log(beta[good])
    span = float(np.ptp(log_beta))
    if span < math.log(_BETA_FACTOR):
        return cannot(
            f"The temperature hardly moved: β by {_share(math.expm1(span))}, where {_share(_BETA_FACTOR - 1)} is the "
            "least that shows a power.",
            log_beta_range=span,
        )
    # Where β rests there is nothing to fit, however often it was evaluated there.
    good[good] = _apart(log_beta, span / 128)
    if good.sum() < _LINE_POINTS:
        return cannot(f"Only {int(good.sum())} evaluations differ in the temperature; {_LINE_POINTS} are needed.")
    scale = float(getattr(policy.parametrization, "scale", 1.0))
    name = policy.parametrization.name
    # ln β for exponential parametrizations; else F(β), which takes its place in both laws.
    x = np.asarray(theory.potential(beta[good], name, scale)) / scale**2
    y = log_gamma[good]
    with np.errstate(under="ignore"):
        conserved = y - np.exp(2 * y) / 2
    plain, plain_interval, intercept, plain_r2 = _slope(x, y)
    corrected, corrected_interval, _, corrected_r2 = _slope(x, conserved)
    bends = [_tested(x, v) for v in (y, conserved)]
    laws: dict[str, dict[str, Any]] = {
        "parallel": {
            "prediction": float(theory.closing_exponent(scale, ratio)), "fit": corrected,
            "interval": corrected_interval, "r2": corrected_r2, "bend": bends[1].bend, "bend_p": bends[1].p,
        },
    }  # fmt: skip
    if run.pairs is not None:
        laws["sphere"] = {
            "prediction": float(theory.sphere_exponent(run.pairs, scale, ratio)), "fit": plain,
            "interval": plain_interval, "r2": plain_r2, "bend": bends[0].bend, "bend_p": bends[0].p,
        }  # fmt: skip
    for name_of_law, law in laws.items():
        judged = name_of_law == "parallel" or not run.minibatches
        straight = bends[name_of_law == "parallel"].straight
        law["verdict"] = _judge_law(law["prediction"], law["interval"], straight) if judged else "cannot tell"
    verdicts = [law["verdict"] for law in laws.values()]
    verdict: Verdict = (
        "agrees" if "agrees" in verdicts else "disagrees" if verdicts == ["disagrees"] * 2 else "cannot tell"
    )
    words = {"agrees": "met", "disagrees": "not met", "cannot tell": "undecided"}
    against, base = ("ln β", "β") if name == "exp" else ("F(β)", "exp F(β)")
    parallel = laws["parallel"]
    sentence = (
        f"The gap goes as the power {_text(plain)} ({_interval(plain_interval)}) of {base}; "
        f"parallel cones want {_text(parallel['prediction'])} ({words[parallel['verdict']]}: their conserved quantity "
        f"has {_text(corrected)})"
    )
    if "sphere" in laws:
        sphere = laws["sphere"]
        sentence += (
            f", the free sphere with n = {run.pairs} and doubly stochastic softmaxes {_text(sphere['prediction'])} "
            f"({words[sphere['verdict']]}{': ' + run.minibatches if run.minibatches else ''})"
        )
    numbers = {
        "exponent": plain, "interval": plain_interval, "r2": plain_r2, "against": against, "log_beta_range": span,
        "evaluations": int(good.sum()), "pairs": run.pairs, "scale": scale, "lr_ratio": ratio,
        "fit": "ordinary least squares of the logarithm of the gap", "laws": laws,
    }  # fmt: skip
    curves = {
        "x": x, "gap": 2 * np.exp(y), "fit": 2 * np.exp(intercept + plain * x), "exponential": name == "exp",
        "laws": {k: (v["prediction"], v["verdict"]) for k, v in laws.items()}, "pairs": run.pairs,
        "exponent": plain,
    }  # fmt: skip
    return Item("exponent", "Gap and temperature", verdict, sentence + ".", _EXPONENT, numbers, curves)


def _judge_law(prediction: float, interval: list[float], straight: bool) -> Verdict:
    low, high = sorted((prediction * (1 - _SAME_POWER), prediction * (1 + _SAME_POWER)))
    if interval[1] < low or interval[0] > high:
        return "disagrees"
    return "agrees" if straight and low <= interval[0] and interval[1] <= high else "cannot tell"


def _at_a_bound(run: _Run, policy: Learnable) -> str:
    """In words, how often the temperature was at a bound of its clamp, at an evaluation or a step; empty if never."""
    if policy.clamp is None:
        return ""
    low, high = (float(tau) for tau in policy.clamp)
    beta, tau = run.beta, run.result.training.get("train_temperature")
    assert beta is not None
    for word, values in (("evaluations", 1 / beta), ("steps", tau)):
        if values is not None:
            held = int(np.sum((values <= 1.001 * low) | (values >= 0.999 * high)))
            if held:
                return f"{held} of {len(values)} {word}"
    return ""


def _apart(x: np.ndarray, least: float) -> np.ndarray:
    """Mask of the points that lie at least so far from the last one that was kept; the first is kept."""
    kept = np.zeros(len(x), bool)
    last = -math.inf
    for i, value in enumerate(x):
        if abs(value - last) >= least:
            kept[i], last = True, value
    return kept


# --- (c) slow closing ---------------------------------------------------------------------------------------

_STRAIGHT = 0.9
_CLOSING = (
    "from step 100 on (10 in runs of fewer than 1000), by least squares of the gap against -1/log(t)²: agrees if the "
    f"slope's interval says that the gap falls, R² >= {_STRAIGHT:g}, there is no bend (a parabola departs by more than "
    f"{100 * _BEND:.0f} % of the range, significant at {100 * _BEND_LEVEL:.0f} %), and a line in log t has no higher "
    "R²; "
    "disagrees if the interval says that the gap grows, or there is a bend; no verdict with fewer than "
    f"{_LINE_POINTS} evaluations, or for a gap that moved by less than {100 * _GAP_MOVED:.0f} %"
)


@dataclasses.dataclass(frozen=True)
class _Line:
    slope: float
    intercept: float
    r2: float
    bend: float
    p: float

    @property
    def straight(self) -> bool:
        return not (self.bend > _BEND and self.p < _BEND_LEVEL)


def _line(x: np.ndarray, y: np.ndarray) -> _Line:
    """Least-squares line with its R², and the part of the range by which a parabola departs from it.

    Its p-value is that for independent deviations, which is quick; `_tested` has the one for a verdict.
    """
    from scipy.stats import f

    u = (x - x.mean()) / max(float(np.std(x)), 1e-300)
    linear = np.polynomial.polynomial.polyfit(u, y, 1)
    square = np.polynomial.polynomial.polyfit(u, y, 2)
    fitted = [np.polynomial.polynomial.polyval(u, c) for c in (linear, square)]
    errors = [float(np.sum((y - v) ** 2)) for v in fitted]
    total = float(np.sum((y - y.mean()) ** 2))
    rest = max(errors[1], 1e-24 * total)
    statistic = max(errors[0] - errors[1], 0.0) / (rest / max(len(x) - 3, 1))
    p = float(f.sf(statistic, 1, max(len(x) - 3, 1))) if total > 0 else 1.0
    width = float(np.ptp(y))
    bend = float(np.max(np.abs(fitted[1] - fitted[0]))) / width if width > 0 else 0.0
    slope = float(linear[1] / max(float(np.std(x)), 1e-300))
    r2 = 1 - errors[0] / total if total > 0 else math.nan
    return _Line(slope, float(linear[0]) - slope * float(x.mean()), r2, bend, p)


def _tested(x: np.ndarray, y: np.ndarray) -> _Line:
    """`_line` with the p-value of its bend for deviations that may be correlated."""
    u = (x - x.mean()) / np.std(x)
    design = np.stack([np.ones_like(u), u, u * u], axis=1)
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ y
    p = _Deviations.of(design, y - design @ coefficients, inverse[2]).p(float(coefficients[2]))
    return dataclasses.replace(_line(x, y), p=p)


def _slow_closing(run: _Run) -> Item:
    title = "Slow closing"

    def cannot(reason: str, **numbers: Any) -> Item:
        return Item("slow_closing", title, "cannot tell", reason, _CLOSING, numbers)

    t, gap, source = _steps_and_gap(run)
    word = "steps" if run.step is not None else "units of flow time"
    if not t.size or t[-1] < 100:
        return cannot(f"The run is too short: log(t) says something from 100 {word} on.")
    begin = 100.0 if t[-1] >= 1000 else 10.0
    kept = _thinned(t, gap)
    t, gap = t[kept], gap[kept]
    late = t >= begin * (1 - 1e-9)
    if late.sum() < _LINE_POINTS:
        return cannot(f"Only {int(late.sum())} evaluations after {run.axis_word} {begin:g}; {_LINE_POINTS} are needed.")
    if not _moved(gap[late]):
        return cannot(f"The gap moved by less than {_share(_GAP_MOVED)} after {run.axis_word} {begin:g}.")
    x = -1 / np.log(t) ** 2
    whole = _tested(x[late], gap[late])
    _, interval, _, _ = _slope(x[late], gap[late])
    rival = _line(np.log(t[late]), gap[late])
    window = _longest_straight(x[late], gap[late], np.log(t[late]))
    falls, grows = interval[1] < 0, interval[0] > 0  # the gap falls as −1/log² rises to 0
    verdict: Verdict
    if grows or not whole.straight:
        verdict = "disagrees"
    elif not falls or not whole.r2 >= _STRAIGHT or rival.r2 > whole.r2:
        verdict = "cannot tell"
    else:
        verdict = "agrees"
    numbers: dict[str, Any] = {
        "t": "steps" if run.step is not None else run.result.clock, "source": source, "from": begin,
        "slope": whole.slope, "slope_interval": interval, "limit": whole.intercept, "r2": whole.r2,
        "bend": whole.bend, "bend_p": whole.p, "r2_of_line_in_log_t": rival.r2,
        "straight_from": None, "straight_until": None, "evaluations": int(late.sum()),
    }  # fmt: skip
    curves: dict[str, Any] = {
        "x": x, "gap": gap, "t": t, "slope": whole.slope, "intercept": whole.intercept, "from": begin,
        "word": "step" if run.step is not None else run.result.clock,
    }  # fmt: skip
    until = ""
    if window is not None:
        first, last = (float(t[late][i]) for i in window)
        numbers |= {"straight_from": first, "straight_until": last}
        curves |= {"straight": (first, last)}
        until = f"; the longest straight stretch is {run.axis_word} {first:.0f} to {last:.0f}"
    if run.step is not None:
        numbers["clock"] = _closing_on_clock(run)
    if grows:
        what = f"From {run.axis_word} {begin:g} on the gap grows instead of closing"
    else:
        what = (
            f"From {run.axis_word} {begin:g} on the gap "
            f"{'shows no clear bend away from' if whole.straight else 'bends away from'} a line in -1/log(t)² "
            f"(slope {_text(whole.slope)}, {_interval(interval)}; R² {whole.r2:.3f}, bend {_share(whole.bend)} of its "
            f"range; a line in log t has R² {rival.r2:.3f})"
        )
    return Item("slow_closing", title, verdict, f"{what}{until}.", _CLOSING, numbers, curves)


def _steps_and_gap(run: _Run) -> tuple[np.ndarray, np.ndarray, str]:
    """t from 10 on with the gap; from the batches of training where there are few evaluations."""
    good = np.isfinite(run.gap) & (run.axis >= 10)
    t, gap = run.axis[good], run.gap[good]
    batch = run.result.training.get("train_modality_gap")
    if len(t) >= 12 or run.step is None or batch is None:
        return t, gap, "evaluations"
    steps = np.arange(1, len(batch) + 1)
    good = np.isfinite(batch) & (steps >= 10)
    steps, batch = steps[good], np.asarray(batch, np.float64)[good]
    if not steps.size:
        return t, gap, "evaluations"
    # Single batches are noisy: means over bins that are even in log t.
    bins = np.floor(np.log(steps / 10) / math.log(1.1)).astype(int)
    there = np.unique(bins)
    centre = np.exp(np.array([np.log(steps[bins == b]).mean() for b in there]))
    return centre, np.array([batch[bins == b].mean() for b in there]), "batches"


def _thinned(t: np.ndarray, values: np.ndarray, most: int = 64) -> np.ndarray:
    """Indices of at most `most` finite evaluations, about even in log t."""
    good = np.flatnonzero(np.isfinite(values))
    wanted = np.geomspace(t[good[0]], t[good[-1]], most)
    wanted[-1] = t[good[-1]]
    return good[np.unique(np.clip(np.searchsorted(t[good], wanted * (1 - 1e-12)), 0, len(good) - 1))]


def _longest_straight(x: np.ndarray, y: np.ndarray, log_t: np.ndarray) -> tuple[int, int] | None:
    """First and last index of the stretch, longest in log t, over which y falls straight in x."""
    best, length = None, 0.0
    for i in range(len(x)):
        for j in range(len(x) - 1, i + 6, -1):
            if log_t[j] - log_t[i] <= length:
                break
            line = _line(x[i : j + 1], y[i : j + 1])
            if line.straight and line.r2 >= _STRAIGHT and line.slope < 0:
                best, length = (i, j), float(log_t[j] - log_t[i])
                break
    return best


def _closing_on_clock(run: _Run) -> dict[str, Any]:
    """The same line with t on the run's own clock, where log t exists."""
    good = np.isfinite(run.gap) & (run.clock > math.e)
    if good.sum() < _LINE_POINTS:
        return {"reason": f"the {run.result.clock} reaches only {run.clock[-1]:.3g}, where log t says nothing"}
    t, gap = run.clock[good], run.gap[good]
    kept = _thinned(t, gap)
    x = -1 / np.log(t[kept]) ** 2
    if len(kept) < _LINE_POINTS:
        return {"reason": f"only {len(kept)} evaluations differ on the {run.result.clock}"}
    line = _tested(x, gap[kept])
    _, interval, _, _ = _slope(x, gap[kept])
    return {
        "t": run.result.clock, "from": float(t[0]), "slope": line.slope, "slope_interval": interval, "r2": line.r2,
        "bend": line.bend, "bend_p": line.p,
    }  # fmt: skip


# --- (d) early enlargement ------------------------------------------------------------------------------------

_ENLARGEMENT = (
    f"the change of the gap from the start to the last evaluation within {_EARLY} steps (to the first one, where there "
    "are no steps): agrees if the interval of the fraction of initialisations whose gap grew (Clopper and Pearson) is "
    "above 1/2 and that of the mean change (Student) above 0, disagrees if that of the fraction whose gap shrank lies "
    f"above 1/2 and that of the mean change below 0; no verdict with fewer than {_INITIALISATIONS} initialisations; "
    "equal records count once; the sign alone is compared"
)


def _enlargement(runs: Sequence[_Run]) -> Item:
    from scipy.stats import beta as beta_law
    from scipy.stats import t as student

    title = "Early enlargement"
    changes, gaps, betas, rates = [], [], [], []
    different: set[bytes] = set()
    equal = 0
    for run in runs:
        last = _early(run)
        if last is None:
            continue
        if run.gap.tobytes() in different:
            equal += 1
            continue
        different.add(run.gap.tobytes())
        changes.append(float(run.gap[last] - run.gap[0]))
        gaps.append(float(run.gap[0]))
        betas.append(math.nan if run.beta is None else float(run.beta[0]))
        rates.append(float((run.gap[1] - run.gap[0]) / run.clock[1]) if run.clock[1] > 0 else math.nan)
    if not changes:
        reason = f"No record has an evaluation at step 0 and another one up to step {_EARLY}."
        return Item("enlargement", title, "cannot tell", reason, _ENLARGEMENT)
    change, count = np.array(changes), len(changes)
    grew, shrank = int(np.sum(change > 0)), int(np.sum(change < 0))

    def clopper_pearson(hits: int) -> tuple[float, float]:
        low = float(beta_law.ppf(0.025, hits, count - hits + 1)) if hits else 0.0
        return low, float(beta_law.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0

    ends = clopper_pearson(grew)
    mean = float(change.mean())
    half = float(student.ppf(0.975, count - 1) * change.std(ddof=1) / math.sqrt(count)) if count > 1 else math.inf
    verdict: Verdict = "cannot tell"
    if count >= _INITIALISATIONS:
        if ends[0] > 0.5 and mean - half > 0:
            verdict = "agrees"
        elif clopper_pearson(shrank)[0] > 0.5 and mean + half < 0:
            verdict = "disagrees"
    numbers: dict[str, Any] = {
        "records": count, "equal_records": equal, "grew": grew, "shrank": shrank,
        "fraction": grew / count, "fraction_interval": list(ends),
        "mean_change": mean, "mean_change_interval": [mean - half, mean + half] if count > 1 else None,
        "mean_relative_change": float(np.mean(change / np.array(gaps))), "steps": _EARLY,
    }  # fmt: skip
    numbers["theorem_3_3"] = _theorem_3_3(runs[0], float(np.mean(gaps)), _mean(betas), rates)
    sentence = f"The gap grew in {grew} of {count} initialisations, by {_text(mean)} on average"
    sentence += f" ({_interval(numbers['mean_change_interval'])})" if count > 1 else ""
    bound = numbers["theorem_3_3"]
    if bound.get("limit") is not None:
        sentence += (
            "; by Theorem 3.3 it grows for uniform directions in parallel cones (limit "
            f"{_text(bound['limit'])} per unit of flow time; the bound at finite n is "
            f"{_text(bound['bound'])}{', vacuous' if bound['vacuous'] else ''}), and "
            + (
                f"{_text(bound['measured_rate'])} was measured"
                if bound.get("measured_rate") is not None
                else "only its sign can be compared, because the clock is not flow time"
            )
        )
    else:
        sentence += f"; Theorem 3.3 cannot be evaluated: {bound['reason']}"
    if numbers["equal_records"]:
        sentence += f"; {numbers['equal_records']} more records equal one of these"
    if count < _INITIALISATIONS:
        sentence += f"; at least {_INITIALISATIONS} initialisations are needed for a verdict"
    curves = {"changes": change, "mean": mean} if count > 2 else {}
    return Item("enlargement", title, verdict, sentence + ".", _ENLARGEMENT, numbers, curves)


def _early(run: _Run) -> int | None:
    """Index of the last evaluation within the first ten steps; without steps, the first after the start."""
    if not np.isfinite(run.gap[0]) or run.axis[0] != 0 or len(run.gap) < 2:
        return None
    if run.step is None:
        return 1 if np.isfinite(run.gap[1]) else None
    early = np.flatnonzero((run.step > 0) & (run.step <= _EARLY) & np.isfinite(run.gap))
    return int(early[-1]) if early.size else None


def _theorem_3_3(run: _Run, gap: float, beta: float, rates: Sequence[float]) -> dict[str, Any]:
    pairs, dim, gamma = run.pairs, run.dim, gap / 2
    if not beta > 0:
        return {"limit": None, "reason": "the run does not hold its temperature"}
    if pairs is None or dim is None:
        return {"limit": None, "reason": "the run does not say how many pairs and dimensions it has"}
    if not 0 < gamma < 1 or dim < 3:
        return {"limit": None, "reason": "it needs a gap between 0 and 2, in three dimensions or more"}
    # Directions within the cones have one dimension less than the embeddings.
    found = theory.theorem_3_3_bound(pairs, dim - 1, beta, gamma)
    numbers = {
        "beta0": beta, "gamma0": gamma, "pairs": pairs, "dim": dim - 1, "limit": float(found.limit),
        "bound": float(found.bound), "proved": bool(found.proved), "vacuous": bool(found.bound <= 0),
        "measured_rate": None,
    }  # fmt: skip
    # The clock of a network under plain SGD is that of its weights, not of its embeddings.
    if run.result.clock == FLOW_TIME and "training" not in run.result.config:
        numbers["measured_rate"] = _mean(rates)
    return numbers


# --- (e) matching -----------------------------------------------------------------------------------------------

_MATCHING = (
    f"agrees if at most {_CLOSED_BEFORE:g} of the closing of the gap after its peak came before half of the recorded "
    f"pairs were matched, and the gap grew again by at most {_REGROWN:g} of the closing once all were; disagrees if it "
    "grew again by more; no verdict if more of the closing came before, as it does in flows on parallel cones too, "
    f"where half are matched at the first evaluation, or if the gap closed by less than {100 * _GAP_MOVED:.0f} %"
)


def _matching(run: _Run) -> Item:
    title = "Matching"
    fraction, margin, defect = (run.series(name) for name in ("matched_fraction", "margin", "doubly_stochastic_defect"))
    axis, gap = run.axis, run.gap

    def at(index: int | None) -> float | None:
        return None if index is None else float(axis[index])

    def first(hit: np.ndarray) -> int | None:
        there = np.flatnonzero(hit)
        return int(there[0]) if there.size else None

    numbers: dict[str, Any] = {"axis": "step" if run.step is not None else run.result.clock}
    if defect is not None:
        finite = defect[np.isfinite(defect)]
        numbers |= {"defect_first": finite[0], "defect_largest": finite.max(), "defect_last": finite[-1]}
        numbers = {k: float(v) if isinstance(v, np.floating) else v for k, v in numbers.items()}
    curves: dict[str, Any] = {
        "x": axis, "label": run.axis_label, "matched": fraction, "defect": defect, "gap": gap,
    }  # fmt: skip

    def item(verdict: Verdict, sentence: str) -> Item:
        return Item("matching", title, verdict, sentence, _MATCHING, numbers, curves)

    if fraction is None:
        reason = "The run does not hold the matched fraction of the pairs whose gap it holds."
        return Item("matching", title, "cannot tell", reason, _MATCHING, numbers)
    # All pairs matched is a positive margin; where no margin was recorded, a fraction of one.
    everyone = first(margin > 0) if margin is not None else first(fraction >= 1)
    half = first(fraction >= 0.5)
    peak, end = int(np.nanargmax(gap)), int(np.flatnonzero(np.isfinite(gap))[-1])
    closing = float(gap[peak] - gap[end])
    numbers |= {
        "gap_peak_at": at(peak), "half_matched_at": at(half), "all_matched_at": at(everyone),
        "matched_at_peak": float(fraction[peak]), "matched_last": float(fraction[np.isfinite(fraction)][-1]),
        "closing": closing,
    }  # fmt: skip
    curves |= {"peak": at(peak), "half": at(half), "all": at(everyone)}
    stochastic = "" if defect is None else f"; the softmaxes are {_text(numbers['defect_last'])} from doubly stochastic"
    if closing <= _GAP_MOVED * gap[peak]:
        return item(
            "cannot tell",
            f"The gap closed by less than {_share(_GAP_MOVED)} after its peak at {run.axis_word} {axis[peak]:.3g}, "
            f"with {_share(fraction[peak])} of the pairs matched{stochastic}.",
        )
    if half == 0:
        return item(
            "cannot tell",
            f"Half of the pairs are matched from the first evaluation on, so that the order of matching and closing "
            f"does not show{stochastic}.",
        )
    known = np.isfinite(gap)
    level = np.interp(np.arange(len(gap)), np.flatnonzero(known), gap[known])

    def closed(index: int) -> float:
        return 0.0 if index <= peak else float(np.clip((gap[peak] - level[index]) / closing, 0.0, 1.0))

    # Half became matched after the last evaluation that says otherwise, at the latest at the first that says so.
    unmatched = np.flatnonzero(fraction[:half] < 0.5)
    before = 1.0 if half is None else closed(half)
    at_least = before if half is None else closed(int(unmatched[-1])) if unmatched.size else 0.0
    regrown = 0.0
    if everyone is not None and everyone < end:
        after = gap[everyone : end + 1]
        after = after[np.isfinite(after)]
        regrown = float(np.max(after - np.minimum.accumulate(after))) / closing
    numbers |= {
        "closed_before_half_matched": before, "closed_before_half_matched_at_least": at_least,
        "regrown_after_matching": regrown,
    }  # fmt: skip
    verdict: Verdict = "cannot tell"
    if regrown > _REGROWN:
        verdict = "disagrees"
    elif before <= _CLOSED_BEFORE:
        verdict = "agrees"
    came = " to ".join(dict.fromkeys([_share(at_least), _share(before)]))
    when = (
        f"half of the pairs are matched at {run.axis_word} {axis[half]:.3g}"
        if half is not None
        else f"never half of the pairs are matched ({_share(numbers['matched_last'])} in the end)"
    )
    when += f" and all at {axis[everyone]:.3g}" if everyone is not None else ", never all" if half is not None else ""
    return item(
        verdict,
        f"The gap peaks at {run.axis_word} {axis[peak]:.3g} with {_share(fraction[peak])} matched, {when}, and "
        f"{came} of the closing came before half were{stochastic}.",
    )


# --- (f) calibration --------------------------------------------------------------------------------------------

_CALIBRATION = (
    f"agrees if the rms error of the predicted gap over the last {100 * (1 - SEEN):.0f} % of the run is at most "
    f"{_BEATS:g} of that of the better baseline and {_PREDICTS:g} of the gap's own standard deviation there, disagrees "
    f"if it is at least as large as one of the two, and above {_NOISY:g} of the noise (the rms difference of "
    f"neighbours over √2); no verdict with fewer than {_TRAJECTORY_POINTS} evaluations in one of the parts, for a gap "
    f"that moved by less than {100 * _GAP_MOVED:.0f} % in the first or by less than 2 % in the last, unless all pairs "
    "of the run are simulated and each of its losses was of all of them, and where the simulation stopped while its "
    "gap moved"
)


def _calibration(run: _Run) -> Item:
    title = "Calibration"

    def cannot(reason: str, **numbers: Any) -> Item:
        return Item("calibration", title, "cannot tell", reason, _CALIBRATION, numbers)

    if run.schedule is None:
        return cannot("The run does not say its schedule, so that nothing can be simulated from it.")
    if not len(run.result.snapshot_time) or run.result.snapshot_time[0] != run.result.time[0]:
        return cannot("The run holds no embeddings from its start.")
    rows = _chosen_rows(run, 0)
    if rows is None:
        return cannot("The run's snapshots hold no rows to start a simulation from.")
    tau = None if run.beta is None else -np.log(np.where(run.beta > 0, run.beta, np.nan))
    good = np.isfinite(run.gap) & (True if tau is None else np.isfinite(tau))
    good &= np.concatenate([[True], np.diff(_time_axis(run)) > 0])
    axis, gap, clock = run.axis[good], run.gap[good], _time_axis(run)[good]
    clock = clock - clock[0]
    log_tau = None if tau is None else tau[good]
    early = axis <= SEEN * axis[-1]
    counts = {"first": int(early.sum()), "last": int((~early).sum())}
    few = min(counts, key=lambda part: counts[part])
    if counts[few] < _TRAJECTORY_POINTS:
        return cannot(f"Only {counts[few]} evaluations in the {few} part of the run; {_TRAJECTORY_POINTS} are needed.")
    if not _moved(gap[early]):
        return cannot(f"The gap moved by less than {_share(_GAP_MOVED)} in the first {_share(SEEN)} of the run.")
    if np.ptp(gap[~early]) <= 0.02 * gap.max():
        return cannot(f"The gap hardly moved in the last {_share(1 - SEEN)} of the run: a constant is as good.")
    compared = run.learnable is not None and log_tau is not None and np.ptp(log_tau[early]) > _LOG_TAU_MOVED
    used_tau = log_tau if compared else None
    schedule = _schedule_from(run, 0)
    flow = _Flow(rows, schedule)
    fit = _fit_factor(flow.at, clock, gap, used_tau, early, flow.steady, flow.last)
    flow_used = flow
    noise, plain_cost = 0.0, fit.cost
    tried = fit.cost > 0.01 and flow.steady and not schedule.swap.active  # rms above a tenth of the spread
    if tried:
        # Stiff, hence with fewer pairs; noise must halve the misfit of the same pairs without any.
        fewer = (rows[0][:_NOISY_PAIRS], rows[1][:_NOISY_PAIRS])
        fits, flows = {}, {}
        for level in (0.0, *NOISE_LEVELS):
            noisy = flows[level] = _Flow(fewer, schedule, level)
            fits[level] = _fit_factor(noisy.at, clock, gap, used_tau, early, True, noisy.last)
        best = min(NOISE_LEVELS, key=lambda level: fits[level].cost)
        if fits[best].cost < min(plain_cost, fits[0.0].cost) / 2:
            fit, noise, flow_used = fits[best], best, flows[best]
    predicted = _held(fit.gap)
    if not np.isfinite(predicted).all():
        return cannot("The simulation ended before the run did, whatever the factor of time.")
    rest, last = ~early, int(np.flatnonzero(early)[-1])
    late = early & (axis >= SEEN * axis[-1] / 10) & (axis > 0)
    late = late if late.sum() >= 3 else early & (axis > 0)
    logs = np.log(np.maximum(axis, 1e-300))
    coefficients = np.polyfit(logs[late], gap[late], 1)
    straight, constant = np.polyval(coefficients, logs), np.full(len(gap), gap[last])
    errors = {
        "prediction": _rms((predicted - gap)[rest]), "constant": _rms((constant - gap)[rest]),
        "line_in_log_t": _rms((straight - gap)[rest]),
    }  # fmt: skip
    better, spread = min(errors["constant"], errors["line_in_log_t"]), float(np.std(gap[rest]))
    ratio = errors["prediction"] / max(better, 1e-300)
    relative = errors["prediction"] / max(spread, 1e-300)
    noise_of_gap = _rms(np.diff(gap[rest])) / math.sqrt(2)
    verdict: Verdict = "cannot tell"
    if ratio <= _BEATS and relative <= _PREDICTS:
        verdict = "agrees"
    elif max(ratio, relative) >= 1 and errors["prediction"] > _NOISY * noise_of_gap:
        verdict = "disagrees"
    numbers = {
        "pairs": min(len(rows[0]), _NOISY_PAIRS) if noise else len(rows[0]), "seen": SEEN,
        "time_factor": fit.factor, "time_factor_interval": fit.interval,
        "noise": noise, "noise_tried": list(NOISE_LEVELS) if tried else [],
        "misfit_seen": math.sqrt(fit.cost), "misfit_seen_without_noise": math.sqrt(plain_cost),
        "rms_error": errors["prediction"], "rms_error_constant": errors["constant"],
        "rms_error_line_in_log_t": errors["line_in_log_t"], "relative_to_better_baseline": ratio,
        "spread": spread, "relative_to_spread": relative, "noise_of_gap": noise_of_gap,
    }  # fmt: skip
    curves = {
        "x": axis, "label": run.axis_label, "gap": gap, "predicted": predicted, "constant": constant,
        "line": straight, "seen_until": float(axis[last]), "rest": rest,
    }  # fmt: skip
    within = "" if fit.interval is None else f" ({_interval(fit.interval)})"
    extra = f" and label noise {noise:g}" if noise else ""
    beats = "it beats both" if ratio <= _BEATS else "it beats neither clearly" if ratio < 1 else "it does not beat both"
    sentence = (
        f"With a factor of time of {_text(fit.factor)}{within}{extra} from the first {_share(SEEN)}, the rest of the "
        f"gap is predicted to {_text(errors['prediction'])} rms, against {_text(errors['constant'])} of a constant, "
        f"{_text(errors['line_in_log_t'])} of a line in log t and a spread of {_text(spread)}: {beats}"
        + (", yet it misses what the gap does." if ratio < 1 <= relative else ".")
    )
    missing = run.not_simulated(numbers["pairs"])
    if not missing and flow_used.cut(fit.factor * float(clock[-1])):
        missing = "the simulation stopped before the run did, while its gap still moved"
    if missing:
        verdict, sentence = "cannot tell", _undecided(sentence, missing)
    return Item("calibration", title, verdict, sentence, _CALIBRATION, numbers, curves)


__all__ = ["PARTS", "Comparison", "Item", "compare"]
