"""Kernels: the field against NumPy, trajectories against SciPy and against encoders, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.special import log_softmax

import flowsim as fs
from flowsim.data.order import Order
from flowsim.model.geometry.encoders import LinearEncoders
from flowsim.model.kernels import check_kernel
from flowsim.model.start import Start
from flowsim.model.temperature import Fixed, Learnable


def matrix(n, seed=0, rank=None):
    """A positive semidefinite matrix with a large common mode."""
    factor = np.random.default_rng(seed).standard_normal((n, rank or n))
    return factor @ factor.T / n + 0.5


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pi(rows, vectors):
    """Tangent part at unit rows."""
    return vectors - (rows * vectors).sum(-1, keepdims=True) * rows


def numpy_field(image, text, raw, kernels, lr_ratio=1.0, sphere=True, noise=0.0, learnable=True):
    """dX/dt, dY/dt and dν/dt for β = e^ν and soft targets, with kernels (nd, nd)."""
    n, d = image.shape
    beta = np.exp(raw)
    similarity = image @ text.T
    target = (1 - noise) * np.eye(n) + noise / (n - 1) * (1 - np.eye(n))
    gradient = (np.exp(log_softmax(beta * similarity, 1)) + np.exp(log_softmax(beta * similarity, 0)) - 2 * target) / (
        2 * n
    )
    forces = -beta * gradient @ text, -beta * gradient.T @ image
    moved = []
    for rows, force, kernel in zip((image, text), forces, kernels, strict=True):
        force = pi(rows, force) if sphere else force
        velocity = (kernel @ force.ravel()).reshape(n, d)
        moved.append(pi(rows, velocity) if sphere else velocity)
    return *moved, -lr_ratio * beta * np.sum(gradient * similarity) if learnable else 0.0


def whole(kernel, n, d):
    """A kernel as a matrix (nd, nd), from its definition."""
    if kernel is None:
        return np.eye(n * d)
    if isinstance(kernel, fs.kernels.Shared):
        return np.kron(float(kernel.own) * np.eye(n) + float(kernel.shared), np.eye(d))
    if isinstance(kernel, fs.kernels.Dense):
        return np.kron(kernel.matrix, np.eye(d))
    return kernel.matrix


N, D = 6, 4
KERNELS = {
    "dense": (fs.kernels.Dense(matrix(N, 1)), fs.kernels.Dense(matrix(N, 2, rank=3))),
    "shared": (fs.kernels.Shared(0.7, 0.3), fs.kernels.Shared(0.0, 2.0)),
    "blocks": (fs.kernels.Blocks(matrix(N * D, 3)), fs.kernels.Shared(1.0, 0.1)),
    "one modality": (None, fs.kernels.Dense(matrix(N, 4))),
}
FLOWS = {
    "learned": ({"schedule": Learnable(lr_ratio=0.5)}, {"lr_ratio": 0.5}),
    "label noise": ({"pairing": fs.LabelNoise(0.1)}, {"noise": 0.1}),
    "fixed": ({"schedule": Fixed(0.2)}, {"learnable": False}),
}


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(5)
    return unit(rng.standard_normal((N, D))), unit(rng.standard_normal((N, D)) + 0.5)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kind", FLOWS)
def test_the_field_and_its_trajectory_are_those_of_numpy_and_scipy(name, kind, rows):
    image_kernel, text_kernel = KERNELS[name]
    parts, options = FLOWS[kind]
    flow = fs.GradientFlow(fs.Sphere(image_kernel=image_kernel, text_kernel=text_kernel), **parts)
    start = fs.initial.from_arrays(*rows)
    kernels = [whole(k, N, D) for k in KERNELS[name]]
    raw0 = np.log(1 / 0.2) if kind == "fixed" else np.log(1 / 0.07)
    with jax.enable_x64(True):
        found = flow.vector_field(0.0, flow.initial_state(start))
    image, text, raw = numpy_field(*rows, raw0, kernels, **options)
    scale = max(np.abs(image).max(), np.abs(text).max())
    assert np.abs(np.asarray(found.position.image) - image).max() < 1e-12 * scale
    assert np.abs(np.asarray(found.position.text) - text).max() < 1e-12 * scale
    if found.raw_temperature is not None:
        assert float(found.raw_temperature) == pytest.approx(raw, rel=1e-12)

    def field(t, y):
        x, z = (unit(part.reshape(N, D)) for part in np.split(y[:-1], 2))
        return np.concatenate([v.ravel() for v in map(np.asarray, numpy_field(x, z, y[-1], kernels, **options))])

    times = [0.5, 2.0, 5.0]
    theirs = solve_ivp(
        field,
        (0, times[-1]),
        np.concatenate([*(r.ravel() for r in rows), [raw0]]),
        "DOP853",
        times,
        rtol=1e-12,
        atol=1e-13,
    ).y
    ours = fs.simulate(flow, start, ts=[0.0, *times], rtol=1e-11, atol=1e-12)
    gaps = [
        np.linalg.norm(unit(y[: N * D].reshape(N, D)).mean(0) - unit(y[N * D : -1].reshape(N, D)).mean(0))
        for y in theirs.T
    ]
    np.testing.assert_allclose(ours.series["modality_gap"][1:], gaps, rtol=0, atol=1e-9)
    np.testing.assert_allclose(1 / ours.series["temperature"][1:], np.exp(theirs[-1]), rtol=1e-9)


def test_kernels_in_other_forms_are_the_same(rows):
    own, shared = 0.7, 0.3
    dense = own * np.eye(N) + shared
    forms = [
        fs.kernels.Shared(own, shared), fs.kernels.Dense(dense), fs.kernels.Blocks(np.kron(dense, np.eye(D))),
    ]  # fmt: skip
    with jax.enable_x64(True):
        applied = [form.apply(jnp.asarray(rows[0])) for form in forms]
    for other in applied[1:]:
        np.testing.assert_allclose(applied[0], other, atol=1e-14)
    free, identity = (fs.simulate(fs.GradientFlow(g), fs.initial.rings(5), t1=100.0) for g in (
        fs.Sphere(), fs.Sphere(image_kernel=fs.kernels.Shared(), text_kernel=fs.kernels.Dense(np.eye(5))),
    ))  # fmt: skip
    np.testing.assert_allclose(free.series["modality_gap"], identity.series["modality_gap"], rtol=1e-7)


@pytest.mark.parametrize("pairs", [40, 400])
def test_many_pairs_use_tiles_and_cost_no_matrix(pairs):
    start = fs.initial.uniform(pairs=pairs, dim=8).draw(0)
    kernel = fs.kernels.Shared(0.5, 0.02)
    flow = fs.GradientFlow(fs.Sphere(image_kernel=kernel, text_kernel=kernel))
    with jax.enable_x64(True):
        state = flow.initial_state(start)
        assert flow.is_tiled(state) == (pairs >= 256)
        found = flow.vector_field(0.0, state)
    image, text = start.rows()
    matrices = [0.5 * np.eye(pairs) + 0.02] * 2

    def moved(rows, force, matrix):
        return pi(rows, matrix @ pi(rows, force))

    beta = 1 / 0.07
    similarity = beta * image @ text.T
    gradient = (np.exp(log_softmax(similarity, 1)) + np.exp(log_softmax(similarity, 0)) - 2 * np.eye(pairs)) / (
        2 * pairs
    )
    np.testing.assert_allclose(found.position.image, moved(image, -beta * gradient @ text, matrices[0]), atol=1e-13)
    np.testing.assert_allclose(found.position.text, moved(text, -beta * gradient.T @ image, matrices[1]), atol=1e-13)


# --- encoders -----------------------------------------------------------------------------------------


def linear(normalize, seed=2):
    """Linear encoders x = W a: the flow of their weights, the inputs and the start."""
    geometry = LinearEncoders(normalize=normalize)
    start = fs.initial.latents(pairs=6, factors=4, dim=3).draw(seed)
    position, constants = geometry.place(start)
    outputs = constants.image @ position.image_weights, constants.text @ position.text_weights
    return fs.GradientFlow(geometry, Fixed(0.5)), start, (constants.image, constants.text), outputs


def test_unnormalised_linear_encoders_are_the_flow_of_rows_with_their_kernel():
    """x = W a, so dx_i/dt = Σ_j ⟨a_i, a_j⟩ F_j, exactly and at all times."""
    flow, start, inputs, outputs = linear(normalize=False)
    kernels = [fs.kernels.Dense(a @ a.T) for a in inputs]
    rows = fs.GradientFlow(fs.Unnormalized(*kernels), flow.schedule)
    options = {"ts": [0.0, 0.1, 1.0, 5.0], "rtol": 1e-11, "atol": 1e-12}
    weights = fs.simulate(flow, start, **options)
    moved = fs.simulate(rows, Start(*outputs), **options)
    np.testing.assert_allclose(moved.series["loss"], weights.series["loss"], rtol=1e-8)
    np.testing.assert_allclose(moved.series["modality_gap"], weights.series["modality_gap"], atol=1e-8)


def test_normalised_linear_encoders_follow_their_kernel_to_first_order_in_time():
    """J_i J_jᵀ = ⟨a_i, a_j⟩/(|u_i||u_j|) Π_i Π_j at x = u/|u|: equal velocities, and rows apart by O(t²)."""
    flow, start, inputs, outputs = linear(normalize=True)
    kernels = []
    for a, u in zip(inputs, outputs, strict=True):
        length = np.linalg.norm(u, axis=1)
        kernels.append(fs.kernels.Dense(a @ a.T / np.outer(length, length)))
    rows = fs.GradientFlow(fs.Sphere(1.0, *kernels), flow.schedule)
    there = fs.initial.from_arrays(*(unit(u) for u in outputs))
    with jax.enable_x64(True):
        state = flow.initial_state(start)
        velocity = flow.vector_field(0.0, state)
        _, of_rows = jax.jvp(
            lambda position: flow.geometry.rows(position, state.constants), (state.unknowns.position,),
            (velocity.position,),
        )  # fmt: skip
        found = rows.vector_field(0.0, rows.initial_state(there)).position
    np.testing.assert_allclose(found.image, of_rows[0], atol=1e-12)
    np.testing.assert_allclose(found.text, of_rows[1], atol=1e-12)
    apart = []
    for t in (2e-3, 1e-3):
        options = {"ts": [0.0, t], "rtol": 1e-11, "atol": 1e-13}
        one, other = fs.simulate(flow, start, **options), fs.simulate(rows, there, **options)
        position, constants = flow.geometry.place(one.final.start)
        x, y = flow.geometry.rows(position, constants), other.final.start.rows()
        apart.append(max(np.abs(np.asarray(a) - b).max() for a, b in zip(x, y, strict=True)))
    assert apart[0] / apart[1] == pytest.approx(4, rel=0.15)


# --- steps of an optimizer ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 4])
def test_a_step_moves_all_rows_under_the_kernel(batch, rows):
    """SGD on the weights of a linear encoder moves all rows, also those outside the minibatch."""
    kernel = fs.kernels.Dense(matrix(N, 1))
    flow = fs.GradientFlow(fs.Sphere(image_kernel=kernel, text_kernel=kernel), Fixed(0.2))
    start = fs.initial.from_arrays(*rows)
    lr = 1e-6
    after = fs.descend(flow, start, optimizer="sgd", lr=lr, steps=1, batch=batch)
    with jax.enable_x64(True):
        free = fs.GradientFlow(fs.Sphere(), Fixed(0.2))
        if batch is None:
            pairs = np.arange(N)
        else:
            pairs = Order(N, batch, 0).indices(0)
        part = fs.initial.from_arrays(*(r[pairs] for r in rows))
        force = free.vector_field(0.0, free.initial_state(part)).position
    for modality, own in (("image", rows[0]), ("text", rows[1])):
        whole_force = np.zeros((N, D))
        whole_force[pairs] = getattr(force, modality)
        wanted = pi(own, kernel.matrix @ whole_force)
        moved = (after.final.start.rows()[modality == "text"] - own) / lr
        np.testing.assert_allclose(moved, wanted, atol=1e-4 * np.abs(wanted).max())
        assert (np.abs(moved).max(axis=1) > 1e-3 * np.abs(moved).max()).all()


# --- closed forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.1, 1.0, 40.0])
@pytest.mark.parametrize("geometry", [fs.Parallel, fs.Reduced], ids=lambda g: g.__name__)
def test_cones_with_a_kernel_conserve_the_generalised_quantity(geometry, ratio):
    """To 1e-9 up to t = 1e30, for n·shared/own = 0.1, 1 and 40."""
    pairs, own = 8, 0.7
    kernel = fs.kernels.Shared(own, ratio * own / pairs)
    start = fs.initial.matched(pairs=pairs, dim=6, gamma=0.4)
    run = fs.simulate(fs.GradientFlow(geometry(kernel=kernel), Learnable(0.3, lr_ratio=2.0)), start, t1=1e30)
    residual = fs.theory.kernel_conserved_residual(
        run.series["log_gamma"], 1 / run.series["temperature"], pairs, own, float(kernel.shared), lr_ratio=2.0
    )
    assert np.ptp(run.series["log_gamma"]) > 1
    assert np.abs(residual).max() < 1e-9
    assert run.stats["conserved_residual"] < 1e-9
    # The law of free rows does not hold.
    wrong = fs.theory.conserved_residual(run.series["log_gamma"], 1 / run.series["temperature"], lr_ratio=2.0)
    assert np.abs(wrong).max() > 1e-3


@pytest.mark.parametrize("ratio", [0.1, 1.0, 40.0])
def test_simplex_cones_on_the_sphere_keep_their_form_and_conserve_theirs(ratio):
    pairs, own, gamma = 5, 0.7, 0.5
    shared = ratio * own / pairs
    kernel = fs.kernels.Shared(own, shared)
    directions = fs.initial.simplex(pairs=pairs).draw().image
    lifted = [np.column_stack([np.sqrt(1 - gamma**2) * directions, sign * gamma * np.ones(pairs)]) for sign in (1, -1)]
    flow = fs.GradientFlow(fs.Sphere(image_kernel=kernel, text_kernel=kernel), Learnable(0.5))
    run = fs.simulate(flow, fs.initial.from_arrays(*lifted), t1=1e4, rtol=1e-11, atol=1e-13)
    log_gamma = np.log(run.series["modality_gap"] / 2)
    total = fs.theory.sphere_kernel_conserved_quantity(log_gamma, 1 / run.series["temperature"], pairs, own, shared)
    assert np.ptp(log_gamma) > 0.3
    assert np.abs(total - total[0]).max() < 1e-8
    free = fs.theory.sphere_conserved_quantity(log_gamma, 1 / run.series["temperature"], pairs)
    assert np.ptp(free) > 1e-2


@pytest.mark.parametrize(("own", "shared"), [(1.0, 0.0), (0.7, 1e-9), (0.7, 0.3), (0.0, 0.5), (2.0, 40.0)])
def test_the_closed_forms_are_the_integrals(own, shared):
    pairs, low, high = 6, 0.05, 0.9

    def rate(gamma):
        return own + pairs * shared * (1 - gamma**2)

    def change(form, *more):
        return form(np.log(high), 1.0, pairs, own, shared, *more) - form(np.log(low), 1.0, pairs, own, shared, *more)

    cones = quad(lambda g: (1 - g**2) / (g * rate(g)), low, high, epsabs=0, epsrel=1e-12)[0]
    sphere = quad(lambda g: 1 / (g * rate(g)), low, high, epsabs=0, epsrel=1e-12)[0]
    assert change(fs.theory.kernel_conserved_quantity) == pytest.approx(cones, rel=1e-10)
    assert change(fs.theory.sphere_kernel_conserved_quantity) == pytest.approx(sphere, rel=1e-10)


def test_without_a_shared_part_they_are_those_of_free_rows():
    log_gamma, beta = np.log([0.9, 0.3, 1e-30]), np.array([0.1, 5.0, 80.0])
    arguments = ("softplus", 1.0, 0.5)
    np.testing.assert_allclose(
        fs.theory.kernel_conserved_quantity(log_gamma, beta, 7, 1.0, 0.0, *arguments),
        fs.theory.conserved_quantity(log_gamma, beta, *arguments), rtol=1e-14,
    )  # fmt: skip
    np.testing.assert_allclose(
        fs.theory.sphere_kernel_conserved_quantity(log_gamma, beta, 7, 3.0, 0.0, *arguments),
        fs.theory.sphere_conserved_quantity(log_gamma, beta, 7, *arguments, embedding_rate=3.0) / 3, rtol=1e-14,
    )  # fmt: skip
    assert fs.theory.effective_lr_ratio(7, 1.0, 0.0, 0.5) == 0.5


@pytest.mark.parametrize(("own", "shared"), [(0.5, 0.01), (1.0, 0.1), (0.2, 1.0)])
def test_a_shared_kernel_acts_like_a_smaller_learning_rate_of_the_temperature(own, shared):
    """At late times the slope of ln γ against ln β is that of free rows at r/(own + n·shared), to 1 %."""
    pairs = 8
    flow = fs.GradientFlow(fs.Reduced(fs.kernels.Shared(own, shared)), Learnable(0.5))
    run = fs.simulate(flow, fs.initial.orthonormal(pairs, 0.5), ts=np.exp([0.0, 100.0, 110.0, 120.0]))
    ratio = fs.theory.effective_lr_ratio(pairs, own, shared)
    slope = np.diff(run.series["log_gamma"])[1:] / np.diff(-np.log(run.series["temperature"]))[1:]
    np.testing.assert_allclose(slope, fs.theory.closing_exponent(1.0, ratio), rtol=0.01)


# --- parts of a flow ----------------------------------------------------------------------------------


def test_a_flow_with_kernels_is_stored_swept_and_changed(tmp_path):
    flow = fs.GradientFlow(fs.Sphere(image_kernel=fs.kernels.Shared(1.0, 0.1), text_kernel=fs.kernels.Dense(matrix(5))))
    assert fs.GradientFlow.from_config(flow.to_config()).to_config() == flow.to_config()
    swept = fs.sweep(flow, fs.initial.rings(5), {"geometry.image_kernel.shared": [0.0, 0.1, 1.0]}, t1=10.0)
    one = fs.simulate(flow, fs.initial.rings(5), t1=10.0)
    found = swept.dataset["modality_gap"].to_numpy()[..., -1].ravel()
    assert found[1] == pytest.approx(one.series["modality_gap"][-1], rel=1e-9)
    assert len(set(found)) == 3
    one.save(tmp_path / "run.nc")
    back = fs.load(tmp_path / "run.nc")
    assert back.flow.to_config() == flow.to_config()


@pytest.mark.parametrize(
    "kernel", [fs.kernels.Shared(0.5, 0.2), fs.kernels.Dense(matrix(4)), fs.kernels.Blocks(matrix(12))],
    ids=lambda k: type(k).__name__,
)  # fmt: skip
def test_kernels_meet_what_is_expected_of_kernels(kernel):
    found = fs.check(kernel)
    assert found.ok, found


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fs.kernels.Shared(-1.0, 2.0), "`own` must be at least 0, but is -1"),
        (lambda: fs.kernels.Shared(0.0, 0.0), "moves nothing"),
        (lambda: fs.kernels.Dense(np.ones((2, 3))), r"must be square, but has the shape \(2, 3\)"),
        (lambda: fs.kernels.Dense([[1.0, 2.0], [0.0, 1.0]]), "must be symmetric"),
        (lambda: fs.kernels.Dense([[1.0, 2.0], [2.0, 1.0]]), "must be positive semidefinite"),
        (lambda: fs.kernels.Dense([[np.nan]]), "must be finite"),
        (lambda: fs.kernels.Dense(np.zeros((3, 3))), "is 0, so that nothing would move"),
        (lambda: fs.kernels.Dense("K"), "Expected a matrix of numbers, but got 'K'"),
        (lambda: check_kernel("image_kernel", np.eye(3)), "`image_kernel` must be a kernel"),
        (lambda: check_kernel("kernel", fs.kernels.Dense(np.eye(5)), fs.kernels.Shared), "cannot be Dense: it does"),
        (
            lambda: fs.Sphere(image_kernel=fs.kernels.Dense(np.eye(4))).place(fs.initial.rings(5).draw()),
            "The kernel is of 4 rows, but the start has 5 pairs",
        ),
        (
            lambda: fs.Sphere(image_kernel=fs.kernels.Blocks(np.eye(4))).place(fs.initial.rings(5).draw()),
            "The kernel is of 4 numbers, but the start has 5 pairs of 3 dimensions",
        ),
        (
            lambda: fs.GradientFlow(fs.Sphere(image_kernel=fs.kernels.Shared()), rule=fs.AdamLimit()),
            "The rule AdamLimit has no kernels",
        ),
        (
            lambda: fs.descend(
                fs.GradientFlow(fs.Sphere(image_kernel=fs.kernels.Shared())), fs.initial.rings(5), optimizer="adam",
                lr=1e-3, steps=2,
            ),
            "The optimizer 'adam' has no kernels",
        ),
        (
            lambda: fs.theory.predict(fs.GradientFlow(fs.Reduced(fs.kernels.Shared())), fs.initial.simplex(4), 1.0),
            "kernels",
        ),
        (lambda: fs.theory.effective_lr_ratio(4, 0.0, 0.0), "moves nothing"),
        (lambda: fs.theory.kernel_conserved_residual(-1.0, 1.0, 4), "`log_gamma` must be a series"),
        (lambda: fs.theory.kernel_conserved_residual([-1.0, -np.inf], [1.0, 2.0], 4), "must give finite terms"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(fs.FlowsimError, match=message):
        call()
