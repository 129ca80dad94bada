"""Means over samples on one device and on several, by every engine."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import parallel
from dynamics.data_parallel import ENGINES
from dynamics.measure import curvature

RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(27, 3)), RNG.normal(size=(27, 2))
PARAMS = {"in": RNG.normal(size=(3, 5)), "out": RNG.normal(size=(5, 2))}
DIRECTION = {"in": RNG.normal(size=(3, 5)), "out": RNG.normal(size=(5, 2))}


def network(params, inputs):
    return jnp.tanh(inputs @ params["in"]) @ params["out"]


def loss(params, data):
    inputs, targets = data
    return 0.5 * jnp.mean(jnp.sum((network(params, inputs) - targets) ** 2, axis=1))


def hessian_product(state, data):
    params, direction = state
    return jax.jvp(jax.grad(lambda p: loss(p, data)), (params,), (direction,))[1]


def library_product(state, data):
    params, direction = state
    return curvature.hessian_vector_product(loss, params, data=data)(direction)


def curvatures(state, data):
    """What traces are made of: along a direction, and the exact one of the Gauss-Newton matrix."""
    params, direction = state
    squared_error = lambda outputs, y: 0.5 * jnp.mean(jnp.sum((outputs - y) ** 2, axis=1))
    return (
        curvature.second_derivative(loss, params, data)(direction),
        curvature.gauss_newton_trace(network, params, *data, squared_error),
    )


def kernel_of_outputs(params, data):
    """A mean of outer products, as class statistics and Fisher matrices are."""
    outputs = network(params, data[0])
    return outputs.T @ outputs / len(outputs)


MEANS = {
    "value and gradient": (jax.value_and_grad(loss), PARAMS),
    "Hessian product": (hessian_product, (PARAMS, DIRECTION)),
    "Hessian product of the library": (library_product, (PARAMS, DIRECTION)),
    "curvature along a direction, and its trace": (curvatures, (PARAMS, DIRECTION)),
    "second moment": (kernel_of_outputs, PARAMS),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("num_devices", "num_samples"), [(4, 3), (4, 27)])  # the rest: parity
@pytest.mark.parametrize("name", MEANS)
def test_every_engine_on_every_number_of_devices(x64, engine, num_devices, num_samples, name):
    fn, state = MEANS[name]
    data = INPUTS[:num_samples], TARGETS[:num_samples]
    devices = jax.local_devices()[:num_devices]
    spread = parallel.data_parallel(fn, engine=engine, devices=devices)
    expected = jax.jit(fn)(jax.tree.map(jnp.asarray, state), jax.tree.map(jnp.asarray, data))
    close = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
    jax.tree.map(close, spread(state, data), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_single_precision_and_repeated_calls(engine):
    spread = parallel.data_parallel(jax.grad(loss), engine=engine)
    params = jax.tree.map(jnp.float32, PARAMS)
    for start in (0, 5):
        data = jnp.float32(INPUTS[start:]), jnp.float32(TARGETS[start:])
        close = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        found = spread(params, data)
        jax.tree.map(close, found, jax.grad(loss)(params, data))
        assert {leaf.devices().pop() for leaf in jax.tree.leaves(found)} == {jax.devices()[0]}


def test_each_device_holds_its_share_of_the_samples():
    """On four devices a program sees a quarter of the samples: told by their number in it."""
    seen = []

    def count(_, data):
        seen.append(len(data))
        return jnp.mean(data)

    for engine in ("pmap", "shard_map"):
        parallel.data_parallel(count, engine=engine, devices=jax.devices()[:4])(0.0, jnp.ones(20))
    assert set(seen) == {5}


@pytest.mark.parametrize("engine", ENGINES)
def test_inside_a_program_each_device_has_its_share_and_the_rest_counts(engine):
    seen = []

    def watched(params, data):
        seen.append(len(data[0]))
        return loss(params, data)

    spread = parallel.data_parallel(watched, engine=engine)
    params = jax.tree.map(jnp.float32, PARAMS)
    data = jnp.float32(INPUTS), jnp.float32(TARGETS)  # 27 on 4 devices
    found = jax.jit(jax.grad(lambda params: spread(params, data)))(params)
    assert set(seen) == ({24, 3} if engine == "jit" else {6, 3})
    assert len(jax.tree.leaves(found)[0].devices()) == 4
    close = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, found, jax.grad(loss)(params, data))


def test_inside_a_member_of_an_ensemble_the_samples_stay_where_they_are():
    seen = []

    def watched(scale, x):
        seen.append(len(x))
        return jnp.mean(scale * x)

    spread, x = parallel.data_parallel(watched, engine="shard_map"), jnp.arange(8.0)
    for num_members in (1, 4):  # on one device, where nothing else tells of the ensemble, and four
        members = jnp.arange(float(num_members))
        found = parallel.ensemble(lambda scale: jax.grad(spread)(scale, x), members)
        np.testing.assert_allclose(found, jnp.full(num_members, 3.5))
    assert set(seen) == {8}


def test_a_state_that_one_device_holds_is_freed_by_device_get():
    spread = parallel.data_parallel(lambda offset, x: jnp.mean((x - offset) ** 2))
    x = jax.device_put(jnp.arange(8.0), jax.devices()[0])  # samples are freed without asking
    slope = jax.jit(jax.grad(lambda offset: spread(offset, x)))
    bound = spread(0.0, x)
    assert bound.committed
    with pytest.raises(ValueError, match="incompatible devices"):
        slope(bound)
    np.testing.assert_allclose(slope(jax.device_get(bound)), 2 * (17.5 - 3.5))


@hypothesis.given(num_samples=st.integers(1, 40), num_devices=st.integers(1, 4))
def test_the_order_of_the_samples_does_not_matter(num_samples, num_devices):
    x = np.linspace(-1, 1, num_samples, dtype=np.float32)
    spread = parallel.data_parallel(
        lambda power, x: jnp.mean(jnp.abs(x) ** power), devices=jax.devices()[:num_devices]
    )
    np.testing.assert_allclose(spread(3.0, x), spread(3.0, x[::-1].copy()), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: parallel.data_parallel(3), TypeError, "fn=3"),
        (lambda: parallel.data_parallel(loss, engine="ray"), ValueError, "engine='ray'"),
        (lambda: parallel.data_parallel(loss, devices=[]), ValueError, "devices"),
        (lambda: parallel.data_parallel(loss)(PARAMS, ()), ValueError, "data"),
        (lambda: parallel.data_parallel(loss)(PARAMS, (INPUTS, TARGETS[:3])), ValueError, "27"),
        (lambda: parallel.data_parallel(loss)(PARAMS, (INPUTS[:0], TARGETS[:0])), ValueError, "0"),
        (lambda: parallel.data_parallel(loss)(PARAMS, (1.0, 2.0)), ValueError, "data"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
