"""InfoNCE in tiles: equal to the n×n formulas to rounding, through the flow as well, and never n×n."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from reference import plain_gradient, plain_loss, unit_rows

import flowsim as fs
from flowsim import pairing as pairing_module
from flowsim.model import flow as flow_module
from flowsim.model.losses import DirectedInfoNCE, InfoNCE
from flowsim.model.pairing import Targets
from flowsim.model.temperature import Fixed
from flowsim.numerics import tiled

N, DIM = 11, 4


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def pairs_of(seed, n=N, d=DIM, closeness=0.0):
    """Unit rows; texts near their images for `closeness` near 1."""
    rng = np.random.default_rng(seed)
    image, text = unit_rows(rng, n, d), unit_rows(rng, n, d)
    text = closeness * image + (1 - closeness) * text
    return jnp.asarray(image), jnp.asarray(text / np.linalg.norm(text, axis=1, keepdims=True))


def dense(image, text, beta, targets=Targets(), loss=InfoNCE()):
    """The same with n×n matrices."""
    similarity = image @ text.T
    gradient = loss.gradient(beta * similarity, targets)
    value = loss.value(beta * similarity, targets)
    on_beta = jnp.sum(gradient * similarity)
    return tiled.LossAndGradient(value, beta * (gradient @ text), beta * (gradient.T @ image), on_beta)


def assert_close(found, wanted, rtol):
    for name, a, b in zip(found._fields, found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * float(jnp.max(jnp.abs(b))), err_msg=name)


@pytest.mark.parametrize("block", [1, 3, 4, N, 50])
@pytest.mark.parametrize(("beta", "closeness"), [(1.0, 0.0), (14.3, 0.5), (100.0, 0.0), (100.0, 0.9)])
def test_value_and_gradient_equal_the_dense_ones(beta, closeness, block):
    """For tiles that divide n and that do not, from flat to sharp softmaxes, matched and mismatched."""
    image, text = pairs_of(0, closeness=closeness)
    found = tiled.loss_and_gradient(image, text, beta, block=block)
    assert_close(found, dense(image, text, beta), 1e-12)
    assert float(found.value) == pytest.approx(plain_loss(beta * np.asarray(image @ text.T)), rel=1e-10)
    gradient = plain_gradient(beta * np.asarray(image @ text.T))
    np.testing.assert_allclose(found.image, beta * gradient @ text, rtol=1e-8, atol=1e-13)
    assert float(tiled.loss(image, text, beta, block=block)) == pytest.approx(float(found.value), rel=1e-14)


@pytest.mark.parametrize("loss", [InfoNCE(), DirectedInfoNCE(), DirectedInfoNCE("text_to_image")], ids=str)
@pytest.mark.parametrize("noise", [None, 0.0, 0.3])
@pytest.mark.parametrize("permuted", [False, True])
def test_targets_equal_the_dense_ones(loss, noise, permuted):
    image, text = pairs_of(1)
    text_of = jnp.asarray(np.random.default_rng(2).permutation(N)) if permuted else None
    noise = None if noise is None else jnp.asarray(noise)
    described = Targets(text_of=text_of, noise=noise)
    wanted = dense(image, text, 7.0, Targets(*described.matrices(N, np.float64)), loss)
    found = tiled.loss_and_gradient(image, text, 7.0, text_of, noise, weights=loss.tile_weights, block=4)
    assert_close(found, wanted, 1e-12)
    value = tiled.loss(image, text, 7.0, text_of, noise, weights=loss.tile_weights, block=4)
    assert float(value) == pytest.approx(float(wanted.value), rel=1e-12)
    # Losses of logits write such targets out, instead of reading them as the identity.
    assert float(loss.value(7.0 * image @ text.T, described)) == pytest.approx(float(wanted.value), rel=1e-14)


@pytest.mark.parametrize("scale", [40.0, 230.0, 500.0])
def test_tiny_losses_keep_their_digits(scale):
    """Losses as small as 1e-200, against arithmetic of 400 digits."""
    image = jnp.eye(6)
    text = image + 0.02 * jnp.asarray(np.random.default_rng(3).standard_normal((6, 6)))
    with mpmath.workdps(400):
        m = [[mpmath.mpf(scale) * mpmath.mpf(float(x)) for x in row] for row in np.asarray(image @ text.T)]
        value, missing = mpmath.mpf(0), []
        for i in range(6):
            row, column = (
                sum(mpmath.exp(e - m[i][i]) for e in others)
                for others in ([m[i][j] for j in range(6) if j != i], [m[j][i] for j in range(6) if j != i])
            )
            value += (mpmath.log1p(row) + mpmath.log1p(column)) / 12
            missing.append(-(row / (1 + row) + column / (1 + column)) / 12)
        wanted, wanted_diagonal = value, [float(x) for x in missing]
        found = tiled.loss_and_gradient(image, text, scale, block=4)
        assert float(abs(float(found.value) / wanted - 1)) < 1e-14 * scale
        assert float(abs(float(tiled.loss(image, text, scale, block=4)) / wanted - 1)) < 1e-14 * scale
    assert 0 < float(found.value) < 1e-10
    # The gradient by a text is G times unit vectors: column i of Gᵀ X is row i of G.
    np.testing.assert_allclose(np.diagonal(found.text) / scale, wanted_diagonal, rtol=2e-14 * scale)


def test_single_precision_equals_double_to_its_rounding():
    image, text = pairs_of(4, n=40, closeness=0.4)
    single = tiled.loss_and_gradient(image.astype(np.float32), text.astype(np.float32), 14.3, block=16)
    assert {x.dtype for x in single} == {np.dtype(np.float32)}
    assert_close(single, tiled.loss_and_gradient(image, text, 14.3, block=16), 2e-5)


def test_extreme_logits_are_finite():
    image, _ = pairs_of(5)
    for sign in (1, -1):
        found = tiled.loss_and_gradient(image, sign * image, 1e5, block=4)
        assert all(np.isfinite(x).all() for x in found)
    assert float(found.value) > 1e4


def test_a_batch_equals_its_members_one_by_one():
    """Also where some have logits too large for one exponential to serve rows and columns."""
    image, text = pairs_of(6)
    for betas in ([3.0, 20.0], [3.0, 900.0]):
        batch = jax.vmap(lambda b: tiled.loss_and_gradient(image, text, b, block=4))(jnp.asarray(betas))
        for k, beta in enumerate(betas):
            one = tiled.loss_and_gradient(image, text, beta, block=4)
            for found, wanted in zip(batch, one, strict=True):
                np.testing.assert_allclose(found[k], wanted, rtol=1e-12, atol=1e-15 * beta)


def test_derivatives_in_both_modes():
    """The loss has its closed-form gradient; the gradient has the derivatives of the dense one."""
    image, text = pairs_of(6)
    beta, direction = jnp.asarray(5.0), jnp.asarray(unit_rows(np.random.default_rng(7), N, DIM))
    text_of = jnp.asarray(np.random.default_rng(8).permutation(N))
    of_rows = lambda x, y, b: tiled.loss(x, y, b, text_of, block=4)  # noqa: E731
    closed = tiled.loss_and_gradient(image, text, beta, text_of, block=4)
    for derived, wanted in zip(jax.grad(of_rows, (0, 1, 2))(image, text, beta), closed[1:4], strict=True):
        np.testing.assert_allclose(derived, wanted, rtol=1e-13, atol=1e-16)
    slope = jax.jvp(lambda x: of_rows(x, text, beta), (image,), (direction,))[1]
    assert float(slope) == pytest.approx(float(jnp.sum(closed.image * direction)), rel=1e-13)
    second = [
        jax.jvp(lambda x, f=f: f(x, text, beta).text, (image,), (direction,))[1]
        for f in (lambda x, y, b: tiled.loss_and_gradient(x, y, b, block=4), dense)
    ]
    np.testing.assert_allclose(second[0], second[1], rtol=1e-10, atol=1e-14)


# --- through the flow ---------------------------------------------------------------------------------


FLOWS = {
    "sphere": fs.GradientFlow(),
    "one direction": fs.GradientFlow(loss=DirectedInfoNCE("text_to_image")),
    "unnormalized": fs.GradientFlow(fs.Unnormalized()),
    "subspaces": fs.GradientFlow(fs.Subspaces()),
    "noise": fs.GradientFlow(pairing=fs.LabelNoise(0.2)),
    "mispairing": fs.GradientFlow(pairing=fs.FrozenMispairing(0.5)),
    "re-pairing": fs.GradientFlow(pairing=fs.FreshRepairing(0.5, redraw=1.0)),
    "swap": fs.GradientFlow(schedule=fs.Schedule(swap=fs.SoftSwap(0.3, masks=3))),
}
OBSERVED = ("loss", "margin", "matched_fraction", "doubly_stochastic_defect")


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_of_many_pairs_is_the_same_flow(name, monkeypatch):
    """Field, loss, forces and observables with and without tiles, for rows that are not of unit length, too."""
    from flowsim.integrate.observe import STATE_OBSERVABLES

    flow, start = FLOWS[name], fs.initial.uniform(N, DIM).draw(3)
    start = fs.initial.from_arrays(start.image, 0.9 * start.image + 0.2 * start.text)
    found = []
    for large in (N + 1, N):
        monkeypatch.setattr(flow_module, "LARGE", large)
        monkeypatch.setattr(pairing_module, "LARGE", large)
        state = flow.initial_state(start, seed=4)
        assert flow.is_tiled(state) == (large == N)
        beta = flow.inverse_temperature(0.0, state)
        values = [STATE_OBSERVABLES[key](flow, 0.0, state, beta, np.inf) for key in OBSERVED]
        found.append((flow.vector_field(0.0, state), values))
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(found[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize(
    "flow",
    [
        fs.GradientFlow(loss=fs.Sigmoid()),
        fs.GradientFlow(loss=fs.NTXent()),
        fs.GradientFlow(pairing=fs.Clusters(1)),
        fs.GradientFlow(loss=fs.Sigmoid(), pairing=fs.LabelNoise(0.2)),
    ],
    ids=["sigmoid", "ntxent", "clusters", "sigmoid with noise"],
)
def test_what_has_no_tiles_stays_dense(flow, monkeypatch):
    start = fs.initial.uniform(N, DIM)
    wanted = flow.vector_field(0.0, flow.initial_state(start.draw(3)))
    monkeypatch.setattr(flow_module, "LARGE", N)
    monkeypatch.setattr(pairing_module, "LARGE", N)
    state = flow.initial_state(start.draw(3))
    assert not flow.is_tiled(state)
    for a, b in zip(jax.tree.leaves(flow.vector_field(0.0, state)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.parametrize("method", ["explicit", pytest.param("stabilised", marks=pytest.mark.slow)])
def test_simulate_goes_through_tiles(method, monkeypatch):
    """The same run with and without; the number of steps tells that the errors agree, too."""
    runs = []
    for large in (10**6, N):
        monkeypatch.setattr(flow_module, "LARGE", large)
        # Another limit of steps is another program.
        options = {"max_steps": 1000 + (large == N), "method": method, "rtol": 1e-6, "observables": OBSERVED}
        runs.append(fs.simulate(fs.GradientFlow(), fs.initial.uniform(N, DIM), ts=[0.0, 0.5, 3.0], **options))
    for name in OBSERVED:
        np.testing.assert_allclose(runs[1][name], runs[0][name], rtol=1e-9, atol=1e-12)
    assert runs[0].stats["steps"] == runs[1].stats["steps"]


def test_nothing_n_by_n_is_formed():
    """The compiled field, loss and observables of 8,192 pairs together need less than one n×n matrix."""
    n = 8192
    flow = fs.GradientFlow(pairing=fs.FrozenMispairing(0.5))
    state = flow.initial_state(fs.initial.uniform(n, 3).draw(0))
    from flowsim.integrate.observe import observe_state
    from flowsim.observables.table import entries

    def everything(state):
        return flow.vector_field(0.0, state), observe_state(flow, 0.0, state, 1.0, entries(OBSERVED))

    memory = jax.jit(everything).lower(state).compile().memory_analysis()
    text = str(jax.make_jaxpr(lambda s: flow.vector_field(0.0, s))(state))
    sizes = [np.prod([int(x) for x in shape.split(",")]) for shape in re.findall(r"f64\[([\d,]+)\]", text)]
    assert max(sizes) <= 1024**2
    assert memory.temp_size_in_bytes < n * n * 8


def test_sixty_five_thousand_pairs_fit_into_two_gibibytes():
    """Arguments, results and all that the compiled program sets aside, at n = 65,536, d = 64 in double precision.

    The matrix of logits alone would be 32 GiB. `benchmarks/large_batch.py --pairs 65536` measures such a process.
    """
    rows = jax.ShapeDtypeStruct((65536, 64), np.float64)
    compiled = jax.jit(tiled.loss_and_gradient).lower(rows, rows, 14.3).compile().memory_analysis()
    whole = compiled.argument_size_in_bytes + compiled.output_size_in_bytes + compiled.temp_size_in_bytes
    assert whole < 2**29


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_a_process_stays_below_half_of_its_logits():
    """Value and gradient at n = 16,384, d = 64, Python and JAX included; the logits would be 2 GiB.

    The peak is VmHWM: ru_maxrss would begin at the size of the process that started this one.
    """
    code = r"""
import re, numpy as np, jax
from flowsim.numerics import tiled
with jax.enable_x64(True):
    rows = np.random.default_rng(0).standard_normal((2, 16384, 64))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    found = jax.block_until_ready(jax.jit(tiled.loss_and_gradient)(rows[0], rows[1], 14.3))
    assert np.isfinite(float(found.value))
print(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert int(done.stdout) * 1024 < 2**30


@pytest.mark.parametrize("method", ["stabilised", "implicit"])
def test_stiff_methods_linearise_tiles(method, monkeypatch):
    monkeypatch.setattr(flow_module, "LARGE", 13)
    flow, start = fs.GradientFlow(schedule=Fixed(0.2)), fs.initial.uniform(13, 3)
    found, wanted = (
        fs.simulate(flow, start, ts=[0.0, 3.0], method=m, rtol=1e-7).series["modality_gap"]
        for m in (method, "explicit")
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
