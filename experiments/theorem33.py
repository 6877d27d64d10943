"""Early enlargement of the gap, Theorem 3.3: bound, limit n → ∞, and exact initial speeds of random starts.

Rows uniform on the sphere within cones at heights ±γ0. The proof bounds 2 dγ/dt from below; the statement is
about dΔ/dt, which is smaller. Both are computed exactly for random starts: the first from the vector field,
the second as its Jacobian-vector product with the gap. Source: Yaras et al. 2025, Theorem 3.3.
"""

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

import flowsim as fs
from flowsim import observables, theory

SEED = 0
FULL = {"pairs": [8, 32, 128, 512], "dims": [3, 64], "draws": 64, "draws_sign": 128}
QUICK = {"pairs": [32], "dims": [3], "draws": 16, "draws_sign": 32}

BETA0, GAMMA0, DELTA = 1 / 0.07, 0.3, 0.05
HEIGHTS = np.geomspace(0.005, 0.6, 13)


def compute(quick: bool, progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    dims, pairs = sizes["dims"], sizes["pairs"]
    speeds = np.empty((len(dims), len(pairs), 2, sizes["draws"]))
    positive = np.empty((len(dims), len(pairs), len(HEIGHTS), 2))
    jobs = [(i, j) for i in range(len(dims)) for j in range(len(pairs))]
    for i, j in progress(jobs, "Monte Carlo"):
        measure = _speeds(pairs[j], dims[i])
        speeds[i, j] = measure(GAMMA0, sizes["draws"])
        # Signs of many heights cost as much as the speeds of one: fewer draws for many pairs.
        draws = max(16, min(sizes["draws_sign"], 4096 // pairs[j]))
        for k, height in enumerate(HEIGHTS):
            positive[i, j, k] = (measure(height, draws) > 0).mean(axis=1)
    record = xr.Dataset(
        {
            "speed": (("dim", "pairs", "quantity", "draw"), speeds),
            "fraction_positive": (("dim", "pairs", "height", "quantity"), positive),
        },
        {"dim": dims, "pairs": pairs, "quantity": ["2 dgamma/dt", "dDelta/dt"], "height": HEIGHTS},
    )
    grid = np.geomspace(4, 1e20, 400)
    record["bound_pairs"] = ("bound_pairs", grid)
    bounds = [theory.theorem_3_3_bound(grid, d, BETA0, GAMMA0, DELTA) for d in dims]
    record["bound"] = (("dim", "bound_pairs"), np.stack([b.bound for b in bounds]))
    record["limit"] = ("dim", [float(theory.theorem_3_3_limit(BETA0, GAMMA0, d)) for d in dims])
    record["needed_dim"] = ("needed_dim", np.unique(np.geomspace(3, 1024, 25).astype(int)))
    inverse = [5.0, 1 / 0.07, 100.0]
    record["needed_inverse_temperature"] = ("needed_inverse_temperature", inverse)
    needed = [theory.theorem_3_3_pairs_needed(record["needed_dim"].to_numpy(), b, GAMMA0, DELTA) for b in inverse]
    record["log10_pairs_needed"] = (("needed_inverse_temperature", "needed_dim"), np.stack(needed))
    record.attrs["fraction_gap_slower"] = float((speeds[:, :, 1] < speeds[:, :, 0]).mean())
    record.attrs["smallest_fraction_gap_enlarges"] = float(positive[..., 1].min())
    record.attrs["smallest_fraction_gamma_grows"] = float(positive[..., 0].min())
    for i, d in enumerate(dims):
        needed = float(theory.theorem_3_3_pairs_needed(d, BETA0, GAMMA0, DELTA))
        record.attrs[f"log10_pairs_needed_d{d}"] = needed
        record.attrs[f"limit_d{d}"] = float(record["limit"][i])
        record.attrs[f"mean_speeds_d{d}"] = [float(v) for v in speeds[i, -1].mean(axis=1)]
    return record


def _speeds(pairs: int, dim: int):
    """A function (γ0, draws) -> (2, draws): 2 dγ/dt and dΔ/dt at t = 0. Compiled once."""
    flow = fs.GradientFlow(fs.Parallel(), fs.temperature.Learnable(init=1 / BETA0))

    def one(state):
        def gap(position):
            return observables.modality_gap(*flow.geometry.rows(position, state.constants))

        position = state.moving.position
        velocity = flow.vector_field(0.0, state).position
        _, gap_speed = jax.jvp(gap, (position,), (velocity,))
        return 2 * state.constants.sign * jax.numpy.exp(position.log_gamma) * velocity.log_gamma, gap_speed

    each = eqx.filter_jit(lambda states: jax.lax.map(one, states))

    def measure(height: float, draws: int) -> np.ndarray:
        recipe = fs.initial.uniform(pairs, dim, gamma=height)
        with jax.enable_x64(True):
            states = [flow.initial_state(recipe.draw(SEED + k)) for k in range(draws)]
            return np.stack(each(jax.tree.map(lambda *x: jax.numpy.stack(x), *states)))

    return measure


def plot(record: xr.Dataset) -> Figure:
    return Figure()
