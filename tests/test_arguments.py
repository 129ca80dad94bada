"""The checks of arguments: what is not known under a trace is granted, what is known is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import arguments


def test_values_that_are_not_known_are_granted():
    def checked(rate, label, count):
        arguments.positive(rate=rate)
        arguments.fractions(rate=rate)
        arguments.finite(rate=[rate, 1.0])
        arguments.labels(2, label=label)
        arguments.integers(1, count=count)
        return rate

    assert jax.jit(checked)(-1.0, 7, 0) == -1
    assert jax.vmap(checked)(jnp.array([-1.0]), jnp.array([7]), jnp.array([0])) == -1


def test_shapes_and_types_are_known_under_a_trace():
    with pytest.raises(ValueError, match=r"labels has shape \(2,\).* N = 3 as in features"):
        jax.jit(lambda x, y: arguments.shapes("N D, N", features=x, labels=y))(
            jnp.ones((3, 2)), jnp.ones(2)
        )
    with pytest.raises(TypeError, match="count"):
        jax.jit(lambda count: arguments.integers(count=count))(1.5)
    with pytest.raises(TypeError, match="labels: type float32"):
        jax.jit(lambda labels: arguments.labels(2, labels=labels))(jnp.ones(2))


def test_known_labels_are_looked_at_inside_a_compiled_function():
    labels = jnp.array([0, 2])
    with pytest.raises(ValueError, match="labels: from 0 to 2; give integers from 0 to 1"):
        jax.jit(lambda x: arguments.labels(2, labels=labels) or x)(1.0)


@pytest.mark.parametrize(
    ("spec", "shapes", "told"),
    [
        ("N D", [(3,)], r"a has shape \(3,\); give \(N, D\)"),
        ("N D", [(0, 2)], "not empty"),
        ("N _", [(3, 0)], None),
        ("N N", [(3, 2)], "N = 3 as in a"),
        ("... D, ... D", [(4, 1, 2), (5, 2)], None),
        ("... D, ... D", [(4, 2), (5, 2)], r"b has shape \(5, 2\); .* those of a"),
        ("N ..., N", [(3, 2, 1), (3,)], None),
        ("N ..., N", [(3, 0), (3,)], "not empty"),
        ("N 2", [(3, 1)], "give"),
        ("?N, N", [None, (3,)], None),
    ],
)
def test_specifications_of_shapes(spec, shapes, told):
    given = {
        name: None if shape is None else np.ones(shape)
        for name, shape in zip("ab", shapes, strict=False)
    }
    if told is None:
        arguments.shapes(spec, **given)
        return
    with pytest.raises(ValueError, match=told):
        arguments.shapes(spec, **given)


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)])
def test_keys_of_either_kind(key):
    arguments.keys(key=key)
    jax.jit(lambda key: arguments.keys(key=key))(key)
    with pytest.raises(ValueError, match="key has shape"):
        arguments.keys(key=jax.random.split(jax.random.key(0)))
