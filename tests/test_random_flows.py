"""Random flows over all parts: what must hold for every run, whatever it is made of.

Each structure below is one set of compiled programs; numbers and starts are drawn at random. A failure names the
flow's number, from which `draw` makes it again.
"""

import jax
import numpy as np
import pytest

import flowsim as fs
from flowsim.model.temperature import Cosine, Exp, Fixed, Identity, Learnable, Linear, ScaledExp, Softplus

PAIRS, DIM, EACH = 5, 3, 12
TS = np.array([0.0, 0.1, 1.0, 4.0, 10.0, 40.0])
CUT = 3  # a run to TS[CUT], continued, is the whole run
INIT, NOISE, FRACTION = "schedule.temperature.init", "pairing.noise", "pairing.fraction"
SWAP = "schedule.swap.fraction"


def learnable(parametrization=Exp(), **options):
    return Learnable(0.3, parametrization, **options)


def flow(geometry=fs.Sphere(), schedule=learnable(), *parts, **named):
    return fs.GradientFlow(geometry, schedule, *parts, **named)


LATENTS = fs.initial.latents(pairs=PAIRS, dim=3, factors=3, text_factors=2)
DEEP = fs.initial.latents(pairs=PAIRS, dim=3, factors=3, text_factors=2, hidden=4)
ROWS, CONES = fs.initial.uniform(PAIRS, DIM), fs.initial.uniform(PAIRS, DIM, gamma=0.2)

#: name -> flow, start, numbers that are drawn (path -> range), options
STRUCTURES = {
    "sphere": (flow(), ROWS, {INIT: (0.05, 1.0), "schedule.temperature.lr_ratio": (0.1, 3.0)}, {}),
    "sphere, fixed": (flow(schedule=Fixed(0.3)), ROWS, {"schedule.temperature.tau": (0.05, 1.0)}, {}),
    "sphere, clamp": (flow(schedule=learnable(clamp=(0.03, 1.2))), ROWS, {INIT: (0.031, 1.19)}, {}),
    "sphere, float32": (flow(), ROWS, {INIT: (0.1, 1.0)}, {"precision": "float32"}),
    "sphere, linear": (flow(schedule=Linear(0.1, 0.3)), ROWS, {"schedule.temperature.end": (0.1, 0.9)}, {}),
    "sphere, cosine": (flow(schedule=Cosine(0.1, 0.4)), ROWS, {"schedule.temperature.cycles": (0.5, 3.0)}, {}),
    "sphere, softplus, clamp": (
        flow(schedule=learnable(Softplus(), clamp=(0.2, 0.5))), ROWS, {INIT: (0.21, 0.49)}, {}
    ),
    "sphere, scaled exp": (flow(schedule=learnable(ScaledExp(2.0))), ROWS, {INIT: (0.05, 1.0)}, {}),
    "sphere, identity": (flow(schedule=learnable(Identity())), ROWS, {INIT: (0.05, 1.0)}, {}),
    "parallel": (flow(fs.Parallel()), CONES, {INIT: (0.1, 1.0)}, {}),
    "parallel, clamp": (flow(fs.Parallel(), learnable(clamp=(0.1, 0.7))), CONES, {INIT: (0.11, 0.69)}, {}),
    "parallel, noise": (
        flow(fs.Parallel(), Fixed(0.3), pairing=fs.LabelNoise(0.1)), CONES, {NOISE: (0.0, 0.5)}, {}
    ),
    "parallel, softplus": (flow(fs.Parallel(), learnable(Softplus())), CONES, {INIT: (0.1, 1.0)}, {}),
    "reduced": (flow(fs.Reduced()), CONES, {INIT: (0.1, 1.0)}, {}),
    "unnormalised": (flow(fs.Unnormalized(), Fixed(0.5)), ROWS, {"schedule.temperature.tau": (0.3, 1.0)}, {}),
    "subspaces": (flow(fs.Subspaces(60.0)), ROWS, {"geometry.angle": (10.0, 90.0)}, {}),
    "linear encoders": (flow(fs.LinearEncoders()), LATENTS, {INIT: (0.2, 1.0)}, {}),
    "two layers": (flow(fs.MLPEncoders(), Fixed(0.3)), DEEP, {"schedule.temperature.tau": (0.2, 1.0)}, {}),
    "label noise": (flow(pairing=fs.LabelNoise(0.1)), ROWS, {NOISE: (0.0, 0.5)}, {}),
    "frozen mispairing": (flow(pairing=fs.FrozenMispairing(0.5)), ROWS, {FRACTION: (0.0, 1.0)}, {}),
    "fresh re-pairing, redrawn": (
        flow(pairing=fs.FreshRepairing(0.5, redraw=2.5)), ROWS, {FRACTION: (0.0, 1.0)}, {}
    ),
    "hard swaps": (
        flow(schedule=fs.Schedule(learnable(), fs.HardSwap(0.1, masks=4))), ROWS, {SWAP: (0.0, 1.0)}, {}
    ),
    "soft swaps, redrawn": (
        flow(schedule=fs.Schedule(Fixed(0.3), fs.SoftSwap(0.1, masks=2, redraw=5.0))), ROWS, {SWAP: (0.0, 1.0)}, {}
    ),
    "sigmoid": (flow(loss=fs.Sigmoid(-1.0)), ROWS, {"loss.bias": (-3.0, 1.0)}, {}),
    "directed": (flow(loss=fs.DirectedInfoNCE()), ROWS, {INIT: (0.1, 1.0)}, {}),
    "nt-xent": (flow(loss=fs.NTXent()), ROWS, {INIT: (0.2, 1.0)}, {}),
    "regularised": (flow(loss=fs.Regularised(0.1, 0.1)), ROWS, {"loss.alignment": (0.0, 1.0)}, {}),
    "limit of adam": (flow(rule=fs.AdamLimit(1e-2), schedule=Fixed(0.5)), ROWS, {"rule.epsilon": (5e-3, 5e-2)}, {}),
}  # fmt: skip
assert len(STRUCTURES) * EACH >= 300


def draw(name):
    """Numbers (by path) and seeds of the flows of a structure."""
    rng = np.random.default_rng(sorted(STRUCTURES).index(name))
    numbers = {path: rng.uniform(*limits, EACH).tolist() for path, limits in STRUCTURES[name][2].items()}
    return numbers, rng.integers(0, 2**31, EACH).tolist()


def finite_where_reached(result, flow):
    until = result.time[-1] if result.status.ok else result.status.stopped_at * (1 - 1e-9)
    for key, values in result.series.items():
        if key == "log_gamma" and "gamma" in result.series and (result.series["gamma"] == 0).all():
            continue
        reached = result.time <= until
        assert np.isfinite(values[reached]).all() or key in result.reasons, key
    assert result.status.code in (
        fs.Status.COMPLETED,
        fs.Status.STEADY,
        fs.Status.SADDLE,
        fs.Status.GAMMA_ONE,
        fs.Status.TEMPERATURE_INFINITE,
        fs.Status.OUTPUT_ZERO,
    )


def inside_the_clamp(result, flow):
    clamp = getattr(flow.schedule.temperature, "clamp", None)
    if clamp is not None:
        tau = result.series["temperature"]
        assert np.nanmin(tau) >= clamp[0] * (1 - 1e-12)
        assert np.nanmax(tau) <= clamp[1] * (1 + 1e-12)


def unit_rows(result, flow):
    if isinstance(flow.geometry, fs.Unnormalized):
        return
    tolerance = 1e-12 if result.config["options"]["precision"] == "float64" else 1e-5
    for rows in (result.final.image, result.final.text):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=tolerance)


def falling_loss(result, flow):
    # The field descends a function of the state alone: no schedule, and the same draws all the time.
    if flow.schedule.temperature.autonomous and flow.redraw is None:
        loss = result.series["loss"][np.isfinite(result.series["loss"])]
        slack = 1e-8 if result.config["options"]["precision"] == "float64" else 1e-4
        assert (np.diff(loss) <= slack * (np.abs(loss[:-1]) + slack)).all()


INVARIANTS = (finite_where_reached, inside_the_clamp, unit_rows, falling_loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
def test_random_flows(name):
    """Invariants; a sweep is its single runs; a continued run is the whole; relabelled texts are matched ones."""
    made, start, _, options = STRUCTURES[name]
    numbers, seeds = draw(name)
    runs = fs.sweep(made, start, {**numbers, "seed": seeds}, ts=TS, mode="zip", **options)
    exact = options.get("precision") != "float32"
    close = {"rtol": 2e-6, "atol": 1e-7} if exact else {"rtol": 2e-3, "atol": 1e-3}
    for i, seed in enumerate(seeds):
        one = made.replace(**{path: values[i] for path, values in numbers.items()})
        where = f"{name}, flow {i}: seed={seed}, " + ", ".join(f"{p}={v[i]!r}" for p, v in numbers.items())
        try:
            whole = fs.simulate(one, start, ts=TS, seed=seed, throw=False, **options)
            for invariant in INVARIANTS:
                invariant(whole, one)
            assert str(runs["status"].to_numpy()[i]) == whole.status.code.name
            for key in whole.series:
                if key not in ("doubly_stochastic_defect", "log_gamma"):
                    np.testing.assert_allclose(runs[key].to_numpy()[i], whole.series[key], err_msg=key, **close)
            if whole.status.code is not fs.Status.COMPLETED:
                continue
            head = fs.simulate(one, start, ts=TS[: CUT + 1], horizon=TS[-1], seed=seed, **options)
            tail = fs.simulate(one, head, ts=TS[CUT:], **options)
            for key in ("modality_gap", "temperature", "loss"):
                np.testing.assert_allclose(tail.series[key], whole.series[key][CUT:], err_msg=key, **close)
        except AssertionError as error:
            raise AssertionError(f"{where}\n{error}") from error


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["sphere", "sphere, clamp", "sphere, float32", "subspaces", "sigmoid", "directed", "sphere, softplus, clamp"],
)
def test_random_flows_of_relabelled_texts_are_matched(name):
    made, start, _, options = STRUCTURES[name]
    numbers, seeds = draw(name)
    exact = options.get("precision") != "float32"
    for i, seed in enumerate(seeds[:4]):
        one = made.replace(**{path: values[i] for path, values in numbers.items()}, pairing=fs.FrozenMispairing(1.0))
        rows = start.draw(seed)
        with jax.enable_x64(True):
            order = np.asarray(one.initial_state(rows, seed=seed).targets.rows).argmax(1)
        relabelled = fs.initial.from_arrays(rows.image, rows.text[order])
        wrong = fs.simulate(one, rows, ts=TS, seed=seed, **options)
        right = fs.simulate(one.replace(pairing=fs.Matched()), relabelled, ts=TS, **options)
        close = {"rtol": 2e-6, "atol": 1e-8} if exact else {"rtol": 2e-3, "atol": 1e-3}
        for key in ("modality_gap", "temperature", "loss"):
            np.testing.assert_allclose(
                wrong.series[key], right.series[key], err_msg=f"{name}, flow {i}, seed {seed}: {key}", **close
            )
