"""InfoNCE in tiles on eight devices: the same numbers as on one, and less memory on each."""

import json
import os
import subprocess
import sys

import jax
import pytest

import flowsim as fs

CODE = """
import json
import jax, jax.numpy as jnp, numpy as np
import flowsim as fs
from flowsim.numerics import tiled

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
devices, found = jax.devices(), {}
assert len(devices) == 8
rng = np.random.default_rng(0)
rows = rng.standard_normal((2, 48, 5))
rows /= np.linalg.norm(rows, axis=-1, keepdims=True)

def difference(a, b):
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y))) / np.max(np.abs(y))) for x, y in zip(a, b))

with jax.enable_x64(True):
    image, text, text_of = jnp.asarray(rows[0]), jnp.asarray(rows[1]), jnp.asarray(rng.permutation(48))
    cases = {"matched": (None, None), "mispaired": (text_of, None), "noisy": (None, jnp.asarray(0.2))}
    for name, (order, noise) in cases.items():
        for count in (1, 2, 4, 8):
            mesh = tiled.mesh_of(devices[:count])
            on_all = jax.jit(lambda x, y, b: tiled.loss_and_gradient(x, y, b, order, noise, block=4, mesh=mesh))
            on_one = tiled.loss_and_gradient(image, text, 14.3, order, noise, block=4)
            parts = on_all(*tiled.spread((image, text, jnp.asarray(14.3)), mesh, 48))
            found[f"{name} {count}"] = difference(parts, on_one)
            assert len(parts.image.sharding.device_set) == count
            assert parts.image.addressable_shards[0].data.shape == (48 // count, 5)
    value = jax.jit(lambda x, y: tiled.loss(x, y, 14.3, block=4, mesh=tiled.mesh_of(devices)))(image, text)
    found["loss"] = difference([value], [tiled.loss(image, text, 14.3, block=4)])
    memory = []
    shapes = [jax.ShapeDtypeStruct((32768, 64), np.float64)] * 2
    for count in (1, 2, 4, 8):
        mesh = tiled.mesh_of(devices[:count])
        by_rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("pairs"))
        program = jax.jit(lambda x, y: tiled.loss_and_gradient(x, y, 14.3, block=256, mesh=mesh), in_shardings=by_rows)
        used = program.lower(*shapes).compile().memory_analysis()
        memory.append(used.temp_size_in_bytes + used.argument_size_in_bytes + used.output_size_in_bytes)
    found["memory"] = memory

flow, start = fs.GradientFlow(pairing=fs.FrozenMispairing(0.3)), fs.initial.uniform(1024, 3)
options = {"ts": [0.0, 0.1], "rtol": 1e-4, "observables": ("loss", "modality_gap", "margin")}
one, eight = (fs.simulate(flow, start, devices=count, **options) for count in (None, 8))
found["simulate"] = difference(eight.series.values(), one.series.values())
found["rows"] = difference([eight.final.image], [one.final.image])
messages = []
for bad in ({"devices": 9}, {"devices": 7}, {"devices": []}):
    try:
        fs.simulate(flow, start, **options, **bad)
    except fs.FlowsimError as error:
        messages.append(str(error))
try:
    with jax.enable_x64(True):
        tiled.loss_and_gradient(image, text, 14.3, mesh=tiled.mesh_of(devices[:7]))
except fs.FlowsimError as error:
    messages.append(str(error))
found["messages"] = messages
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_number_of_devices_gives_the_same_numbers(found):
    for name in ("matched", "mispaired", "noisy"):
        for count in (1, 2, 4, 8):
            assert found[f"{name} {count}"] < 1e-13
    assert found["loss"] < 1e-14


@pytest.mark.slow
def test_memory_per_device_falls_with_their_number(found):
    """All that grows with n is divided; texts on their way need a second place, which one device does not have."""
    one, two, four, eight = found["memory"]
    assert two < 0.95 * one
    assert four < 0.6 * two
    assert eight < 0.6 * four


@pytest.mark.slow
def test_a_simulation_on_eight_devices_is_the_same(found):
    assert found["simulate"] < 1e-12
    assert found["rows"] < 1e-12


@pytest.mark.slow
def test_devices_that_do_not_fit_get_one_sentence(found):
    too_many, odd, none, in_tiles = found["messages"]
    assert too_many == "Argument `devices` must be between 1 and 8, the number of JAX devices, but is 9."
    assert odd == "1024 pairs cannot be divided among 7 devices. Use a multiple, or fewer devices."
    assert none == "Argument `devices` is empty. Give a number, or jax.devices()."
    assert in_tiles == "48 pairs cannot be divided among 7 devices. Use a multiple, or fewer devices."


def test_devices_are_for_many_pairs():
    with pytest.raises(fs.FlowsimError, match=r"`devices` needs at least 256 pairs, InfoNCE.*Leave it out"):
        fs.simulate(fs.GradientFlow(), fs.initial.uniform(8, 3), t1=1.0, devices=1)
    assert not jax.config.read("jax_enable_x64")
