"""Convolutions as products against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.measure import convolutions
from dynamics.models import convnet


@given(
    strides=st.tuples(*[st.integers(1, 2)] * 2),
    dilation=st.tuples(*[st.integers(1, 2)] * 2),
    spread=st.integers(1, 2),
    padding=st.sampled_from(["SAME", "VALID", [(2, 0), (1, 3)]]),
    layout=st.sampled_from([("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"),
                            ("NHWC", "OIHW", "NCHW")]),
    groups=st.sampled_from([1, 2]),
)  # fmt: skip
def test_any_convolution_is_its_product(strides, dilation, spread, padding, layout, groups):
    rng = np.random.default_rng(0)
    sizes = {"N": 2, "C": 4, "H": 6, "W": 7, "O": 6, "I": 4 // groups}
    draw = lambda names, **own: jnp.asarray(
        rng.normal(size=[(sizes | own)[name] for name in names]), jnp.float32
    )
    x, kernel = draw(layout[0]), draw(layout[1], H=3, W=2)
    if spread != 1 and isinstance(padding, str):  # XLA wants it in numbers then
        padding = [(1, 1), (0, 1)]
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, strides, padding, lhs_dilation=(spread, 1), rhs_dilation=dilation,
        dimension_numbers=layout, feature_group_count=groups, precision="highest",
    )  # fmt: skip
    found = convolutions.convolutions_as_products(convolve)
    np.testing.assert_allclose(found(x, kernel), convolve(x, kernel), rtol=1e-5, atol=1e-5)
    left = "conv_general_dilated" in str(jax.make_jaxpr(found)(x, kernel))
    assert left == (groups == 2)


@pytest.mark.usefixtures("x64")
def test_a_network_and_its_derivatives_stay_the_same(key):
    model = convnet.ConvNet(channels=(2, 3), num_outputs=2)
    x = jax.random.normal(key, (3, 4, 4, 1))
    params = jax.tree.map(lambda leaf: leaf.astype(float), model.init(key, x))
    twice = lambda params, x: {"sum": model.apply(params, x) + model.apply(params, 2 * x)}
    value = lambda fn: jax.jit(jax.value_and_grad(lambda p: jnp.sum(fn(p, x)["sum"] ** 2)))
    found = value(convolutions.convolutions_as_products(twice))(params)
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(value(twice)(params)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-11)
