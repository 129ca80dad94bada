"""Curvature along a run, against measurements made one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dynamics.measure import curvature, curvature_trajectory
from dynamics.training import checkpoint, trajectory

TIMES = [0, 3, 5]


def loss(params, data):
    return jnp.mean((jnp.tanh(data[0] @ params["w"]) @ params["v"] - data[1]) ** 2)


@pytest.fixture
def problem(key):
    keys = jax.random.split(key, 4)
    params = {"w": jax.random.normal(keys[0], (3, 4)), "v": jax.random.normal(keys[1], (4,))}
    data = jax.random.normal(keys[2], (10, 3)), jax.random.normal(keys[3], (10,))
    step = lambda params: jax.tree.map(
        lambda at, slope: at - 0.1 * slope, params, jax.grad(loss)(params, data)
    )
    return params, data, step


@pytest.mark.usefixtures("x64")
def test_every_time_is_a_measurement_of_its_own(problem, key, tmp_path):
    params, data, step = problem
    params, data = jax.tree.map(lambda leaf: leaf.astype(float), (params, data))
    measure, memory = curvature_trajectory.follow_curvature(
        loss, params, key=key, num=2, num_trace_probes=3, num_density_probes=2,
        num_density_iterations=4, keep_vectors=True, data=data, batch_size=4,
        params_of=lambda params: params,
    )  # fmt: skip
    options = dict(times=TIMES, memory=memory)
    found = trajectory.record(step, params, measure, **options)
    at, unravel = params, ravel_pytree(params)[1]
    hessian_of = jax.jit(jax.hessian(lambda flat: loss(unravel(flat), data)))
    step, matrices = jax.jit(step), []
    for index, (begin, end) in enumerate(zip([0, *TIMES], TIMES, strict=False)):
        for _ in range(end - begin):
            at = step(at)
        hessian = np.asarray(hessian_of(ravel_pytree(at)[0]))
        matrices.append(hessian)
        np.testing.assert_allclose(found.loss[index], loss(at, data))
        np.testing.assert_allclose(
            found.sharpness[index], np.linalg.eigvalsh(hessian)[::-1][:2], atol=1e-10
        )
    assert found.density.nodes.shape == (3, 2, 4)
    assert found.trace.mean.shape == (3,)
    vectors = np.array(
        [np.linalg.eigh(matrix)[1][:, ::-1][:, :2].T for matrix in matrices]
    )  # (T, num, P)
    overlap = np.abs(np.einsum("tnp,tnp->tn", vectors[1:], vectors[:-1]))
    np.testing.assert_array_equal(found.overlap[0], 0)
    np.testing.assert_allclose(found.overlap[1:], overlap, atol=1e-6)
    chunked, *_ = checkpoint.record_in_chunks(
        step, params, measure, directory=tmp_path, chunk_size=2, **options
    )
    for one, other in zip(jax.tree.leaves(chunked), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_what_is_not_asked_for_is_not_measured(problem, key):
    params, data, _ = problem
    measure, memory = curvature_trajectory.follow_curvature(
        lambda params: loss(params, data), params, key=key, params_of=lambda params: params
    )
    found, vectors = measure(params, memory)
    assert found.trace is found.density is found.vectors is None
    cold = curvature.top_eigenpairs(lambda params: loss(params, data), params, key=key, num=1)
    np.testing.assert_allclose(found.sharpness, cold.values, rtol=1e-4)
    assert jax.tree.structure(vectors) == jax.tree.structure(params)
